"""Where an image is cut into windows that overlap, so that memory does not grow with it. Called by `trained`."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

# The side of a window in pixels. A larger one spends less on CONTEXT and takes more memory; of this one, unet takes
# 0.6 GB in float32 on a CPU.
SIDE = 1024
# The pixels at a window's inner edges that are dropped, because they lack what lies beyond. A pixel of unet depends on
# up to 117 px around it: its windows equal one pass. One of AlbuNet (resnet18) depends on up to 320 px, but little on
# the far ones: after a short training on water in Sentinel-2, 93 of 3.1 million pixels were of another class than in
# one pass, and 671 with a CONTEXT of 64 (November 2026).
CONTEXT = 128


class Window(NamedTuple):
    """One axis of a window, in pixels: it is predicted from `start` to `end`, and kept from `first` to `last`."""

    start: int
    end: int
    first: int
    last: int


def windows(size: int, multiple: int) -> list[Window]:
    """The windows along an axis of `size` pixels, all of one length. What they keep covers the axis once.

    They start and end at multiples of `multiple`, so that the network pools the same pixels together as in one pass
    over the image. The last may end beyond `size`.
    """
    side, context = SIDE // multiple * multiple, math.ceil(CONTEXT / multiple) * multiple
    padded = math.ceil(size / multiple) * multiple
    length = min(side, padded)
    starts = [*range(0, padded - length, side - 2 * context), padded - length]
    cuts = itertools.pairwise([0, *(start + context for start in starts[1:]), size])
    return [Window(start, start + length, *kept) for start, kept in zip(starts, cuts, strict=True)]
