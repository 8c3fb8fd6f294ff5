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
        wide = features.to(gamma.dtype)
        local_var, local_mean = torch.var_mean(wide, AXES, correction=0)
        number = wide.numel() // wide.shape[1] * counts
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
        scale = gamma * invstd
        normed = wide * _wide(scale) + _wide(beta - mean * scale)
        return normed.to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, gamma, mean, invstd, total = ctx.saved_tensors
        grad = grad.to(gamma.dtype)
        normed = (features.to(gamma.dtype) - _wide(mean)) * _wide(invstd)
        grad_beta, grad_gamma = grad.sum(AXES), (grad * normed).sum(AXES)
        sums = torch.stack([grad_beta, grad_gamma])
        dist.all_reduce(sums)
        mean_grad, mean_product = sums / total
        if not ctx.counts:  # the statistics do not depend on these features
            mean_grad, mean_product = torch.zeros_like(sums)
        grad_features = (grad - _wide(mean_grad) - normed * _wide(mean_product)) * _wide(gamma * invstd)
        return grad_features.to(features.dtype), grad_gamma, grad_beta, None, None, None, None, None


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]
