"""The experiment files that come with the product, and the page that documents every key."""

import functools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from robosat_pink import reference
from robosat_pink.config import Config, load_config
from robosat_pink.config.formats import read_tree
from robosat_pink.config.keys import Key, leaf_keys
from robosat_pink.errors import ConfigError
from robosat_pink.losses import LOSSES
from robosat_pink.models import MODELS
from robosat_pink.sample import main as write_sample
from robosat_pink.train import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PAGE = (EXPERIMENTS / "README.md").read_text()
SCHEMA = EXPERIMENTS / "experiment.schema.json"
FILES = sorted(EXPERIMENTS.glob("*.yml"))


def test_page_documents_every_key_with_its_default_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+[\w.\[\]]*\.\w+)` \| .+? \| (\S+) \| .", PAGE, flags=re.MULTILINE)
    documented = {
        key: default if default == "required" else yaml.safe_load(default.strip("`")) for key, default in rows
    }
    documented = {key: float(value) if key == "model.lr" else value for key, value in documented.items()}
    assert len(rows) == len(documented)
    defaults = {name: "required" if key.is_required else key.default for name, key in leaf_keys(Config)}
    assert documented == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_page_lists_every_experiment_file() -> None:
    linked = set(re.findall(r"\]\(([\w.-]+\.yml)\)", PAGE))
    assert linked == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_experiment_file_loads_and_starts_by_naming_its_schema_and_saying_what_it_is(path: Path) -> None:
    first, second, *_ = path.read_text().splitlines()
    schema = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert schema is not None
    assert (path.parent / schema[1]).resolve() == SCHEMA
    assert second.startswith("# ")
    assert load_config(path).channels[0].bands == (1, 2, 3, 4)


@functools.cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


def refusals(tree: object) -> list[str]:
    """Where the schema refuses a tree, as dotted keys."""
    return [".".join(map(str, error.absolute_path)) for error in validator().iter_errors(tree)]


def test_committed_schema_and_page_are_what_the_command_writes_now(tmp_path: Path) -> None:
    for name in ("README.md", SCHEMA.name):
        shutil.copy(EXPERIMENTS / name, tmp_path)
    blank = re.sub(r"^(\| `[\w\[\]]+\.[\w.\[\]]+` \|).*?\|.*?\|", r"\1 | |", PAGE, flags=re.MULTILINE)
    assert blank != PAGE
    (tmp_path / "README.md").write_text(blank)
    (tmp_path / SCHEMA.name).write_text("")
    assert reference.main([str(tmp_path)]) == 0
    for name in ("README.md", SCHEMA.name):
        assert (tmp_path / name).read_text() == (EXPERIMENTS / name).read_text()
    for path in (EXPERIMENTS / "sagemaker").glob("*.json"):
        assert (tmp_path / "sagemaker" / path.name).read_text() == path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "| `model.lr` |",
            "| model.lr |",
            "README.md has no row for model.lr; add it to its section: | `model.lr` | a ",
        ),
        ("| `model.lr` |", "| `model.rl` |", "README.md has no row for model.lr; "),
        ("\n| `model.lr` |", "\n| `model.rl` | | | x |\n| `model.lr` |", "has a row for model.rl, which is no key"),
    ],
)
def test_command_tells_a_missing_row_and_one_of_no_key(
    old: str, new: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(PAGE.replace(old, new))
    with pytest.raises(SystemExit, match="2"):
        reference.main([str(tmp_path)])
    assert told in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["README.md"]


def test_schema_is_one_and_describes_every_key() -> None:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    for name, key in leaf_keys(Config):
        entry = schema
        for part in name.split("."):
            entry = entry["properties"][part.removesuffix("[]")]
            entry = entry["items"] if part.endswith("[]") else entry
        assert entry["description"], name
        assert ("default" in entry) is not key.is_required, name
        assert re.search(r"\]\(", entry["description"]) is None, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema_accepts_every_experiment_file(path: Path) -> None:
    assert refusals(read_tree(path, ())) == []


def test_schema_accepts_the_configurations_of_planet_snowcover(shared: Path) -> None:
    paths = sorted((shared / "reference/configs").iterdir())
    assert len(paths) == 6
    for path in paths:
        assert refusals(read_tree(path, ())) == [], path.name


@pytest.mark.parametrize(
    ("section", "change", "where"),
    [
        ("model", {"epoch": 3}, "model"),
        ("model", {"lr": "fast"}, "model.lr"),
        ("model", {"lr": 0}, "model.lr"),
        ("model", {"epochs": True}, "model.epochs"),
        ("model", {"name": "albunett"}, "model.name"),
        ("model", {"encoder": "resnet51"}, "model.encoder"),
        ("model", {"tile_size": 100}, "model.tile_size"),
        ("model", {"is_deconv": True}, "model.is_deconv"),
        ("model", {"name": "ternausnetv2", "encoder": None, "pretrained": True}, "model.pretrained"),
        ("model", {"loss": "lovas"}, "model.loss"),
        ("model", {"loss": {"lovas": 1}}, "model.loss"),
        ("model", {"loss": {"lovasz": 0}}, "model.loss"),
        ("model", {"schedule": "cosin"}, "model.schedule"),
        ("dataset", {"image_bucket": ""}, "dataset.image_bucket"),
        ("dataset", {"train_percent": 1.0}, "dataset.train_percent"),
        ("dataset", {"split": {"form": "a"}}, "dataset.split"),
        ("dataset", {"endpoint_url": "store.example"}, "dataset.endpoint_url"),
        ("runtime", {"workers": "many"}, "runtime.workers"),
        ("modle", {}, ""),
    ],
)
def test_schema_refuses_a_wrong_file_where_it_is_wrong(section: str, change: dict[str, object], where: str) -> None:
    tree = read_tree(EXPERIMENTS / "demo.yml", ())
    tree[section] = tree.get(section, {}) | change
    assert refusals(tree) == [where]


@pytest.mark.parametrize("section", ["dataset", "classes", "channels", "model"])
def test_schema_misses_a_section_that_must_be_there(section: str) -> None:
    tree = read_tree(EXPERIMENTS / "demo.yml", ())
    del tree[section]
    assert refusals(tree) == [""]


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    3,
    64,
    2**40,
    10**13,
    0.5,
    2.5,
    1e-300,
    "",
    " ",
    "x",
    "auto",
    "https://a.b",
    "#fff",
    "red",
]
VALUES += [[], [1], [0.5], ["x"], [1, 2, 3, 4], {}, {"lovasz": 1}, {"lovasz": -1}, *MODELS, *LOSSES, "resnet18", "tags"]


