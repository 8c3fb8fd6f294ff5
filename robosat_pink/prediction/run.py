"""Predicts a map, from the checked experiment to its files. Called by `predict` in each process."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robosat_pink.config import Config, to_tree
from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX, make_folder
from robosat_pink.container.contract import Container
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.container.some_names import some_names
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.datasets import coverage
from robosat_pink.datasets.images import ImageTiles, ListedImages
from robosat_pink.datasets.neighbours import BorderedBatch, read_with_neighbours
from robosat_pink.datasets.reading_order import batches_in_order, share
from robosat_pink.datasets.sides import Side
from robosat_pink.datasets.store_options import store_options
from robosat_pink.datasets.tiles import around
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import DataError
from robosat_pink.models import MODELS
from robosat_pink.prediction import page, scenes
from robosat_pink.prediction.inference import Predictor
from robosat_pink.prediction.model import Model, find_model
from robosat_pink.prediction.rasters import Legend
from robosat_pink.prediction.results import Results, TileResult, tile_path
from robosat_pink.prediction.scenes import Scene
from robosat_pink.prediction.selection import selected_rows
from robosat_pink.report.previews import class_colors
from robosat_pink.storage import Location
from robosat_pink.training import progress, setup
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.stopping import LoopControl

log = logging.getLogger(__name__)

DIGEST_BYTES = 16


class Plan(NamedTuple):
    """What is to be predicted."""

    model: Model
    tiles: ImageTiles
    rows: np.ndarray  # (N,) the selected tiles
    batches: list[list[int]]  # of rows, in the order in which they are predicted
    made_from: Mapping[int, str]  # by row: a digest of everything that determines the tile's result


def run(config: Config, container: Container, stop: StopRequest, world: World) -> None:
    """Find model and tiles, predict what is not there yet, and finish the scenes. Raises Stopped at a stop."""
    for line in hardware.report(container):
        log.info(line)
    found = plan(config, container, world)
    config = found.model.config
    compute = setup.choose_compute(config, world)
    predictor = Predictor(found.model, compute.device, compute.precision)
    log.info("predicting on %s in %s", compute.device, compute.precision or "torch.float32")
    with open_results(found, container) as results:
        to_do = world.on_rank_zero(lambda: batches_to_do(found, results))
        log.info("%d of %d batches are to be predicted", len(to_do), len(found.batches))
        stop.is_polled = True
        show_progress = progress.bar if container.is_interactive() and world.is_rank_zero else progress.lines
        control = LoopControl(world, stop, BackgroundWriter(), max_seconds=config.runtime.max_seconds)
        mine = share(to_do, world.process.rank, world.size)
        steps = -(-len(to_do) // world.size)  # of the rank with most batches; ranks stop after the same step
        rows_by_step = [*mine, *[[]] * (steps - len(mine))]
        batches = read_with_neighbours(
            found.tiles,
            mine,
            buffer=config.predict.buffer,
            size_multiple=MODELS[config.model.name].size_multiple,
            if_damaged=config.predict.if_damaged,
            interrupt=control.interrupt,
        )
        for rows in show_progress(rows_by_step, steps, "predict"):
            if rows:
                predict_batch(next(batches), predictor, found, results)
            stop_reason, _ = control.after_step()
            if stop_reason:
                raise Stopped(stop_reason, is_agreed=True)
    world.sum_over_ranks(1)  # all tiles are written
    if world.is_rank_zero:
        finish_scenes(found, container)


def plan(config: Config, container: Container, world: World) -> Plan:
    """Find model and tiles, and cut these into batches. Raises DataError for tiles of a zoom not learnt from."""
    model = find_model(config, store_options(config.dataset, container.channels()))
    config = model.config
    tiles = list_images(config, container, world)
    refuse_other_zooms(model, tiles)
    rows = selected_rows(config.predict.tiles, tiles.ids, model.files)
    batches = batches_in_order(tiles.files, rows, config.model.batch_size, config.num_channels)
    common = made_from(model)
    digests: dict[int, str] = {}
    for of_scene in by_scene(tiles, rows):
        made = (digest(common, entry) for entry in entries(model, tiles, of_scene))
        digests |= dict(zip(of_scene.tolist(), made, strict=True))
    scenes_count = len(by_scene(tiles, rows))
    where = tiles.image_location
    log.info("%s: %d of %d tiles are wanted, of %d scene(s)", where, len(rows), len(tiles), scenes_count)
    return Plan(model, tiles, rows, batches, digests)


def list_images(config: Config, container: Container, world: World) -> ImageTiles:
    """List the images that the section `predict` names, by default those of `dataset`."""
    settings = config.predict
    store = store_options(config.dataset, container.channels())
    side = Side(
        location=Location.parse(settings.images or config.dataset.image_bucket, **store),
        expression=settings.images_regex or config.dataset.imagery_directory_regex,
        bucket_key="predict.images" if settings.images else "dataset.image_bucket",
        expression_key="predict.images_regex" if settings.images_regex else "dataset.imagery_directory_regex",
    )
    return ImageTiles(
        side,
        config.channels,
        missing=config.dataset.missing,
        cache=config.dataset.cache,
        on_rank_zero=world.on_rank_zero,
        is_listed_here=world.process.size == world.process.local_size,
    )


def refuse_other_zooms(model: Model, tiles: ListedImages) -> None:
    """Raises DataError for tiles of a zoom that the model has not learnt from."""
    if not model.zooms:
        return
    other = np.flatnonzero(~np.isin(tiles.files.zxy[:, 0], model.zooms))
    if len(other):
        zooms, path = some_names(list(map(str, model.zooms))), tiles.files.path(int(other[0]))
        raise DataError(
            f"{model.files.name} learnt from tiles of zoom {zooms}, but {len(other)} of the {len(tiles)} tiles are of "
            f"another, such as {path}; a pixel would be of another size than those it knows. Cut tiles of that zoom, "
            "or choose directories by predict.images_regex"
        )


def entries(model: Model, tiles: ImageTiles, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """What the result of each tile of a scene is made from, for the manifest: the versions of the images it needs."""
    files, with_neighbours = tiles.files, model.config.predict.buffer > 0
    for row, nearby in zip(rows.tolist(), around(files, rows), strict=True):
        needed = nearby[nearby >= 0].tolist() if with_neighbours else [row]
        yield {"tile": files.path(row), "images": {files.path(other): int(files.version[other]) for other in needed}}


def by_scene(tiles: ImageTiles, rows: np.ndarray) -> list[np.ndarray]:
    """The ascending rows of each scene."""
    directories = tiles.files.directory[rows]
    return np.split(rows, np.flatnonzero(np.diff(directories)) + 1)


def written_scenes(found: Plan, results: Results) -> Iterator[np.ndarray]:
    """The rows of each scene whose results are there: all but damaged ones, and no scene of which none is."""
    files = found.tiles.files
    for rows in by_scene(found.tiles, found.rows):
        present = results.names(files.directories[files.directory[rows[0]]])
        there = rows[[results.files_of(result_path(found, row)) <= present for row in rows.tolist()]]
        if len(there):
            yield there


def made_from(model: Model) -> dict[str, Any]:
    """What the results of all tiles are made from, for the manifest."""
    config = model.config
    tree = redacted_tree(to_tree(config))
    settings = {name: tree["predict"][name] for name in ("threshold", "buffer", "symmetries", "if_damaged")}
    return {
        "version": version("robosat_pink"),
        "model": model.files.name,
        "model_digest": model.digest,
        "classes": tree["classes"],
        "channels": tree["channels"],
        "missing": tree["dataset"]["missing"],
        "batch_size": config.model.batch_size,
        **settings,
    }


def digest(*parts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()


def open_results(found: Plan, container: Container) -> Results:
    config = found.model.config
    class_names = [class_.name for class_ in config.classes]
    return Results(destination_of(config, container), legend_of(config), class_names, config.predict.probability)


def destination_of(config: Config, container: Container) -> Location:
    """The folder or s3:// prefix of the results. Raises ContractError if the folder cannot be written."""
    store = store_options(config.dataset, container.channels())
    destination = Location.parse(config.predict.output or str(container.output_data), **store)
    if destination.bucket is None:
        make_folder(Path(destination.path))
    return destination


