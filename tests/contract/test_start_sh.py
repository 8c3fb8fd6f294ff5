"""What start.sh promises: its verbs, its exit codes, and when it makes an environment.

The script runs in a copy of its folder on a machine whose Pythons are scripts that note how they were called: nothing
is installed. Only the pins of `pytorch_p36.yml` and the metadata of `pyproject.toml` are the project's own.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from robosat_pink.container.hardware import NVIDIA_DRIVER, TUNABLES

ROOT = Path(__file__).parents[2]
VERBS = ["init", "train", "check", "predict", "evaluate", "demo", "test", "help"]

# Stands for python3, and for bin/python and bin/pip of the environments that it makes. MACHINE holds the notes, and the
# files by which a test says how it behaves.
FAKE = r"""#!/usr/bin/env bash
{
    printf '%s\0' "$$" "$0" "$PWD" "${PYTHONUNBUFFERED-}" "${SAGEMAKER_BASE_DIR-}" "${GLIBC_TUNABLES-}" "$@"
    printf '\036\0'
} >>"$MACHINE/calls"
case "$*" in
*find_spec*) [ -e "$MACHINE/installed" ] ;;
--version) echo "Python 3.MINOR.1" ;;
*version_info*) "$REAL_PYTHON" -I -c "import sys; sys.version_info = (3, MINOR, 1); $2" ;;
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip"
    [ ! -e "$MACHINE/venv fails" ]
    ;;
*--editable*) [ ! -e "$MACHINE/package fails" ] ;;
install*) [ ! -e "$MACHINE/pins fail" ] ;;
*robosat_pink.train*) exit "$(cat "$MACHINE/train exits with" 2>/dev/null || echo 0)" ;;
esac
"""


@dataclass(frozen=True)
class Call:
    process: int
    program: str
    folder: str
    unbuffered: str
    base_dir: str
    tunables: str  # of glibc
    arguments: list[str]


@dataclass(frozen=True)
class Result:
    process: int
    returncode: int
    stdout: str
    stderr: str


class Machine:
    """A machine with bash, the usual commands, python3 of some version, and a clone in a folder with a space."""

    def __init__(self, folder: Path, commands: Path) -> None:
        self.folder = folder
        self.clone = folder / "my clone"
        self.venv = self.clone / ".venv"
        self.elsewhere = folder / "elsewhere"
        self.bin = folder / "bin"
        for each in (self.clone, self.clone / "tests", self.elsewhere, self.bin):
            each.mkdir()
        for name in ("start.sh", "pytorch_p36.yml", "pyproject.toml"):
            shutil.copy(ROOT / name, self.clone / name)
        self.environment = {
            "PATH": f"{self.bin}:{commands}",
            "HOME": str(folder),
            "MACHINE": str(folder),
            "REAL_PYTHON": sys.executable,
        }
        self.add_python("python3", minor=12)

    def add_python(self, name: str, minor: int) -> None:
        path = self.bin / name
        path.write_text(FAKE.replace("MINOR", str(minor)))
        path.chmod(0o755)

    def say(self, how: str, text: str = "") -> Path:
        """Change how the Pythons behave: see the fake."""
        path = self.folder / how
        path.write_text(text)
        return path

    def run(self, *arguments: str, script: str | None = None, cwd: Path | None = None) -> Result:
        command = ["bash", script or str(self.clone / "start.sh"), *arguments]
        process = subprocess.Popen(
            command,
            cwd=cwd or self.elsewhere,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stdout, stderr = process.communicate(timeout=60)
        return Result(process.pid, process.returncode, stdout, stderr)

    def take_calls(self) -> list[Call]:
        """The calls since this was last asked, without those that only ask a Python what it is."""
        notes = self.folder / "calls"
        calls = []
        for note in notes.read_text().split("\0\036\0") if notes.exists() else []:
            if note:
                process, program, folder, unbuffered, base_dir, tunables, *arguments = note.split("\0")
                calls.append(Call(int(process), program, folder, unbuffered, base_dir, tunables, arguments))
        notes.unlink(missing_ok=True)
        return [call for call in calls if not re.search("find_spec|version", " ".join(call.arguments))]

    def take_programs(self) -> list[str]:
        """The calls since this was last asked, in words."""
        return [self.in_words(call) for call in self.take_calls()]

    def in_words(self, call: Call) -> str:
        program = Path(call.program)
        where = "venv" if program.parent == self.venv / "bin" else "system"
        what = "package" if "--editable" in call.arguments else " ".join(call.arguments[:2])
        return f"{where} {program.name} {'pins' if program.name == 'pip' and what != 'package' else what}"


SET_UP = ["system python3 -m venv", "venv pip pins", "venv pip package"]
TRAIN = "venv python -m robosat_pink.train"
TEST = "venv python -m pytest"


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every command of this machine's /usr/bin and /bin that is no Python."""
    folder = tmp_path_factory.mktemp("commands")
    for place in (Path("/usr/bin"), Path("/bin")):
        for command in place.iterdir():
            link = folder / command.name
            if not command.name.startswith(("python", "pip")) and not link.is_symlink():
                link.symlink_to(command)
    return folder


