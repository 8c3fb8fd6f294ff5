"""The accuracy benchmark keeps what it measured, and docs/accuracy.md has the tables of these rows."""

from pathlib import Path

import pytest

from benchmarks import accuracy_rows, real_tiles
from benchmarks.accuracy_rows import Row, Run, accuracy_table, append_row, ious, read_rows, with_tables
from benchmarks.processor_time import as_epochs_and_steps, epochs_within
from robosat_pink.config import load_config

ROOT = Path(__file__).parents[2]
GLACIER = "l7_everest_glacier"
WITHOUT_MARKERS = "The page has no place for a table."


def row(
    method: str, seed: int, val_iou: float, *overrides: str, budget_s: float | None = 180, scene: str = GLACIER
) -> Row:
    return Row(
        method=method,
        scene=scene,
        seed=seed,
        budget_s=budget_s,
        overrides=overrides,
        val_iou=val_iou,
        processor_s=175.0,
        steps=60,
        date="2026-11-27",
        commit="7c48304",
        torch="2.10.0",
        cpu="AMD EPYC",
    )


def line_of(table: str, name: str) -> list[str]:
    [line] = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_of_the_page_are_those_of_the_checked_in_rows() -> None:
    page = (ROOT / "docs/accuracy.md").read_text()
    rows = read_rows(ROOT / "tests/benchmarks/accuracy.jsonl")
    assert page == with_tables(page, rows), "run: python tests/benchmarks/accuracy.py table"


def test_checked_in_rows_are_of_committed_code_and_of_different_runs() -> None:
    rows = read_rows(ROOT / "tests/benchmarks/accuracy.jsonl")
    assert [each for each in rows if each.commit.endswith("-changed")] == []
    assert len({each.run for each in rows}) == len(rows)


def test_row_is_read_as_it_was_written_and_a_file_grows_by_lines(tmp_path: Path) -> None:
    rows = [row("strong", 0, 0.7, "model.ema=null"), row("forest", 0, 0.6, budget_s=None)]
    assert read_rows(tmp_path / "rows.jsonl") == []
    for each in rows:
        append_row(tmp_path / "rows.jsonl", each)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_runs_differ_by_budget_and_overrides() -> None:
    rows = [row("strong", 0, 0.7), row("strong", 0, 0.6, budget_s=20), row("strong", 0, 0.5, "model.lr=1")]
    assert ious(rows, [Run("strong", GLACIER, 0, 180)]) == [0.7]
    assert ious(rows, [Run("strong", GLACIER, 0, 180, ("model.lr=1",)), Run("strong", GLACIER, 1, 180)]) == [0.5]


def test_cell_has_the_mean_over_seeds_and_largest_less_smallest() -> None:
    rows = [row("strong", seed, iou) for seed, iou in enumerate((0.70, 0.73, 0.73))]
    assert line_of(accuracy_table(rows), f"`{GLACIER}`") == [f"`{GLACIER}`", "**.720** (.030)"]


def test_cell_of_fewer_seeds_says_so_and_a_method_without_rows_has_no_column() -> None:
    rows = [row("smp", 0, 0.7), row("forest", 0, 0.65, budget_s=None), row("forest", 2, 0.66, budget_s=None)]
    table = accuracy_table(rows)
    assert line_of(table, "val IoU") == ["val IoU", "random forest", "U-Net ResNet-34 of segmentation_models.pytorch"]
    assert line_of(table, f"`{GLACIER}`")[1:] == [".655 (.010, 2 seeds)", "**.700** (1 seed)"]
    assert line_of(table, "`l8_himachal_snow`")[1:] == ["-", "-"]


def test_ablation_shows_what_taking_an_ingredient_away_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy_rows, "INGREDIENTS", {"averaged weights": ("model.ema=null",), "crops": ("a=b",)})
    rows = [row("strong", 0, 0.70), row("strong", 1, 0.72)]
    rows += [row("strong", seed, 0.69, "model.ema=null") for seed in (0, 1)] + [row("strong", 0, 0.75, "a=b")]
    table = accuracy_rows.ablation_table(rows)
    assert line_of(table, "nothing")[1:] == [".710 (spread .020)", "-"]
    assert line_of(table, "averaged weights")[1:] == [".690 (-.020)", "-"]
    assert line_of(table, "crops")[1:] == ["-", "-"]


@pytest.mark.parametrize("name", accuracy_rows.INGREDIENTS)
def test_ingredient_can_be_taken_away_from_strong(name: str, tmp_path: Path) -> None:
    dataset = "dataset: {image_bucket: images, mask_bucket: masks}"
    rest = "classes: [{name: snow}]\nchannels: [{bands: [1]}]\nmodel: {name: unet, recipe: strong}"
    (tmp_path / "strong.yml").write_text(f"{dataset}\n{rest}\n")
    overrides = dict(override.split("=") for override in accuracy_rows.INGREDIENTS[name])
    assert load_config(tmp_path / "strong.yml", {}, overrides) != load_config(tmp_path / "strong.yml")


def test_epochs_fill_the_budget_that_the_pilot_s_fixed_costs_leave() -> None:
    # Epochs end at 10, 14 and 18 s: 4 s each, 6 s before them and 2 s after: 180 = 6 + 43 * 4 + 2.
    assert epochs_within(180, pilot_s=20, epoch_ends_s=[10, 14, 18]) == 43
    assert epochs_within(6, pilot_s=20, epoch_ends_s=[10, 14, 18]) == -0.5


def test_long_epochs_get_other_numbers_of_steps_where_whole_ones_miss_the_budget() -> None:
    assert as_epochs_and_steps(43.4, 5) == (43, 5)
    assert as_epochs_and_steps(2.5, 32) == (2, 40)  # 80 steps
    assert as_epochs_and_steps(0.25, 32) == (1, 8)
    assert as_epochs_and_steps(-0.5, 32) == (1, 1)


def test_tables_have_every_scene() -> None:
    assert tuple(real_tiles.SCENES) == accuracy_rows.SCENES


def test_page_without_a_place_for_the_tables_is_refused() -> None:
    with pytest.raises(AssertionError, match="no place for the table accuracy"):
        with_tables(WITHOUT_MARKERS, [])
