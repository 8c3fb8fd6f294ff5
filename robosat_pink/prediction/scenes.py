"""Finishes the scenes of a map when their tiles are there: mosaics, pictures, areas, manifests. Called by `run`.

The manifest of a scene is written last. Where it agrees with what is wanted, the scene is finished already.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from robosat_pink.container.atomic_write import TEMPORARY_SUFFIX
from robosat_pink.container.quantities import count
from robosat_pink.container.redaction import redacted
from robosat_pink.datasets.mercator import HALF_WORLD_M, side_m
from robosat_pink.errors import DataError
from robosat_pink.prediction.mosaic import MosaicTile, write_mosaic
from robosat_pink.prediction.plan import digest
from robosat_pink.prediction.rasters import MADE_FROM, NO_DATA, Legend
from robosat_pink.prediction.results import CLASSES, PROBABILITIES, Results, tile_path

log = logging.getLogger(__name__)

PICTURE_PIXELS = 1024  # the longest side of a scene's picture, or a pixel for each tile of a larger scene
SMALL_CELLS, EMPTY_CELLS = 10_000, 100  # tiles of a mosaic's rectangle: in any scene, and for each tile of it


@dataclass(frozen=True)
class Scene:
    """The tiles of one directory that are predicted."""

    name: str
    zxy: np.ndarray  # (N, 3)
    tiles: Sequence[Mapping[str, Any]]  # what each was made from, as in the manifest
    damaged: Mapping[str, str]  # files that were skipped, with the digests of what they would have been made from
    made_from: Mapping[str, Any]  # what all were made from, as in the manifest
    model: str  # where it was found

    @property
    def paths(self) -> list[str]:
        return [tile_path(self.name, (z, x, y)) for z, x, y in self.zxy.tolist()]

    @property
    def digest(self) -> str:
        return digest(self.made_from, *self.tiles)


class Totals:
    """Areas and a picture of a scene, added up tile by tile."""

    def __init__(self, zxy: np.ndarray, legend: Legend, with_picture: bool = True) -> None:
        self._corner = zxy[:, 1:].min(axis=0)
        size: list[int] = (zxy[:, 1:].max(axis=0) - self._corner + 1).tolist()
        self._columns, self._rows = size if with_picture else (1, 1)
        self._with_picture = with_picture
        self._legend = legend
        self._side = max(1, PICTURE_PIXELS // max(self._columns, self._rows))
        self._picture = np.full((self._rows * self._side, self._columns * self._side), NO_DATA, dtype=np.uint8)
        self.km2 = np.zeros(len(legend.names))
        self.missing_km2 = 0.0

    def add(self, zxy: tuple[int, int, int], classes: np.ndarray) -> None:
        """Add a tile of class numbers (H, W) uint8."""
        height, width = classes.shape
        areas = pixel_area_km2(zxy, height, width)
        for number in range(len(self.km2)):
            self.km2[number] += float(areas @ (classes == number).sum(axis=1))
        self.missing_km2 += float(areas @ (classes == NO_DATA).sum(axis=1))
        if not self._with_picture:
            return
        column, row = ((np.array(zxy[1:]) - self._corner) * self._side).tolist()
        rows, columns = ((np.arange(self._side) + 0.5) * side // self._side for side in (height, width))
        small = classes[np.ix_(rows.astype(int), columns.astype(int))]
        self._picture[row : row + self._side, column : column + self._side] = small

    def picture(self) -> bytes:
        """The scene as a PNG; pixels without data are transparent."""
        image = Image.fromarray(self._picture, mode="P")
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: len(self._legend.colors)] = [ImageColor.getrgb(color)[:3] for color in self._legend.colors]
        image.putpalette(palette.tobytes())
        content = io.BytesIO()
        image.save(content, "PNG", transparency=NO_DATA, optimize=True)
        return content.getvalue()


def pixel_area_km2(zxy: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    """(height,) the ground that a pixel of each row of a tile covers, in km2.

    Mercator's scale at latitude phi is 1 / cos(phi) in both directions, and cos(phi) = 1 / cosh(northing / radius).
    """
    z, _, y = zxy
    side = side_m(z)
    northings = HALF_WORLD_M - (y + (np.arange(height) + 0.5) / height) * side
    area_m2: np.ndarray = side / width * (side / height) / np.cosh(northings * math.pi / HALF_WORLD_M) ** 2
    return area_m2 / 1e6


def is_compact(scene: Scene) -> bool:
    """Whether one file may hold the scene: not if its tiles lie so far apart that nearly all of it were empty."""
    columns, rows = (scene.zxy[:, 1:].max(axis=0) - scene.zxy[:, 1:].min(axis=0) + 1).tolist()
    return bool(columns * rows <= max(SMALL_CELLS, EMPTY_CELLS * len(scene.zxy)))


def mosaics_of(scene: Scene, results: Results, with_mosaic: bool) -> list[str]:
    """The paths of the scene's mosaics. Warns if there are none, because its tiles lie too far apart."""
    if is_compact(scene):
        return [f"{name}/{scene.name}.tif" for name in results.folders if with_mosaic]
    columns, rows = (scene.zxy[:, 1:].max(axis=0) - scene.zxy[:, 1:].min(axis=0) + 1).tolist()
    log.warning(
        "warning: scene %s: no mosaic and no picture: its %d tiles lie in %d columns and %d rows of tiles, far apart "
        "or on both sides of the antimeridian",
        scene.name,
        len(scene.zxy),
        columns,
        rows,
    )
    return []


