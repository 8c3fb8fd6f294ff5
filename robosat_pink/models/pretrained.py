"""Puts pretrained weights into a network's ResNet encoder, whatever wraps them, and whatever its bands.

Called by `build_model`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from robosat_pink.errors import CheckpointError

log = logging.getLogger(__name__)

WAY_OUT = (
    "ways to give them: model.pretrained: /folder/file.pth, s3://bucket/key or channel:NAME/file (a state dict of the "
    "encoder, by torchvision, timm, TorchGeo or segmentation_models.pytorch); torchvision's file in "
    "$TORCH_HOME/hub/checkpoints; model.pretrained: false"
)
STEM = "conv1.weight"
FIRST = "layer1.0.conv1.weight"  # by which a ResNet's tensors are found
# timm 1.0.31, TorchGeo 0.8.1 and segmentation_models.pytorch 0.6.0 name the tensors of a ResNet as torchvision does.
# smp's networks have them below `encoder.`, ours below `resnet.`; TorchGeo's tasks below `model.` (classification),
# `model.encoder.` (segmentation), `backbone.` (MoCo, SimCLR) or `model.backbone.model.` (BYOL).
WRAPPERS = {"module", "_orig_mod", "model", "backbone", "encoder", "resnet"}
# By the number of blocks in layer3, and whether they have a third convolution.
ENCODERS = {
    (2, False): "resnet18",
    (6, False): "resnet34",
    (6, True): "resnet50",
    (23, True): "resnet101",
    (36, True): "resnet152",
}
SHOWN = 5  # names in a message


def put_into(encoder: nn.Module, weights: Mapping[str, Tensor], name: str, bands: Sequence[int] | None = None) -> None:
    """Load a state dict into an encoder, without classifier and decoder, and with the stem fitted to its bands.

    `bands` are those of `fit_stem`. Raises CheckpointError, with their names, if tensors are missing, unexpected, of
    another shape, or not finite.
    """
    expected = encoder.state_dict()
    prefix = _prefix_of(weights)
    tensors = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if prefix:
        log.info(
            "pretrained encoder: %d tensors below %s; the %d others of the file are left out",
            len(tensors),
            prefix,
            len(weights) - len(tensors),
        )
    tensors = {key: value for key, value in tensors.items() if not key.startswith("fc.")}
    tensors |= {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")}
    _check_fit(tensors, expected, name)
    tensors[STEM] = fit_stem(tensors[STEM], expected[STEM].shape[1], bands)
    encoder.load_state_dict(tensors)


def fit_stem(stem: Tensor, num_channels: int, bands: Sequence[int] | None = None) -> Tensor:
    """A stem's kernels (O, given, h, w) as (O, num_channels, h, w). Raises CheckpointError if they do not fit.

    `bands` has, for each channel, the input band of the pretrained stem whose kernel it starts from, counted from 1.
    The kernels are scaled by given / num_channels, as `inflate` does: the stem sums over its bands, so that k of n
    kernels answer with about k / n of what the following layers were trained on. Without `bands`, equal numbers are in
    the same order, and a stem of three bands is inflated.
    """
    given = stem.shape[1]
    if bands is not None:
        if not all(1 <= band <= given for band in bands):
            raise CheckpointError(
                f"model.pretrained_bands = {list(bands)}: the pretrained encoder has {given} input band(s); accepted: "
                f"numbers from 1 to {given}"
            )
        return stem[:, torch.tensor(bands) - 1] * (given / num_channels)
    if given not in (3, num_channels):
        raise CheckpointError(
            f"model.pretrained: its encoder has {given} input band(s), and channels[].bands name {num_channels}; set "
            f"model.pretrained_bands to a list of {num_channels} numbers from 1 to {given}: for each band of channels, "
            "the band of the encoder that it starts from"
        )
    return inflate(stem, num_channels)


def inflate(stem: Tensor, num_channels: int) -> Tensor:
    """A stem kernel (O, 3, h, w) as (O, num_channels, h, w): its three bands repeated and scaled to keep their sum."""
    if stem.shape[1] == num_channels:
        return stem
    if num_channels == 1:
        return stem.sum(dim=1, keepdim=True)
    repeats = math.ceil(num_channels / stem.shape[1])
    return stem.repeat(1, repeats, 1, 1)[:, :num_channels] * (stem.shape[1] / num_channels)


def _prefix_of(names: Collection[str]) -> str:
    """What precedes the names of the ResNet; empty if nothing does, or if there is no ResNet."""
    prefixes = sorted(name.removesuffix(FIRST) for name in names if f".{name}".endswith(f".{FIRST}"))
    # TorchGeo's MoCo and BYOL have a second ResNet, a moving average, below `backbone_momentum` or `model.target`.
    known = [prefix for prefix in prefixes if set(prefix.split(".")[:-1]) <= WRAPPERS] or prefixes
    if len(known) > 1:
        raise CheckpointError(
            f"model.pretrained: holds {len(known)} encoders, below {', '.join(known[:SHOWN])}; save the tensors of one "
            "alone, with torch.save"
        )
    return known[0] if known else ""


def _check_fit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    """Raises CheckpointError if names, types or shapes differ, except for the stem's bands, or for NaN and inf."""
    differing = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and not _has_shape(tensors[key], value, is_stem=key == STEM)
    ]
    wrong = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "of another shape": differing,
        "not of floats": [key for key, value in tensors.items() if _is_other_type(value, expected.get(key))],
    }
    if any(wrong.values()):
        reasons = "; ".join(f"{what}: {_shown(names)}" for what, names in wrong.items() if names)
        found = _encoder_of(tensors)
        advice = f"they are those of {found}: set model.encoder to that, or " if found not in ("", name) else ""
        raise CheckpointError(f"model.pretrained: not weights of {name}: {reasons}; {advice}{WAY_OUT}")
    if nonfinite := [key for key, value in tensors.items() if not value.float().isfinite().all()]:
        raise CheckpointError(f"model.pretrained: holds NaN or inf, in {_shown(nonfinite)}; {WAY_OUT}")


def _has_shape(tensor: Tensor, expected: Tensor, is_stem: bool) -> bool:
    """Whether the shapes are equal, in a stem up to the number of bands."""
    shape, expected_shape = list(tensor.shape), list(expected.shape)
    if is_stem and len(shape) == len(expected_shape):
        shape[1] = expected_shape[1]
    return shape == expected_shape


def _is_other_type(tensor: Tensor, expected: Tensor | None) -> bool:
    return expected is not None and expected.is_floating_point() and not tensor.is_floating_point()


def _encoder_of(tensors: Mapping[str, Tensor]) -> str:
    """Which of torchvision's ResNets has these tensors; empty for another network, such as a ResNeXt."""
    blocks = sum(bool(re.fullmatch(r"layer3\.\d+\.conv1\.weight", key)) for key in tensors)
    second = tensors.get("layer1.0.conv2.weight")
    is_plain = second is not None and second.shape == (64, 64, 3, 3)
    return ENCODERS.get((blocks, "layer1.0.conv3.weight" in tensors), "") if is_plain else ""


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
