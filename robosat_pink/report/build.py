"""Writes the files to read after a run: report.html, scenes.csv, pictures, model card. Called by `train`, on rank 0.

`make_report` converts the results of the best weights to plain data, and renders the pages from these data.
"""

from __future__ import annotations

import logging
import re
import time
from importlib.metadata import version
from pathlib import Path

from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.redaction import redacted
from robosat_pink.report import examples, maps, model_card, page, plots, previews, scenes, trust
from robosat_pink.report.examples import Examples
from robosat_pink.report.summary import (
    Summary,
    dataset_rows,
    remarks_after_training,
    seconds_by_activity,
    summarise,
)
from robosat_pink.training.final_evaluation import BestEvaluation
from robosat_pink.training.run import RunOutcome
from robosat_pink.training.thresholds import threshold_curve

log = logging.getLogger(__name__)


def make_report(outcome: RunOutcome, best: BestEvaluation, container: Container) -> None:
    """Write the report of a run and its best weights."""
    seconds = seconds_by_activity(outcome, best)
    outcome = outcome._replace(task=best.task)
    shown = examples.find_examples(best)
    started = time.monotonic()
    _write_all(outcome, best, shown, seconds, container)
    log.info("report in %s, made in %.1f s", container.output_data / "report.html", time.monotonic() - started)


def _write_all(
    outcome: RunOutcome, best: BestEvaluation, shown: Examples, seconds: dict[str, float], container: Container
) -> None:
    summary = summarise(outcome, best)
    if summary.baseline:
        first_split, first_result = next(iter(summary.splits.items()))
        iou = first_result.scores["iou"]
        log.info("best weights, %s tiles: IoU %.4f. %s", first_split, iou, summary.baseline)
    card = model_card.render(_model_card(outcome, best, summary))
    _write(container.model / "MODEL_CARD.md", redacted(card).encode())
    all_scenes = [scene for result in summary.splits.values() for scene in result.scenes]
    _write(container.output_data / "scenes.csv", scenes.to_csv(all_scenes, summary.class_names).encode())
    report = _report(outcome, best, shown, summary, seconds, container)
    _write(container.output_data / "report.html", page.render(report).encode())


def _model_card(outcome: RunOutcome, best: BestEvaluation, summary: Summary) -> model_card.ModelCard:
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
        threshold=best.threshold and best.threshold.value,
        meanings=list(trust.sentences(best).values()),
        baseline=summary.baseline,
        tile_pixels=summary.tile_pixels,
        finished=summary.time,
    )


def _report(
    outcome: RunOutcome,
    best: BestEvaluation,
    shown: Examples,
    summary: Summary,
    seconds: dict[str, float],
    container: Container,
) -> page.Report:
    """The data of the page. Also writes the pictures that are separate files."""
    state, task, config = outcome.state, outcome.task, outcome.task.config
    zxy = task.data.loader.tiles.pairs.images.zxy
    source = f"Images of {config.dataset.image_bucket}, masks of {config.dataset.mask_bucket}"
    stopped = outcome.stopped
    meanings = trust.sentences(best)
    return page.Report(
        title=f"{', '.join(summary.class_names)} by {config.model.name}",
        source=redacted(source),
        ended=f"Stopped {summary.time} {stopped.reason}" if stopped else f"Finished {summary.time}",
        epochs=state.epoch,
        best_epoch=state.best_epoch,
        class_names=summary.class_names,
        class_colors=previews.class_colors([class_.color for class_ in config.classes]),
        metrics=summary.metrics,
        baseline=summary.baseline,
        splits=summary.splits,
        curves=_draw_curves(outcome, container.output_data),
        threshold_curve=_draw_threshold_curve(best, summary, container.output_data),
        threshold_sentences=trust.curve_sentence(best) if best.results["val"].histogram is not None else "",
        threshold=best.threshold and best.threshold.value,
        reliability_curve=_draw_reliability(best, container.output_data),
        meanings=meanings,
        tiles=_draw_tiles(best, shown, container.output_data / "tiles"),
        split_map=maps.split_map(zxy, task.data.split._asdict(), page.SPLIT_COLORS),
        bounds=str(maps.bounds(zxy)),
        dataset=dataset_rows(task, best.results["val"], summary),
        remarks=[redacted(remark) for remark in remarks_after_training(task.data.remarks, state)],
        has_symmetries=config.model.symmetries,
        split_sizes=summary.split_sizes,
        seconds=seconds,
        hardware=[redacted(line) for line in hardware.report(container)],
        config_yaml=redacted((container.model / "config.yml").read_text()),
    )


def _draw_curves(outcome: RunOutcome, folder: Path) -> dict[str, str]:
    curves, png = plots.curves(outcome.state.history, outcome.state.best_epoch)
    _write(folder / "curves.png", png)
    return curves


def _draw_threshold_curve(best: BestEvaluation, summary: Summary, folder: Path) -> str | None:
    """The precision-recall curve of a single class as a picture. None for several classes."""
    histogram = best.results["val"].histogram
    if histogram is None:
        return None
    picture, png = plots.precision_recall(threshold_curve(histogram), summary.class_names[0])
    _write(folder / "precision_recall.png", png)
    return picture


def _draw_reliability(best: BestEvaluation, folder: Path) -> str:
    picture, png = plots.reliability({split: numbers["reliability"] for split, numbers in best.numbers.items()})
    _write(folder / "reliability.png", png)
    return picture


def _draw_tiles(best: BestEvaluation, shown: Examples, folder: Path) -> dict[str, list[page.TilePreview]]:
    """The example tiles for the page, by kind. Also writes each as a PNG, after removing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier_png in folder.glob("*.png"):
        earlier_png.unlink()
    config, tiles, val = best.task.config, best.task.data.loader.tiles, best.results["val"]
    ious = examples.tile_ious(val.confusions, is_single=config.num_classes == 1)
    bands, colors = tiles.reader.bands, [class_.color for class_ in config.classes]
    by_kind: dict[str, list[page.TilePreview]] = {}
    for kind, positions in shown.positions.items():
        for number, position in enumerate(positions, 1):
            row = int(val.rows[position])
            tile, pixels = tiles.pairs.images.tile(row), shown.pixels[row]
            panels = previews.panels(pixels.image, pixels.mask, pixels.predicted, bands, colors)
            name = re.sub(r"[^\w.-]", "_", f"{kind}-{number}-{tiles.id(row)}.png")
            _write(folder / name, previews.as_png(previews.strip(panels)))
            preview = page.TilePreview(
                iou=float(ious[position]),
                id=tiles.id(row),
                zxy=f"{tile.z}/{tile.x}/{tile.y}",
                map_link=maps.link(tile),
                bands=previews.rendering(bands, pixels.image.dtype).words,
                panels={panel.name: previews.data_uri(panel) for panel in panels},
            )
            by_kind.setdefault(kind, []).append(preview)
    return by_kind


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