@pytest.fixture
def machine(tmp_path: Path, commands: Path) -> Machine:
    return Machine(tmp_path, commands)


@pytest.mark.parametrize("verb", ["help", "-h", "--help"])
def test_help_lists_the_verbs_and_nothing_else(machine: Machine, verb: str) -> None:
    shown = machine.run(verb)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.findall(r"^  (\S+) {2,}\S", shown.stdout, flags=re.MULTILINE) == VERBS
    assert machine.take_calls() == []


def test_verbs_are_frozen() -> None:
    body = (ROOT / "start.sh").read_text().split("case $verb in")[1]
    labels = re.findall(r"^(\S[^()]*)\)$", body, flags=re.MULTILINE)
    assert labels == ["train | predict | evaluate | init", "check", "demo", "test", "help | -h | --help", "serve", "*"]


@pytest.mark.parametrize("arguments", [[], [""], ["serve"], ["serve", "train"], ["deploy"], ["Train"], ["--verbose"]])
def test_anything_else_is_answered_by_one_sentence_that_names_what_there_is(
    machine: Machine, arguments: list[str]
) -> None:
    refused = machine.run(*arguments)
    assert (refused.returncode, refused.stdout) == (64, "")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("start.sh: ")
    assert refused.stderr.endswith("there are: init, train, check, predict, evaluate, demo, test, help\n")
    assert not arguments or arguments[0] in refused.stderr
    assert machine.take_calls() == []
    assert not machine.venv.exists()


def test_script_is_clean_to_shellcheck() -> None:
    checked = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", ROOT / "start.sh"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def test_script_can_be_executed_by_itself(machine: Machine) -> None:
    assert os.access(ROOT / "start.sh", os.X_OK)
    shown = subprocess.run([machine.clone / "start.sh", "help"], env=machine.environment, stdout=subprocess.PIPE)
    assert shown.returncode == 0


AWKWARD = [
    "model.epochs=1",
    "classes=[{name: 'a  b'}]",
    "",
    "--config",
    'my "run".yml',
    "$HOME",
    "*",
    "a\nb",
    "\\",
    "-x",
]


@pytest.mark.parametrize("verb", ["train", "predict", "evaluate", "init"])
@pytest.mark.parametrize("installed", [True, False])
def test_verb_becomes_its_module_with_its_arguments_unchanged(machine: Machine, verb: str, installed: bool) -> None:
    if installed:
        machine.say("installed")
    started = machine.run(verb, *AWKWARD)
    assert started.returncode == 0, started.stderr
    call = machine.take_calls()[-1]
    assert call.program == str(machine.bin / "python3" if installed else machine.venv / "bin/python")
    assert call.arguments == ["-m", f"robosat_pink.{verb}", *AWKWARD]
    assert call.process == started.process
    assert call.folder == str(machine.elsewhere)
    assert call.unbuffered == "1"
    assert call.base_dir == ""


