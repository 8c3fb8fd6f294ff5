"""Writes the files to read: report.html, scenes.csv, pictures and, after a training, the model card; on rank 0.

Called by `train` and `prediction.evaluation`. It converts results to plain data, and renders the pages from these data.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.quantities import duration
from robosat_pink.container.redaction import redacted
from robosat_pink.report import error_map, examples, maps, model_card, page, plots, previews, scenes, trust
from robosat_pink.report.examples import Examples
from robosat_pink.report.summary import (
    Summary,
    dataset_rows,
    remarks_after_training,
    seconds_of_evaluation,
    seconds_of_run,
    summarise_evaluation,
    summarise_run,
)
from robosat_pink.training.final_evaluation import Evaluation
from robosat_pink.training.outputs import as_yaml
from robosat_pink.training.run import RunOutcome
from robosat_pink.training.thresholds import threshold_curve

log = logging.getLogger(__name__)

CHOSEN_ON_VAL = "the threshold was chosen on validation tiles, which it flatters, and acts only if asked for"


def make_report(outcome: RunOutcome, best: Evaluation, container: Container) -> None:
    """Write the report of a training run and its best weights."""
    seconds = seconds_of_run(outcome, best)
    outcome = outcome._replace(task=best.task)
    shown = examples.find_examples(best)
    started = time.monotonic()
    summary = summarise_run(outcome, best)
    _log_baseline(summary)
    meanings = trust.sentences(best, CHOSEN_ON_VAL)
    card = model_card.render(_model_card(outcome, best, summary, meanings))
    _write(container.model / "MODEL_CARD.md", redacted(card).encode())
    state, config = outcome.state, outcome.task.config
    report = _report(
        best,
        shown,
        summary,
        container,
        ended=f"Stopped {summary.time} {outcome.stopped.reason}" if outcome.stopped else f"Finished {summary.time}",
        history=page.History(
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            curves=_draw_curves(outcome, container.output_data),
            has_symmetries=config.model.symmetries,
        ),
        about={},
        meanings=meanings,
        split_rows=outcome.task.data.split._asdict(),
        remarks=remarks_after_training(outcome.task.data.remarks, state),
        seconds=seconds,
        config_yaml=(container.model / "config.yml").read_text(),
    )
    _write(container.output_data / "report.html", page.render(report).encode())
    log.info("report in %s, made in %s", container.output_data / "report.html", duration(time.monotonic() - started))


def report_evaluation(
    evaluation: Evaluation, about: Mapping[str, str], threshold_origin: str, container: Container
) -> None:
    """Write the report of an evaluation without training. `about` says what was evaluated, by name."""
    seconds = seconds_of_evaluation(evaluation)
    shown = examples.find_examples(evaluation)
    summary = summarise_evaluation(evaluation)
    _log_baseline(summary)
    report = _report(
        evaluation,
        shown,
        summary,
        container,
        ended=f"Finished {summary.time}",
        history=None,
        about={name: redacted(value) for name, value in about.items()},
        meanings=trust.sentences(evaluation, threshold_origin),
        split_rows={split: results.listed for split, results in evaluation.results.items()},
        remarks=evaluation.task.data.remarks,
        seconds=seconds,
        config_yaml=as_yaml(evaluation.task.config),
    )
    _write(container.output_data / "report.html", page.render(report).encode())
    log.info("report in %s", container.output_data / "report.html")


def _log_baseline(summary: Summary) -> None:
    if summary.baseline:
        column, scores = next(iter(summary.metrics.items()))
        log.info("%s: IoU %s. %s", column, trust.number(scores["iou"]), summary.baseline)


def _model_card(
    outcome: RunOutcome, best: Evaluation, summary: Summary, meanings: Mapping[str, str]
) -> model_card.ModelCard:
    task, state = outcome.task, outcome.state
    images = task.data.loader.tiles.pairs.images
    return model_card.ModelCard(
        config=task.config,
        scenes=images.directories,
        zxy=images.zxy,
        split_sizes=summary.split_sizes,
        version=version("robosat_pink"),
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        metrics=summary.metrics,
        best=next(iter(best.numbers.values())),
        threshold=best.threshold,
        meanings=list(meanings.values()),
        baseline=summary.baseline,
        tile_pixels=summary.tile_pixels,
        finished=summary.time,
    )


def _report(
    evaluation: Evaluation,
    shown: Examples,
    summary: Summary,
    container: Container,
    *,
    ended: str,
    history: page.History | None,
    about: Mapping[str, str],
    meanings: Mapping[str, str],
    split_rows: Mapping[str, np.ndarray],
    remarks: Sequence[str],
    seconds: Mapping[str, float],
    config_yaml: str,
) -> page.Report:
    """The data of the page. Also writes scenes.csv, and the pictures that are separate files."""
    config = evaluation.task.config
    zxy = evaluation.task.data.loader.tiles.pairs.images.zxy
    all_scenes = [scene for result in summary.splits.values() for scene in result.scenes]
    _write(container.output_data / "scenes.csv", scenes.to_csv(all_scenes, summary.class_names).encode())
    tiles = _draw_tiles(evaluation, shown, container.output_data / "tiles")
    return page.Report(
        title=f"{', '.join(summary.class_names)} by {config.model.name}",
        source=redacted(f"Images of {config.dataset.image_bucket}, masks of {config.dataset.mask_bucket}"),
        ended=ended,
        history=history,
        about=about,
        class_names=summary.class_names,
        class_colors=previews.class_colors([class_.color for class_ in config.classes]),
        metrics=summary.metrics,
        baseline=summary.baseline,
        splits=summary.splits,
        threshold_curve=_draw_threshold_curve(evaluation, summary, container.output_data),
        threshold_sentences=trust.curve_sentence(evaluation) if evaluation.shown.histogram is not None else "",
        threshold=evaluation.threshold,
        reliability_curve=_draw_reliability(evaluation, container.output_data),
        meanings=meanings,
        tiles=tiles,
        error_map=error_map.error_map(zxy, evaluation.results.values(), _marks(evaluation, shown, tiles)),
        split_map=maps.split_map(zxy, split_rows, page.SPLIT_COLORS),
        bounds=str(maps.bounds(zxy)),
        dataset=dataset_rows(evaluation, summary),
        remarks=[redacted(remark) for remark in remarks],
        split_sizes=summary.split_sizes,
        seconds=seconds,
        hardware=[redacted(line) for line in hardware.report(container)],
        config_yaml=redacted(config_yaml),
    )


def _draw_curves(outcome: RunOutcome, folder: Path) -> dict[str, str]:
    curves, png = plots.curves(outcome.state.history, outcome.state.best_epoch)
    _write(folder / "curves.png", png)
    return curves


def _draw_threshold_curve(evaluation: Evaluation, summary: Summary, folder: Path) -> str | None:
    """The precision-recall curve of a single class as a picture. None for several classes."""
    histogram = evaluation.shown.histogram
    if histogram is None:
        return None
    picture, png = plots.precision_recall(threshold_curve(histogram), summary.class_names[0])
    _write(folder / "precision_recall.png", png)
    return picture


def _draw_reliability(evaluation: Evaluation, folder: Path) -> str:
    bins = {page.SPLIT_NAMES[split]: numbers["reliability"] for split, numbers in evaluation.numbers.items()}
    picture, png = plots.reliability(bins)
    _write(folder / "reliability.png", png)
    return picture


def _draw_tiles(evaluation: Evaluation, shown: Examples, folder: Path) -> dict[str, list[page.TilePreview]]:
    """The example tiles for the page, by kind. Also writes each as a PNG, after removing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier_png in folder.glob("*.png"):
        earlier_png.unlink()
    task, results = evaluation.task, evaluation.shown
    config, tiles = task.config, task.data.loader.tiles
    ious = examples.tile_ious(results.confusions, is_single=config.num_classes == 1)
    bands, colors = tiles.reader.bands, [class_.color for class_ in config.classes]
    by_kind: dict[str, list[page.TilePreview]] = {}
    tile_number = itertools.count(1)
    for kind, positions in shown.positions.items():
        for number, position in enumerate(positions, 1):
            row = int(results.rows[position])
            tile, pixels = tiles.pairs.images.tile(row), shown.pixels[row]
            panels = previews.panels(pixels.image, pixels.mask, pixels.predicted, bands, colors)
            name = re.sub(r"[^\w.-]", "_", f"{kind}-{number}-{tiles.id(row)}.png")
            _write(folder / name, previews.as_png(previews.strip(panels)))
            preview = page.TilePreview(
                number=next(tile_number),
                iou=float(ious[position]),
                id=tiles.id(row),
                zxy=f"{tile.z}/{tile.x}/{tile.y}",
                map_link=maps.link(tile),
                bands=previews.rendering(bands, pixels.image.dtype).words,
                panels={panel.name: previews.data_uri(panel) for panel in panels},
            )
            by_kind.setdefault(kind, []).append(preview)
    return by_kind


def _marks(evaluation: Evaluation, shown: Examples, tiles: Mapping[str, Sequence[page.TilePreview]]) -> dict[int, str]:
    """What the map of errors says of each example tile, by row, in the page's sequence."""
    rows = [int(evaluation.shown.rows[position]) for positions in shown.positions.values() for position in positions]
    words = [
        f"{kind} tile, {tile.zxy}, IoU {trust.number(tile.iou)}" for kind, of_kind in tiles.items() for tile in of_kind
    ]
    return dict(zip(rows, words, strict=True))


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
