"""Mean and spread of several evaluations, worked out by hand."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from robosat_pink import evaluate
from robosat_pink.errors import DataError
from robosat_pink.prediction.comparison import NUMBERS, line, numbers_in, spread


def numbers(iou: float | None, *classes: str) -> dict[str, Any]:
    return dict.fromkeys(NUMBERS, 0.5) | {
        "iou": iou,
        "per_class": {name: {"iou": iou} for name in classes or ("snow",)},
    }


def write(folder: Path, content: object) -> Path:
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_spread_of_three_numbers() -> None:
    assert spread([0.25, 0.5, 0.75]) == {
        "mean": 0.5,
        "std": 0.25,  # the root of (1/16 + 0 + 1/16) / 2
        "min": 0.25,
        "max": 0.75,
        "values": [0.25, 0.5, 0.75],
    }


def test_undefined_numbers_are_left_out_and_one_number_has_no_spread() -> None:
    assert spread([None, 0.5]) == {"mean": 0.5, "std": None, "min": 0.5, "max": 0.5, "values": [None, 0.5]}
    assert spread([None])["mean"] is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.25, 0.75], "precision=0.500000 std=0.353553 min=0.250000 max=0.750000"),
        ([None, 0.5], "precision=0.500000 min=0.500000 max=0.500000 (precision is defined in 1 of 2 runs)"),
        ([None, None], "(precision is defined in 0 of 2 runs)"),
        ([0.5], "precision=0.500000 min=0.500000 max=0.500000"),
    ],
)
def test_line_says_in_how_many_runs_a_number_is_defined(values: list[float | None], said: str) -> None:
    assert line("precision", spread(values)) == said


def test_summary_of_trainings_and_evaluations_is_printed_and_written(
    opt_ml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a training it is the best weights' numbers; a relative folder is none in a bucket."""
    write(tmp_path / "fold-0", {"val": {"iou": 0.9}, "best": {"val": numbers(0.25), "holdout": numbers(0.9)}})
    write(tmp_path / "fold-1", {"evaluated": numbers(0.75)})
    monkeypatch.chdir(tmp_path)
    assert evaluate.main(["--summary", "fold-0", str(tmp_path / "fold-1")]) == 0
    written = json.loads((opt_ml / "output/data/summary.json").read_text())
    assert written["folders"] == ["fold-0", str(tmp_path / "fold-1")]
    assert written["classes"] == ["snow"]
    assert set(written["numbers"]) == set(NUMBERS)
    iou = written["numbers"]["iou"]
    assert (iou["mean"], iou["min"], iou["max"], iou["values"]) == (0.5, 0.25, 0.75, [0.25, 0.75])
    assert iou["std"] == pytest.approx(0.125**0.5)
    assert "iou=0.500000 std=0.353553 min=0.250000 max=0.750000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"best": None}, "best is null"),
        ({"best": {"val": None}}, "has neither `evaluated` nor `best.val`"),
        ({"evaluated": {"iou": 0.5}}, "has neither"),
        ({"evaluated": numbers(0.5) | {"ece": "low"}}, "has neither"),
        ([1], "has neither"),
    ],
)
def test_folder_without_numbers_is_an_error_that_names_the_file(tmp_path: Path, content: object, message: str) -> None:
    folder = write(tmp_path / "run", content)
    with pytest.raises(DataError, match=rf"{re.escape(str(folder))}/metrics.json: .*{message}.*accepted: the folder"):
        numbers_in(str(folder))


def test_missing_or_damaged_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"metrics.json.*accepted: the folder `model` of a finished training"):
        numbers_in(str(tmp_path))
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics.json: not readable as JSON"):
        numbers_in(str(tmp_path))


def test_evaluations_of_other_classes_are_refused(
    opt_ml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write(tmp_path / "a", {"evaluated": numbers(0.5)}),
        write(tmp_path / "b", {"evaluated": numbers(0.5, "snow", "ice")}),
    ]
    assert evaluate.main(["--summary", *map(str, folders)]) == 3
    assert f"{folders[1]}: is of the classes snow, ice, but {folders[0]} is of snow" in capsys.readouterr().out
    assert list((opt_ml / "output/data").iterdir()) == []
