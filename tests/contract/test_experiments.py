"""The experiment files that come with the product, and the page that documents every key."""

import re
from pathlib import Path

import pytest
import yaml

from robosat_pink.config import Config, load_config
from robosat_pink.config.keys import leaf_keys
from robosat_pink.sample import main as write_sample
from robosat_pink.train import main

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PAGE = (EXPERIMENTS / "README.md").read_text()
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
def test_experiment_file_loads_and_starts_by_saying_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")
    assert load_config(path).channels[0].bands == (1, 2, 3, 4)


def test_steps_are_chained_each_from_the_weights_of_the_one_before() -> None:
    starts = [load_config(EXPERIMENTS / f"tuolumne-{step}.yml").checkpoint.path for step in (1, 2, 3)]
    assert starts == [None, *(f"s3://planet-snowcover-models/tuolumne-{step}/best.pth" for step in (1, 2))]


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
