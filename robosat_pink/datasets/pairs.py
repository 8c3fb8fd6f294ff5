"""Pairs of image and mask tiles as a dataset: listed, split, and read by a `TileReader`. Made by `setup`.

A sample keeps the tile's own numbers; `transforms` scales and normalises on the device. Crop and symmetry are drawn
from (seed, epoch, row, repeat) only, so that the number of workers or hosts and a resume do not change them.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from robosat_pink.config import ChannelConfig, ClassConfig, DatasetConfig, shared_groups
from robosat_pink.datasets.cache import cache_of
from robosat_pink.datasets.earlier_split import split_from
from robosat_pink.datasets.image_kinds import ImageKinds
from robosat_pink.datasets.images import ListedImages, give_back_memory
from robosat_pink.datasets.pairing import Pairs, pair, seeming_cause
from robosat_pink.datasets.reader import ReadRequest, Sample, TileReader
from robosat_pink.datasets.sides import Side, described, list_sides
from robosat_pink.datasets.split import Split, refuse_crossings, split_pairs
from robosat_pink.datasets.store_options import store_options
from robosat_pink.datasets.tiles import TileFiles
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, location

log = logging.getLogger(__name__)


class ImageKeys(NamedTuple):
    """The keys of the experiment file that define where the images are."""

    bucket: str
    expression: str


IMAGE_KEYS = ImageKeys("dataset.image_bucket", "dataset.imagery_directory_regex")


class TrainingCrop(NamedTuple):
    """A training sample: a row of the pairs, and what its crop and symmetry are drawn from."""

    row: int
    epoch: int
    repeat: int = 0  # how many crops of this row the epoch has had before


class TilePairs(ListedImages, Dataset[Sample]):
    """Every pair of an image and a mask tile that the experiment names. The constructor lists both buckets.

    The item of a row number is the whole tile, padded with ignored pixels to a multiple of `size_multiple`. The item of
    a TrainingCrop is a random square of `tile_size` with a symmetry to apply.
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
        on_rank_zero: Callable[[Callable[[], Pairs]], Pairs] = lambda list_pairs: list_pairs(),
        is_listed_here: bool = True,
        image_keys: ImageKeys = IMAGE_KEYS,
    ) -> None:
        """`on_rank_zero` runs the given listing on rank 0, and returns its result on all ranks.

        `is_listed_here`: whether this host lists the tiles, so that its folders contain the listed files, not copies.
        `image_keys` are named in errors on where the images are.
        """
        self.config = dataset
        self._image_keys = image_keys
        self.seed = seed
        self.input_channels = dict(input_channels or {})
        self.kinds = ImageKinds()
        self._store_options = store_options(dataset, self.input_channels)
        self.image_location = self._location(dataset.image_bucket)
        self.mask_location = self._location(dataset.mask_bucket)
        self.pairs = on_rank_zero(self._list_pairs)
        self.files = self.pairs.images
        give_back_memory()
        self.reader = TileReader(
            images=self.image_location,
            masks=self.mask_location,
            channels=tuple(channels),
            classes=tuple(classes),
            tile_size=tile_size,
            size_multiple=size_multiple,
            augmentation=augmentation,
            seed=seed,
            cache=cache_of((self.image_location, self.mask_location), dataset.cache),
            missing=dataset.missing,
            ignored=dataset.ignore_values,
            is_listed_here=is_listed_here,
        )

    def __getitem__(self, item: int | TrainingCrop) -> Sample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | TrainingCrop]) -> list[Sample]:
        """Read the samples concurrently, from the cache if they are in it."""
        return self.reader.read([self.request(item) for item in items])

    def request(self, item: int | TrainingCrop) -> ReadRequest:
        """Everything that a reader needs to know about this item."""
        row, epoch, repeat = item if isinstance(item, TrainingCrop) else (item, None, 0)
        images, masks = self.pairs.images, self.pairs.masks
        return ReadRequest(
            row=row,
            image=images.path(row),
            image_version=int(images.version[row]),
            mask=masks.path(row),
            mask_version=int(masks.version[row]),
            epoch=epoch,
            repeat=repeat,
            image_size=int(images.size[row]),
            image_modified=int(images.modified[row]),
            mask_size=int(masks.size[row]),
            mask_modified=int(masks.modified[row]),
            image_sidecars=int(images.sidecars[row]),
            mask_sidecars=int(masks.sidecars[row]),
        )

    def digest(self) -> str:
        """A digest of the names and contents of all tiles; contents are identified by `version_of`."""
        state = hashlib.sha256()
        for files in (self.pairs.images, self.pairs.masks):
            state.update("\n".join(files.directories).encode())
            for column in (files.directory.astype(np.int32), files.zxy, files.version):
                state.update(np.ascontiguousarray(column).tobytes())
            if files.sidecars.any():
                state.update(files.sidecars.tobytes())
        return state.hexdigest()

    def split(self) -> Split:
        """Rows to train on, to evaluate each epoch, and to hold out, as `dataset.split` says."""
        settings = self.config.split
        if settings.from_ is not None:
            path = location.local_path_or(settings.from_)
            split = split_from(path, self.ids, self._store_options)
            refuse_crossings(self.pairs, split, path)
            return split
        split = split_pairs(
            self.pairs,
            self.config.train_percent,
            by=settings.by,
            seed=settings.seed,
            zoom=settings.zoom,
            holdout_percent=settings.test_percent,
            folds=settings.folds,
            fold=settings.fold,
        )
        if settings.folds is not None:
            fold = f"fold {settings.fold} of the folds 0 to {settings.folds - 1}"
            log.info("split: val is %s; dataset.train_percent has no effect", fold)
        give_back_memory()
        return split

    def _location(self, text: str) -> Location:
        return Location.parse(text, **self._store_options)

    def _list_pairs(self) -> Pairs:
        config = self.config
        images_side = Side(
            location=self.image_location,
            expression=config.imagery_directory_regex,
            bucket_key=self._image_keys.bucket,
            expression_key=self._image_keys.expression,
        )
        masks_side = Side(
            location=self.mask_location,
            expression=config.mask_directory_regex,
            bucket_key="dataset.mask_bucket",
            expression_key="dataset.mask_directory_regex",
        )
        images, masks = list_sides([images_side, masks_side])
        names = shared_groups(config)
        image_groups, mask_groups = (
            [tuple(groups[name] for name in names) for groups in listed.groups] for listed in (images, masks)
        )
        pairs = pair(images.files, masks.files, image_groups, mask_groups)
        if not len(pairs):
            raise DataError(self._why_no_pair(images.files, masks.files, names))
        if _canonical(self.image_location) == _canonical(self.mask_location):
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


def _canonical(location: Location) -> tuple[str | None, str]:
    """Bucket and path of a location, equal for all of its spellings."""
    return location.bucket, os.path.realpath(location.path) if location.bucket is None else location.path


def _refuse_own_masks(pairs: Pairs, location: Location) -> None:
    """Raises DataError if an image is its own mask, which can occur if both are from one location."""
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
