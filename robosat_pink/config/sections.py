"""The sections of an experiment file, as frozen dataclasses: every field is one key. Imported through `config`.

Nothing here imports torch, so that a misspelt key is reported within a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from robosat_pink import losses
from robosat_pink.config.constraints import (
    MOST_BANDS,
    band,
    between,
    bucket_location,
    checkpoint_location,
    color_name,
    directory_expression,
    mask_values,
    not_empty,
    positive_weight,
    some_of,
    web_address,
)
from robosat_pink.config.keys import key
from robosat_pink.config.model import ModelConfig
from robosat_pink.config.predict import PredictConfig
from robosat_pink.config.problems import Problems
from robosat_pink.config.split import SplitConfig

# Bounds of numbers. A number beyond them is a mistake, and would fail somewhere in the program.
LARGEST = 10**12  # absolute value of a mean, standard deviation or scale
DAY_S, YEAR_S = 86_400, 31_536_000
LOGGERS = ("tensorboard",)  # the names in `training/loggers.py`
MOST_CLASSES = 255  # numbered from 0 to 254; 255 means ignore


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The cache of decoded tiles on disk: its folder, and how much of the disk it may take; 0 keeps none."""

    dir: str | None = key(None, not_empty)
    max_gb: float | None = key(None, between(0, 10**6))


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """The buckets of images and masks. Each directory right below that matches the expression contains z/x/y.tif."""

    image_bucket: str = key(rule=bucket_location)
    mask_bucket: str = key(rule=bucket_location)
    imagery_directory_regex: str = key(".*", directory_expression)
    mask_directory_regex: str = key(".*", directory_expression)
    train_percent: float = key(0.7, between(0, 1, low_open=True, high_open=True))
    aws_profile: str | None = None
    endpoint_url: str | None = key(None, web_address)
    split: SplitConfig = SplitConfig()
    cache: CacheConfig = CacheConfig()
    verify_md5: bool | Literal["auto"] = "auto"
    if_changed: Literal["error", "relist"] = "error"
    missing: Literal["auto", "declared", "zero"] = "auto"
    ignore_values: tuple[int, ...] = key((), mask_values)

    def check(self, problems: Problems, prefix: str) -> None:
        if self.split.folds is None and self.train_percent + self.split.test_percent >= 1:
            problems.add(
                f"{prefix}split.test_percent",
                self.split.test_percent,
                f"accepted: less than 1 - train_percent = {1 - self.train_percent:g}, to leave tiles to evaluate",
            )
        if self.split.by == "group" and not shared_groups(self):
            problems.add(
                f"{prefix}split.by",
                "group",
                "both directory expressions must have a named group in common, such as (?P<day>\\d{8})",
            )


