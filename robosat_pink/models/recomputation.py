"""Convolutions that keep less for the backward pass and recompute the rest. Called by `Execution` and the networks.

Outputs are those of the plain modules, gradients are exact, and norm + activation keep half the memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from robosat_pink.models.synchronisation import synchronised_batch_norm

# Autograd keeps the input of every convolution. If the input is an activated norm, a concatenation or an upsampled
# tensor, it is cheap to recompute from tensors that are kept anyway. So are a derived kernel and a half-precision copy.
# Compare Rota Bulò, Porzi, Kontschieder, "In-Place Activated BatchNorm", arXiv 1712.02616: that method inverts
# activation and norm instead, which needs weights of another form.

Recompute = Literal["none", "norms", "blocks"]
Upsampling = Literal["none", "plain", "transposed"]

_is_recomputing: ContextVar[bool] = ContextVar("_is_recomputing", default=False)


def batch_norm(features: Tensor, norm: Any) -> Tensor:
    """nn.BatchNorm2d's forward on (N, C, H, W), except that recomputation does not update running statistics again.

    A norm marked by `synchronise` takes its statistics over all ranks.
    """
    if norm.training and getattr(norm, "is_synchronised", False):
        return synchronised_batch_norm(features, norm, *_running_statistics(norm))
    settings = norm.training, norm.momentum, norm.eps
    return functional.batch_norm(features, *_running_statistics(norm), norm.weight, norm.bias, *settings)


def norm_act_conv(features: Tensor, norm: Any, slope: float, conv: nn.Conv2d) -> Tensor:
    """conv(leaky_relu(batch_norm(features))): (N, C, H, W) to (N, O, H', W'). A slope of 0 is ReLU."""
    if norm.training and getattr(norm, "is_synchronised", False):
        return cat_conv((functional.leaky_relu(batch_norm(features, norm), slope, inplace=True),), conv)
    settings = norm.training, norm.momentum, norm.eps, slope, conv.stride, conv.padding
    statistics = _running_statistics(norm)
    result: Tensor = _NormActConv.apply(features, norm.weight, norm.bias, *statistics, conv.weight, conv.bias, settings)  # type: ignore[no-untyped-call]
    return result


def cat_conv(parts: tuple[Tensor, ...], conv: nn.Conv2d, upsampling: Upsampling = "none") -> Tensor:
    """conv of parts (N, C, H, W), concatenated along C and, unless `upsampling` is none, upsampled by 2 (nearest)."""
    result: Tensor = _CatConv.apply(conv.weight, conv.bias, (upsampling, conv.stride, conv.padding), *parts)  # type: ignore[no-untyped-call]
    return result


def recomputed_in_backward(block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """block(*inputs). Only the inputs are kept for the backward pass, which recomputes the whole block."""
    if not torch.is_grad_enabled():
        return block(*inputs)
    result: Tensor = checkpoint(
        block, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=_forward_contexts
    )
    return result


@contextlib.contextmanager
def without_statistics(model: nn.Module) -> Iterator[None]:
    """A context for forward and backward on a rank without a tile: batch norms leave this rank out of their statistics.

    The flag is an attribute of the norms, not a context variable, because on a GPU backward runs in another thread.
    """
    norms: list[Any] = [module for module in model.modules() if hasattr(module, "running_mean")]
    training = [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.counts = False
            norm.training &= getattr(norm, "is_synchronised", False)  # synchronised norms need every rank
        yield
    finally:
        for norm, was_training in zip(norms, training, strict=True):
            norm.training, norm.counts = was_training, True


def conv_of(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    upsampling: Upsampling,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """A convolution of (N, C, H, W); with `upsampling`, a padded 3 x 3 one of the input upsampled by 2 (nearest).

    After upsampling, each output pixel depends on 2 x 2 input pixels, some of them more than once. The transposed form
    adds the weights of the same pixel first: it needs 4 products instead of 9, and no upsampled tensor. Only rounding
    differs.
    """
    assert upsampling == "none" or (weight.shape[2:], stride, padding) == ((3, 3), (1, 1), (1, 1))
    if upsampling == "transposed":
        return functional.conv_transpose2d(features, _boxed(weight), bias, stride=2, padding=1)
    if upsampling == "plain":
        features = functional.interpolate(features, scale_factor=2, mode="nearest")
    return functional.conv2d(features, weight, bias, stride, padding)


class _NormActConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[bool, float, float, float, tuple[int, int], tuple[int, int]],
    ) -> Tensor:
        training, momentum, eps, slope, stride, padding = settings
        dtype = _compute_dtype(features)
        with _autocast_off(features):
            activated, mean, invstd = torch.native_batch_norm(
                features, gamma, beta, running_mean, running_var, training, momentum, eps
            )
            if not training:
                mean, invstd = running_mean, (running_var + eps).rsqrt()
            functional.leaky_relu_(activated, slope)
            result = functional.conv2d(activated.to(dtype), weight.to(dtype), _to(bias, dtype), stride, padding)
        ctx.save_for_backward(features, gamma, beta, mean, invstd, weight)
        ctx.settings, ctx.has_bias = settings, bias is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, gamma, beta, mean, invstd, weight = ctx.saved_tensors
        training, _, eps, slope, stride, padding = ctx.settings
        var = invstd.pow(-2) - eps
        activated = torch.native_batch_norm(features, gamma, beta, mean, var, False, 0.0, eps)[0]
        functional.leaky_relu_(activated, slope)
        wanted = (True, ctx.needs_input_grad[5], ctx.has_bias)
        grad_activated, grad_weight, grad_bias = _conv_backward(grad, activated, weight, wanted, stride, padding)
        grad_normed = torch.ops.aten.leaky_relu_backward(grad_activated.to(features.dtype), activated, slope, True)
        grad_features, grad_gamma, grad_beta = torch.ops.aten.native_batch_norm_backward(
            grad_normed, features, gamma, mean, var, mean, invstd, training, eps, (True, True, True)
        )
        return grad_features, grad_gamma, grad_beta, None, None, grad_weight, grad_bias, None


class _CatConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[Upsampling, tuple[int, int], tuple[int, int]],
        *parts: Tensor,
    ) -> Tensor:
        dtype = _compute_dtype(parts[0])
        with _autocast_off(parts[0]):
            result = conv_of(_concatenated(parts, dtype), weight.to(dtype), _to(bias, dtype), *settings)
        ctx.save_for_backward(weight, *parts)
        ctx.settings, ctx.has_bias = settings, bias is not None
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *parts = ctx.saved_tensors
        upsampling, stride, padding = ctx.settings
        features = _concatenated(parts, grad.dtype)
        wanted = (any(ctx.needs_input_grad[3:]), ctx.needs_input_grad[0], ctx.has_bias)
        if upsampling == "transposed":
            kernel = _boxed(weight.to(grad.dtype))  # not kept: AlbuNet's would take 98 MB in float32
            grad_features, grad_weight, grad_bias = _conv_backward(grad, features, kernel, wanted, (2, 2), (1, 1), True)
            grad_weight = _unboxed(grad_weight.to(weight.dtype)) if wanted[1] else None
        else:
            if upsampling == "plain":
                features = functional.interpolate(features, scale_factor=2, mode="nearest")
            grad_features, grad_weight, grad_bias = _conv_backward(grad, features, weight, wanted, stride, padding)
            if upsampling == "plain" and wanted[0]:
                grad_features = functional.avg_pool2d(grad_features, 2, divisor_override=1)
        sizes = [part.shape[1] for part in parts]
        grad_parts = torch.split(grad_features, sizes, dim=1) if wanted[0] else [None] * len(parts)
        return (
            grad_weight,
            grad_bias,
            None,
            *(_to(grad_part, part.dtype) for grad_part, part in zip(grad_parts, parts, strict=True)),
        )


def _conv_backward(
    grad: Tensor,
    features: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    stride: tuple[int, int],
    padding: tuple[int, int],
    is_transposed: bool = False,
) -> tuple[Tensor, Any, Any]:
    """Gradients of features, weight and bias, computed in the dtype of `grad`; the last two have the weight's dtype."""
    dtype = grad.dtype
    num_out = weight.shape[1 if is_transposed else 0]
    grad_features, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad,
        features.to(dtype),
        weight.to(dtype),
        [num_out] if wanted[2] else None,
        stride,
        padding,
        (1, 1),
        is_transposed,
        (0, 0),
        1,
        wanted,
    )
    return grad_features, _to(grad_weight, weight.dtype), _to(grad_bias, weight.dtype)


