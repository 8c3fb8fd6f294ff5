"""One batch: to the device, forward, loss, backward, optimizer. Called by `loop`.

Nothing here asks the device for a number: whether a loss is one, the device itself decides, and passes over a batch
where it is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robosat_pink import memory
from robosat_pink.device import autocast
from robosat_pink.losses import IGNORE
from robosat_pink.models.recomputation import counting_nothing
from robosat_pink.sources import Batch
from robosat_pink.state import State, Task
from robosat_pink.transforms import EvaluationTransform


def set_training(model: nn.Module, is_frozen: bool) -> None:
    """Training mode; frozen batch norms normalise by the statistics they have, and keep them."""
    model.train()
    for module in model.modules() if is_frozen else ():
        if hasattr(module, "running_mean"):
            module.eval()


def training_step(state: State, task: Task, batch: Batch, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Learn from this process's share of a batch; `total` is how many tiles all processes have, at least one.

    The mean loss of the share, its logits and mask, and whether the batch was learnt from, a bool tensor: where the
    loss is not finite in some process, weights and statistics stay as they were in all of them.
    """
    statistics = [each for each in state.model.buffers() if each.is_floating_point()]
    before = torch.cat([each.flatten() for each in statistics]) if statistics else None
    if len(batch):
        image, mask = to_device(batch, task, task.training_transform)
        loss, logits = backward(state, task, image, mask, total)
    else:
        loss, logits, mask = backward_of_nothing(state, task)
    is_number = loss.isfinite()
    if task.world.size > 1:
        failures = (~is_number).float()
        task.world.add_up(failures)
        is_number = failures == 0
    if before is not None:
        kept = torch.where(is_number, torch.cat([each.flatten() for each in statistics]), before)
        for each, value in zip(statistics, torch.split(kept, [each.numel() for each in statistics]), strict=True):
            each.copy_(value.view_as(each))
    if state.scaler.is_enabled():  # it looks at the gradients, and passes over them itself
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        optimizer: Any = state.optimizer
        optimizer.found_inf = (~is_number).float()  # as a scaler tells a fused optimizer
        optimizer.step()
        del optimizer.found_inf
    return loss, logits, mask.masked_fill(~is_number, IGNORE), is_number


def backward(state: State, task: Task, image: Tensor, mask: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Fill in the gradients of a batch; its mean loss and its logits.

    Raises ContractError, with the settings that fit, where the memory does not suffice.
    """
    parts = task.config.runtime.accumulation
    try:
        return backward_in_parts(state, task, image, mask, total, parts)
    except Exception as error:
        if not memory.is_exhausted(error):
            raise
        reason = str(error)

    # Not before the error is gone, and what it held with it.
    def step(parts: int) -> None:
        moments = [torch.empty_like(each) for each in state.model.parameters() for _ in range(2)]  # Adam's, to come
        backward_in_parts(state, task, image, mask, total, parts)
        del moments

    size = (image.shape[2], image.shape[3])
    raise memory.explained(reason, len(image), size, parts, step if task.world.size == 1 else None)


def backward_in_parts(
    state: State, task: Task, image: Tensor, mask: Tensor, total: int, parts: int
) -> tuple[Tensor, Tensor]:
    """The gradients of a batch, added up over so many parts of it. Batch norm takes its statistics from each part.

    Processes average their gradients in the last part's backward, and so a part weighs as many times more.
    """
    state.optimizer.zero_grad(set_to_none=True)
    size = -(-len(image) // parts)
    images, masks = torch.split(image, size), torch.split(mask, size)
    losses, logits = [], []
    for number, (some, truth) in enumerate(zip(images, masks, strict=True), start=1):
        with task.world.without_averaging(task.network, number < len(images)):
            with autocast(task.device, task.autocast):
                found = task.network(some)
            loss = task.loss(found, truth)
            state.scaler.scale(loss * (len(some) * task.world.size / total)).backward()
        losses.append(loss.detach() * (len(some) / len(image)))
        logits.append(found.detach())
    return torch.stack(losses).sum(), torch.cat(logits)


def backward_of_nothing(state: State, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of 0 from a black tile: what a process without a share adds to the others'. It counts nowhere."""
    state.optimizer.zero_grad(set_to_none=True)
    size = task.config.model.tile_size
    image = torch.zeros(1, task.config.num_channels, size, size, device=task.device)
    image = image.contiguous(memory_format=task.memory_format)
    mask = torch.full((1, size, size), IGNORE, dtype=torch.uint8, device=task.device)
    with counting_nothing(state.model):
        with autocast(task.device, task.autocast):
            logits = task.network(image)
        loss = task.loss(logits, mask) * 0
        state.scaler.scale(loss).backward()
    return loss.detach(), logits.detach(), mask


def to_device(batch: Batch, task: Task, transform: EvaluationTransform) -> tuple[Tensor, Tensor]:
    """image (N, C, H, W) float32 normalised, mask (N, H, W) uint8, on the device."""
    image, mask, scale = (each.to(task.device, non_blocking=True) for each in (batch.image, batch.mask, batch.scale))
    image, mask = transform(image, mask, scale, batch.symmetry)
    return image.contiguous(memory_format=task.memory_format), mask
