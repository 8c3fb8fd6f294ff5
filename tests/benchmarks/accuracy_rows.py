"""The measured rows of accuracy.py, one run a line of JSON, and the tables of docs/accuracy.md. Needs no torch."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

SECONDS = 180.0  # of processor time, for a network's run in the tables
SEEDS = (0, 1, 2)
# Method and budget of each column; None: no budget.
COLUMNS: dict[str, tuple[str, float | None]] = {
    "random forest": ("forest", None),
    "U-Net ResNet-34 of segmentation_models.pytorch": ("smp", SECONDS),
    "`original`": ("original", SECONDS),
    "`strong`": ("strong", SECONDS),
    "`strong`, as long as its file says": ("strong", None),
}
SCENES = ("s2_virginia_water", "l7_everest_glacier", "l8_himachal_snow", "modis_patagonia_snow")
NOT_MEASURED = "-"

# What an ablation takes away from `strong`, one at a time.
INGREDIENTS: dict[str, tuple[str, ...]] = {
    "single pixels first": ("model.pixel_steps=0",),
    "averaged weights": ("model.ema=null",),
    "symmetries in evaluation": ("model.symmetries=false",),
    "cosine schedule": ("model.schedule=constant",),
    "cross entropy beside Lovász": ("model.loss=lovasz",),
    "several crops a tile": ("sampling.tiles_per_epoch=null",),
    "symmetries in training": ("model.data_augmentation=0",),
}
ABLATION_SCENES = ("l7_everest_glacier", "modis_patagonia_snow")
ABLATION_SEEDS = (0, 1)


class Run(NamedTuple):
    method: str
    scene: str
    seed: int
    budget_s: float | None  # of processor time; None: as long as the method takes
    overrides: tuple[str, ...] = ()  # KEY=VALUE


@dataclass(frozen=True, kw_only=True)
class Row:
    """A run, its result, and where it ran."""

    method: str
    scene: str
    seed: int
    budget_s: float | None
    overrides: tuple[str, ...]
    val_iou: float  # of the last epoch
    processor_s: float
    steps: int | None
    date: str
    commit: str
    torch: str
    cpu: str

    @property
    def run(self) -> Run:
        return Run(self.method, self.scene, self.seed, self.budget_s, self.overrides)


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    contents = map(json.loads, path.read_text().splitlines())
    return [Row(**content | {"overrides": tuple(content["overrides"])}) for content in contents]


def append_row(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def ious(rows: Iterable[Row], runs: Iterable[Run]) -> list[float]:
    """The val IoUs of those of the runs that were measured."""
    measured = {row.run: row.val_iou for row in rows}
    return [measured[run] for run in runs if run in measured]


def accuracy_table(rows: Sequence[Row]) -> str:
    """Scene by method: mean and spread over SEEDS, the best mean in bold. Methods without a row are left out."""
    measured = {(row.method, row.budget_s) for row in rows if not row.overrides}
    columns = {title: column for title, column in COLUMNS.items() if column in measured}
    lines = [["val IoU", *columns], ["---", *["---:"] * len(columns)]]
    for scene in SCENES:
        runs = ([Run(method, scene, seed, budget_s) for seed in SEEDS] for method, budget_s in columns.values())
        cells = [ious(rows, of_seeds) for of_seeds in runs]
        best = max((statistics.mean(cell) for cell in cells if cell), default=None)
        lines.append([f"`{scene}`", *(in_words(cell, best) for cell in cells)])
    return as_markdown(lines)


def in_words(measured: Sequence[float], best: float | None) -> str:
    """`.731 (.010)`: mean, bold if it is the best, and largest less smallest."""
    if not measured:
        return NOT_MEASURED
    mean = statistics.mean(measured)
    remarks = [number(max(measured) - min(measured))] if len(measured) > 1 else []
    if len(measured) < len(SEEDS):
        remarks.append("1 seed" if len(measured) == 1 else f"{len(measured)} seeds")
    shown = f"**{number(mean)}**" if mean == best else number(mean)
    return f"{shown} ({', '.join(remarks)})"


def ablation_table(rows: Sequence[Row]) -> str:
    """Ingredient by scene: the mean over ABLATION_SEEDS without it, and what that changes."""

    def measured(scene: str, *overrides: str) -> list[float]:
        return ious(rows, [Run("strong", scene, seed, SECONDS, overrides) for seed in ABLATION_SEEDS])

    lines = [["without", *ABLATION_SCENES], ["---", *["---:"] * len(ABLATION_SCENES)]]
    lines.append(["nothing", *(spread_of(measured(scene)) for scene in ABLATION_SCENES)])
    for name, overrides in INGREDIENTS.items():
        changes = (change_of(measured(scene, *overrides), measured(scene)) for scene in ABLATION_SCENES)
        lines.append([name, *changes])
    return as_markdown(lines)


def spread_of(measured: Sequence[float]) -> str:
    """`.731 (spread .010)`"""
    if len(measured) < len(ABLATION_SEEDS):
        return NOT_MEASURED
    return f"{number(statistics.mean(measured))} (spread {number(max(measured) - min(measured))})"


def change_of(without: Sequence[float], with_it: Sequence[float]) -> str:
    """`.711 (-.020)`"""
    if min(len(without), len(with_it)) < len(ABLATION_SEEDS):
        return NOT_MEASURED
    change = statistics.mean(without) - statistics.mean(with_it)
    return f"{number(statistics.mean(without))} ({'-' if change < 0 else '+'}{number(abs(change))})"


def number(value: float) -> str:
    """`.731`, and `1.000`."""
    return f"{value:.3f}".removeprefix("0")


def as_markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """The page with the tables of these rows between its markers."""
    for name, table in (("accuracy", accuracy_table(rows)), ("ablation", ablation_table(rows))):
        before, begin, rest = page.partition(f"<!-- {name}: written by accuracy.py table -->\n")
        _, end, after = rest.partition(f"\n<!-- end of {name} -->")
        assert begin, f"the page has no place for the table {name}"
        assert end, f"the table {name} has no end"
        page = f"{before}{begin}{table}{end}{after}"
    return page