def test_check_is_the_training_s_check_with_its_arguments_unchanged(machine: Machine) -> None:
    machine.say("installed")
    started = machine.run("check", *AWKWARD)
    call = machine.take_calls()[-1]
    assert call.arguments == ["-m", "robosat_pink.train", "--check", *AWKWARD]
    assert (call.process, call.folder) == (started.process, str(machine.elsewhere))


@pytest.mark.parametrize("verb", ["train", "evaluate", "demo"])
@pytest.mark.parametrize(
    ("has_driver", "chosen", "expected"),
    [
        (False, None, TUNABLES),
        (False, "", ""),
        (False, "glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1"),
        (True, None, ""),
        (True, "glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1"),
    ],
)
def test_on_a_cpu_small_blocks_do_not_part_large_ones_unless_somebody_chose_otherwise(
    machine: Machine, verb: str, has_driver: bool, chosen: str | None, expected: str
) -> None:
    machine.say("installed")
    script, driver = machine.clone / "start.sh", machine.folder / "driver"
    assert str(NVIDIA_DRIVER) in script.read_text()
    script.write_text(script.read_text().replace(str(NVIDIA_DRIVER), f'"{driver}"'))
    if has_driver:
        driver.touch()
    if chosen is not None:
        machine.environment["GLIBC_TUNABLES"] = chosen
    machine.run(verb)
    assert machine.take_calls()[-1].tunables == expected


def test_exit_code_of_the_training_is_the_scripts(machine: Machine) -> None:
    machine.say("installed")
    machine.say("train exits with", "3")
    assert machine.run("train").returncode == 3


def test_where_the_package_is_installed_no_environment_is_made(machine: Machine) -> None:
    machine.say("installed")
    for verb in ("train", "predict", "check", "demo", "test"):
        assert machine.run(verb).returncode == 0
    assert machine.take_programs() == [
        "system python3 -m robosat_pink.train",
        "system python3 -m robosat_pink.predict",
        "system python3 -m robosat_pink.train",
        "system python3 -m robosat_pink.sample",
        "system python3 -m robosat_pink.train",
        "system python3 -m robosat_pink.predict",
        "system python3 -m pytest",
    ]
    assert not machine.venv.exists()


@pytest.mark.parametrize(("without_packages", "code"), [("", 0), ("-S", 1)])
def test_folder_of_the_clone_does_not_pass_for_an_installation(
    machine: Machine, without_packages: str, code: int
) -> None:
    (machine.bin / "python3").write_text(f'#!/usr/bin/env bash\nexec {sys.executable} {without_packages} "$@"\n')
    script = """eval "$(sed -n '/^is_installed()/,/^}/p' start.sh)"; is_installed"""
    asked = subprocess.run(["bash", "-c", script], cwd=ROOT, env=machine.environment, check=False)
    assert asked.returncode == code


def test_environment_has_the_pins_and_then_the_package_without_the_tools(machine: Machine) -> None:
    assert machine.run("train").returncode == 0
    make, pins, package, _ = machine.take_calls()
    assert make.arguments == ["-m", "venv", str(machine.venv)]
    environment = yaml.safe_load((machine.clone / "pytorch_p36.yml").read_text())
    expected = environment["dependencies"][-1]["pip"]
    assert [each for each in pins.arguments if not each.startswith("-")] == ["install", *expected]
    assert package.arguments[-2:] == ["--editable", str(machine.clone)]
    assert set(expected) < set(package.arguments)


def test_tests_get_the_tools_and_run_in_the_clone_with_their_arguments(machine: Machine) -> None:
    assert machine.run("test", "-k", "a b").returncode == 0
    *_, package, tests = machine.take_calls()
    assert package.arguments[-2:] == ["--editable", f"{machine.clone}[test]"]
    assert tests.arguments == ["-m", "pytest", "-n", "auto", "--dist", "worksteal", "-k", "a b"]
    assert tests.folder == str(machine.clone)


@pytest.mark.parametrize("choice", ["-n0", "-n 3", "--numprocesses=2", "--pdb"])
def test_whoever_says_how_many_processes_test_has_so_many(machine: Machine, choice: str) -> None:
    assert machine.run("test", *choice.split(), "tests/unit").returncode == 0
    assert machine.take_calls()[-1].arguments == ["-m", "pytest", *choice.split(), "tests/unit"]


