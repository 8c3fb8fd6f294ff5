"""Writes the files to read after a run: report.html, scenes.csv, pictures, model card. Called by `train`, on rank 0.

`make_report` evaluates the best weights, converts the results to plain data, and renders the pages from these data.
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
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.redaction import redacted
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.errors import RobosatError
from robosat_pink.report import evaluate, maps, model_card, page, plots, previews, scenes
from robosat_pink.report.evaluate import Evaluation
from robosat_pink.report.summary import (
    Summary,
    dataset_rows,
    remarks_after_training,
    seconds_by_activity,
    summarise,
    threshold_sentences,
)
from robosat_pink.training.run import RunOutcome

log = logging.getLogger(__name__)


def make_report(outcome: RunOutcome, container: Container, stop: StopRequest) -> None:
    """Evaluate the best weights tile by tile, and write the report. Leaves the model with these weights.

    The training has succeeded by then, so that a failure here is only a warning.
    """
    try:
        seconds = seconds_by_activity(outcome)
        outcome = outcome._replace(task=outcome.task.on_one_rank(stop))
        evaluation = _evaluate(outcome)
        seconds["evaluating for the report"] = sum(results.seconds for results in evaluation.results.values())
        started = time.monotonic()
        _write_all(outcome, evaluation, seconds, container)
        path = container.output_data / "report.html"
        log.info("report in %s, made in %.1f s", path, time.monotonic() - started)
    except Stopped:
        log.warning("warning: stopped by a signal before the report was made; model and metrics are complete")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # obstore's panics do not derive from Exception
        is_defect = not isinstance(error, RobosatError)
        message = user_message(error)
        log.warning("warning: no report: %s; model and metrics are complete", message, exc_info=is_defect)


def _evaluate(outcome: RunOutcome) -> Evaluation:
    state, split = outcome.state, outcome.task.data.split
    state.model.load_state_dict(state.best_weights)
    rows = {"holdout": split.holdout, "val": split.val} if outcome.holdout else {"val": split.val}
    return evaluate.evaluate_splits(state.model, outcome.task, rows)


def _write_all(outcome: RunOutcome, evaluation: Evaluation, seconds: dict[str, float], container: Container) -> None:
    summary = summarise(outcome, evaluation)
    if summary.baseline:
        first_split, first_result = next(iter(summary.splits.items()))
        iou = first_result.scores["iou"]
        log.info("best weights, %s tiles: IoU %.4f. %s", first_split, iou, summary.baseline)
    card = model_card.render(_model_card(outcome, summary))
    _write(container.model / "MODEL_CARD.md", redacted(card).encode())
    all_scenes = [scene for result in summary.splits.values() for scene in result.scenes]
    _write(container.output_data / "scenes.csv", scenes.to_csv(all_scenes, summary.class_names).encode())
    report = _report(outcome, evaluation, summary, seconds, container)
    _write(container.output_data / "report.html", page.render(report).encode())


def _model_card(outcome: RunOutcome, summary: Summary) -> model_card.ModelCard:
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
        baseline=summary.baseline,
        tile_pixels=summary.tile_pixels,
        finished=summary.time,
    )


def _report(
    outcome: RunOutcome, evaluation: Evaluation, summary: Summary, seconds: dict[str, float], container: Container
) -> page.Report:
    """The data of the page. Also writes the pictures that are separate files."""
    state, task, config = outcome.state, outcome.task, outcome.task.config
    zxy = task.data.loader.tiles.pairs.images.zxy
    source = f"Images of {config.dataset.image_bucket}, masks of {config.dataset.mask_bucket}"
    stopped = outcome.stopped
    threshold_curve, sentences = _draw_threshold_curve(evaluation, summary, container.output_data)
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
        threshold_curve=threshold_curve,
        threshold_sentences=sentences,
        tiles=_draw_tiles(outcome, evaluation, container.output_data / "tiles"),
        split_map=maps.split_map(zxy, task.data.split._asdict(), page.SPLIT_COLORS),
        bounds=str(maps.bounds(zxy)),
        dataset=dataset_rows(task, evaluation.results["val"], summary),
        remarks=[redacted(remark) for remark in remarks_after_training(task.data.remarks, state)],
        split_sizes=summary.split_sizes,
        seconds=seconds,
        hardware=[redacted(line) for line in hardware.report(container)],
        config_yaml=redacted((container.model / "config.yml").read_text()),
    )


def _draw_curves(outcome: RunOutcome, folder: Path) -> dict[str, str]:
    curves, png = plots.curves(outcome.state.history, outcome.state.best_epoch)
    _write(folder / "curves.png", png)
    return curves


def _draw_threshold_curve(evaluation: Evaluation, summary: Summary, folder: Path) -> tuple[str | None, str]:
    """The precision-recall curve of a single class as a picture, and sentences about it. None for several classes."""
    histogram = evaluation.results["val"].histogram
    if histogram is None:
        return None, ""
    curve = evaluate.threshold_curve(histogram)
    picture, png = plots.precision_recall(curve, summary.class_names[0])
    _write(folder / "precision_recall.png", png)
    return picture, threshold_sentences(curve)


def _draw_tiles(outcome: RunOutcome, evaluation: Evaluation, folder: Path) -> dict[str, list[page.TilePreview]]:
    """The example tiles for the page, by kind. Also writes each as a PNG, after removing those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for earlier_png in folder.glob("*.png"):
        earlier_png.unlink()
    config, tiles, val = outcome.task.config, outcome.task.data.loader.tiles, evaluation.results["val"]
    ious = evaluate.tile_ious(val.confusions, is_single=config.num_classes == 1)
    bands, colors = tiles.reader.bands, [class_.color for class_ in config.classes]
    by_kind: dict[str, list[page.TilePreview]] = {}
    for kind, positions in evaluation.examples.items():
        for number, position in enumerate(positions, 1):
            row = int(val.rows[position])
            tile, pixels = tiles.pairs.images.tile(row), evaluation.pixels[row]
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
