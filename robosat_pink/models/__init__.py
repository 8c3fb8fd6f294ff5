"""The networks by name. To add a network, add one file to this folder and one entry to MODELS.

Only `build_model` imports torch: `config` reads MODELS before that, to report a misspelt key at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from robosat_pink.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelEntry:
    class_path: str  # module:class; the class takes num_classes, num_channels, encoder and the options
    size_multiple: int  # pixels; height and width must be multiples of it
    encoders: tuple[str, ...]  # the first is the default
    options: tuple[str, ...]
    pretrained_part: str | None  # the submodule, a ResNet, that takes pretrained weights; None if there is none
    num_filters: int = 32  # the default of that option
    # The submodule that sees single pixels and is fitted before training, and the last of the rest, at 0 then.
    pixel_parts: tuple[str, str] | None = None
    pixel_steps: int = 0  # the default number of its steps


MODELS = {
    "ternausnetv2": ModelEntry(
        "robosat_pink.models.ternausnetv2:TernausNetV2",
        size_multiple=32,
        encoders=("wideresnet38",),
        options=("num_filters", "is_deconv"),
        pretrained_part=None,
    ),
    "albunet": ModelEntry(
        "robosat_pink.models.albunet:AlbuNet",
        size_multiple=64,
        encoders=("resnet50", "resnet18", "resnet34", "resnet101", "resnet152"),
        options=("num_filters",),
        pretrained_part="resnet",
    ),
    "unet": ModelEntry(
        "robosat_pink.models.unet:UNet",
        size_multiple=16,
        encoders=("none",),
        options=("num_filters",),
        pretrained_part=None,
        num_filters=16,
        pixel_parts=("pixel", "final"),
        pixel_steps=2000,
    ),
}


def build_model(
    name: str,
    *,
    num_classes: int,
    num_channels: int,
    encoder: str | None = None,
    pretrained: bool | Mapping[str, Any] = False,
    pretrained_bands: Sequence[int] | None = None,
    **options: object,
) -> nn.Module:
    """A network from images (N, num_channels, H, W) float to logits (N, num_classes, H, W).

    One class is binary: a single logit, positive above 0. Weights are random, except for the encoder's if `pretrained`
    is true (torchvision's ImageNet weights) or a state dict of the encoder; `pretrained_bands` has the input band of
    those weights that each channel starts from, counted from 1. Raises ConfigError for an unknown name, encoder or
    option, CheckpointError if pretrained weights cannot be loaded or do not fit.
    """
    entry = MODELS.get(name)
    if entry is None:
        raise ConfigError(f"model name = {name!r}: accepted: {', '.join(MODELS)}")
    if encoder is not None and encoder not in entry.encoders:
        raise ConfigError(f"encoder = {encoder!r}: {name} accepts: {', '.join(entry.encoders)}")
    if unknown := sorted(set(options) - set(entry.options)):
        raise ConfigError(f"{name} has no option {', '.join(unknown)}; accepted: {', '.join(entry.options)}")
    if pretrained and entry.pretrained_part is None:
        raise ConfigError(f"pretrained: {NO_PRETRAINED.format(name=name)}")
    if pretrained_bands is not None and len(pretrained_bands) != num_channels:
        raise ConfigError(
            f"pretrained_bands = {list(pretrained_bands)}: accepted: {num_channels} numbers, one a channel"
        )
    module, class_name = entry.class_path.split(":")
    model_class = getattr(import_module(module), class_name)
    encoder = encoder or entry.encoders[0]
    model: nn.Module = model_class(num_classes=num_classes, num_channels=num_channels, encoder=encoder, **options)
    if pretrained and entry.pretrained_part:
        from robosat_pink.models import imagenet
        from robosat_pink.models.pretrained import put_into

        weights = imagenet.weights_of(encoder) if pretrained is True else pretrained
        put_into(model.get_submodule(entry.pretrained_part), weights, encoder, pretrained_bands)
    return model


NO_PRETRAINED = "{name} takes no pretrained encoder; to start from its own weights, set checkpoint.path"
