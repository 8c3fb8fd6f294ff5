"""The page of a map: pictures, areas by class, what the model's card says. Called by `run`, on rank 0.

It makes no requests: its pictures are embedded, and its content policy forbids any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from robosat_pink.config import Config
from robosat_pink.container.redaction import redacted
from robosat_pink.errors import RobosatError
from robosat_pink.prediction.model import Model
from robosat_pink.prediction.rasters import Legend
from robosat_pink.report import maps
from robosat_pink.report import page as report_page

NAME = "map.html"  # below the folder of results
CARD = "MODEL_CARD.md"
MOST_SCENES, MOST_PICTURES = 200, 20


@dataclass(frozen=True)
class SceneOnPage:
    name: str
    tiles: int
    km2: Sequence[float]  # by class, as in the legend
    share_missing: float  # of the area of all tiles
    bounds: str
    files: str  # a sentence on the tiles
    mosaic: str  # path beside the page; empty if there is none
    picture: str  # a data URI
    words: str  # the picture, for those who do not see it


@dataclass(frozen=True)
class MapPage:
    class_names: Sequence[str]
    legend: Sequence[Mapping[str, str]]  # name and color of each class number
    model: str
    how: str  # a sentence
    remarks: Sequence[str]
    scenes: Sequence[SceneOnPage]
    card_about: str  # a sentence
    card: str  # empty if there is none
    version: str
    most_scenes: int = MOST_SCENES
    most_pictures: int = MOST_PICTURES


def render(
    manifests: Sequence[Mapping[str, Any]],
    zxy: Sequence[np.ndarray],
    legend: Legend,
    model: Model,
    remarks: Sequence[str],
) -> str:
    """The page of these scenes, given their manifests, the positions (N, 3) of their tiles, and remarks on these."""
    settings = model.config.predict
    symmetries = "averaged over the eight flips and rotations of a tile" if settings.symmetries else "once"
    names = [class_.name for class_ in model.config.classes]
    limit = f" A pixel is {names[0]} above a probability of {model.threshold:g}." if len(names) == 1 else ""
    page = MapPage(
        class_names=names,
        legend=[{"name": name, "color": color} for name, color in zip(legend.names, legend.colors, strict=True)],
        model=redacted(model.files.name),
        how=f"Each tile was predicted {symmetries}, with {settings.buffer} pixels of its neighbours.{limit}",
        remarks=[remark[:1].upper() + remark[1:] for remark in remarks],
        scenes=[_scene(manifest, tiles) for manifest, tiles in zip(manifests, zxy, strict=True)],
        card_about=_card_about(model.config),
        card=_card(model),
        version=version("robosat_pink"),
    )
    return report_page.environment().get_template("map.html.j2").render(map=page)


def _scene(manifest: Mapping[str, Any], zxy: np.ndarray) -> SceneOnPage:
    areas = [entry["km2"] for entry in manifest["km2"]]
    whole = sum(areas) + manifest["km2_without_data"]
    return SceneOnPage(
        name=manifest["scene"],
        tiles=len(zxy),
        km2=areas,
        share_missing=manifest["km2_without_data"] / whole,
        bounds=str(maps.bounds(zxy)),
        files=f"Its tiles are below predictions/{manifest['scene']}.",
        mosaic=f"predictions/{manifest['scene']}.tif" if manifest["mosaics"] else "",
        picture=f"data:image/png;base64,{manifest['picture']}",
        words=", ".join(f"{entry['km2'] / whole:.1%} {entry['class']}" for entry in manifest["km2"]),
    )


def _card_about(config: Config) -> str:
    about = "Its card, MODEL_CARD.md, says how good it was on its validation tiles; `evaluate` measures that on others."
    if config.model.symmetries and not config.predict.symmetries:
        about += (
            " The card's numbers are averages over the eight flips and rotations of a tile, and this map is not: with "
            "predict.symmetries: true it is, in eight times the time."
        )
    return about


def _card(model: Model) -> str:
    try:
        return redacted(model.files.read(CARD).decode("utf-8", errors="replace"))
    except RobosatError:
        return ""
