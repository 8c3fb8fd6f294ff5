"""Chooses what backward recomputes: for `auto`, norms, and only if keeping them does not fit. Called by `run`, `check`.

Recomputing norms costs an H100 7 % of a step, and halves what a forward pass keeps.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robosat_pink.config import Config
from robosat_pink.container.log_lines import IN_LOG
from robosat_pink.container.quantities import size as size_in_words
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.models.recomputation import Recompute
from robosat_pink.training.task import Compute

log = logging.getLogger(__name__)

USABLE_SHARE = 0.9  # of a GPU's memory; the driver, and others on the GPU, have the rest
# Measured on one H200 in bfloat16 (docs/performance.md): a step's peak is 1.07 to 1.1 times what backward keeps.
PEAK_PER_KEPT = 1.25
LOSS_BYTES_PER_LOGIT = 28  # lovasz and cross entropy, measured: 28 with one class, 22 a class with 10
WORKSPACE_BYTES = 2**30  # of cuDNN, while it tries its algorithms


def choose_recompute(model: nn.Module, execution: Execution, config: Config, compute: Compute) -> None:
    """Set the execution of every block of a model on the CPU, with the recomputation that the experiment asks for."""
    recompute = config.runtime.recompute
    if recompute == "auto":
        memory = torch.cuda.get_device_properties(compute.device).total_memory if compute.device.type == "cuda" else 0
        recompute = fitting_recompute(model, execution, config, compute, memory)
    choose_execution(model, dataclasses.replace(execution, recompute=recompute))


def fitting_recompute(
    model: nn.Module, execution: Execution, config: Config, compute: Compute, memory_bytes: int
) -> Recompute:
    """`none` if a step on a GPU with so much memory can keep everything, `norms` elsewhere.

    The choice depends on the GPU's whole memory, not on what is free: the same machine gives the same result.
    """
    if compute.device.type != "cuda":
        return "norms"
    samples = math.ceil(config.model.batch_size / compute.world.size / config.runtime.accumulation)
    size = config.model.tile_size
    kept = kept_bytes(model, execution, (samples, config.num_channels, size, size), compute.precision)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    copies = 5 if config.model.ema else 4  # weights, gradients, Adam's two moments, the average
    kept += LOSS_BYTES_PER_LOGIT * samples * max(config.num_classes, 1) * size**2
    needed = PEAK_PER_KEPT * kept + copies * parameters + WORKSPACE_BYTES
    fits = needed <= USABLE_SHARE * memory_bytes
    log.info(
        "runtime.recompute = %s: without it, a step needs about %s of the GPU's %s",
        "none" if fits else "norms",
        size_in_words(needed),
        size_in_words(memory_bytes),
        extra=IN_LOG,
    )
    return "none" if fits else "norms"


def kept_bytes(
    model: nn.Module, execution: Execution, shape: tuple[int, int, int, int], precision: torch.dtype | None
) -> int:
    """What a forward pass of images (N, C, H, W) keeps for backward if that recomputes nothing, parameters aside.

    Computed on torch's meta device, which has shapes and no memory, in float32, and scaled to `precision`.
    """
    choose_execution(model, dataclasses.replace(execution, recompute="none"))
    on_meta = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    permanent = {_storage(tensor) for tensor in on_meta.values()}
    kept: dict[int, Tensor] = {}  # by storage; keeping the tensors keeps these numbers unique

    def pack(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    was_training = model.training
    model.eval()  # saves the same tensors, and changes no running statistics
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional_call(model, on_meta, (torch.empty(shape, device="meta"),))
    model.train(was_training)
    nbytes = sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in permanent)
    return nbytes * (precision or torch.float32).itemsize // 4


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