@dataclass(frozen=True, kw_only=True)
class ClassConfig:
    """One class of the masks. `values` are its pixel values there; without them class k is the value k.

    `weight` is the weight of the class in losses that take class weights.
    """

    name: str = key(rule=not_empty)
    color: str = key("white", color_name)
    values: tuple[int, ...] | None = key(None, between(-(2**31), 2**32 - 1))
    weight: float = key(1.0, positive_weight)


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """Bands to take from an image, and how they are normalised: (number / scale - mean) / std.

    A band is a number, counted from 1, or a description in the files. A `mean` or `std` of "auto" is measured in the
    training tiles. By default, `scale` is that of the initial checkpoint: "raw" for weights without our metadata,
    "auto" without a checkpoint. "tags" means the scale and offset in the files.
    """

    bands: tuple[int | str, ...] = key(rule=band)
    mean: tuple[float, ...] | Literal["auto"] | None = key(None, between(-LARGEST, LARGEST))
    std: tuple[float, ...] | Literal["auto"] | None = key(None, between(0, LARGEST, low_open=True))
    scale: float | Literal["auto", "raw", "tags"] | None = key(None, between(0, LARGEST, low_open=True))

    def check(self, problems: Problems, prefix: str) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if isinstance(values, tuple) and len(values) != len(self.bands):
                advice = f"accepted: one number for each of the {len(self.bands)} bands"
                problems.add(f"{prefix}{name}", values, advice)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which crops an epoch trains on."""

    tiles_per_epoch: int | Literal["auto"] | None = key(None, between(1, 10**7))


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The checkpoint to start from (a file, s3://bucket/key, or channel:NAME/file), and how an interrupted run resumes.

    `path` provides the weights of a new run. `resume` also restores the optimizer, the epoch and, from a file of ours,
    the rest of the state.
    """

    path: str | None = key(None, checkpoint_location)
    resume: str | None = key(None, checkpoint_location)
    every_minutes: float = key(10.0, between(0, YEAR_S // 60, low_open=True))
    if_different: Literal["refuse", "continue"] = "refuse"

    def check(self, problems: Problems, prefix: str) -> None:
        if self.path and self.resume:
            problems.add(
                f"{prefix}resume", self.resume, "path starts a new run, resume continues an earlier one; keep one"
            )


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """How the experiment runs, never what it learns."""

    seed: int = key(0, between(0, 2**63 - 1))
    workers: int | Literal["auto"] = key("auto", between(0, 1024))
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    upsampling: Literal["auto", "plain", "transposed"] = "auto"
    recompute: Literal["auto", "none", "norms", "blocks"] = "auto"
    accumulation: int = key(1, between(1, 10_000))
    compile: bool = False
    max_seconds: float | None = key(None, between(0, YEAR_S, low_open=True))
    skipped_batches: int = key(3, between(0, 10**6))
    processes: int | Literal["auto"] = key("auto", between(1, 1024))
    peer_timeout_s: float = key(600.0, between(0, DAY_S, low_open=True))
    loggers: tuple[str, ...] = key((), some_of(LOGGERS))


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole experiment file."""

    dataset: DatasetConfig
    classes: tuple[ClassConfig, ...]
    channels: tuple[ChannelConfig, ...]
    model: ModelConfig
    sampling: SamplingConfig = SamplingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    predict: PredictConfig = PredictConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    def check(self, problems: Problems, prefix: str) -> None:
        self._check_classes(problems)
        self._check_channels(problems)
        self._check_ignored_values(problems)
        self._check_weights(problems)
        if self.num_classes > 1 and self.predict.threshold != 0.5:
            advice = "acts with a single class; of several, the most probable is taken, so leave it out"
            problems.add("predict.threshold", self.predict.threshold, advice)

    def _check_classes(self, problems: Problems) -> None:
        names = [mask_class.name for mask_class in self.classes]
        values = [value for of_class in class_values(self.classes) for value in of_class]
        if len(self.classes) > MOST_CLASSES:
            advice = f"accepted: at most {MOST_CLASSES} classes, for 255 means ignore in what the network learns from"
            problems.add("classes", f"{len(self.classes)} classes", advice)
        if len(set(names)) < len(names):
            problems.add("classes", names, "two classes have one name; give each its own")
        if len(set(values)) < len(values):
            problems.add("classes", values, "one mask value stands twice; list it in one `values` only")
        if len(self.classes) == 1 and 0 in values:
            problems.add("classes.0.values", values, "0 is the background of a single class; name two classes instead")

    def _check_channels(self, problems: Problems) -> None:
        if self.num_channels > MOST_BANDS:
            problems.add("channels", f"{self.num_channels:,} bands", f"accepted: at most {MOST_BANDS:,} bands in all")
        if self.model.pretrained_bands and len(self.model.pretrained_bands) != self.num_channels:
            advice = f"accepted: one number for each of the {self.num_channels} bands in channels"
            problems.add("model.pretrained_bands", self.model.pretrained_bands, advice)
        scales = [channel.scale for channel in self.channels]
        if "tags" in scales and set(scales) != {"tags"}:
            advice = "tags are for all channels or none: the image is in physical values then; give each the same scale"
            problems.add("channels", scales, advice)

    def _check_ignored_values(self, problems: Problems) -> None:
        learnt = {value for of_class in class_values(self.classes) for value in of_class}
        if len(self.classes) == 1:
            learnt.add(0)  # the background
        if both := sorted(learnt & set(self.dataset.ignore_values)):
            advice = f"{both[0]} is a class's value, or the background's; a value is learnt or ignored, so list it once"
            problems.add("dataset.ignore_values", self.dataset.ignore_values, advice)

    def _check_weights(self, problems: Problems) -> None:
        weighted = [name for name, loss in losses.LOSSES.items() if loss.takes_class_weights]
        if set(weighted) & set(self.model.losses):
            return
        for number, mask_class in enumerate(self.classes):
            if mask_class.weight != 1:
                advice = f"acts in {', '.join(weighted)} only, which model.loss does not name; leave it out"
                problems.add(f"classes.{number}.weight", mask_class.weight, advice)

    @property
    def num_classes(self) -> int:
        """The number of logits per pixel; a single class is binary."""
        return len(self.classes)

    @property
    def num_channels(self) -> int:
        return sum(len(channel.bands) for channel in self.channels)


def class_values(classes: tuple[ClassConfig, ...]) -> tuple[tuple[int, ...], ...]:
    """The mask values of each class; without `values`, 1 for the only class and k for class k of several."""
    if len(classes) == 1:
        return (classes[0].values or (1,),)
    return tuple(mask_class.values or (number,) for number, mask_class in enumerate(classes))


def shared_groups(dataset: DatasetConfig) -> tuple[str, ...]:
    """Named groups that are in both directory expressions: the two tiles of a pair must agree in their values."""
    image_groups = re.compile(dataset.imagery_directory_regex).groupindex
    mask_groups = re.compile(dataset.mask_directory_regex).groupindex
    return tuple(name for name in image_groups if name in mask_groups)
