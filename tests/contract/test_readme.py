"""README and the pages below docs/ say what the program says, and name what exists."""

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

import robosat_pink
from robosat_pink import errors
from robosat_pink.config import load_config

ROOT = Path(__file__).parents[2]
PACKAGE = Path(robosat_pink.__path__[0])
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "experiments").rglob("*.md"),
        *(ROOT / "docs").glob("*.md"),
    )
}
README = PAGES["README.md"]
MESSAGES = re.findall(r"^\| `(.+?)` \| ", PAGES["docs/troubleshooting.md"], re.MULTILINE)
KEYS = set(re.findall(r"^\| `(\w+(?:\[\])?\.[\w.]+)` \| ", PAGES["experiments/README.md"], re.MULTILINE))
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

of_every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


@functools.cache
def texts() -> str:
    """Every text in the program, one a line, with {} where a value comes in."""
    lines = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                pieces = (piece.value if isinstance(piece, ast.Constant) else "{}" for piece in node.values)
                lines.append("".join(map(str, pieces)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)


@functools.cache
def patterns() -> list[re.Pattern[str]]:
    """What lines of a log can look like: each text with four letters or more, and anything where a value comes in."""
    value = r"\{[^}]*\}|%[-.\d]*[sdfg]"
    whole = [line for line in texts().splitlines() if len(re.sub(rf"{value}|\W", "", line)) >= 4]
    return [re.compile(".+".join(map(re.escape, re.split(value, line)))) for line in whole]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```(?s:.*?)^```\n|^ {4}.*\n", "", page, flags=re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The names of a page's headings in links, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: str) -> set[str]:
    """The lines of a page's indented blocks, comments and repeated spaces removed."""
    lines = re.findall(r"^ {4}(?:\$ )?(.*)$", page.replace("\\\n", ""), re.MULTILINE)
    return {re.sub(r"\s+", " ", line.split(" #")[0]).strip() for line in lines}


@pytest.mark.parametrize("message", MESSAGES)
def test_message_of_the_troubleshooting_page_is_one_of_the_program_s(message: str) -> None:
    assert message in texts()


def test_troubleshooting_page_has_rows() -> None:
    assert len(MESSAGES) >= 33


def test_readme_is_read_in_two_minutes_and_begins_with_the_picture() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert any("(experiments/report.png)" in line for line in lines[:8])
    assert (ROOT / "experiments/report.png").stat().st_size < 200_000


@of_every_page
def test_lines_of_prose_are_of_at_most_120_characters(page: str) -> None:
    assert [line for line in prose(page).splitlines() if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_page_of_docs_is_linked_from_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README))
    assert linked == {name for name in PAGES if name.startswith("docs/")}


@of_every_page
def test_files_that_a_page_names_exist(page: str) -> None:
    rooms = "|".join(sorted(ROOMS))
    for path in re.findall(rf"(?<![\w/.-])((?:robosat_pink|tests|experiments|docs|{rooms})/[\w./]+\.\w+)", page):
        assert (ROOT / path).exists() or (PACKAGE / path).exists(), path


@of_every_page
def test_keys_that_a_page_names_exist(page: str) -> None:
    sections = {key.partition(".")[0] for key in KEYS if "[]" not in key}
    spans = " ".join(re.findall(r"`([^`\n]+)`", prose(page)))
    for key in re.findall(rf"(?<![\w/.])((?:{'|'.join(sections)})\.[a-z_.]+\b)(?![./])", spans):
        is_file = key.endswith((".py", ".gz"))
        assert is_file or any(known == key or known.startswith(f"{key}.") for known in KEYS), key


@of_every_page
def test_verbs_that_a_page_names_exist(page: str) -> None:
    usage = (ROOT / "start.sh").read_text().split("<<'TEXT'")[1].split("\nTEXT\n")[0]
    verbs = set(re.findall(r"^  (\w+)", usage, re.MULTILINE))
    assert set(re.findall(r"bash start\.sh (\w+)", page)) <= verbs


def test_readme_s_experiment_loads(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.yml").write_text(block)
    config = load_config(tmp_path / "mine.yml")
    assert config.classes[0].values == (1,)
    assert config.channels[0].bands == (1, 2, 3, 4)


def test_readme_s_python_uses_what_exists() -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for module, name in re.findall(r"^from (\S+) import (\w+)$", block, re.MULTILINE):
        assert hasattr(importlib.import_module(module), name)
    assert ".classify(image)" in block
    assert importlib.import_module("robosat_pink.trained").TrainedModel.classify


def test_lines_of_the_log_in_readme_are_ones_that_the_program_writes() -> None:
    blocks = re.findall(r"^    \$ bash start\.sh \w+.*\n((?: {4}.*\n)+)", README, re.MULTILINE)
    lines = [line[4:] for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if line.strip() != "…" and not line.startswith("phase=")]
    assert len(lines) >= 15
    for line in lines:
        assert any(pattern.fullmatch(line) for pattern in patterns()), line


def test_docker_and_sagemaker_commands_of_readme_are_those_of_their_pages() -> None:
    docker = {command for command in commands(README) if command.startswith("docker ")}
    assert len(docker) == 3
    assert docker <= commands(PAGES["docs/docker.md"])
    jobs = {command for command in commands(README) if "robosat_pink.sagemaker" in command}
    assert len(jobs) == 1
    assert jobs <= commands(PAGES["experiments/sagemaker/README.md"])


def test_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d) \| ", PAGES["docs/files.md"], re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert codes == {0} | {getattr(kind, "exit_code") for kind in kinds}  # noqa: B009


def test_files_and_keys_of_the_log_on_the_page_are_those_that_a_run_writes() -> None:
    page = PAGES["docs/files.md"]
    left = [name for names in re.findall(r"^\| (`(?:model|output|checkpoints)/.*?) \| ", page, re.MULTILINE)
            for name in re.findall(r"`(?:\w+/)*([\w.-]+)`", names)]  # fmt: skip
    assert len(left) >= 10
    assert [name for name in left if not name.startswith("checkpoint-") and name not in texts()] == []
    source = (PACKAGE / "training/phase_metrics.py").read_text()
    table = page.split("| key | meaning |")[1]
    keys = [key for keys in re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", keys)]
    assert {"tiles", "waited", "retries", "cached"} <= set(keys)
    assert [key for key in keys if not key.startswith(("train_", "val_")) and f'"{key}": ' not in source] == []


def test_structure_names_every_room_and_file_on_top() -> None:
    structure = PAGES["CONTRIBUTING.md"].split("## Structure")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)/` \| ", structure, re.MULTILINE)) == ROOMS
    on_top = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "survey.py"}
    assert {name for name in on_top if f"`{name}`" not in structure} == set()