@pytest.mark.parametrize(("name", "key"), list(leaf_keys(Config)), ids=[name for name, _ in leaf_keys(Config)])
def test_schema_refuses_of_a_key_what_the_program_refuses_and_nothing_else(name: str, key: Key, tmp_path: Path) -> None:
    for value in VALUES:
        tree = read_tree(EXPERIMENTS / "demo.yml", ())
        *parents, last = name.split(".")
        section = tree
        for part in parents:
            section = section.setdefault(part.removesuffix("[]"), {})
            section = section[0] if part.endswith("[]") else section
        section[last] = value
        (tmp_path / "a.json").write_text(json.dumps(tree))
        problems = ""
        try:
            load_config(tmp_path / "a.json")
        except ConfigError as error:
            problems = str(error)
        is_refused = any(where.startswith(name.replace("[]", ".0")) for where in refusals(tree))
        assert not (is_refused and not problems), value
        if name not in ("classes[].color", "dataset.endpoint_url"):  # which no pattern holds all of
            assert is_refused or f"accepted: {key.accepts}" not in problems, value


def test_steps_are_chained_each_from_the_weights_of_the_one_before() -> None:
    starts = [load_config(EXPERIMENTS / f"tuolumne-{step}.yml").checkpoint.path for step in (1, 2, 3)]
    assert starts == [None, *(f"s3://planet-snowcover-models/tuolumne-{step}/best.pth" for step in (1, 2))]


@pytest.mark.slow
def test_smoke_experiment_trains_on_the_tiles_its_comment_tells_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (EXPERIMENTS / "smoke.yml").read_text()
    command = re.search(r"python -m robosat_pink.sample job (.*)", text)
    assert command is not None
    options = command[1].replace("experiments/", f"{EXPERIMENTS}/").split()
    write_sample([str(tmp_path / "job"), *options])
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "job"))
    assert main([]) == 0
    assert (tmp_path / "job/model/checkpoint-00002-of-00002.pth").exists()
