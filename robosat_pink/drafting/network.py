"""Drafts a network for the number of tiles and this machine. Called by `draft`."""

from __future__ import annotations

import math

import torch

from robosat_pink.config.recipes import RECIPES
from robosat_pink.drafting.text import Entry, Section
from robosat_pink.models import MODELS

MANY_PAIRS = 1000
RECIPE = "strong"
SMALL = "2 million parameters, for few tiles or a CPU; with a GPU and 1,000 pairs or more, try albunet, with 37 million"
LARGE = "37 million parameters, for a GPU and 1,000 pairs or more; for fewer, or a CPU, try unet, with 2 million"


def model(pairs: int, side: int) -> Section:
    """The section `model` for so many pairs of tiles, of at most so many pixels a side."""
    has_gpu = torch.cuda.is_available()
    is_large = has_gpu and pairs >= MANY_PAIRS
    name = "albunet" if is_large else "unet"
    here = f"here are {pairs:,} pairs and {'a' if has_gpu else 'no'} GPU"
    defaults = RECIPES[RECIPE]["model"]
    sets = f"sets loss, learning rate, augmentation and {defaults['epochs']} epochs; a key here overrides it"
    entries = [
        Entry(f"name: {name}", f"{LARGE if is_large else SMALL}; {here}"),
        Entry(f"recipe: {RECIPE}", sets),
    ]
    multiple = MODELS[name].size_multiple
    fitting = math.ceil(side / multiple) * multiple
    if fitting < defaults["tile_size"]:
        entries.append(Entry(f"tile_size: {fitting}", f"the tiles have {side} pixels a side"))
    return Section("model", tuple(entries))
