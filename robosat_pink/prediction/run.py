"""Predicts a map, from the checked experiment to its files. Called by `predict` in each process."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robosat_pink.config import Config, to_tree
from robosat_pink.container import hardware
from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX, check_writable, make_folder
from robosat_pink.container.contract import Container
from robosat_pink.container.log_lines import IN_LOG, ON_TERMINAL
from robosat_pink.container.quantities import count
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.container.stop_request import Stopped, StopRequest
from robosat_pink.datasets import coverage
from robosat_pink.datasets.neighbours import BorderedBatch, read_with_neighbours
from robosat_pink.datasets.reading_order import share
from robosat_pink.datasets.store_options import store_options
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import ConfigError, ContractError, RobosatError
from robosat_pink.models import MODELS
from robosat_pink.prediction import page, scenes
from robosat_pink.prediction.inference import Predictor
from robosat_pink.prediction.plan import Plan, by_scene, entries, make_plan
from robosat_pink.prediction.rasters import Legend
from robosat_pink.prediction.results import CLASSES, Results, TileResult, tile_path
from robosat_pink.prediction.scenes import Scene
from robosat_pink.report.previews import class_colors
from robosat_pink.storage import Location
from robosat_pink.training import progress, setup
from robosat_pink.training.background_writer import BackgroundWriter
from robosat_pink.training.stopping import LoopControl

log = logging.getLogger(__name__)


def run(config: Config, container: Container, stop: StopRequest, world: World) -> None:
    """Find model and tiles, predict what is not there yet, and finish the scenes. Raises Stopped at a stop."""
    hardware.log_report(container)
    compute = setup.choose_compute(config, world)
    plan = make_plan(config, container, compute)
    log.info("experiment: %s", json.dumps(redacted_tree(to_tree(plan.model.config))), extra=IN_LOG)
    predictor = Predictor(plan.model, compute.device, compute.precision)
    destination = destination_of(plan.model.config, container, world)
    log.info("predicting on %s in %s", compute.device, plan.made_from["precision"])
    log.info("leaves the map in %s; after a stop, the same command continues", destination, extra=ON_TERMINAL)
    control = LoopControl(world, stop, BackgroundWriter(), max_seconds=plan.model.config.runtime.max_seconds)
    with open_results(plan, destination) as results:
        to_do, known = world.on_rank_zero(lambda: batches_to_do(plan, results))
        log.info("to be predicted: %s of %s", count(len(to_do)), count(len(plan.batches), "batch", "batches"))
        stop.is_polled = True
        skipped = known | predict_batches(to_do, plan, predictor, results, container, control)
    skipped = {row for rows in world.all_gather(skipped) for row in rows}  # and all tiles are written
    world.release()
    stop.is_polled = False
    stop.raise_if_requested()
    if world.is_rank_zero:
        finish_scenes(plan, destination, skipped, container, control)


def predict_batches(
    to_do: list[list[int]],
    plan: Plan,
    predictor: Predictor,
    results: Results,
    container: Container,
    control: LoopControl,
) -> set[int]:
    """Predict this rank's share of the batches. Returns the rows that were skipped, for they are damaged."""
    config, world = plan.model.config, control.world
    results.interrupt = control.interrupt
    mine = share(to_do, world.process.rank, world.size)
    steps = -(-len(to_do) // world.size)  # of the rank with most batches; ranks stop after the same step
    rows_by_step = [*mine, *[[]] * (steps - len(mine))]
    batches = read_with_neighbours(
        plan.tiles,
        mine,
        buffer=config.predict.buffer,
        size_multiple=MODELS[config.model.name].size_multiple,
        if_damaged=config.predict.if_damaged,
        interrupt=control.interrupt,
    )
    show_progress = progress.bar if container.is_interactive() and world.is_rank_zero else progress.lines
    skipped: set[int] = set()
    for rows in show_progress(rows_by_step, steps, "predict"):
        if rows:
            batch = next(batches)
            predict_batch(batch, predictor, plan, results)
            skipped |= set(rows) - set(batch.rows)
        stop_reason, _ = control.after_step()
        if stop_reason:
            raise Stopped(stop_reason, is_agreed=True)
    return skipped


def batches_to_do(plan: Plan, results: Results) -> tuple[list[list[int]], set[int]]:
    """The batches of which a tile is not there, or was made from something else; and the rows known to be damaged.

    These were skipped by an earlier run, and neither their images nor what else decides a result has changed.
    """
    results.remove_half_written()
    present: set[str] = set()
    damage: dict[str, str] = {}
    for rows in by_scene(plan.tiles, plan.rows):
        scene = scene_of(plan, int(rows[0]))
        present |= results.names(scene)
        if plan.model.config.predict.if_damaged == "skip":
            damage |= scenes.known_damage(results, scene)
    damaged = {row for row in plan.rows.tolist() if damage.get(plan.tiles.files.path(row)) == plan.digests[row]}
    wanted = [(result_path(plan, row), plan.digests[row]) for row in plan.rows.tolist() if row not in damaged]
    there = results.agreeing(wanted, present)
    settled = damaged | {row for row in plan.rows.tolist() if result_path(plan, row) in there}
    to_do = [batch for batch in plan.batches if not settled.issuperset(batch)]
    known = damaged.difference(*to_do)  # the others are tried again with their batches
    for row in sorted(known):
        log.warning(
            "warning: skipped, for it was damaged before and is the same: %s (without the manifest beside the map of "
            "its scene, it is tried again)",
            plan.tiles.name(row),
        )
    return to_do, known


def predict_batch(batch: BorderedBatch, predictor: Predictor, plan: Plan, results: Results) -> None:
    """Predict a batch, and write its tiles in the background. Raises RobosatError for NaN or inf."""
    for reason in batch.damaged.values():
        log.warning("warning: skipped, because predict.if_damaged = skip: %s", reason)
    if not batch.rows:
        return
    plan.tiles.note_kinds(batch.kinds)
    probabilities = predictor.probabilities(batch.image, batch.scale)
    for number, (row, (height, width)) in enumerate(zip(batch.rows, batch.sizes, strict=True)):
        inner = slice(batch.border, batch.border + height), slice(batch.border, batch.border + width)
        of_tile, missing = probabilities[number][:, *inner].copy(), batch.missing[number][inner]
        if not np.isfinite(of_tile[:, ~missing]).all():
            raise RobosatError(
                f"{plan.tiles.name(row)}: its probabilities are NaN or inf in {plan.made_from['precision']}; set "
                "runtime.precision: fp32, or check the model"
            )
        z, x, y = plan.tiles.files.zxy[row].tolist()
        results.write(
            TileResult(
                scene=scene_of(plan, row),
                zxy=(z, x, y),
                made_from=plan.digests[row],
                classes=predictor.classes(of_tile, missing),
                probabilities=of_tile if plan.model.config.predict.probability else None,
            )
        )


def finish_scenes(
    plan: Plan, destination: Location, skipped: set[int], container: Container, control: LoopControl
) -> None:
    """Write mosaics, manifests and the page, on one rank. `skipped` are the rows of damaged tiles.

    Raises Stopped at runtime.max_seconds, between scenes, once one more is finished: so each run gets further.
    """
    config = plan.model.config
    legend, class_names = legend_of(config), [class_.name for class_ in config.classes]
    temporary = container.output_data / f"mosaic{TEMPORARY_SUFFIX}"  # one name, so that a killed run leaves only one
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    manifests, positions = [], []
    try:
        with open_results(plan, destination) as results:
            has_finished_one = False
            for name, rows in finished_rows(plan, skipped, results):
                damaged = damaged_files(plan, name, skipped)
                if not len(rows):
                    scenes.write_unfinished(results, name, damaged)
                    continue
                scene = Scene(
                    name=name,
                    zxy=plan.tiles.files.zxy[rows],
                    tiles=list(entries(plan.model, plan.tiles, rows)),
                    damaged=damaged,
                    made_from=plan.made_from,
                    model=plan.model.files.name,
                )
                positions.append(scene.zxy)
                mosaics = scenes.mosaics_of(scene, results, config.predict.mosaic)
                manifest = scenes.finished(scene, results, mosaics)
                if manifest is None and has_finished_one:
                    control.raise_if_time_is_over()
                if manifest is None:
                    manifest = scenes.finish(scene, results, legend, class_names, mosaics, temporary)
                    has_finished_one = True
                manifests.append(manifest)
            destination.write(page.NAME, page.render(manifests, positions, legend, plan.model, plan.remarks).encode())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("the map is in %s; open %s", destination, f"{destination}/{page.NAME}")


def finished_rows(plan: Plan, skipped: set[int], results: Results) -> Iterator[tuple[str, np.ndarray]]:
    """Each scene, with its rows less those of damaged tiles. Warns of files that are not of this map."""
    for rows in by_scene(plan.tiles, plan.rows):
        left = rows[[row not in skipped for row in rows.tolist()]]
        name = scene_of(plan, int(rows[0]))
        files = {path for row in left.tolist() for path in results.files_of(result_path(plan, row))}
        if not len(left) and results.may_have([f"{CLASSES}/{name}.tif"]):
            log.warning("warning: all tiles of %s are damaged: its mosaic, if there is one, is of an earlier map", name)
        if others := results.names(name) - files:
            some = sorted(others)[0]
            log.warning("warning: %d files of %s are not of this map, such as %s; remove them", len(others), name, some)
        yield name, left


def damaged_files(plan: Plan, scene: str, skipped: set[int]) -> dict[str, str]:
    """The files of a scene that were skipped, each with the digest of what its result would have been made from."""
    rows = [row for row in sorted(skipped) if scene_of(plan, row) == scene]
    return {plan.tiles.files.path(row): plan.digests[row] for row in rows}


def scene_of(plan: Plan, row: int) -> str:
    files = plan.tiles.files
    return files.directories[files.directory[row]]


def result_path(plan: Plan, row: int) -> str:
    z, x, y = plan.tiles.files.zxy[row].tolist()
    return tile_path(scene_of(plan, row), (z, x, y))


def open_results(plan: Plan, destination: Location) -> Results:
    config = plan.model.config
    class_names = [class_.name for class_ in config.classes]
    return Results(destination, legend_of(config), class_names, config.predict.probability)


def destination_of(config: Config, container: Container, world: World) -> Location:
    """The folder or s3:// prefix of the results, a folder made if it is missing.

    Raises ContractError if the folder cannot be written, and ConfigError for a folder if there are several hosts.
    """
    destination = _destination(config, container)
    if destination.bucket is None:
        if world.process.size != world.process.local_size:
            raise ConfigError(
                f"predict.output = {config.predict.output}: each of the hosts would keep a part of the map in a folder "
                "of its own; accepted with several hosts: s3://bucket/prefix"
            )
        make_folder(Path(destination.path))
        check_writable(Path(destination.path))
    return destination


def _destination(config: Config, container: Container) -> Location:
    store = store_options(config.dataset, container.channels())
    return Location.parse(config.predict.output or str(container.output_data), **store)


def legend_of(config: Config) -> Legend:
    names = [class_.name for class_ in config.classes]
    colors = class_colors([class_.color for class_ in config.classes])
    return Legend(["background", *names] if len(names) == 1 else names, colors)


def check(config: Config, container: Container) -> None:
    """Log what there is to predict. Writes nothing but the cache of tiles. Raises the errors that a run would raise.

    It reads some of the tiles.
    """
    compute = setup.choose_compute(config, World())
    plan = make_plan(config, container, compute)
    Predictor(plan.model, compute.device, compute.precision)
    destination = _destination(plan.model.config, container)
    if destination.bucket is None:
        folder = next(path for path in (Path(destination.path), *Path(destination.path).parents) if path.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ContractError(f"{destination}: {folder} is no folder that can be written; set predict.output")
    settings = plan.model.config.predict
    some = [[row] for row in coverage.chosen(plan.rows)]
    multiple = MODELS[plan.model.config.model.name].size_multiple
    for batch in read_with_neighbours(
        plan.tiles, some, buffer=settings.buffer, size_multiple=multiple, if_damaged=settings.if_damaged
    ):
        for reason in batch.damaged.values():
            log.warning("warning: to be skipped: %s", reason)
    log.info(
        "%s; %s were read; nothing was predicted",
        count(len(plan.batches), "batch", "batches"),
        count(len(some), "tile"),
    )
