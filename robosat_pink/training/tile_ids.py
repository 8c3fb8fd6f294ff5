"""The ids of the tiles of a split, and how a resume point holds them. Called by `outputs` and `resume`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

from robosat_pink.datasets import TilePairs
from robosat_pink.datasets.split import Split

MOST_ID_BYTES, MOST_IDS = 256 * 10**6, 10**7  # of all splits together


def tile_ids(tiles: TilePairs, split: Split) -> dict[str, list[str]]:
    """By split: train, val, holdout."""
    return {name: [tiles.id(row) for row in rows] for name, rows in split._asdict().items()}


def compress(ids_by_split: Mapping[str, Sequence[str]]) -> dict[str, torch.Tensor]:
    """As uint8 tensors: there may be a million ids."""
    return {
        name: torch.frombuffer(bytearray(zlib.compress("\n".join(ids).encode())), dtype=torch.uint8)
        for name, ids in ids_by_split.items()
    }


def decompress(compressed: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Raises ValueError for more than a run could have written."""
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
