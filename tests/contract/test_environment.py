"""One place pins what runs: the pip list of pytorch_p36.yml, which start.sh, conda and the image install from."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ENVIRONMENT = yaml.safe_load((ROOT / "pytorch_p36.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.+!]*")


def pip_list() -> list[str]:
    (entry,) = (each for each in ENVIRONMENT["dependencies"] if isinstance(each, dict))
    return entry["pip"]


PINS = {canonicalize_name(name): pinned for name, _, pinned in (pin.partition("==") for pin in pip_list())}
RUNTIME = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["profile"]]
ACCEPTED = {canonicalize_name(each.name): each.specifier for each in map(Requirement, RUNTIME)}


def test_file_is_a_conda_environment_with_one_pip_list() -> None:
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"}
    assert ENVIRONMENT["name"] == "pytorch_p36"
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    *conda, pip = ENVIRONMENT["dependencies"]
    assert [re.split("[<>=! ]", each)[0] for each in conda] == ["python", "pip"]
    assert list(pip) == ["pip"]


@pytest.mark.parametrize("entry", pip_list())
def test_pip_entry_is_a_name_and_an_exact_version(entry: str) -> None:
    assert PIN.fullmatch(entry)


def test_no_name_is_pinned_twice() -> None:
    assert len(PINS) == len(pip_list())


@pytest.mark.parametrize("name", PINS)
def test_installed_version_is_the_pinned_one(name: str) -> None:
    # A local label such as 2.10.0+cpu says how a version was built, not which it is.
    assert SpecifierSet(f"=={PINS[name]}").contains(version(name), prereleases=True), version(name)


def test_pins_are_the_projects_dependencies_those_of_profiles_and_pytest() -> None:
    assert set(PINS) == set(ACCEPTED) | {"pytest"}


@pytest.mark.parametrize("name", ACCEPTED)
def test_pin_is_a_version_that_the_project_accepts(name: str) -> None:
    assert ACCEPTED[name].contains(PINS[name])


def test_conda_installs_a_python_that_the_project_accepts() -> None:
    wanted = SpecifierSet(ENVIRONMENT["dependencies"][0].removeprefix("python"))
    versions = [f"3.{minor}" for minor in range(8, 20)]
    accepted = set(SpecifierSet(PROJECT["requires-python"]).filter(versions))
    assert set(wanted.filter(versions)) <= accepted
    assert "3.11" in accepted
    assert "3.10" not in accepted


def test_start_sh_installs_the_pip_list() -> None:
    script = """here=$1; eval "$(sed -n '/^pins()/,/^}/p' "$here/start.sh")"; pins"""
    printed = subprocess.run(["bash", "-c", script, "bash", ROOT], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == pip_list()


def test_start_sh_reads_the_pip_list_however_yaml_indents_and_comments_it(tmp_path: Path) -> None:
    (tmp_path / "start.sh").write_text((ROOT / "start.sh").read_text())
    (tmp_path / "pytorch_p36.yml").write_text(
        "# torch==0.1\ndependencies:\n- python==3.11\n- pip:\n  - torch==2.10.0  # why\n  # - old==1\n  - six==1\n"
    )
    script = """here=$1; eval "$(sed -n '/^pins()/,/^}/p' "$here/start.sh")"; pins"""
    printed = subprocess.run(["bash", "-c", script, "bash", tmp_path], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == ["torch==2.10.0", "six==1"]


def test_project_accepts_ranges_and_pins_nothing_that_runs() -> None:
    assert [each for each in RUNTIME if "==" in each] == []
    tools = {canonicalize_name(Requirement(each).name) for each in PROJECT["optional-dependencies"]["test"]}
    assert tools & set(PINS) == set()


@pytest.mark.parametrize("name", [name for name in ("start.sh", "Dockerfile", ".ci/run") if (ROOT / name).exists()])
def test_nothing_else_pins_a_version_of_what_runs(name: str) -> None:
    named = "|".join(re.escape(pin).replace("\\-", "[-_]") for pin in PINS)
    found = re.findall(
        rf"\b(?:{named})\b[\"']?\s*(?:\[\w+\])?(?:[=<>~!]=|@)\s*[\"']?\d[\w.]*", (ROOT / name).read_text(), re.I
    )
    assert found == []
