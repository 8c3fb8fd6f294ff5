"""Pairs of image and mask tiles as a dataset: found, split, and by a `TileReader` read.

A sample keeps the tile's own numbers: scaling, normalisation and augmentation are for the device (`transforms`). What
is random about a sample is drawn from (seed, epoch, row) alone, so that neither workers nor hosts nor a resume change
it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from robosat_pink import storage
from robosat_pink.cache import TileCache, open_cache
from robosat_pink.config import ChannelConfig, ClassConfig, DatasetConfig, shared_groups
from robosat_pink.credentials import usable_profile
from robosat_pink.errors import DataError
from robosat_pink.explanations import NotFound
from robosat_pink.reader import Order, Sample, TileReader
from robosat_pink.storage import Location, Page
from robosat_pink.tiles import Pairs, Split, TileFiles, pair, parse_names, split_pairs, tile_id

log = logging.getLogger(__name__)

DIRECTORIES = 10  # of a bucket listed side by side; with more of them two cores have no time left
SHOWN = 5  # names quoted in an error


class Draw(NamedTuple):
    """A training sample: a row of the pairs, and the epoch its crop and symmetry are drawn for."""

    row: int
    epoch: int


class TilePairs(Dataset[Sample]):
    """Every pair of an image and a mask tile that the experiment names; lists both buckets when made.

    An item is a row number: the whole tile, padded with ignored pixels to a multiple of `size_multiple`. Or it is a
    Draw: a random square of `tile_size` with a symmetry to apply, as in training.
    """

    def __init__(
        self,
        dataset: DatasetConfig,
        channels: Sequence[ChannelConfig],
        classes: Sequence[ClassConfig] = (ClassConfig(name="positive"),),
        *,
        tile_size: int = 512,
        size_multiple: int = 64,
        augmentation: float = 0.0,
        seed: int = 0,
        input_channels: Mapping[str, Path] | None = None,
        shared: Callable[[Callable[[], Pairs]], Pairs] = lambda find: find(),
    ) -> None:
        """`shared` calls what lists the buckets, or where other processes train too, gives what one of them found."""
        self.config = dataset
        self.seed = seed
        self.input_channels = dict(input_channels or {})
        self._where = store_options(dataset, self.input_channels)
        self.image_location = self._location(dataset.image_bucket)
        self.mask_location = self._location(dataset.mask_bucket)
        self.pairs = shared(self._find_pairs)
        _give_back_memory()
        self.reader = TileReader(
            images=self.image_location,
            masks=self.mask_location,
            channels=tuple(channels),
            classes=tuple(classes),
            tile_size=tile_size,
            size_multiple=size_multiple,
            augmentation=augmentation,
            seed=seed,
            cache=self._open_cache(),
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int | Draw) -> Sample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | Draw]) -> list[Sample]:
        """What the cache has is read; for the rest images and masks are fetched side by side, all at once."""
        samples: dict[int, Sample] = {}

        def keep(number: int, sample: Sample) -> None:
            samples[number] = sample._replace(image=sample.image.copy(), mask=sample.mask.copy())

        for reading in self.reader.begin([self.order(item) for item in items], keep):
            reading.result()
        return [samples[number] for number in range(len(items))]

    def order(self, item: int | Draw) -> Order:
        """What a reader needs to know to read this item: its row's part of the index."""
        row, epoch = item if isinstance(item, Draw) else (item, None)
        images, masks = self.pairs.images, self.pairs.masks
        versions = int(images.version[row]), int(masks.version[row])
        return Order(row, images.path(row), versions[0], masks.path(row), versions[1], epoch)

    @property
    def ids(self) -> list[str]:
        """Tile ids, a row each: {source root with "/" as "_"}-{x}-{y}-{z}."""
        return [self.id(row) for row in range(len(self))]

    def id(self, row: int) -> str:
        return tile_id(self._root(row), self.pairs.images.tile(row))

    def digest(self) -> str:
        """Identifies names and contents of all tiles, as far as the store tells contents apart (ETag, size)."""
        state = hashlib.sha256()
        for files in (self.pairs.images, self.pairs.masks):
            state.update("\n".join(files.directories).encode())
            for column in (files.directory, files.zxy, files.version):
                state.update(np.ascontiguousarray(column).tobytes())
        return state.hexdigest()

    def split(self) -> Split:
        """Rows to train on, to evaluate each epoch, and to hold out, as `dataset.split` says."""
        settings = self.config.split
        if settings.from_ is not None:
            return self._split_from(settings.from_)
        split = split_pairs(
            self.pairs,
            self.config.train_percent,
            by=settings.by,
            seed=settings.seed,
            zoom=settings.zoom,
            holdout_percent=settings.test_percent,
        )
        _give_back_memory()
        return split

    def _location(self, text: str) -> Location:
        return Location.parse(text, **self._where)

    def _root(self, row: int) -> str:
        images = self.pairs.images
        return f"{self.image_location.name}/{images.directories[images.directory[row]]}"

    def _find_pairs(self) -> Pairs:
        config = self.config
        with ThreadPoolExecutor(2) as threads:
            listings = threads.map(
                _list_tiles,
                (self.image_location, self.mask_location),
                (config.imagery_directory_regex, config.mask_directory_regex),
                ("dataset.image_bucket", "dataset.mask_bucket"),
                ("dataset.imagery_directory_regex", "dataset.mask_directory_regex"),
            )
            images, masks = listings
        names = shared_groups(config)
        pairs = pair(
            images,
            masks,
            _group_values(images.directories, config.imagery_directory_regex, names),
            _group_values(masks.directories, config.mask_directory_regex, names),
        )
        if not len(pairs):
            agreeing = f" and the same {', '.join(names)}" if names else ""
            raise DataError(
                f"no image has a mask of the same z/x/y{agreeing}. "
                f"{_described(self.image_location, images, config.imagery_directory_regex)}. "
                f"{_described(self.mask_location, masks, config.mask_directory_regex)}"
            )
        return pairs

    def _split_from(self, path: str) -> Split:
        """The val tiles of an earlier run, and its held-out ones if holdout_ids.txt stands beside; the rest trains."""
        rows = {name: row for row, name in enumerate(self.ids)}
        val = _known(storage.read_file(path, **self._where), rows, path)
        beside = path.rpartition("/")[0] + "/holdout_ids.txt"
        try:
            held = _known(storage.read_file(beside, **self._where), rows, beside)
        except DataError as error:  # S3 says 403, not 404, to who may not list the bucket
            if not isinstance(error, NotFound):
                log.warning("warning: %s; no tiles are held out", error)
            held = np.empty(0, dtype=np.int64)
        held = np.setdiff1d(held, val)
        train = np.setdiff1d(np.arange(len(self)), np.concatenate([val, held]))
        if not len(val) or not len(train):
            raise DataError(
                f"dataset.split.from: {path} leaves {len(train)} tiles to train on and {len(val)} to evaluate of "
                f"{len(self)}; it must name some, not all, of this run's tiles, such as {self.id(0)}"
            )
        return Split(train, val, held)

    def _open_cache(self) -> TileCache | None:
        """For tiles that come from a bucket, or where the experiment asks for it: a folder is on a disk already."""
        settings = self.config.cache
        is_remote = self.image_location.bucket is not None or self.mask_location.bucket is not None
        if not is_remote and settings.dir is None and settings.max_gb is None:
            return None
        return open_cache(settings.dir, settings.max_gb)


