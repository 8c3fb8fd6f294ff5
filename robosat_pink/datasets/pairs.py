"""Pairs of image and mask tiles as a dataset: found, split, and by a `TileReader` read.

A sample keeps the tile's own numbers: scaling, normalisation and augmentation are for the device (`transforms`). What
is random about a sample is drawn from (seed, epoch, row) alone, so that neither workers nor hosts nor a resume change
it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from robosat_pink.config import ChannelConfig, ClassConfig, DatasetConfig, shared_groups
from robosat_pink.datasets.cache import TileCache, open_cache
from robosat_pink.datasets.pair_decoder import ways_to_agree
from robosat_pink.datasets.reader import ReadRequest, Sample, TileReader
from robosat_pink.datasets.sides import Side, described, list_sides
from robosat_pink.datasets.tiles import (
    Pairs,
    Split,
    TileFiles,
    pair,
    refuse_crossings,
    seeming_cause,
    split_pairs,
    tile_id,
)
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, location
from robosat_pink.storage.credentials import usable_profile
from robosat_pink.storage.error_advice import NotFound
from robosat_pink.storage.location import IDS_BYTES

log = logging.getLogger(__name__)

MOST_KINDS = 8  # told one by one


class TrainingCrop(NamedTuple):
    """A training sample: a row of the pairs, and the epoch its crop and symmetry are drawn for."""

    row: int
    epoch: int


class TilePairs(Dataset[Sample]):
    """Every pair of an image and a mask tile that the experiment names; lists both buckets when made.

    An item is a row number: the whole tile, padded with ignored pixels to a multiple of `size_multiple`. Or it is a
    TrainingCrop: a random square of `tile_size` with a symmetry to apply, as in training.
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
        on_rank_zero: Callable[[Callable[[], Pairs]], Pairs] = lambda find: find(),
        is_listed_here: bool = True,
    ) -> None:
        """`on_rank_zero` lists the buckets: on rank 0, whose result all processes get.

        `is_listed_here`: by this host, whose folders then hold the very files that were listed, not copies of them.
        """
        self.config = dataset
        self.seed = seed
        self.input_channels = dict(input_channels or {})
        self.kinds: dict[str, int] = {}  # of the tiles read so far: what they say of their bands, and a row of each
        self._where = store_options(dataset, self.input_channels)
        self.image_location = self._location(dataset.image_bucket)
        self.mask_location = self._location(dataset.mask_bucket)
        self.pairs = on_rank_zero(self._find_pairs)
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
            missing=dataset.missing,
            ignored=dataset.ignore_values,
            is_listed_here=is_listed_here,
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int | TrainingCrop) -> Sample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | TrainingCrop]) -> list[Sample]:
        """What the cache has is read; for the rest images and masks are fetched side by side, all at once."""
        samples: dict[int, Sample] = {}

        def keep(number: int, sample: Sample) -> None:
            samples[number] = sample._replace(image=sample.image.copy("K"), mask=sample.mask.copy())

        for reading in self.reader.begin([self.request(item) for item in items], keep):
            reading.result()
        return [samples[number] for number in range(len(items))]

    def request(self, item: int | TrainingCrop) -> ReadRequest:
        """What a reader needs to know to read this item: its row's part of the index."""
        row, epoch = item if isinstance(item, TrainingCrop) else (item, None)
        images, masks = self.pairs.images, self.pairs.masks
        return ReadRequest(
            *(row, images.path(row), int(images.version[row]), masks.path(row), int(masks.version[row]), epoch),
            image_size=int(images.size[row]),
            image_modified=int(images.modified[row]),
            mask_size=int(masks.size[row]),
            mask_modified=int(masks.modified[row]),
            image_sidecars=int(images.sidecars[row]),
            mask_sidecars=int(masks.sidecars[row]),
        )

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
            for column in (files.directory.astype(np.int32), files.zxy, files.version):
                state.update(np.ascontiguousarray(column).tobytes())
            if files.sidecars.any():
                state.update(files.sidecars.tobytes())
        return state.hexdigest()

    def note_kinds(self, kinds: Mapping[str, int]) -> None:
        """Warn where tiles say something else of their bands than those before: they may not mean the same numbers."""
        for kind, row in kinds.items():
            if self.kinds and kind not in self.kinds and len(self.kinds) <= MOST_KINDS:
                other, first = next(iter(self.kinds.items()))
                log.warning(
                    'warning: the images of this run differ: %s has "%s"; %s has "%s". %s',
                    *(self.id(row), kind, self.id(first), other, ways_to_agree((kind, other))),
                )
                if len(self.kinds) == MOST_KINDS:
                    log.warning("warning: what further images say of their bands is not told one by one")
            self.kinds.setdefault(kind, row)

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
        images, masks = sides = list_sides(
            [
                Side(
                    *(self.image_location, config.imagery_directory_regex),
                    *("dataset.image_bucket", "dataset.imagery_directory_regex"),
                ),
                Side(
                    *(self.mask_location, config.mask_directory_regex),
                    *("dataset.mask_bucket", "dataset.mask_directory_regex"),
                ),
            ]
        )
        names = shared_groups(config)
        groups = [[tuple(groups[name] for name in names) for groups in side.groups] for side in sides]
        pairs = pair(images.files, masks.files, *groups)
        if not len(pairs):
            raise DataError(self._why_no_pair(images.files, masks.files, names))
        if _place(self.image_location) == _place(self.mask_location):
            _refuse_own_masks(pairs, self.image_location)
        return pairs

    def _why_no_pair(self, images: TileFiles, masks: TileFiles, names: Sequence[str]) -> str:
        agreeing = f" and the same {', '.join(names)}" if names else ""
        return (
            f"no image has a mask of the same z/x/y{agreeing}. "
            f"{described(self.image_location, images, self.config.imagery_directory_regex)}. "
            f"{described(self.mask_location, masks, self.config.mask_directory_regex)}"
            f"{seeming_cause(images.zxy, masks.zxy)}"
        )

    def _split_from(self, path: str) -> Split:
        """The val tiles of an earlier run, and its held-out ones if holdout_ids.txt stands beside; the rest trains."""
        path = location.local_or(path)
        rows = {name: row for row, name in enumerate(self.ids)}
        val = _known(location.read_file(path, most_bytes=IDS_BYTES, **self._where), rows, path)
        beside = path.rpartition("/")[0] + "/holdout_ids.txt"
        content = b""
        try:
            content = location.read_file(beside, most_bytes=IDS_BYTES, **self._where)
        except DataError as error:  # S3 says 403, not 404, to who may not list the bucket
            if not isinstance(error, NotFound):
                log.warning("warning: %s; no tiles are held out", error)
        held = np.setdiff1d(_known(content, rows, beside), val)
        train = np.setdiff1d(np.arange(len(self)), np.concatenate([val, held]))
        if not len(val) or not len(train):
            raise DataError(
                f"dataset.split.from: {path} leaves {len(train)} tiles to train on and {len(val)} to evaluate of "
                f"{len(self)}; it must name some, not all, of this run's tiles, such as {self.id(0)}"
            )
        split = Split(train, val, held)
        refuse_crossings(self.pairs, split, path)
        return split

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


