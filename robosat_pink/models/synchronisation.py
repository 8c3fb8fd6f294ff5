"""Batch norm with statistics over the batches of all ranks. Called by `recomputation`; `setup` marks the norms.

Unlike torch's SyncBatchNorm it works on any device, and for any module with nn.BatchNorm2d's attributes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AXES = (0, 2, 3)


def synchronise(model: nn.Module) -> None:
    """Mark every batch norm of a network, so that its statistics are those of all ranks."""
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.is_synchronised = module.counts = True  # type: ignore[assignment]


def synchronised_batch_norm(features: Tensor, norm: Any, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Normalise (N, C, H, W) in training mode. If norm.counts is false, this rank adds nothing to the statistics.

    Updates the running statistics as nn.BatchNorm2d does, with the unbiased variance.
    """
    result: Tensor = _SynchronisedNorm.apply(  # type: ignore[no-untyped-call]
        features, norm.weight, norm.bias, running_mean, running_var, norm.momentum, norm.eps, norm.counts
    )
    return result


class _SynchronisedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        counts: bool,
    ) -> Tensor:
        local_mean, local_var = _statistics(features, gamma.dtype, eps)
        number = features.numel() // features.shape[1] * counts
        ours = torch.stack([local_mean, local_var, torch.full_like(local_mean, number)])
        gathered = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, ours)
        means, variances, numbers = torch.stack(gathered).unbind(1)  # (world size, C) each
        total = numbers.sum(0)
        mean = (means * numbers).sum(0) / total
        var = ((variances + (means - mean).square()) * numbers).sum(0) / total
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (total / (total - 1).clamp_(min=1)), momentum)
        invstd = (var + eps).rsqrt()
        ctx.save_for_backward(features, gamma, mean, invstd, total)
        ctx.counts = counts
        return _normalise(features, gamma, beta, mean, invstd)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, gamma, mean, invstd, total = ctx.saved_tensors
        grad_beta, grad_gamma = _parameter_gradients(grad, features, mean, invstd)
        sums = torch.stack([grad_beta, grad_gamma])
        dist.all_reduce(sums)
        if not ctx.counts:  # the statistics do not depend on these features
            sums.zero_()
        grad_features = _feature_gradient(grad, features, gamma, mean, invstd, sums, total)
        return grad_features, grad_gamma, grad_beta, None, None, None, None, None


# What each rank computes alone. On a GPU these are the kernels of nn.SyncBatchNorm, which read and write each tensor
# once; a compiler fuses the plain form by itself.


def _has_kernels(features: Tensor) -> bool:
    return features.is_cuda and not torch.compiler.is_compiling()


def _statistics(features: Tensor, dtype: torch.dtype, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, (C,) each."""
    if _has_kernels(features):
        mean, invstd = torch.batch_norm_stats(features, eps)  # with an eps of 0, a constant channel's would be wrong
        return mean, (invstd.pow(-2) - eps).clamp_(min=0)
    var, mean = torch.var_mean(features.to(dtype), AXES, correction=0)
    return mean, var


def _normalise(features: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
    if _has_kernels(features):
        return torch.batch_norm_elemt(features, gamma, beta, mean, invstd, 0.0)
    scale = gamma * invstd
    normed = features.to(gamma.dtype) * _wide(scale) + _wide(beta - mean * scale)
    return normed.to(features.dtype)


def _parameter_gradients(grad: Tensor, features: Tensor, mean: Tensor, invstd: Tensor) -> tuple[Tensor, Tensor]:
    """Of beta and gamma, (C,) each."""
    if _has_kernels(features):
        wanted = True, False, False
        grad_beta, grad_scale, *_ = torch.batch_norm_backward_reduce(grad, features, mean, invstd, None, *wanted)
        return grad_beta, grad_scale * invstd
    grad = grad.to(mean.dtype)
    normed = (features.to(mean.dtype) - _wide(mean)) * _wide(invstd)
    return grad.sum(AXES), (grad * normed).sum(AXES)


def _feature_gradient(
    grad: Tensor, features: Tensor, gamma: Tensor, mean: Tensor, invstd: Tensor, sums: Tensor, total: Tensor
) -> Tensor:
    """`sums` (2, C) has the gradients of beta and gamma, summed over the ranks; `total` (C,) the number of pixels."""
    if _has_kernels(features):
        sum_beta, sum_scale = sums[0], sums[1] / invstd
        return torch.batch_norm_backward_elemt(
            grad, features, mean, invstd, gamma, sum_beta, sum_scale, total[:1].to(torch.int32)
        )
    mean_grad, mean_product = sums / total
    normed = (features.to(mean.dtype) - _wide(mean)) * _wide(invstd)
    grad_features = (grad.to(mean.dtype) - _wide(mean_grad) - normed * _wide(mean_product)) * _wide(gamma * invstd)
    return grad_features.to(features.dtype)


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]