def finished(scene: Scene, results: Results, mosaics: Sequence[str]) -> dict[str, Any] | None:
    """The manifest of a scene whose manifest and mosaics are there and agree with it; None if one does not."""
    manifest = _earlier(results, manifest_name(scene.name))
    digest, damaged = manifest.get("digest"), manifest.get("damaged", {})
    agrees = (digest, manifest.get("mosaics"), damaged) == (scene.digest, mosaics, scene.damaged)
    return manifest if agrees and results.may_have(mosaics) else None


def finish(
    scene: Scene, results: Results, legend: Legend, class_names: Sequence[str], mosaics: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Write a scene's mosaics and manifest, and return the manifest. `folder` is for temporary files."""
    # Until it is whole, no manifest vouches for mosaics, of which some may be those of an earlier map.
    write_unfinished(results, scene.name, scene.damaged)
    totals = Totals(scene.zxy, legend, is_compact(scene))
    for name in results.folders if mosaics else (CLASSES,):
        tiles = _tiles(scene, results, name, totals if name == CLASSES else None)
        if not mosaics:
            for _ in tiles:
                pass
            continue
        path = folder / f"{name}.tif{TEMPORARY_SUFFIX}"
        if name == PROBABILITIES:
            write_mosaic(path, scene.zxy, tiles, {MADE_FROM: scene.digest}, names=class_names)
        else:
            write_mosaic(path, scene.zxy, tiles, legend.tags | {MADE_FROM: scene.digest}, legend)
        results.destination.write(f"{name}/{scene.name}.tif", path)
        path.unlink()
    manifest = {
        "scene": scene.name,
        "digest": scene.digest,
        "mosaics": list(mosaics),
        "model": redacted(scene.model),
        "made_from": scene.made_from,
        "km2": [{"class": name, "km2": area} for name, area in zip(legend.names, totals.km2.tolist(), strict=True)],
        "km2_without_data": totals.missing_km2,
        "picture": base64.b64encode(totals.picture()).decode(),
        "tiles": list(scene.tiles),
        "damaged": dict(scene.damaged),
    }
    results.destination.write(manifest_name(scene.name), json.dumps(manifest, indent=1).encode())
    log.info("scene %s: %s%s", scene.name, count(len(scene.zxy), "tile"), ", one mosaic" if mosaics else "")
    return manifest


def write_unfinished(results: Results, scene: str, damaged: Mapping[str, str]) -> None:
    """Write a manifest that remembers a scene's damaged tiles and vouches for nothing."""
    content = {"scene": scene, "damaged": dict(damaged)}
    results.destination.write(manifest_name(scene), json.dumps(content, indent=1).encode())


def known_damage(results: Results, scene: str) -> dict[str, str]:
    """The files that the manifest of a scene says were skipped, with digests as in `Scene.damaged`."""
    damaged = _earlier(results, manifest_name(scene)).get("damaged")
    return damaged if isinstance(damaged, dict) else {}


def manifest_name(scene: str) -> str:
    return f"{CLASSES}/{scene}.json"


def _tiles(scene: Scene, results: Results, folder: str, totals: Totals | None) -> Iterator[MosaicTile]:
    for zxy, pixels in zip(scene.zxy.tolist(), results.in_order(folder, scene.paths), strict=True):
        if totals:
            totals.add(tuple(zxy), pixels[0])
        yield MosaicTile(tuple(zxy), pixels)


def _earlier(results: Results, name: str) -> dict[str, Any]:
    """The manifest that is there; empty if there is none, or none that can be read."""
    try:
        manifest = json.loads(results.destination.read(name))
    except (DataError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}