def store_options(dataset: DatasetConfig, input_channels: Mapping[str, Path]) -> dict[str, Any]:
    """What `storage` needs to read any file that this experiment names: its channels, credentials and endpoint."""
    return {
        "channels": input_channels,
        "profile": usable_profile(dataset.aws_profile),
        "endpoint_url": dataset.endpoint_url,
        "verify_md5": dataset.verify_md5,
    }


class Normalisation(NamedTuple):
    """(number / scale - mean) / std, per selected band; `raw` bands have mean 0 and std 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalisation(channels: Sequence[ChannelConfig]) -> Normalisation:
    """The mean and std of the selected bands, in order; 0 and 1 where the experiment gives none."""
    mean: list[float] = []
    std: list[float] = []
    for channel in channels:
        count = len(channel.bands)
        plain = channel.scale == "raw"
        mean += [0.0] * count if plain or channel.mean is None else channel.mean
        std += [1.0] * count if plain or channel.std is None else channel.std
    return Normalisation(tuple(mean), tuple(std))


def _give_back_memory() -> None:
    """To the system, what listing and sorting a million names have freed and the C library keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)


def _list_tiles(location: Location, expression: str, bucket: str, key: str) -> TileFiles:
    """The tiles in the directories right below `location` that match, listed side by side.

    `bucket` and `key` are the experiment's names of location and expression.
    """
    try:
        there = location.directories()
    except NotFound as error:
        raise NotFound(f"{bucket}: {error}") from error
    if not there:
        raise DataError(f"{bucket}: no directories lie below {location}; check bucket and prefix")
    matching = [name for name in there if re.match(expression, name)]
    if not matching:
        raise DataError(f"{key} = {expression!r} matches no directory of {location}; there are: {_some(there)}")

    def parse(page: Page) -> tuple[np.ndarray, int]:
        return parse_names(page.prefix, page.paths, page.etags, page.sizes), len(page.paths)

    def find(directory: str) -> tuple[list[np.ndarray], int]:
        pages = location.pages(directory, parse)
        return [table for table, _ in pages], sum(files for _, files in pages)

    with ThreadPoolExecutor(DIRECTORIES) as threads:
        found = dict(zip(matching, threads.map(find, matching), strict=True))
    tiles = TileFiles.from_tables({name: tables for name, (tables, _) in found.items()})
    others = sum(files for _, files in found.values()) - len(tiles)
    log.info("listed %d tiles of %s (directories: %d, other files: %d)", len(tiles), location, len(matching), others)
    return tiles


def _group_values(directories: Iterable[str], expression: str, names: Sequence[str]) -> list[tuple[str | None, ...]]:
    matches = (re.match(expression, directory) for directory in directories)
    return [tuple(match.group(name) for name in names) for match in matches if match]


def _described(location: Location, files: TileFiles, expression: str) -> str:
    samples = [files.path(row) for row in range(min(SHOWN, len(files)))]
    return (
        f"{location}, expression {expression!r}: {len(files)} tiles in the directories {_some(files.directories)}"
        + (f", such as {_some(samples)}" if samples else "")
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN]) or "none"
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _known(content: bytes, rows: Mapping[str, int], source: str) -> np.ndarray:
    """The rows that an id file names, one id a line, each row once and rising; a warning for ids that have none."""
    ids = {line.strip() for line in content.decode().splitlines()} - {""}
    unknown = ids - rows.keys()
    if unknown:
        log.warning("%s names %d tiles that are not in this run's data", source, len(unknown))
    return np.array(sorted(rows[each] for each in ids & rows.keys()), dtype=np.int64)
