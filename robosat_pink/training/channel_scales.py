"""Sets the scale of channels that the experiment leaves to the initial checkpoint. Called by `run` and `check`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from robosat_pink import checkpoint
from robosat_pink.config import Config
from robosat_pink.config.sections import LARGEST
from robosat_pink.errors import ConfigError
from robosat_pink.training.initial_checkpoint import InitialCheckpoint, damaged

log = logging.getLogger(__name__)


def resolve_scales(config: Config, initial: InitialCheckpoint | None) -> Config:
    """The experiment with a `scale` for every channel.

    If the experiment sets none, it is the initial checkpoint's, or "auto" without a checkpoint. It is "raw" for weights
    of other programs, which have no metadata and learnt from raw digital numbers.
    """
    metadata = checkpoint.metadata_of(initial.content) if initial else {}
    saved = _saved_scales(initial.name, metadata) if initial else []
    channels = []
    for number, channel in enumerate(config.channels):
        scale = channel.scale
        if scale is None and initial and not metadata:
            scale = "raw"
            log.warning(
                "warning: %s does not say how its images were scaled: feeding digital numbers as they are, without "
                "mean and std, as planet-snowcover did; set channels.%d.scale to have it otherwise",
                initial.name,
                number,
            )
        elif scale is None:
            scale = saved[number] if number < len(saved) else "auto"
        elif number < len(saved) and scale != saved[number]:
            log.warning(
                "warning: channels.%d.scale = %s, but the weights to start from learnt with %s",
                number,
                scale,
                saved[number],
            )
        channels.append(dataclasses.replace(channel, scale=scale))
    scales = [channel.scale for channel in channels]
    if "tags" in scales and set(scales) != {"tags"}:
        raise ConfigError(
            f"channels[].scale would be {', '.join(map(str, scales))}, where not given as the weights to start from "
            "learnt; accepted: tags for all channels or none; give each channel the same scale"
        )
    return dataclasses.replace(config, channels=tuple(channels))


def _saved_scales(name: str, metadata: Mapping[str, Any]) -> list[Any]:
    """The scales of the checkpoint's channels; empty if it has none. Raises CheckpointError for an impossible scale."""
    scales = metadata.get("scale", [])
    is_list = isinstance(scales, list) and all(_is_scale(scale) for scale in scales)
    if is_list and ("tags" not in scales or set(scales) == {"tags"}):
        return list(scales)
    accepted = f"a list of auto, raw or a number above 0 and up to {LARGEST:,} of each channel, or tags of all"
    raise damaged(name, "metadata.scale", scales, accepted)


def _is_scale(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("auto", "raw", "tags")
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST
