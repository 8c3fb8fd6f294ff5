"""One batch: forward, loss, and in training backward and the optimizer's step. Called by `loop`.

A training step never waits for the device: the device itself skips a batch whose loss is non-finite.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robosat_pink.container.device import autocast
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.loader import crops_of_an_epoch
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.losses import IGNORE
from robosat_pink.models.recomputation import without_statistics
from robosat_pink.training import out_of_memory
from robosat_pink.training.state import State
from robosat_pink.training.task import Compute, Task


def set_training_mode(model: nn.Module, is_frozen: bool) -> None:
    """Set training mode. If `is_frozen`, batch norms use their running statistics, and do not update them."""
    model.train()
    if is_frozen:
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.eval()


def training_step(state: State, task: Task, batch: Batch, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Learn from this rank's share of a batch of `samples` tiles (at least one) over all ranks.

    Returns the share's mean loss (), logits (N, K, H, W), mask (N, H, W) and `is_finite` (), bool. If the loss of any
    rank is non-finite, weights and statistics stay as they were on all ranks. Raises ContractError, with settings to
    try, if the device runs out of memory.
    """
    return out_of_memory.with_advice(
        task.config,
        task.compute.world.size,
        max(len(batch), 1),
        (task.config.model.tile_size, task.config.model.tile_size),
        partial(learn, state, task, batch, samples),
        # Adam cannot continue if memory ran out when only some of its moments were created.
        before_retry=state.optimizer.state.clear,
    )