def _boxed(weight: Tensor) -> Tensor:
    """The kernel (C, O, 4, 4) of the transposed form: (O, C, 3, 3) rotated by 180° and convolved with a 2 x 2 box."""
    for axis in (2, 3):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack([last, middle + last, first + middle, first], axis)
    return weight.transpose(0, 1)


def _unboxed(grad: Tensor) -> Tensor:
    """The backward of `_boxed`: the gradient (C, O, 4, 4) of its result to that (O, C, 3, 3) of its argument."""
    grad = grad.transpose(0, 1)
    for axis in (3, 2):
        first, second, third, fourth = grad.unbind(axis)
        grad = torch.stack([third + fourth, second + third, first + second], axis)
    return grad


def _running_statistics(norm: Any) -> tuple[Tensor, Tensor]:
    """Running mean and variance; copies during recomputation, so that they are updated only once."""
    if norm.training and not torch.compiler.is_compiling() and _is_recomputing.get():
        return norm.running_mean.clone(), norm.running_var.clone()
    if norm.training and hasattr(norm, "num_batches_tracked"):
        norm.num_batches_tracked.add_(1)
    return norm.running_mean, norm.running_var


def _concatenated(parts: Any, dtype: torch.dtype) -> Tensor:
    return torch.cat([part.to(dtype) for part in parts], dim=1) if len(parts) > 1 else parts[0].to(dtype)


def _to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _compute_dtype(features: Tensor) -> torch.dtype:
    kind = features.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype


def _autocast_off(features: Tensor) -> torch.autocast:
    return torch.autocast(features.device.type, enabled=False)


def _forward_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _recomputing()


@contextlib.contextmanager
def _recomputing() -> Iterator[None]:
    token = _is_recomputing.set(True)
    try:
        yield
    finally:
        _is_recomputing.reset(token)
