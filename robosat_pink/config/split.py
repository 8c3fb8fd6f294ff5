"""The section `dataset.split` of an experiment file, as a frozen dataclass. Imported through `config`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robosat_pink.config.constraints import between
from robosat_pink.config.keys import key
from robosat_pink.config.problems import Problems

MOST_FOLDS = 10_000


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which tiles are trained on (train), evaluated each epoch (val) and held out to the end (holdout)."""

    by: Literal["tile", "block", "group"] = "tile"
    seed: int = key(0, between(-(2**63), 2**63 - 1))
    test_percent: float = key(0.0, between(0, 1, high_open=True))
    zoom: int | None = key(None, between(0, 30))
    folds: int | None = key(None, between(2, MOST_FOLDS))
    fold: int = key(0, between(0, MOST_FOLDS - 1))
    from_: str | None = None

    def check(self, problems: Problems, prefix: str) -> None:
        if self.by == "block" and self.zoom is None:
            problems.add(f"{prefix}zoom", None, "split.by: block needs the zoom of the blocks, below the tiles' own")
        if self.by != "block" and self.zoom is not None:
            problems.add(f"{prefix}zoom", self.zoom, "acts with split.by: block only; set that or leave zoom out")
        if self.folds is None and self.fold:
            problems.add(f"{prefix}fold", self.fold, "acts with split.folds only; set that or leave fold out")
        if self.folds is not None and self.fold >= self.folds:
            advice = f"the {self.folds} folds are counted from 0; accepted: from 0 to {self.folds - 1}"
            problems.add(f"{prefix}fold", self.fold, advice)
        if self.folds is not None and self.from_ is not None:
            problems.add(
                f"{prefix}folds", self.folds, "split.from names the val tiles itself; leave one of the two out"
            )
