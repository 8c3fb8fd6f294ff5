"""The tile ids of each split, and their compressed form in resume points. Called by `outputs` and `resume`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.split import Split

MOST_ID_BYTES, MOST_IDS = 256 * 10**6, 10**7  # limits for all splits together


def tile_ids(tiles: TilePairs, split: Split) -> dict[str, list[str]]:
    """The tile ids of each split: train, val, holdout."""
    return {name: [tiles.id(row) for row in rows] for name, rows in split._asdict().items()}


def compress(ids_by_split: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """Compress the ids to uint8 tensors, because there may be a million."""
    return {
        name: torch.frombuffer(bytearray(zlib.compress("\n".join(ids).encode())), dtype=torch.uint8)
        for name, ids in ids_by_split.items()
    }


def decompress(compressed: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """The ids from tensors of `compress`. Raises ValueError if they are cut short, or exceed the limits."""
    ids_by_split, bytes_left, ids_left = {}, MOST_ID_BYTES, MOST_IDS
    for name, data in compressed.items():
        decompressor = zlib.decompressobj()
        text = decompressor.decompress(data.numpy().data, bytes_left + 1)
        bytes_left -= len(text)
        ids_left -= text.count(b"\n") + 1
        if bytes_left < 0 or ids_left < 0 or not decompressor.eof:
            raise ValueError(f"its ids are cut short, or more than {MOST_IDS:,} or {MOST_ID_BYTES:,} bytes")
        ids_by_split[name] = text.decode().split("\n") if text else []
    return ids_by_split