def test_demo_writes_tiles_trains_on_them_makes_a_map_and_says_where_to_look(machine: Machine) -> None:
    demo = machine.clone / "demo"
    (demo / "model").mkdir(parents=True)
    shown = machine.run("demo", "model.epochs=1")
    assert shown.returncode == 0
    *_, sample, train, predict = machine.take_calls()
    assert sample.arguments[:3] == ["-m", "robosat_pink.sample", str(demo)]
    assert (train.arguments, train.base_dir) == (["-m", "robosat_pink.train", "model.epochs=1"], str(demo))
    with_model = ["-m", "robosat_pink.predict", "model.epochs=1", f"predict.model={demo}/model"]
    assert (predict.arguments, predict.base_dir) == (with_model, str(demo))
    assert predict.process == shown.process  # so that signals reach it
    assert f"look into {demo}/model for the network and its numbers" in shown.stdout
    assert not (demo / "model").exists()
    assert (machine.clone / "demo-1/model").is_dir()  # an earlier one's network may be worth something
    assert f"the earlier {demo} is now {demo}-1" in shown.stderr


def test_help_of_the_demo_leaves_an_earlier_one_alone(machine: Machine) -> None:
    (machine.clone / "demo/model").mkdir(parents=True)
    assert machine.run("demo", "--help").stdout.startswith("usage: start.sh VERB")
    assert (machine.clone / "demo/model").exists()


