"""What README says of errors and code is what the program says and runs."""

import ast
import re
from pathlib import Path

import pytest

import robosat_pink

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text()
MESSAGES = re.findall(r"^\| `(.+?)` \| ", PAGE.split("## When something is wrong")[1].split("\n## ")[0], re.MULTILINE)


def texts() -> str:
    """Every text in the program, as it is told: one after the other, gaps where values come in."""
    found = []
    for path in Path(robosat_pink.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (each.value if isinstance(each, ast.Constant) else "{}" for each in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("message", MESSAGES)
def test_message_of_the_troubleshooting_table_is_one_of_the_program_s(message: str) -> None:
    assert message in texts()


def test_table_has_rows() -> None:
    assert len(MESSAGES) >= 15


def test_pictures_and_files_that_the_page_links_are_there() -> None:
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE):
        assert (ROOT / name).exists(), name
    assert (ROOT / "experiments/report.png").stat().st_size < 200_000
