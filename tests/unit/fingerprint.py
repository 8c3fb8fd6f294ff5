"""Numbers that the reference implementations give for known weights and a known input; see tests/data/README.md."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robosat_pink.losses import build_loss

DATA = Path(__file__).parents[1] / "data"


class Fingerprint:
    def __init__(self, name: str) -> None:
        self.facts: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text())
        with np.load(DATA / f"{name}.npz") as logits:
            self.eval_logits = torch.from_numpy(logits["eval_logits"])
            self.train_logits = torch.from_numpy(logits["train_logits"])

    def weights(self) -> dict[str, torch.Tensor]:
        return {key: torch.from_numpy(self._weight(i, key, shape, dtype)) for i, (key, shape, dtype) in self._entries()}

    def _entries(self) -> Any:
        return enumerate(self.facts["state_dict"])

    def _weight(self, number: int, key: str, shape: list[int], dtype: str) -> np.ndarray:
        if dtype == "int64":
            return np.zeros(shape, dtype=np.int64)
        wave = np.sin(0.7390851332 * np.arange(int(np.prod(shape))) + 1.3247179572 * number).reshape(shape)
        if len(shape) >= 2:
            return wave * self.facts["amplitude"] / np.sqrt(np.prod(shape[1:]))
        if key.endswith("running_var"):
            return 1 + 0.1 * np.abs(wave)
        if key.endswith(".weight"):
            return 1 + 0.1 * wave
        return 0.1 * wave

    def image(self) -> torch.Tensor:
        """(2, C, 128, 128) float64."""
        channel, y, x = np.ogrid[: self.facts["input_channels"], :128, :128]
        first = 0.5 + 0.5 * np.sin(0.11 * y * (1 + channel) + 0.07 * x + channel)
        return torch.from_numpy(np.stack([first, 0.5 * first]))

    def mask(self) -> torch.Tensor:
        """(2, 128, 128) uint8."""
        y, x = np.ogrid[:128, :128]
        return torch.from_numpy(np.stack([np.sin(0.09 * x) + np.cos(0.05 * y) > 0.3, y > x]).astype(np.uint8))

    def check(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        tolerance: float,
        eval_tolerance: float | None = None,
        unused: tuple[str, ...] = (),
        device: str = "cpu",
    ) -> None:
        """Logits in both modes, the Lovasz loss and, in float64, all gradient norms agree, relative to the norm.

        Float32 has its limits at these weights, whoever computes. Gradients are not compared: a change of the input by
        1e-9, in float64, moves norms of AlbuNet's by up to 285 % (batch norm over few, nearly equal numbers). And
        TernausNetV2's logits in eval mode move by 1.6e-3 when the input changes by 1e-7, hence `eval_tolerance`.
        """
        weights = {key: value for key, value in self.weights().items() if not key.startswith(unused or ("\0",))}
        model.to(device, dtype).load_state_dict(weights)
        image, mask = self.image().to(device, dtype), self.mask().to(device)
        with torch.no_grad():
            assert relative(model.eval()(image), self.eval_logits) < (eval_tolerance or tolerance)
        logits = model.train()(image)
        assert relative(logits.detach(), self.train_logits) < tolerance
        loss = build_loss("lovasz", num_classes=1)(logits, mask)
        assert abs(loss.item() / self.facts["loss_lovasz"] - 1) < tolerance
        if dtype != torch.float64:
            return
        loss.backward()
        norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
        expected = {key: norm for key, norm in self.facts["grad_norm"].items() if not key.startswith(unused or ("\0",))}
        assert norms.keys() == expected.keys()
        largest = max(expected.values())
        off = {key: abs(norms[key] - expected[key]) / max(expected[key], 1e-6 * largest) for key in expected}
        assert {key: error for key, error in off.items() if error > tolerance} == {}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.cpu().double() - expected.double()).norm() / expected.double().norm())
