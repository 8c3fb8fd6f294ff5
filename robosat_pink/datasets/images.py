"""Images without masks, as `predict` reads them: listed in one location, and read by a `TileReader`. No torch.

`pairs` shares what concerns images alone; `neighbours` reads the tiles with a border of their neighbours.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from robosat_pink.config import CacheConfig, ChannelConfig
from robosat_pink.datasets.cache import cache_of
from robosat_pink.datasets.image_kinds import ImageKinds
from robosat_pink.datasets.pairing import refuse_duplicates
from robosat_pink.datasets.rasters.selected_bands import Missing
from robosat_pink.datasets.reader import ReadRequest, Sample, TileReader
from robosat_pink.datasets.sides import Side, list_sides
from robosat_pink.datasets.tiles import TileFiles, tile_id, zooms_in_words
from robosat_pink.errors import DataError
from robosat_pink.storage import Location


class ListedImages:
    """Rows of images, and the ids of their tiles. `TilePairs` and `ImageTiles` list them and know how to read them."""

    image_location: Location
    files: TileFiles  # sorted by directory and tile
    kinds: ImageKinds

    def __len__(self) -> int:
        return len(self.files)

    @property
    def ids(self) -> list[str]:
        """The tile id of each row: {source root with "/" as "_"}-{x}-{y}-{z}."""
        return [self.id(row) for row in range(len(self))]

    def id(self, row: int) -> str:
        directory = self.files.directories[self.files.directory[row]]
        return tile_id(f"{self.image_location.name}/{directory}", self.files.tile(row))

    def name(self, row: int) -> str:
        """Location and path of the image, for messages."""
        return f"{self.image_location}/{self.files.path(row)}"

    def note_kinds(self, kinds: Mapping[str, int]) -> None:
        """Warn if the band metadata of these images differ from those of earlier ones."""
        self.kinds.warn_of_new(kinds, self.id)


class ImageTiles(ListedImages):
    """Every image in the directories of one location that match an expression. A directory is a scene, of one zoom.

    The item of a row is the whole tile, unpadded; its mask is 0 where the image has data, and 255 elsewhere.
    """

    def __init__(
        self,
        side: Side,
        channels: Sequence[ChannelConfig],
        *,
        missing: Missing = "auto",
        cache: CacheConfig | None = None,
        on_rank_zero: Callable[[Callable[[], TileFiles]], TileFiles] = lambda list_files: list_files(),
        is_listed_here: bool = True,
    ) -> None:
        """List the location. `side` names it, and the keys of the experiment file that errors name.

        `on_rank_zero` runs the given listing on rank 0, and returns its result on all ranks. `is_listed_here`: whether
        this host lists the tiles, so that its folders contain the listed files, not copies. Raises DataError if there
        is no tile, if a directory has two files of one tile, or tiles of several zooms.
        """
        self.side = side
        self.kinds = ImageKinds()
        self.image_location = side.location
        self.files = on_rank_zero(self._list_files)
        give_back_memory()
        self.reader = TileReader(
            images=side.location,
            masks=None,
            channels=tuple(channels),
            classes=(),
            tile_size=1,  # of crops, which only training takes
            size_multiple=1,
            augmentation=0.0,
            seed=0,
            cache=cache_of((side.location,), cache or CacheConfig()),
            missing=missing,
            is_listed_here=is_listed_here,
        )

    def __getitem__(self, row: int) -> Sample:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Sample]:
        """Read the samples concurrently, from the cache if they are in it."""
        return self.reader.read([self.request(row) for row in rows])

    def request(self, row: int) -> ReadRequest:
        """Everything that a reader needs to know about this row."""
        files = self.files
        return ReadRequest(
            row=row,
            image=files.path(row),
            image_version=int(files.version[row]),
            mask="",
            mask_version=0,
            epoch=None,
            image_size=int(files.size[row]),
            image_modified=int(files.modified[row]),
            image_sidecars=int(files.sidecars[row]),
        )

    def rows_of_scene(self, directory: str) -> np.ndarray:
        """The rows (N,) of a directory, in the order of its tiles. Raises ValueError if it is not listed."""
        number = self.files.directories.index(directory)
        first, last = np.searchsorted(self.files.directory, [number, number + 1])
        return np.arange(first, last)

    def _list_files(self) -> TileFiles:
        (listed,) = list_sides([self.side])
        refuse_duplicates(listed.files, "images")
        self._refuse_several_zooms(listed.files)
        return listed.files

    def _refuse_several_zooms(self, files: TileFiles) -> None:
        same_directory = files.directory[1:] == files.directory[:-1]
        rows = np.flatnonzero(same_directory & (files.zxy[1:, 0] != files.zxy[:-1, 0]))  # of the last tile of a zoom
        if not len(rows):
            return
        row = int(rows[0])
        number = files.directory[row]
        raise DataError(
            f"{self.side.location}/{files.directories[number]}: has tiles of several zooms, "
            f"{zooms_in_words(files.zxy[files.directory == number])}, such as {files.path(row)} and "
            f"{files.path(row + 1)}; a map has one zoom: move the tiles of each to a directory of its own, and choose "
            f"by {self.side.expression_key}"
        )


def give_back_memory() -> None:
    """Return the memory to the system that listing and sorting a million names freed, but the C library keeps."""
    ctypes.CDLL(None).malloc_trim(0)