@pytest.mark.parametrize("verb", ["train", "check", "predict", "evaluate", "init"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_a_verb_makes_no_environment(machine: Machine, verb: str, option: str) -> None:
    assert machine.run(verb, option).returncode == 0
    (call,) = machine.take_calls()
    assert call.program == str(machine.bin / "python3")
    assert call.arguments[-1] == option
    assert not machine.venv.exists()


def test_demo_that_fails_to_train_exits_with_its_code(machine: Machine) -> None:
    machine.say("train exits with", "4")
    assert machine.run("demo").returncode == 4


def test_demo_that_is_stopped_hands_the_signal_on_and_makes_no_map(machine: Machine) -> None:
    script = """eval "$(sed -n '/^wait_for()/,/^}/p' start.sh)"
        (sleep 0.5; kill -TERM $$) &
        wait_for bash -c 'trap "echo asked; exit 0" TERM; echo began; while true; do sleep 0.1; done'
        echo "went on" """
    stopped = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (stopped.returncode, stopped.stdout) == (0, "began\nasked\n")


def test_tests_are_refused_where_there_are_none(machine: Machine) -> None:
    (machine.clone / "tests").rmdir()
    refused = machine.run("test")
    assert refused.returncode == 69
    assert refused.stderr == "start.sh: an image has no tests; run them in a clone: bash start.sh test\n"
    assert machine.take_calls() == []


def test_second_call_reuses_the_environment(machine: Machine) -> None:
    machine.run("train")
    assert machine.take_programs() == [*SET_UP, TRAIN]
    machine.run("train")
    machine.run("demo")
    assert machine.take_programs() == [
        TRAIN,
        "venv python -m robosat_pink.sample",
        TRAIN,
        "venv python -m robosat_pink.predict",
    ]


def test_tests_add_what_they_need_once_and_training_uses_their_environment(machine: Machine) -> None:
    machine.run("train")
    machine.run("test")
    assert machine.take_programs() == [*SET_UP, TRAIN, *SET_UP, TEST]
    machine.run("train")
    machine.run("test")
    assert machine.take_programs() == [TRAIN, TEST]


@pytest.mark.parametrize("name", ["pytorch_p36.yml", "pyproject.toml"])
def test_environment_is_rebuilt_once_when_a_pin_changes(machine: Machine, name: str) -> None:
    machine.run("test")
    machine.take_calls()
    text = (machine.clone / name).read_text()
    changed = re.sub(r"(numpy|ruff)==[\d.]+", r"\1==1.2.3", text)
    assert changed != text
    (machine.clone / name).write_text(changed)
    machine.run("train")
    calls = machine.take_calls()
    assert [machine.in_words(call) for call in calls] == [*SET_UP, TRAIN]
    assert ("numpy==1.2.3" in calls[1].arguments) == (name == "pytorch_p36.yml")
    machine.run("train")
    machine.run("test")
    assert machine.take_programs() == [TRAIN, *SET_UP, TEST]


@pytest.mark.parametrize("step", ["venv fails", "pins fail", "package fails"])
@pytest.mark.parametrize("verb", ["train", "demo", "test"])
def test_interrupted_set_up_runs_nothing_and_is_done_again(machine: Machine, verb: str, step: str) -> None:
    broken = machine.say(step)
    assert machine.run(verb).returncode != 0
    assert [name for name in machine.take_programs() if name.startswith("venv python")] == []
    broken.unlink()
    assert machine.run(verb).returncode == 0
    assert machine.take_programs()[:4] == [
        *SET_UP,
        TEST if verb == "test" else f"venv python -m robosat_pink.{first(verb)}",
    ]


def first(verb: str) -> str:
    return "sample" if verb == "demo" else "train"


@pytest.mark.parametrize("pins_are_put_back", [False, True])
def test_interrupted_rebuild_is_done_again(machine: Machine, pins_are_put_back: bool) -> None:
    machine.run("train")
    pins = machine.clone / "pytorch_p36.yml"
    before = pins.read_text()
    pins.write_text(f"{before}      - einops==0.8.1\n")
    broken = machine.say("package fails")
    assert machine.run("train").returncode != 0
    broken.unlink()
    machine.take_calls()
    if pins_are_put_back:
        pins.write_text(before)
    machine.run("train")
    assert machine.take_programs() == [*SET_UP, TRAIN]


def test_python_without_environments_is_told_what_to_install(machine: Machine) -> None:
    machine.say("venv fails")
    refused = machine.run("train")
    assert refused.returncode == 69
    assert "start.sh: python3 cannot make virtual environments" in refused.stderr
    assert "python3-venv" in refused.stderr


@pytest.mark.parametrize("verb", ["train", "demo", "test"])
@pytest.mark.parametrize(("minor", "found"), [(None, "found none"), (10, "found Python 3.10.1")])
def test_python_that_is_missing_or_too_old_is_an_error_that_says_what_is_needed(
    machine: Machine, verb: str, minor: int | None, found: str
) -> None:
    (machine.bin / "python3").unlink()
    if minor is not None:
        machine.add_python("python3", minor)
    refused = machine.run(verb)
    assert refused.returncode == 69
    assert refused.stderr.startswith("start.sh: needs Python 3.11 or newer, ")
    assert found in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert machine.take_calls() == []
    assert not machine.venv.exists()


@pytest.mark.parametrize("name", ["python3.11", "python3.13", "python"])
def test_newer_python_beside_an_old_one_is_used(machine: Machine, name: str) -> None:
    machine.add_python("python3", minor=10)
    machine.add_python(name, minor=11)
    assert machine.run("train").returncode == 0
    assert machine.take_programs() == [f"system {name} -m venv", *SET_UP[1:], TRAIN]


ProcessRank = Callable[[Machine], tuple[str, Path]]


@pytest.mark.parametrize(
    "place",
    [
        lambda machine: (f"{machine.clone}/start.sh", Path("/")),
        lambda machine: ("start.sh", machine.clone),
        lambda machine: ("../my clone/start.sh", machine.elsewhere),
        lambda machine: ("my clone/start.sh", machine.folder),
    ],
    ids=["from the root", "from the clone", "from beside", "from above"],
)
@pytest.mark.parametrize("cdpath", [None, "."])
def test_script_finds_its_folder_from_anywhere(machine: Machine, place: ProcessRank, cdpath: str | None) -> None:
    if cdpath is not None:
        machine.environment["CDPATH"] = cdpath
    script, cwd = place(machine)
    started = machine.run("train", script=script, cwd=cwd)
    assert started.returncode == 0, started.stderr
    assert machine.take_programs() == [*SET_UP, TRAIN]