def learn(
    state: State, task: Task, batch: Batch, samples: int, micro_batches: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step itself: batch to the device, forward and backward by micro-batches, the optimizer's step."""
    compute = task.compute
    statistics = [buffer for buffer in state.model.buffers() if buffer.is_floating_point()]
    before = torch.cat([buffer.flatten() for buffer in statistics]) if statistics else None
    if len(batch):
        image, mask = to_device(batch, task.data.training_transform, compute)
        loss, logits = backward(state, task, image, mask, samples, micro_batches)
    else:
        loss, logits, mask = backward_without_tiles(state, task)
    is_finite = loss.isfinite()
    if compute.world.size > 1:
        failures = (~is_finite).float()
        compute.world.all_reduce_sum(failures)
        is_finite = failures == 0
    if before is not None:
        reset_unless(is_finite, statistics, before)
    optimizer_step(state, is_finite)
    if state.average:
        state.average.update(state.model)
    return loss, logits, mask.masked_fill(~is_finite, IGNORE), is_finite


def reset_unless(is_finite: Tensor, statistics: list[Tensor], before: Tensor) -> None:
    """Restore batch norm's statistics from `before`, their earlier values, flattened, unless the loss is finite."""
    kept = torch.where(is_finite, torch.cat([buffer.flatten() for buffer in statistics]), before)
    values = torch.split(kept, [buffer.numel() for buffer in statistics])
    for buffer, value in zip(statistics, values, strict=True):
        buffer.copy_(value.view_as(buffer))


def optimizer_step(state: State, is_finite: Tensor) -> None:
    """The step of the optimizer, which the device skips if the loss is non-finite."""
    if state.scaler.is_enabled():  # the scaler skips non-finite gradients, but does not see the loss
        gradient = next(parameter.grad for parameter in state.model.parameters() if parameter.grad is not None)
        gradient.masked_fill_(~is_finite, torch.nan)
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        optimizer: Any = state.optimizer
        optimizer.found_inf = (~is_finite).float()  # a scaler sets it, too, so that a fused optimizer skips the step
        optimizer.step()
        del optimizer.found_inf


def backward(
    state: State, task: Task, image: Tensor, mask: Tensor, samples: int, micro_batches: int
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradients of a batch over its micro-batches. Returns the share's mean loss and its logits.

    Batch norm takes its statistics from each micro-batch. DistributedDataParallel averages the ranks' gradients in the
    last backward, so the loss is multiplied by the world size.
    """
    state.optimizer.zero_grad(set_to_none=True)
    world, model, loss_function = task.compute.world, task.objective.wrapped_model, task.objective.loss
    outputs = []
    pairs = split_into_micro_batches(micro_batches, image, mask)
    for number, (images, masks) in enumerate(pairs, start=1):
        is_last = number == len(pairs)
        averaging = contextlib.nullcontext() if is_last else world.no_sync(model)
        with averaging, compile_stance(task, len(images)):
            loss, logits = forward(model, loss_function, task.compute, images, masks)
            weight = len(images) * world.size / samples
            state.scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        outputs.append((loss.detach(), logits.detach()))
    return merge_micro_batches(outputs)


def backward_without_tiles(state: State, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Compute zero gradients on a rank without samples: DistributedDataParallel needs a backward on every rank.

    They come from an all-zero tile whose mask is all 255. Returns loss, logits and mask.
    """
    state.optimizer.zero_grad(set_to_none=True)
    size, compute = task.config.model.tile_size, task.compute
    image = torch.zeros(1, task.config.num_channels, size, size, device=compute.device)
    image = image.contiguous(memory_format=compute.memory_format)
    mask = torch.full((1, size, size), IGNORE, dtype=torch.uint8, device=compute.device)
    with without_statistics(state.model), compile_stance(task, 0):
        loss, logits = forward(task.objective.wrapped_model, task.objective.loss, compute, image, mask)
        loss = loss * 0
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), logits.detach(), mask


def evaluation_step(model: nn.Module, task: Task, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss of a batch of whole tiles, its logits (N, K, H, W) and mask (N, H, W).

    Raises ContractError, with settings to try, if the device runs out of memory.
    """

    def evaluate(micro_batches: int) -> tuple[Tensor, Tensor, Tensor]:
        image, mask = to_device(batch, task.data.evaluation_transform, task.compute)
        pairs = split_into_micro_batches(micro_batches, image, mask)
        outputs = [forward(model, task.objective.loss, task.compute, *pair) for pair in pairs]
        return *merge_micro_batches(outputs), mask

    size = (batch.image.shape[2], batch.image.shape[3])
    return out_of_memory.with_advice(task.config, task.compute.world.size, len(batch), size, evaluate)


def to_device(batch: Batch, transform: EvaluationTransform, compute: Compute) -> tuple[Tensor, Tensor]:
    """image (N, C, H, W) float32, normalised, and mask (N, H, W) uint8, on the device."""
    image, mask, scale = (
        tensor.to(compute.device, non_blocking=True) for tensor in (batch.image, batch.mask, batch.scale)
    )
    image, mask = transform(image, mask, scale, batch.symmetry)
    return image.contiguous(memory_format=compute.memory_format), mask


def forward(
    model: nn.Module, loss_function: nn.Module, compute: Compute, image: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean loss and the logits (N, K, H, W)."""
    with autocast(compute.device, compute.precision):
        logits = model(image)
    return loss_function(logits, mask), logits


@contextlib.contextmanager
def compile_stance(task: Task, samples: int) -> Iterator[None]:
    """With runtime.compile, use the compiled model for micro-batches with a usual number of tiles.

    Another number, such as that of an epoch's last batch, runs eagerly: compiling for it would take another minute.
    """
    if not task.config.runtime.compile:
        yield
        return
    is_usual = samples in usual_sizes(task)
    with torch.compiler.set_stance("default" if is_usual else "force_eager"):
        yield
    if is_usual:
        task.objective.compiled_sizes.add(samples)


def compiles(task: Task, batch: Batch) -> bool:
    """Whether the training step of this batch first compiles the model."""
    if not task.config.runtime.compile:
        return False
    sizes = micro_batch_sizes(len(batch), task.config.runtime.accumulation) & usual_sizes(task)
    return not sizes <= task.objective.compiled_sizes


def usual_sizes(task: Task) -> set[int]:
    """The numbers of tiles in this rank's micro-batches of a whole batch."""
    world = task.compute.world
    crops = crops_of_an_epoch(len(task.data.split.train), task.config.sampling.tiles_per_epoch)
    batch = range(min(task.config.model.batch_size, crops))
    share = len(batch[world.rank :: world.size])
    return micro_batch_sizes(share, task.config.runtime.accumulation)


def micro_batch_sizes(samples: int, micro_batches: int) -> set[int]:
    """The sizes of the micro-batches into which `split_into_micro_batches` splits `samples`."""
    if not samples:
        return set()
    size = math.ceil(samples / micro_batches)
    return {size, samples % size or size}


def split_into_micro_batches(micro_batches: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Split the tensors of a batch along N into at most `micro_batches`."""
    size = math.ceil(len(tensors[0]) / micro_batches)
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def merge_micro_batches(outputs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The mean loss and the logits of a batch, from those of its micro-batches."""
    merged = torch.cat([logits for _, logits in outputs])
    losses = [loss * (len(logits) / len(merged)) for loss, logits in outputs]
    return torch.stack(losses).sum(), merged
