"""A recipe fills in what a file leaves out, and what is given in any way comes first."""

from pathlib import Path
from typing import Any

import pytest

from robosat_pink.config import Config, load_config, to_tree
from robosat_pink.config.recipes import RECIPES
from robosat_pink.errors import ConfigError

FILE = """
dataset: {image_bucket: a, mask_bucket: b}
classes: [{name: snow}]
channels: [{bands: [1]}, {bands: [2, 3], mean: [0.5, 0.6], std: null}]
"""


def load(folder: Path, text: str, **arguments: Any) -> Config:
    path = folder / "a.yml"
    path.write_text(text)
    return load_config(path, **arguments)


def test_file_without_a_recipe_is_the_original_one(tmp_path: Path) -> None:
    config = load(tmp_path, FILE + "model: {name: unet}")
    assert config == load(tmp_path, FILE + "model: {name: unet, recipe: original}")
    model = config.model
    assert (model.recipe, model.loss, model.lr, model.schedule, model.ema) == (
        "original",
        "lovasz",
        0.000025,
        "constant",
        None,
    )
    assert config.channels[0].mean is None
    assert config.sampling.tiles_per_epoch is None


def test_recipe_sets_exactly_the_keys_that_the_file_leaves_out(tmp_path: Path) -> None:
    config = load(tmp_path, FILE + "model: {name: unet, recipe: strong, lr: 0.5}")
    tree, recipe = to_tree(config), RECIPES["strong"]
    assert tree["model"]["lr"] == 0.5
    assert all(tree["model"][key] == value for key, value in recipe["model"].items() if key != "lr")
    assert tree["sampling"] == recipe["sampling"]
    assert (config.channels[0].mean, config.channels[0].std) == ("auto", "auto")
    assert (config.channels[1].mean, config.channels[1].std) == ((0.5, 0.6), None)
    assert load(tmp_path, repr_of(tree)) == config


def repr_of(tree: Any) -> str:
    import yaml

    return yaml.safe_dump(tree)


@pytest.mark.parametrize("source", ["hyperparameters", "arguments"])
@pytest.mark.parametrize("name", ["strong", '"strong"'])
def test_recipe_and_keys_beside_it_may_be_given_later(tmp_path: Path, source: str, name: str) -> None:
    given = {"model.recipe": name, "model.ema": "0.5", "sampling.tiles_per_epoch": "7"}
    config = load(tmp_path, FILE + "model: {name: unet, epochs: 3}", **{source: given})
    assert (config.model.recipe, config.model.ema, config.model.epochs) == ("strong", 0.5, 3)
    assert config.model.schedule == "cosine"
    assert config.sampling.tiles_per_epoch == 7


def test_whole_section_as_text_is_filled_in_too(tmp_path: Path) -> None:
    config = load(tmp_path, FILE, hyperparameters={"model": '{"name": "unet", "recipe": "strong", "epochs": 3}'})
    assert (config.model.epochs, config.model.schedule) == (3, "cosine")


@pytest.mark.parametrize("model", ["{name: unet, recipe: stronk}", "{name: unet, recipe: [strong]}", "[strong]"])
def test_recipe_that_is_none_is_an_error_that_names_them(tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError, match=r"original or strong|model = .*accepted: a section"):
        load(tmp_path, FILE + f"model: {model}")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_fits_the_keys_it_fills_in(tmp_path: Path, name: str) -> None:
    for network in ("unet", "albunet", "ternausnetv2"):
        load(tmp_path, FILE + f"model: {{name: {network}, recipe: {name}}}")
