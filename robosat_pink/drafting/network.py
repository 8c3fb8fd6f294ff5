"""Drafts a network for the number of tiles and this machine. Called by `draft`."""

from __future__ import annotations

import math

import torch

from robosat_pink.config.recipes import RECIPES
from robosat_pink.drafting.text import Entry, Section
from robosat_pink.models import MODELS

MANY_PAIRS = 1000
RECIPE = "strong"
PROCESSORS = {True: "a GPU", False: "a CPU"}


def model(pairs: int, side: int) -> Section:
    """The section `model` for so many pairs of tiles with sides of so many pixels."""
    has_gpu = torch.cuda.is_available()
    is_large = has_gpu and pairs >= MANY_PAIRS
    name = "albunet" if is_large else "unet"
    other = (
        "unet, with 2 million, is the one for few tiles or a CPU"
        if is_large
        else (f"with a GPU and {MANY_PAIRS:,} tiles or more, try albunet, with 37 million")
    )
    size = "37" if is_large else "2"
    why = f"{size} million parameters, for {pairs} pairs and {PROCESSORS[has_gpu]}; {other}"
    entries = [
        Entry(f"name: {name}", why),
        Entry(f"recipe: {RECIPE}", "sets loss, learning rate, augmentation and 10 epochs; a key here overrides it"),
    ]
    usual = int(RECIPES[RECIPE]["model"]["tile_size"])
    multiple = MODELS[name].size_multiple
    fitting = math.ceil(side / multiple) * multiple
    if fitting < usual:
        entries.append(Entry(f"tile_size: {fitting}", f"the tiles have {side} pixels a side"))
    return Section("model", tuple(entries))
