"""The recipes by name: defaults of an experiment, for keys that its file leaves out. Called by `loading`.

`original` is planet-snowcover's way of training, which files without `model.recipe` mean: the defaults in `sections`.
`strong` was chosen by measurement; docs/accuracy.md has the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robosat_pink.config.overrides import from_json, readings

Recipe = Mapping[str, Mapping[str, Any]]  # keys and values by section; those of `channels` are for each of its entries

RECIPES: Mapping[str, Recipe] = {
    "original": {},
    "strong": {
        "model": {
            "loss": {"lovasz": 0.5, "cross_entropy": 1.0},
            "batch_size": 4,
            "tile_size": 256,
            "epochs": 10,
            "lr": 0.001,
            "schedule": "cosine",
            "data_augmentation": 0.875,  # all eight symmetries are equally frequent
            "ema": 0.98,
            "symmetries": True,
        },
        "channels": {"mean": "auto", "std": "auto"},
        "sampling": {"tiles_per_epoch": "auto"},
    },
}


def fill_in(tree: dict[str, Any]) -> None:
    """Put the keys of the tree's recipe into it that it leaves out. Anything wrong in it is left to `parsing`."""
    model = from_json(tree.get("model"))
    if not isinstance(model, dict):
        return
    names = [name for name in readings(model.get("recipe")) if isinstance(name, str) and name in RECIPES]
    recipe = RECIPES[names[0]] if names else {}
    for section, defaults in recipe.items():
        entries = tree[section] = from_json(tree.get(section) or {})
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, dict):
                entry |= {name: value for name, value in defaults.items() if name not in entry}
