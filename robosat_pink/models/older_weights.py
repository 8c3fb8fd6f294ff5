"""Weights of other programs and of our earlier versions, under today's names and scales. Called by `checkpoint`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch

# unet's path of single pixels in files of November 2026, whose weights there are 10 times smaller than those used.
SMALLER_WEIGHTS = re.compile(r"\bpixel\.(?:convs\.([0-2])|conv([1-3]))\.(weight|bias)$")
PIXEL_CONVS = ("conv_in", "conv_hidden", "conv_out")


def is_plain_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a strided, real, unquantized CPU tensor. Quantized models and malicious files contain others."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def with_current_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefixes of DataParallel and torch.compile from the names, and the `.bn` of activated batch norms."""
    weights = with_current_weights(weights)
    plain = {key.removeprefix("_orig_mod.").removeprefix("module."): value for key, value in weights.items()}
    return {re.sub(r"(\bbn\d)\.bn\.", r"\1.", key): value for key, value in plain.items()}


def with_current_weights(weights: Mapping[Any, Any]) -> dict[Any, Any]:
    """The entries of a file, with the SMALLER_WEIGHTS among them multiplied by 10, under today's names."""
    used = {}
    for key, value in weights.items():
        match = SMALLER_WEIGHTS.search(key) if isinstance(key, str) and is_plain_tensor(value) else None
        if match:
            number, counted, kind = match.groups()
            position = int(number) if number else int(counted) - 1
            used[f"{key[: match.start()]}pixel.{PIXEL_CONVS[position]}.{kind}"] = 10 * value
        else:
            used[key] = value
    return used