def _place(location: Location) -> tuple[str | None, str]:
    """Equal for one place, however it is spelt."""
    return location.bucket, os.path.realpath(location.path) if location.bucket is None else location.path


def _refuse_own_masks(pairs: Pairs, location: Location) -> None:
    """DataError for an image that is its own mask, where both are taken from one place."""
    images, masks = pairs.images, pairs.masks
    numbers = {name: number for number, name in enumerate(images.directories)}
    mask_numbers = np.array([numbers.get(name, -1) for name in masks.directories])
    own = np.flatnonzero((mask_numbers[masks.directory] == images.directory) & (images.suffix == masks.suffix))
    if len(own):
        raise DataError(
            f"dataset.image_bucket and dataset.mask_bucket are both {location}, where {len(own)} images would be their "
            f"own masks, such as {images.path(int(own[0]))}; name where the masks are, or tell them apart by "
            "imagery_directory_regex and mask_directory_regex"
        )


def _known(content: bytes, rows: Mapping[str, int], source: str) -> np.ndarray:
    """The rows that an id file names, one id a line, each row once and rising; a warning for ids that have none."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: is not UTF-8 text ({error}); accepted: one tile id a line; save it as UTF-8"
        ) from error
    ids = {line.strip() for line in text.split("\n")} - {""}
    unknown = ids - rows.keys()
    if unknown:
        log.warning("%s names %d tiles that are not in this run's data", source, len(unknown))
    return np.array(sorted(rows[each] for each in ids & rows.keys()), dtype=np.int64)
