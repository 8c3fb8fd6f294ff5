"""Sets what the experiment leaves to the initial checkpoint: the scale of channels, and "auto" mean and std.

Called by `run` and `check`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from robosat_pink import checkpoint
from robosat_pink.config import ChannelConfig, Config
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.config.sections import LARGEST
from robosat_pink.datasets.normalisation import is_measured
from robosat_pink.errors import ConfigError
from robosat_pink.training.initial_checkpoint import InitialCheckpoint, damaged

log = logging.getLogger(__name__)


def resolve_scales(config: Config, initial: InitialCheckpoint | None) -> Config:
    """The experiment with a `scale` for every channel, and with the initial checkpoint's mean and std for "auto".

    If the experiment sets no scale, it is the initial checkpoint's, or "auto" without a checkpoint. It is "raw" for
    weights of other programs, which have no metadata and learnt from raw digital numbers.
    """
    metadata = checkpoint.metadata_of(initial.content) if initial else {}
    saved = _saved_scales(initial.name, metadata) if initial else []
    learnt = _saved_channels(initial.name, metadata) if initial and is_measured(config.channels) else []
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
        channel = dataclasses.replace(channel, scale=scale)
        channels.append(_with_known_statistics(channel, learnt[number] if number < len(learnt) else None))
        if initial and channel.scale != "raw" and is_measured([channel]) and not is_measured([channels[-1]]):
            log.info("channels.%d: mean %s, std %s, from %s", number, channels[-1].mean, channels[-1].std, initial.name)
    scales = [channel.scale for channel in channels]
    if "tags" in scales and set(scales) != {"tags"}:
        raise ConfigError(
            f"channels[].scale would be {', '.join(map(str, scales))}, where not given as the weights to start from "
            "learnt; accepted: tags for all channels or none; give each channel the same scale"
        )
    return dataclasses.replace(config, channels=tuple(channels))


def _saved_channels(name: str, metadata: Mapping[str, Any]) -> list[ChannelConfig]:
    """The channels with which the checkpoint's weights learnt; empty if it does not say. Raises CheckpointError."""
    tree = metadata.get("config")
    problems = Problems(name)
    if not isinstance(tree, Mapping) or not isinstance(tree.get("channels"), list):
        return []
    channels = [build(ChannelConfig, entry, problems) for entry in tree["channels"]]
    if problems.lines or any(channel is None or is_measured([channel]) for channel in channels):
        raise damaged(name, "metadata.config.channels", tree["channels"], "channels with numbers as mean and std")
    return [channel for channel in channels if channel]


def _with_known_statistics(channel: ChannelConfig, learnt: ChannelConfig | None) -> ChannelConfig:
    """The channel with the mean and std of the initial checkpoint where it says "auto"; none for `raw` numbers.

    Statistics of other bands, or by another scale, are not taken: "auto" stays, and they are measured.
    """
    auto = [name for name in ("mean", "std") if getattr(channel, name) == "auto"]
    if channel.scale == "raw":
        none: dict[str, Any] = dict.fromkeys(auto)
        return dataclasses.replace(channel, **none)
    if learnt is None or (learnt.bands, learnt.scale) != (channel.bands, channel.scale):
        return channel
    return dataclasses.replace(channel, **{name: getattr(learnt, name) for name in auto})


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
