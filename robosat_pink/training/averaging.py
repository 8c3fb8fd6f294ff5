"""The average of the weights over training steps, which is evaluated and kept in their place. Used by `state`.

Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992; here with exponential weights, as in
Tarvainen, Valpola, "Mean teachers are better role models", arXiv 1703.01780.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

FIRST_STEPS = 10  # the first steps count for less: after step n, the decay is at most n / (n + FIRST_STEPS)


class AveragedModel:
    """A copy of a model, on its device, with the exponential moving average of its parameters and statistics."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights after a step. Does not wait for the device."""
        self.updates += 1
        weight = 1 - min(self.decay, self.updates / (self.updates + FIRST_STEPS))
        averages, values = (list(each.state_dict().values()) for each in (self.model, model))
        floats = [number for number, value in enumerate(values) if value.is_floating_point()]
        torch._foreach_lerp_([averages[number] for number in floats], [values[number] for number in floats], weight)
        for number in set(range(len(values))).difference(floats):  # counts
            averages[number].copy_(values[number])
