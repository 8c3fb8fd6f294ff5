"""Reads image tiles with a border of their neighbours, in batches, while the network computes. Called by `predict`.

Each tile is fetched and decoded once, and kept while later batches need it (`reading_order`). Loads no torch.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from robosat_pink.datasets.bordered import Around, Canvas, Pixels, canvas_of, fill
from robosat_pink.datasets.images import ImageTiles
from robosat_pink.datasets.pair_decoder import Notes
from robosat_pink.datasets.rasters.gdal import Damaged
from robosat_pink.datasets.reader import REQUESTS, Sample
from robosat_pink.datasets.reading_order import changes, most_kept
from robosat_pink.datasets.tiles import around
from robosat_pink.errors import DataError
from robosat_pink.losses import IGNORE

LEAST_AHEAD = 2  # batches that are read at a time, the one that is waited for included; more if these are few tiles
TILES_AHEAD = 2 * REQUESTS  # beyond so many tiles that are being read or wait for their batch, no more batch is begun
INTERRUPT_S = 0.5  # seconds between calls of `interrupt`


class BorderedBatch(NamedTuple):
    """Tiles with their borders; the damaged ones are left out. N may be 0."""

    image: np.ndarray  # (N, C, H, W) in the tiles' dtype, float32 if dtypes differ; 0 where missing; stored as NHWC
    missing: np.ndarray  # (N, H, W) bool: no data, or padding
    scale: np.ndarray  # (N, C) float32, divisor of each band's numbers
    rows: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each tile, which begins at (border, border)
    border: int  # pixels
    damaged: dict[int, str]  # row and reason of each damaged tile, neighbours included, that no batch before has named
    kinds: dict[str, int]  # the row of one tile for each `Notes.kind`
    doubts: dict[str, int]  # the row of one tile for each of `Notes.doubts`
    fetched_bytes: int
    retries: int


@dataclass(eq=False)
class HeldTile:
    """A tile that is decoded in memory, or being read, or damaged."""

    row: int
    reading: Future[None] = field(init=False)
    pixels: Pixels = field(init=False)  # when `reading` is done; a damaged tile has none
    notes: Notes = field(init=False)
    fetched_bytes: int = 0
    retries: int = 0

    def put(self, sample: Sample) -> None:
        """Keep a copy, stored as (H, W, C): the sample's arrays are the reader's."""
        image = sample.image.transpose(1, 2, 0).copy().transpose(2, 0, 1)
        self.pixels = Pixels(image, sample.mask == IGNORE, sample.scale)
        self.notes, self.fetched_bytes, self.retries = sample.notes, sample.fetched_bytes, sample.retries


class _Begun(NamedTuple):
    """A batch that is being read."""

    rows: list[int]
    around: np.ndarray  # (N, 3, 3) rows of `tiles.around`; without a buffer, -1 for every neighbour
    tiles: dict[int, HeldTile]  # by row, all that the batch needs
    read: list[HeldTile]  # those of them that were not in memory


def read_with_neighbours(
    tiles: ImageTiles,
    batches: Sequence[Sequence[int]],
    *,
    buffer: int,
    size_multiple: int,
    if_damaged: Literal["error", "skip"] | None = None,
    interrupt: Callable[[], None] = lambda: None,
) -> Iterator[BorderedBatch]:
    """The batches in order, each of rows of one scene, with at least `buffer` pixels of the neighbours on each side.

    Sides are multiples of `size_multiple`: by a wider border where that is possible (`bordered.canvas_of`), otherwise
    by padding on the right and below, where pixels are 0 and missing. Without a `buffer`, no neighbour is read.

    Where the scene has no neighbour, the border mirrors the tile (`bordered`). Pixels that a neighbour lacks are
    missing here, too, and so is every pixel of a damaged neighbour if `if_damaged` is "skip". With "error", the error
    names that way out, unlike with None. Closing the iterator ends the reading, except for requests in flight.
    `interrupt` is called every INTERRUPT_S during a wait, and may raise.

    Raises, at the batch that needs the tile: Damaged, unless skipped; Changed; DataError if a tile cannot be read, is
    smaller than `buffer`, or has another size than its neighbour.
    """
    begun: deque[_Begun] = deque()
    beginning = _begin(tiles, batches, with_neighbours=buffer > 0)
    known_damage: set[int] = set()
    try:
        while True:
            while len(begun) < LEAST_AHEAD or sum(len(batch.read) for batch in begun) < TILES_AHEAD:
                if (batch := next(beginning, None)) is None:
                    break
                begun.append(batch)
            if not begun:
                return
            while wait([tile.reading for tile in begun[0].tiles.values()], INTERRUPT_S).not_done:
                interrupt()
            damaged = _damaged(begun[0], if_damaged)
            named = {row: reason for row, reason in damaged.items() if row not in known_damage}
            known_damage.update(named)
            yield _packed(tiles, begun.popleft(), damaged.keys(), buffer, size_multiple)._replace(damaged=named)
    finally:
        for abandoned in begun:
            for tile in abandoned.read:
                tile.reading.cancel()


def _begin(tiles: ImageTiles, batches: Sequence[Sequence[int]], with_neighbours: bool) -> Iterator[_Begun]:
    """Begin to read each batch in turn: the tiles that it needs and that earlier ones have not left in memory."""
    most = most_kept(len(tiles.reader.bands))
    for _, group in itertools.groupby(batches, key=lambda rows: int(tiles.files.directory[rows[0]])):
        scene = list(group)
        rows = np.array(list(itertools.chain.from_iterable(scene)))
        nearby = around(tiles.files, rows)
        if not with_neighbours:
            nearby = np.where(nearby == rows[:, None, None], nearby, -1)
        around_batch = np.split(nearby, np.cumsum([len(batch) for batch in scene])[:-1])
        needed = [np.unique(near[near >= 0]).tolist() for near in around_batch]
        held: dict[int, HeldTile] = {}
        for batch, near, need, change in zip(scene, around_batch, needed, changes(needed, most), strict=True):
            read = _read(tiles, change.read)
            held.update((tile.row, tile) for tile in read)
            yield _Begun(list(batch), near, {row: held[row] for row in need}, read)
            for row in change.drop:
                del held[row]


def _read(tiles: ImageTiles, rows: Sequence[int]) -> list[HeldTile]:
    read = [HeldTile(row) for row in rows]
    requests = [tiles.request(row) for row in rows]
    readings = tiles.reader.begin(requests, lambda slot, sample: read[slot].put(sample))
    for tile, reading in zip(read, readings, strict=True):
        tile.reading = reading
    return read


def _damaged(batch: _Begun, if_damaged: Literal["error", "skip"] | None) -> dict[int, str]:
    """The reason of each damaged tile, if these are skipped. Raises the error of any other that could not be read."""
    errors = {row: tile.reading.exception() for row, tile in batch.tiles.items()}
    for error in errors.values():
        if isinstance(error, Damaged) and if_damaged == "error":
            raise Damaged(f"{error}; predict.if_damaged: skip leaves such tiles out of the map") from error
        if error is not None and not (isinstance(error, Damaged) and if_damaged == "skip"):
            raise error
    return {row: str(error) for row, error in errors.items() if error is not None}


def _packed(
    tiles: ImageTiles, batch: _Begun, damaged: AbstractSet[int], buffer: int, size_multiple: int
) -> BorderedBatch:
    """The batch in memory, without its damaged tiles; `damaged` is left to the caller."""
    whole = [number for number, row in enumerate(batch.rows) if row not in damaged]
    rows = [batch.rows[number] for number in whole]
    held = [batch.tiles[row] for row in rows]
    pixels = {row: tile.pixels for row, tile in batch.tiles.items() if row not in damaged}
    sizes = [_size(tile.pixels) for tile in held]
    _refuse_small_tiles(tiles, rows, sizes, buffer)
    dtypes = {tile.image.dtype for tile in pixels.values()}
    bands = len(tiles.reader.bands)
    canvas = canvas_of(sizes, buffer, size_multiple) if rows else Canvas(buffer, 0, 0)
    shape = (len(rows), canvas.height, canvas.width)
    image = np.zeros((*shape, bands), dtype=dtypes.pop() if len(dtypes) == 1 else np.float32).transpose(0, 3, 1, 2)
    missing = np.ones(shape, dtype=bool)
    for slot, number in enumerate(whole):
        height, width = (side + 2 * canvas.border for side in sizes[slot])
        nearby = _pixels_around(tiles, batch.around[number], pixels)
        fill(image[slot, :, :height, :width], missing[slot, :height, :width], nearby, canvas.border)
    return BorderedBatch(
        image=image,
        missing=missing,
        scale=np.stack([tile.pixels.scale for tile in held]) if rows else np.zeros((0, bands), dtype=np.float32),
        rows=tuple(rows),
        sizes=tuple(sizes),
        border=canvas.border,
        damaged={},
        kinds={tile.notes.kind: tile.row for tile in held},
        doubts={doubt: tile.row for tile in held for doubt in tile.notes.doubts.splitlines()},
        fetched_bytes=sum(tile.fetched_bytes for tile in batch.read),
        retries=sum(tile.retries for tile in batch.read),
    )


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.missing.shape[0], pixels.missing.shape[1]


def _refuse_small_tiles(tiles: ImageTiles, rows: Sequence[int], sizes: Sequence[tuple[int, int]], buffer: int) -> None:
    for row, (height, width) in zip(rows, sizes, strict=True):
        if buffer > min(height, width):
            raise DataError(
                f"predict.buffer = {buffer}: {tiles.name(row)} has {width} x {height} pixels; accepted: up to "
                f"{min(height, width)}, as far as the next tile reaches"
            )


def _pixels_around(tiles: ImageTiles, rows: np.ndarray, pixels: Mapping[int, Pixels]) -> Around:
    """The pixels of the tiles of `rows` (3, 3): None where no tile is, all missing where one is not in `pixels`.

    Raises DataError if one has another size than the middle one.
    """
    middle = pixels[int(rows[1, 1])]
    for row in rows[rows >= 0].tolist():
        if row in pixels and _size(pixels[row]) != _size(middle):
            sizes = [f"{width} x {height}" for height, width in (_size(middle), _size(pixels[row]))]
            raise DataError(
                f"{tiles.name(int(rows[1, 1]))}: {sizes[0]} pixels, but its neighbour {tiles.name(row)} has "
                f"{sizes[1]}; write the tiles of a scene in one size"
            )
    unknown = Pixels(
        np.broadcast_to(middle.image.dtype.type(0), middle.image.shape),
        np.broadcast_to(True, middle.missing.shape),
        middle.scale,
    )
    return [[None if row < 0 else pixels.get(row, unknown) for row in line] for line in rows.tolist()]
