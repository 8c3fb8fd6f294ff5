"""What a map is to be made of: the model, the tiles, their batches, and digests of all that decides a result.

Called by `run` and `evaluation`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from robosat_pink.config import Config, to_tree
from robosat_pink.container.contract import Container
from robosat_pink.container.quantities import count
from robosat_pink.container.redaction import redacted_tree
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.images import ImageTiles, ListedImages
from robosat_pink.datasets.reading_order import batches_in_order
from robosat_pink.datasets.sides import Side
from robosat_pink.datasets.store_options import store_options
from robosat_pink.datasets.tiles import TileFiles, around
from robosat_pink.distributed.process_group import World
from robosat_pink.errors import DataError
from robosat_pink.models.blocks import settled_upsampling
from robosat_pink.prediction import remarks
from robosat_pink.prediction.model import Model, find_model
from robosat_pink.prediction.selection import selected_rows
from robosat_pink.storage import Location
from robosat_pink.training.task import Compute

log = logging.getLogger(__name__)

DIGEST_BYTES = 16


class Plan(NamedTuple):
    """What is to be predicted."""

    model: Model
    tiles: ImageTiles
    rows: np.ndarray  # (N,) the selected tiles
    batches: list[list[int]]  # of rows, in the order in which they are predicted
    made_from: Mapping[str, Any]  # what all results are made from, as in the manifests
    digests: Mapping[int, str]  # by row, of everything that determines the tile's result
    remarks: Sequence[str] = ()  # on the tiles, for log and page


def make_plan(config: Config, container: Container, compute: Compute) -> Plan:
    """Find model and tiles, and cut these into batches. Raises DataError for tiles of a zoom not learnt from."""
    world = compute.world
    model = find_model(config, store_options(config.dataset, container.channels()))
    config = model.config
    tiles = list_images(config, container, world)
    rows = selected_rows(config.predict.tiles, tiles.ids, model.files)
    refuse_other_zooms(model, tiles, rows)
    refuse_names_of_results(tiles)
    batches = batches_in_order(tiles.files, rows, config.model.batch_size, config.num_channels)
    common = made_from(model, compute)
    digests: dict[int, str] = {}
    for of_scene in by_scene(tiles, rows):
        made = (digest(common, entry) for entry in entries(model, tiles, of_scene))
        digests |= dict(zip(of_scene.tolist(), made, strict=True))
    scenes_count = len(by_scene(tiles, rows))
    where, wanted = tiles.image_location, (count(len(rows)), count(len(tiles), "tile"))
    log.info("%s: %s of %s are wanted, of %s", where, *wanted, count(scenes_count, "scene"))
    return Plan(
        model, tiles, rows, batches, common, digests, remarks_on(model, tiles, rows) if world.is_rank_zero else []
    )


def remarks_on(model: Model, tiles: ImageTiles, rows: np.ndarray) -> list[str]:
    """Remarks on the selected tiles, which are logged."""
    ids = [tiles.id(row) for row in rows.tolist()]
    of_images = list(remarks.about_images(model, tiles, rows))
    for warning in of_images:
        log.warning(warning)
    learnt_from = list(remarks.about_training_tiles(model.files, ids))
    for remark in learnt_from:
        log.info(remark)
    return [*of_images, *learnt_from]


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


def refuse_other_zooms(model: Model, tiles: ListedImages, rows: np.ndarray) -> None:
    """Raises DataError if one of the rows (N,) is of a zoom that the model has not learnt from."""
    if not model.zooms:
        return
    other = rows[~np.isin(tiles.files.zxy[rows, 0], model.zooms)]
    if len(other):
        zooms, path = some_names(list(map(str, model.zooms))), tiles.files.path(int(other[0]))
        raise DataError(
            f"{model.files.name} learnt from tiles of zoom {zooms}, but {len(other)} of the {len(rows)} tiles are of "
            f"another, such as {path}; a pixel would be of another size than those it knows. Cut tiles of that zoom, "
            "or choose directories by predict.images_regex"
        )


def entries(model: Model, tiles: ImageTiles, rows: np.ndarray) -> Iterator[dict[str, Any]]:
    """What the result of each tile of a scene is made from, for the manifest: the versions of the images it needs."""
    files, with_neighbours = tiles.files, model.config.predict.buffer > 0
    for row, nearby in zip(rows.tolist(), around(files, rows), strict=True):
        needed = nearby[nearby >= 0].tolist() if with_neighbours else [row]
        yield {"tile": files.path(row), "images": {files.path(other): _version(files, other) for other in needed}}


def _version(files: TileFiles, row: int) -> str:
    """A text that is another one if the file has another content, or other files beside it."""
    return f"{files.version[row]:x}" + (f"+{files.sidecars[row]:x}" if files.sidecars[row] else "")


def refuse_names_of_results(tiles: ImageTiles) -> None:
    """Raises DataError if the mosaic or manifest of a scene would have the name of another scene's folder."""
    names = set(tiles.files.directories)
    both = sorted(f"{name}{suffix}" for name in names for suffix in (".tif", ".json") if f"{name}{suffix}" in names)
    if both:
        raise DataError(
            f"{tiles.image_location}: the directory {both[0]} has the name of a result of the scene "
            f"{both[0].rpartition('.')[0]}; predict one of them, by predict.images_regex"
        )


def by_scene(tiles: ImageTiles, rows: np.ndarray) -> list[np.ndarray]:
    """The ascending rows of each scene."""
    directories = tiles.files.directory[rows]
    return np.split(rows, np.flatnonzero(np.diff(directories)) + 1)


def made_from(model: Model, compute: Compute) -> dict[str, Any]:
    """What the results of all tiles are made from, for the manifest."""
    config = model.config
    tree = redacted_tree(to_tree(config))
    settings = {name: tree["predict"][name] for name in ("threshold", "buffer", "symmetries", "if_damaged")}
    return {
        "version": version("robosat_pink"),
        "model": model.digest,
        "classes": tree["classes"],
        "channels": tree["channels"],
        "missing": tree["dataset"]["missing"],
        "batch_size": config.model.batch_size,
        "device": compute.device.type,
        "precision": str(compute.precision or "torch.float32"),
        "upsampling": settled_upsampling(config.runtime.upsampling, compute.device.type),
        **settings,
    }


def digest(*parts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=DIGEST_BYTES).hexdigest()
