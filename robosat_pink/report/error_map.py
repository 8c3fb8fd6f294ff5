"""The map of errors: the share of wrong pixels by square, as SVG, with links to the example tiles; for `build`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.container.quantities import count
from robosat_pink.report import maps
from robosat_pink.report.maps import CELL, Grid
from robosat_pink.training.final_evaluation import TileResults

LIMITS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # of the share of wrong pixels, between one shade and the next
# ColorBrewer, YlOrBr: the darker, the more is wrong. Color-blind people and grey printers can tell the shades apart.
SHADES = ("#fee391", "#fec44f", "#fe9929", "#ec7014", "#cc4c02", "#993404", "#662506")
WITHOUT_DATA, NOT_EVALUATED = "#9aa0a8", "#c9ced6"
MARK_RADIUS = 2.5  # SVG units, in a map of few squares
MARKS_IN_A_LINE = 3


class Shade(NamedTuple):
    color: str
    words: str
    squares: int


class ErrorMap(NamedTuple):
    svg: str
    words: str  # sentences
    shades: Sequence[Shade]
    without_data: int  # squares that were evaluated, and have no valid pixel
    not_evaluated: int  # squares


def error_map(zxy: np.ndarray, results: Iterable[TileResults], examples: Mapping[int, str]) -> ErrorMap:
    """The map of tiles (N, 3). All evaluated tiles of a square, such as several days of a tile, count together.

    `examples` are the words on tiles that the page shows, by row, in the page's sequence. Example n is marked in its
    square: the mark has the id `square-n` and links to `tile-n`.
    """
    grid = maps.grid(zxy)
    evaluated, valid, wrong = (np.zeros(len(grid.squares), dtype=np.int64) for _ in range(3))
    for tiles in results:
        np.add.at(evaluated, grid.square_of_tile[tiles.listed], 1)
        pixels = tiles.confusions.sum(axis=(1, 2))
        np.add.at(valid, grid.square_of_tile[tiles.rows], pixels)
        np.add.at(wrong, grid.square_of_tile[tiles.rows], pixels - tiles.confusions.trace(axis1=1, axis2=2))
    shade = np.where(valid > 0, np.digitize(wrong / np.maximum(valid, 1), LIMITS), -1)
    without_data, not_evaluated = grid.squares[(evaluated > 0) & (valid == 0)], grid.squares[evaluated == 0]
    paths = [
        _path("".join(f"M{CELL * x + 3.5} {CELL * y + 5}h3" for x, y in not_evaluated.tolist()), NOT_EVALUATED, 3),
        _path(
            "".join(f"M{CELL * x + 1} {CELL * y + 1}h8v8h-8zl8 8" for x, y in without_data.tolist()), WITHOUT_DATA, 1
        ),
    ]
    shades = []
    for number, (color, words) in enumerate(zip(SHADES, _shade_words(), strict=True)):
        squares = grid.squares[shade == number]
        shades.append(Shade(color, words, len(squares)))
        paths.append(_path("".join(f"M{CELL * x}.5 {CELL * y + 5}h9" for x, y in squares.tolist()), color, CELL - 1))
    words = _words(grid.zoom, evaluated, wrong, squares=int((valid > 0).sum()))
    return ErrorMap(_svg(grid, paths, examples), words, shades, len(without_data), len(not_evaluated))


def _path(lines: str, color: str, width: int) -> str:
    return f'<path stroke="{color}" stroke-width="{width}" fill="none" d="{lines}"/>' if lines else ""


def _shade_words() -> list[str]:
    percent = [f"{100 * limit:g}" for limit in LIMITS]
    between = [f"{low} to {high} %" for low, high in itertools.pairwise(percent)]
    return [f"below {percent[0]} %", *between, f"{percent[-1]} % or more"]


def _words(zoom: int, evaluated: np.ndarray, wrong: np.ndarray, squares: int) -> str:
    """What a square and its shade mean, and how concentrated the errors are."""
    words = (
        f"Each square is a tile of zoom {zoom}. Its color says which share of its valid pixels is predicted wrongly."
    )
    if (evaluated > 1).any():
        words += " Several tiles in one square, such as several days, count together."
    total = int(wrong.sum())
    if total and squares > 1:
        half = int(np.searchsorted(np.cumsum(np.sort(wrong)[::-1]), total / 2)) + 1
        words += f" Half of the wrong pixels ({count(total)}) are in {count(half)} of {count(squares)} squares."
    return words


def _svg(grid: Grid, paths: Sequence[str], examples: Mapping[int, str]) -> str:
    """The picture, wide enough for all marks."""
    width, height = CELL * grid.columns, CELL * grid.rows
    radius = max(MARK_RADIUS, 0.015 * max(width, height))
    centers = _centers(grid, list(examples), radius)
    corners = np.concatenate([centers - 1.1 * radius, centers + 1.1 * radius, [(0, 0), (width, height)]])
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    marks = [
        f'<a class="mark" id="square-{number}" href="#tile-{number}" aria-label="{number}: {words}">'
        f'<circle cx="{x:.4g}" cy="{y:.4g}" r="{radius:.3g}" stroke-width="{radius / 6:.3g}"/>'
        f'<text x="{x:.4g}" y="{y + 0.42 * radius:.4g}" font-size="{1.2 * radius:.3g}">{number}</text></a>'
        for number, ((x, y), words) in enumerate(zip(centers.tolist(), examples.values(), strict=True), 1)
    ]
    return (
        f'<svg viewBox="{left:.4g} {top:.4g} {right - left:.4g} {bottom - top:.4g}" role="group" '
        f'aria-label="Map of errors" style="{maps.shown_size(right - left)}">{"".join([*paths, *marks])}</svg>'
    )


def _centers(grid: Grid, rows: Sequence[int], radius: float) -> np.ndarray:
    """The center (N, 2) of each example's mark, in SVG units; those of one square stand side by side."""
    squares = [int(grid.square_of_tile[row]) for row in rows]
    centers = np.zeros((len(rows), 2))
    for number, square in enumerate(squares):
        line, column = divmod(squares[:number].count(square), MARKS_IN_A_LINE)
        marks = squares.count(square)
        lines, columns = math.ceil(marks / MARKS_IN_A_LINE), min(marks, MARKS_IN_A_LINE)
        steps = np.array([column - (columns - 1) / 2, line - (lines - 1) / 2])
        centers[number] = CELL * (grid.squares[square] + 0.5) + 2 * radius * steps
    return centers
