"""A weighted sum of losses. Called by `build_loss`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightedSum(nn.Module):
    """The sum weights[a] * losses[a] + weights[b] * losses[b] + …, from logits (N, K, H, W) and mask (N, H, W)."""

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        assert losses.keys() == weights.keys()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights)

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        return torch.stack([self.weights[name] * loss(logits, mask) for name, loss in self.losses.items()]).sum()