def legend_of(config: Config) -> Legend:
    names = [class_.name for class_ in config.classes]
    colors = class_colors([class_.color for class_ in config.classes])
    return Legend(["background", *names] if len(names) == 1 else names, colors)


def batches_to_do(found: Plan, results: Results) -> list[list[int]]:
    """The batches of which a tile is not there, or was made from something else."""
    results.remove_half_written()
    files = found.tiles.files
    present: set[str] = set()
    for number in np.unique(files.directory[found.rows]).tolist():
        present |= results.names(files.directories[number])
    wanted = [(result_path(found, row), found.made_from[row]) for row in found.rows.tolist()]
    there = results.agreeing(wanted, present)
    return [batch for batch in found.batches if any(result_path(found, row) not in there for row in batch)]


def result_path(found: Plan, row: int) -> str:
    files = found.tiles.files
    z, x, y = files.zxy[row].tolist()
    return tile_path(files.directories[files.directory[row]], (z, x, y))


def predict_batch(batch: BorderedBatch, predictor: Predictor, found: Plan, results: Results) -> None:
    """Predict a batch, and write its tiles in the background."""
    files = found.tiles.files
    for reason in batch.damaged.values():
        log.warning("warning: skipped, because predict.if_damaged = skip: %s", reason)
    if not batch.rows:
        return
    found.tiles.note_kinds(batch.kinds)
    probabilities = predictor.probabilities(batch.image, batch.scale)
    for number, (row, (height, width)) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
        inner = slice(batch.border, batch.border + height), slice(batch.border, batch.border + width)
        of_tile = probabilities[number][:, *inner]
        z, x, y = files.zxy[row].tolist()
        results.write(
            TileResult(
                scene=files.directories[files.directory[row]],
                zxy=(z, x, y),
                made_from=found.made_from[row],
                classes=predictor.classes(of_tile, batch.missing[number][inner]),
                probabilities=of_tile if found.model.config.predict.probability else None,
            )
        )


