"""What a person opens after a run: report.html, scenes.csv, pictures, the model card. Called by `train`, at its end.

`leave` gathers plain data; `page`, `card`, `plots`, `pictures`, `maps` and `scenes` make of it what is looked at. By
then the training has succeeded: whatever goes wrong here is a warning.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import write_atomically
from robosat_pink.container.contract import Container
from robosat_pink.container.failure_file import user_message
from robosat_pink.container.redaction import redacted
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.errors import RobosatError
from robosat_pink.report import evaluate, maps, model_card, page, plots, previews, scenes
from robosat_pink.report.evaluate import Inspection, Look
from robosat_pink.report.findings import Facts, Part, TilePictures
from robosat_pink.training import metrics
from robosat_pink.training.state import State
from robosat_pink.training.task import Task

log = logging.getLogger(__name__)

NO_BETTER = 0.001  # of IoU, that a network must be better by


def leave(
    state: State,
    task: Task,
    holdout: Mapping[str, Any] | None,
    stopped: Stopped | None,
    container: Container,
    stop: StopRequest,
) -> None:
    """Evaluate the best weights once more, tile by tile, and write all that. The network has these weights after it.

    In one process: if there were others, their work has ended. Of a run that was `stopped`, it tells the epochs done.
    """
    try:
        task = task.on_one_rank(stop)
        seconds = _seconds_of_epochs(state, holdout)
        if not state.is_resumed and not stopped:  # then this process has made all of the run
            seconds["start-up, listing tiles, writing"] = hardware.process_seconds() - sum(seconds.values())
        state.model.load_state_dict(state.best_weights)
        parts = {"holdout": task.data.split.holdout} if holdout else {}
        found = {
            name: evaluate.inspect(state.model, task, rows)
            for name, rows in (parts | {"val": task.data.split.val}).items()
        }
        picked = evaluate.pick(found["val"], single=task.config.num_classes == 1)
        rows = found["val"].rows[[place for places in picked.values() for place in places]]
        looks = evaluate.look(state.model, task, rows)
        began = time.monotonic()
        seconds["evaluating for the report"] = sum(each.seconds for each in found.values())
        _write(state, task, holdout, stopped, container, found, picked, looks, seconds)
        log.info("report in %s, made in %.1f s", container.output_data / "report.html", time.monotonic() - began)
    except Stopped:
        log.warning("warning: stopped by a signal before the report was made; model and metrics are whole")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of obstore's, too, which is no Exception
        is_defect = not isinstance(error, RobosatError)
        log.warning("warning: no report: %s; model and metrics are whole", user_message(error), exc_info=is_defect)


def _write(
    state: State,
    task: Task,
    holdout: Mapping[str, Any] | None,
    stopped: Stopped | None,
    container: Container,
    found: Mapping[str, Inspection],
    picked: Mapping[str, list[int]],
    looks: Mapping[int, Look],
    seconds: dict[str, float],
) -> None:
    config, tiles = task.config, task.data.loader.tiles
    images = tiles.pairs.images
    names = [each.name for each in config.classes]
    numbers = columns(state, holdout)
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    side = round(math.sqrt(np.median(found["val"].pixels))) if len(found["val"].pixels) else config.model.tile_size
    best = next(row for row in state.history if row["epoch"] == state.best_epoch)
    parts = [
        _part(name, holdout if name == "holdout" and holdout else best["val"], each, task, images)
        for name, each in found.items()
    ]
    beside = _beside_knowing_nothing(parts[0], names)
    if beside:
        log.info("best weights, %s tiles: IoU %.4f. %s", parts[0].name, parts[0].scores["iou"], beside)
    rows_of_scenes = [scene for part in parts for scene in part.scenes]

    text = model_card.render(
        model_card.Facts(
            config,
            tiles.pairs,
            task.data.split,
            version("robosat_pink"),
            state.epoch,
            state.best_epoch,
            numbers,
            beside,
            side,
            now,
        )
    )
    _put(container.model / "MODEL_CARD.md", redacted(text).encode())
    output = container.output_data
    _put(output / "scenes.csv", scenes.to_csv(rows_of_scenes, names).encode())

    by_metric, whole = plots.curves(state.history, state.best_epoch)
    _put(output / "curves.png", whole)
    threshold_curve, threshold_words = None, ""
    histogram = found["val"].histogram
    if histogram is not None:
        curve = evaluate.precision_recall(histogram)
        threshold_curve, drawn = plots.precision_recall(curve, names[0])
        threshold_words = _threshold_words(curve)
        _put(output / "precision_recall.png", drawn)

    shown = _tiles(task, found["val"], picked, looks, output)
    split = {
        "train": len(task.data.split.train),
        "val": len(task.data.split.val),
        "holdout": len(task.data.split.holdout),
    }
    rows = {"train": task.data.split.train, "val": task.data.split.val, "holdout": task.data.split.holdout}
    _put(
        output / "report.html",
        page.render(
            Facts(
                title=f"{', '.join(names)} by {config.model.name}",
                source=redacted(f"images of {config.dataset.image_bucket}, masks of {config.dataset.mask_bucket}"),
                ended=f"Stopped {now} {stopped.reason}" if stopped else f"Finished {now}",
                epochs=state.epoch,
                best_epoch=state.best_epoch,
                class_names=names,
                class_colors=previews.class_colors([each.color for each in config.classes]),
                numbers=numbers,
                beside=beside,
                parts=parts,
                curves=by_metric,
                threshold_curve=threshold_curve,
                threshold_words=threshold_words,
                tiles=shown,
                tiles_of="val",
                split_map=maps.split_map(images.zxy, rows, page.PART_COLORS),
                place=str(maps.bounds(images.zxy)),
                data=_data(task, found["val"], side),
                remarks=[redacted(remark) for remark in _remarks(task.data.remarks, state)],
                split=split,
                seconds=seconds,
                machine=[redacted(line) for line in hardware.report(container)],
                config=redacted((container.model / "config.yml").read_text()),
            )
        ).encode(),
    )


def _remarks(before: Sequence[str], state: State) -> list[str]:
    """What was said of some training tiles before the run, set right by what the last epoch has met in all of them."""
    trained = state.history[-1]["train"]["per_class"]
    absent = [name for name, scores in trained.items() if math.isnan(scores["recall"])]  # without a pixel of it
    refuted = [f" is {name} (mask value" for name in trained.keys() - set(absent)]
    kept = [each for each in before if not ("no pixel of" in each and any(words in each for words in refuted))]
    named = [f" is {name} (mask value" for name in absent]
    new = [name for name, words in zip(absent, named, strict=True) if not any(words in each for each in kept)]
    return kept + [f"warning: no pixel that the last epoch has trained on is {name}" for name in new]


def columns(state: State, holdout: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """The metrics of the run by the words above them: held-out ones first, then those that chose the best epoch."""
    best = next(row for row in state.history if row["epoch"] == state.best_epoch)
    last = state.history[-1]
    found: dict[str, Mapping[str, Any]] = {"held-out tiles": holdout} if holdout else {}
    found["validation tiles"] = best["val"]
    if last is not best:
        found["validation, last epoch"] = last["val"]
    found["training, last epoch"] = last["train"]
    return found


def _part(name: str, known: Mapping[str, Any], found: Inspection, task: Task, images: TileFiles) -> Part:
    class_names = [each.name for each in task.config.classes]
    rows = task.data.split.holdout if name == "holdout" else task.data.split.val
    scores = metrics.scores(found.total, class_names, known["loss"])
    differences = [abs(scores[each] - known[each]) for each in scenes.NAMES]
    return Part(
        name=name,
        scores=scores,
        total=found.total,
        scenes=scenes.by_scene(name, rows, found, images, class_names),
        differing=max((each for each in differences if not math.isnan(each)), default=0.0),
    )


def _beside_knowing_nothing(part: Part, names: Sequence[str]) -> str:
    """What calling every pixel the one class would score. Empty for several classes, and where no pixel has data."""
    if len(names) > 1 or not part.total.sum():
        return ""
    score = part.total[1].sum() / part.total.sum()
    verdict = ": this network is no better" if part.scores["iou"] <= score + NO_BETTER else ""
    return f"Calling every pixel {names[0]} would score an IoU of {score:.4f}{verdict}."


def _tiles(
    task: Task, found: Inspection, picked: Mapping[str, list[int]], looks: Mapping[int, Look], output: Path
) -> list[TilePictures]:
    """The picked tiles for the page, and each as a PNG of its own."""
    tiles, single = task.data.loader.tiles, task.config.num_classes == 1
    scores = evaluate.mean_scores(found.counts, single)
    colors = [each.color for each in task.config.classes]
    bands = tiles.reader.bands
    folder = output / "tiles"
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.png"):
        earlier.unlink()
    shown = []
    for kind, places in picked.items():
        for number, place in enumerate(places, 1):
            row = int(found.rows[place])
            tile, look = tiles.pairs.images.tile(row), looks[row]
            panels = previews.panels(look.image, look.mask, look.predicted, bands, colors)
            name = re.sub(r"[^\w.-]", "_", f"{kind}-{number}-{tiles.id(row)}.png")
            _put(folder / name, previews.as_png(previews.strip(panels)))
            shown.append(
                TilePictures(
                    kind=kind,
                    score=float(scores[place]),
                    tile_id=tiles.id(row),
                    place=f"{tile.z}/{tile.x}/{tile.y}",
                    map_link=maps.link(tile),
                    words=previews.rendering(bands, look.image.dtype).words,
                    panels=tuple((panel.name, previews.data_uri(panel)) for panel in panels),
                )
            )
    return shown


def _data(task: Task, found: Inspection, side: int) -> list[tuple[str, int | str]]:
    pairs = task.data.loader.tiles.pairs
    total = found.total
    pixels = max(int(found.pixels.sum()), 1)
    names = scenes.truths([each.name for each in task.config.classes])
    shares = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(names, total.sum(axis=1) / max(int(total.sum()), 1), strict=True)
    )
    return [
        ("pairs of image and mask", len(pairs)),
        ("scenes", len(np.unique(pairs.images.directory))),
        ("images without mask", pairs.unpaired_images),
        ("masks without image", pairs.unpaired_masks),
        ("tile zoom", ", ".join(str(zoom) for zoom in np.unique(pairs.images.zxy[:, 0]))),
        ("tile size", f"{side} x {side} pixels"),
        ("ground resolution", f"about {maps.metres_per_pixel(pairs.images.zxy, side):.2g} m"),
        ("validation pixels with data", f"{int(total.sum()) / pixels:.1%}"),
        ("of them", shares),
        ("validation tiles without data", found.empty),
    ]


def _threshold_words(curve: evaluate.Curve) -> str:
    known = np.where(np.isnan(curve.iou), -1, curve.iou)
    half = len(known) // 2
    best = int(known.argmax())
    return (
        "On the validation tiles. A pixel is of the class above a probability of 0.5, which gives a precision of "
        f"{curve.precision[half]:.4f}, a recall of {curve.recall[half]:.4f} and an IoU of {curve.iou[half]:.4f}. "
        f"The IoU would be highest, {curve.iou[best]:.4f}, above {curve.threshold[best]:g}; a threshold chosen here "
        "flatters these tiles."
    )


def _seconds_of_epochs(state: State, holdout: Mapping[str, Any] | None) -> dict[str, float]:
    """By part, of whole epochs, over all attempts."""
    waited = sum(row["train"].get("waited_s", 0.0) for row in state.history)
    seconds = {
        "training": sum(row["train"]["seconds"] for row in state.history) - waited,
        "waiting for tiles, in training": waited,
        "evaluating after each epoch": sum(row["val"]["seconds"] for row in state.history),
        "evaluating held-out tiles": holdout["seconds"] if holdout else 0.0,
    }
    return {name: each for name, each in seconds.items() if each > 0}


def _put(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
