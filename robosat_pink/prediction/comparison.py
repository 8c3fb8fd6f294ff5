"""Mean and spread of several evaluations, such as those of k folds: `evaluate --summary`. Called by `evaluate`."""

from __future__ import annotations

import json
import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.errors import DataError
from robosat_pink.storage import location
from robosat_pink.storage.error_advice import NotFound
from robosat_pink.training import metrics

log = logging.getLogger(__name__)

FILE = "metrics.json"
NUMBERS = (*metrics.NAMES, "boundary_f1", "ece")
ACCEPTED = "accepted: the folder `model` of a finished training, or `output/data` of an evaluation"


def summarise(folders: Sequence[str], path: Path) -> None:
    """Log mean and spread of each number in the folders' metrics.json, and write them to `path`.

    Of a training, it is the best weights' numbers on validation tiles. Raises DataError for a folder without numbers,
    or of other classes than the first.
    """
    evaluations = [numbers_in(folder) for folder in folders]
    refuse_other_classes(folders, evaluations)
    summary = {name: spread([numbers.get(name) for numbers in evaluations]) for name in NUMBERS}
    for name, of_number in summary.items():
        log.info("%s", line(name, of_number))
    content = {"folders": list(folders), "classes": list(evaluations[0]["per_class"]), "numbers": summary}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    log.info("%d evaluations are summarised in %s", len(folders), path)


def numbers_in(folder: str) -> dict[str, Any]:
    """The numbers in a folder's metrics.json: of `evaluate`, or the best weights' on validation tiles."""
    where = f"{folder if '://' in folder else os.path.abspath(folder)}/{FILE}"
    try:
        content = json.loads(location.read_file(where))
    except NotFound as error:
        raise NotFound(f"{error}; {ACCEPTED}") from error
    except ValueError as error:
        raise DataError(f"{where}: not readable as JSON: {error}; {ACCEPTED}") from error
    content = content if isinstance(content, dict) else {}
    if "best" in content and content["best"] is None:
        raise DataError(
            f"{where}: has no numbers of the best weights (best is null), as of a run that was stopped; resume that "
            f"run, or evaluate its best.pth. {ACCEPTED}"
        )
    best = content.get("best")
    numbers = best.get("val") if isinstance(best, dict) else content.get("evaluated")
    if not are_numbers(numbers):
        raise DataError(f"{where}: has neither `evaluated` nor `best.val` with numbers; {ACCEPTED}")
    return numbers


def are_numbers(value: Any) -> TypeGuard[dict[str, Any]]:
    if not isinstance(value, dict) or not isinstance(value.get("per_class"), dict):
        return False
    return all(isinstance(value.get(name), int | float | None) for name in NUMBERS)


def refuse_other_classes(folders: Sequence[str], evaluations: Sequence[Mapping[str, Any]]) -> None:
    first = list(evaluations[0]["per_class"])
    for folder, numbers in zip(folders, evaluations, strict=True):
        if (names := list(numbers["per_class"])) != first:
            raise DataError(
                f"{folder}: is of the classes {', '.join(names)}, but {folders[0]} is of {', '.join(first)}; "
                "summarise evaluations of the same classes"
            )


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample) and extremes of the defined values; None where there are too few."""
    defined = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.stdev(defined) if len(defined) > 1 else None,
        "min": min(defined, default=None),
        "max": max(defined, default=None),
        "values": list(values),
    }


def line(name: str, of_number: Mapping[str, Any]) -> str:
    """`iou=0.712345 std=0.012000 min=… max=…`, for people and scripts, and in how many runs the number is defined."""
    shown = {name: of_number["mean"]} | {key: of_number[key] for key in ("std", "min", "max")}
    numbers = [f"{key}={value:.6f}" for key, value in shown.items() if value is not None]
    runs = len(of_number["values"])
    defined = sum(value is not None for value in of_number["values"])
    if defined < runs:
        numbers.append(f"({name} is defined in {defined} of {runs} runs)")
    return " ".join(numbers)