def finish_scenes(found: Plan, container: Container) -> None:
    """Write mosaics, manifests and the page, on one rank."""
    config, files = found.model.config, found.tiles.files
    legend, class_names = legend_of(config), [class_.name for class_ in config.classes]
    temporary = container.output_data / f"mosaic{TEMPORARY_SUFFIX}"  # of this name, so that a killed run leaves one
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    manifests, positions = [], []
    with open_results(found, container) as results:
        for rows in written_scenes(found, results):
            scene = Scene(
                name=files.directories[files.directory[rows[0]]],
                zxy=files.zxy[rows],
                tiles=list(entries(found.model, found.tiles, rows)),
                made_from=made_from(found.model),
            )
            positions.append(scene.zxy)
            manifests.append(scenes.finish(scene, results, legend, class_names, config.predict.mosaic, temporary))
        results.destination.write(page.NAME, page.render(manifests, positions, legend, found.model).encode())
    shutil.rmtree(temporary, ignore_errors=True)
    log.info("the map is in %s; open %s", results.destination, f"{results.destination}/{page.NAME}")


def check(config: Config, container: Container) -> None:
    """Log what there is to predict. Writes nothing but the cache of tiles; reads a few tiles."""
    found = plan(config, container, World())
    some = coverage.chosen(found.rows)
    for first in range(0, len(some), coverage.AT_ONCE):
        found.tiles[some[first]]
    log.info(
        "%d batches of %d; %d tiles were read; nothing was predicted",
        len(found.batches),
        found.model.config.model.batch_size,
        len(some),
    )
