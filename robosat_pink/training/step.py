"""One batch: to the device, forward, loss, and in training backward and optimizer. Called by `loop`.

Nothing here asks the device for a number: whether a loss is one, the device itself decides, and passes over a batch
where it is not.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robosat_pink.container.device import autocast
from robosat_pink.datasets.batch import Batch
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.losses import IGNORE
from robosat_pink.models.recomputation import counting_nothing
from robosat_pink.training import out_of_memory
from robosat_pink.training.state import State, Task


def set_training(model: nn.Module, is_frozen: bool) -> None:
    """Training mode; frozen batch norms normalise by the statistics they have, and keep them."""
    model.train()
    for module in model.modules() if is_frozen else ():
        if hasattr(module, "running_mean"):
            module.eval()


def training_step(state: State, task: Task, batch: Batch, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Learn from this process's share of a batch; `total` is how many tiles all processes have, at least one.

    The mean loss of the share, its logits and mask, and whether the batch was learnt from, a bool tensor: where the
    loss is not finite in some process, weights and statistics stay as they were in all of them. Raises ContractError,
    with the settings that fit, where the memory does not suffice.
    """
    size = task.config.model.tile_size
    learn = partial(training_step_in_parts, state, task, batch, total)
    # Adam cannot go on with half of its moments, where the memory ended while it made them.
    return out_of_memory.explained(
        task.config, task.world.size, max(len(batch), 1), (size, size), learn, forget=state.optimizer.state.clear
    )


def training_step_in_parts(
    state: State, task: Task, batch: Batch, total: int, parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A training step whose batch is computed in so many parts, one after the other."""
    statistics = [each for each in state.model.buffers() if each.is_floating_point()]
    before = torch.cat([each.flatten() for each in statistics]) if statistics else None
    if len(batch):
        image, mask = to_device(batch, task, task.training_transform)
        loss, logits = backward(state, task, image, mask, total, parts)
    else:
        loss, logits, mask = backward_of_nothing(state, task)
    is_number = loss.isfinite()
    if task.world.size > 1:
        failures = (~is_number).float()
        task.world.all_reduce_sum(failures)
        is_number = failures == 0
    if before is not None:
        kept = torch.where(is_number, torch.cat([each.flatten() for each in statistics]), before)
        for each, value in zip(statistics, torch.split(kept, [each.numel() for each in statistics]), strict=True):
            each.copy_(value.view_as(each))
    if state.scaler.is_enabled():  # it passes over gradients that are no numbers, but does not know of the loss
        gradient = next(each.grad for each in state.model.parameters() if each.grad is not None)
        gradient.masked_fill_(~is_number, torch.nan)
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        optimizer: Any = state.optimizer
        optimizer.found_inf = (~is_number).float()  # as a scaler tells a fused optimizer
        optimizer.step()
        del optimizer.found_inf
    return loss, logits, mask.masked_fill(~is_number, IGNORE), is_number


def evaluation_step(state: State, task: Task, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss of a batch of whole tiles, its logits and mask.

    Raises ContractError, with the settings that fit, where the memory does not suffice.
    """

    def evaluate(parts: int) -> tuple[Tensor, Tensor, Tensor]:
        image, mask = to_device(batch, task, task.evaluation_transform)
        found = [forward(state.model, task, *part) for part in in_parts(parts, image, mask)]
        return *together(found), mask

    size = (batch.image.shape[2], batch.image.shape[3])
    return out_of_memory.explained(task.config, task.world.size, len(batch), size, evaluate)


def backward(state: State, task: Task, image: Tensor, mask: Tensor, total: int, parts: int) -> tuple[Tensor, Tensor]:
    """Fill in the gradients of a batch, added up over so many parts of it; its mean loss and its logits.

    Batch norm takes its statistics from each part. Processes average their gradients in the last part's backward, and
    so a part weighs as many times more.
    """
    state.optimizer.zero_grad(set_to_none=True)
    found = []
    pairs = in_parts(parts, image, mask)
    for number, (some, truth) in enumerate(pairs, start=1):
        is_last = number == len(pairs)
        with task.world.no_sync(task.network, not is_last), compiled_or_not(task, len(some)):
            loss, logits = forward(task.network, task, some, truth)
            state.scaler.scale(loss * (len(some) * task.world.size / total)).backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), logits.detach()))
    return together(found)


def backward_of_nothing(state: State, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of 0 from a black tile: what a process without a share adds to the others'. It counts nowhere."""
    state.optimizer.zero_grad(set_to_none=True)
    size = task.config.model.tile_size
    image = torch.zeros(1, task.config.num_channels, size, size, device=task.device)
    image = image.contiguous(memory_format=task.memory_format)
    mask = torch.full((1, size, size), IGNORE, dtype=torch.uint8, device=task.device)
    with counting_nothing(state.model), compiled_or_not(task, 0):
        loss, logits = forward(task.network, task, image, mask)
        loss = loss * 0
        state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach(), logits.detach(), mask


def to_device(batch: Batch, task: Task, transform: EvaluationTransform) -> tuple[Tensor, Tensor]:
    """image (N, C, H, W) float32 normalised, mask (N, H, W) uint8, on the device."""
    image, mask, scale = (each.to(task.device, non_blocking=True) for each in (batch.image, batch.mask, batch.scale))
    image, mask = transform(image, mask, scale, batch.symmetry)
    return image.contiguous(memory_format=task.memory_format), mask


def forward(network: nn.Module, task: Task, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss and the logits (N, K, H, W)."""
    with autocast(task.device, task.autocast):
        logits = network(image)
    return task.loss(logits, mask), logits


def compiled_or_not(task: Task, samples: int) -> contextlib.AbstractContextManager[Any]:
    """Where the network is compiled, it is for as many samples as almost all steps have in this process.

    Another number, as an epoch's last batch has, would take a minute or more of compiling, too; it computes as if there
    were no compiler.
    """
    if not task.config.runtime.compile:
        return contextlib.nullcontext()
    batch = range(min(task.config.model.batch_size, len(task.split.train)))
    share = len(batch[task.world.rank :: task.world.size])
    is_usual = samples in sizes_of_parts(share, task.config.runtime.accumulation)
    return torch.compiler.set_stance("default" if is_usual else "force_eager")


def sizes_of_parts(samples: int, parts: int) -> set[int]:
    """How many samples are in the parts that `in_parts` makes."""
    size = -(-samples // parts)
    return {size, samples % size or size} if samples else set()


def in_parts(parts: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors of a batch in at most so many parts."""
    size = -(-len(tensors[0]) // parts)
    return list(zip(*(torch.split(each, size) for each in tensors), strict=True))


def together(found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The mean loss and the logits of a batch, from those of its parts."""
    logits = torch.cat([each for _, each in found])
    losses = [loss * (len(each) / len(logits)) for loss, each in found]
    return torch.stack(losses).sum(), logits
