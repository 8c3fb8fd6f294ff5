"""The model to predict with, and what it learnt from: bands, scale, classes, threshold, zoom. Called by `run`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from robosat_pink import checkpoint
from robosat_pink.config import ChannelConfig, Config, class_values
from robosat_pink.config.parsing import build
from robosat_pink.config.problems import Problems
from robosat_pink.datasets.normalisation import is_measured, normalisation
from robosat_pink.datasets.symmetry_average import predictor
from robosat_pink.datasets.transforms import EvaluationTransform
from robosat_pink.errors import CheckpointError, ConfigError
from robosat_pink.models import build_model
from robosat_pink.models.blocks import Execution, choose_execution
from robosat_pink.prediction.model_files import ModelFiles, find
from robosat_pink.training.channel_scales import resolve_scales
from robosat_pink.training.initial_checkpoint import InitialCheckpoint

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Model:
    """A trained network, the experiment as its checkpoint says it, and the files beside the checkpoint."""

    files: ModelFiles
    config: Config
    content: Mapping[str, Any]  # of the checkpoint
    zooms: tuple[int, ...]  # of the tiles that it learnt from; empty if the checkpoint does not say

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the checkpoint's bytes."""
        return hashlib.blake2b(self.files.weights, digest_size=DIGEST_BYTES).hexdigest()

    @property
    def epoch(self) -> int | None:
        """The epoch after which the weights were saved, if the checkpoint says so."""
        epoch = self.content.get("epoch")
        return epoch if isinstance(epoch, int) else None

    @property
    def threshold(self) -> float:
        """The probability above which a pixel is of a single class. Raises ConfigError if none was chosen."""
        if self.config.predict.threshold != "chosen":
            return self.config.predict.threshold
        value = self.chosen_threshold
        if value is None:
            raise ConfigError(
                f"predict.threshold = chosen: {self.files.name} has none, unlike best.pth of a finished run; accepted: "
                "a number from 0 to 1"
            )
        return value

    @property
    def chosen_threshold(self) -> float | None:
        """The threshold in the checkpoint, chosen on the validation tiles of its run; None if it has none."""
        chosen = self.content.get("threshold")
        value = chosen.get("value") if isinstance(chosen, dict) else None
        return value if isinstance(value, float) else None

    def network(self, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
        """The network on a device, as it predicts: with symmetries, if the experiment says so."""
        settings = self.config.model
        network = build_model(
            settings.name,
            num_classes=self.config.num_classes,
            num_channels=self.config.num_channels,
            encoder=settings.encoder,
            **settings.options,
        )
        checkpoint.load_weights(network, self.content, name=self.files.name)
        choose_execution(network, Execution(self.config.runtime.upsampling, "none"))
        network.to(device).to(memory_format=memory_format).eval()  # type: ignore[call-overload]
        return predictor(network, self.config.predict.symmetries)

    def transform(self, device: torch.device) -> EvaluationTransform:
        return EvaluationTransform(*normalisation(self.config.channels)).to(device)


def find_model(config: Config, store: Mapping[str, Any]) -> Model:
    """The model that `predict.model` names.

    Bands, scale, mean, std and network are those of the checkpoint, and the classes must be. One without metadata, such
    as planet-snowcover's, takes them from the experiment. Raises ConfigError for a key of the experiment that
    contradicts the checkpoint, DataError and CheckpointError for a model that cannot be read.
    """
    if config.predict.model is None:
        raise ConfigError(
            "predict.model is missing: accepted: a folder or s3:// prefix with best.pth or model.tar.gz, such as "
            "channel:model, or the name of a checkpoint"
        )
    files = find(config.predict.model, store)
    content = checkpoint.unpack(files.weights, files.name)
    metadata = checkpoint.metadata_of(content)
    checkpoint.warn_if_not_evaluated(content, files.name)
    if not metadata:
        initial = InitialCheckpoint(files.name, content, is_resumed=False)
        config = resolve_scales(config, initial)
        if is_measured(config.channels):
            raise ConfigError(
                f"channels[].mean and std: auto: {files.name} does not say what it learnt with; accepted: numbers, or "
                "scale: raw"
            )
        return Model(files, config, content, zooms=())
    problems = Problems(files.name)
    learnt = build(Config, metadata.get("config"), problems)
    if learnt is None or problems.lines:
        reason = "; ".join(problems.lines) or "no config in its metadata"
        raise CheckpointError(f"{files.name}: does not say how it was trained ({reason}); take another checkpoint")
    if differences := list(contradictions(config, learnt)):
        advice = "take the experiment of the model's own run: config.yml beside it"
        raise ConfigError(f"the experiment contradicts {files.name}: {'; '.join(differences)}; {advice}")
    network = dataclasses.replace(learnt.model, batch_size=config.model.batch_size)
    config = dataclasses.replace(config, channels=learnt.channels, model=network)
    zooms = metadata.get("zooms", [])
    is_list = isinstance(zooms, list) and all(isinstance(zoom, int) for zoom in zooms)
    return Model(files, config, content, tuple(zooms) if is_list else ())


def contradictions(config: Config, learnt: Config) -> Iterator[str]:
    """What the experiment says otherwise than the checkpoint, each with both values.

    A scale, mean or std that the experiment leaves out, or to be measured, contradicts nothing.
    """
    for name in ("name", "encoder", "num_filters", "is_deconv"):
        here, there = getattr(config.model, name), getattr(learnt.model, name)
        if here != there:
            yield f"model.{name} = {here}, but the model has {there}"
    names = [[class_.name for class_ in classes] for classes in (config.classes, learnt.classes)]
    if names[0] != names[1]:
        yield f"classes = {names[0]}, but the model knows {names[1]}"
    elif class_values(config.classes) != class_values(learnt.classes):
        yield f"classes[].values = {class_values(config.classes)}, but the model learnt {class_values(learnt.classes)}"
    bands = [_by_band(channels) for channels in (config.channels, learnt.channels)]
    names = [[band["band"] for band in side] for side in bands]
    if names[0] != names[1]:
        yield f"channels[].bands = {names[0]}, but the model learnt from {names[1]}"
        return
    for here, there in zip(*bands, strict=True):
        for name in ("scale", "mean", "std"):
            is_open = here[name] is None or (here[name] == "auto" and name != "scale")
            if not is_open and here[name] != there[name]:
                value, learnt_with = _plain(here[name]), _plain(there[name])
                yield f"band {here['band']}: channels[].{name} = {value}, but the model learnt with {learnt_with}"


def _by_band(channels: Sequence[ChannelConfig]) -> list[dict[str, Any]]:
    """Band, scale, mean and std of each selected band, in order."""
    entries = []
    for channel in channels:
        for number, band in enumerate(channel.bands):
            statistics = {
                name: values[number] if isinstance(values, tuple) else values
                for name, values in (("mean", channel.mean), ("std", channel.std))
            }
            entries.append({"band": band, "scale": channel.scale, **statistics})
    return entries


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return f"{value:g}" if isinstance(value, float) else value
