"""Which expressions name directories, how a draft's YAML is read back, and which directories hold tiles."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import write_tile
from robosat_pink.datasets.scans import scan_layout
from robosat_pink.drafting import where
from robosat_pink.drafting.text import Entry, Section, document, quoted
from robosat_pink.storage import Location


@pytest.mark.parametrize(
    ("names", "siblings", "is_exact", "expression"),
    [
        (["a", "b"], [], False, ""),
        (["scene"], [], True, "scene$"),
        (["a.b (1)"], ["a"], False, r"a\.b \(1\)$"),
        (["20180528_tiled", "20180601_tiled"], ["20180528_mask"], False, ".*_tiled$"),
        (["image-1", "image-22"], ["mask-1", "mask-22"], False, "image-.*"),
        (["image-1", "image-2"], ["image-1-mask"], False, "(image-1|image-2)$"),
        (["a", "b"], ["c"], False, "(a|b)$"),
    ],
)
def test_expression_names_the_directories_and_none_of_their_siblings(
    names: list[str], siblings: list[str], is_exact: bool, expression: str
) -> None:
    assert where._expression(names, siblings, is_exact) == expression
    matched = [name for name in (*names, *siblings) if re.match(expression, name)]
    assert matched == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("20180528_181148_1025_3B", "20180528"),
        ("ASO_3M_SD_USCATE_20180528-MASK_02-COG", "20180528"),
        ("modis_2015093", "2015093"),
        ("2018-05-28 tiles", "2018-05-28"),
        ("201805281_tiled", None),
    ],
)
def test_day_in_a_directory_s_name_is_found(name: str, text: str | None) -> None:
    matches = [match for group in list(where.GROUPS)[1:] if (match := re.match(group, name))]
    assert [match["day"] for match in matches] == ([text] if text else [])


@pytest.mark.parametrize(
    "text",
    ["./tiles", "/a/b", "s3://a/b", "white", "class 1", "true", "No", "1e5", "it's", "a: b", "#1", "a\nb", "", "é"],
)
def test_text_is_read_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"key: {quoted(text)}") == {"key": text}
    assert yaml.safe_load(f"[{{key: {quoted(text)}, other: 1}}]") == [{"key": text, "other": 1}]


def test_document_has_why_and_todo_above_each_key_and_no_line_breaks_out_of_a_comment() -> None:
    entries = (Entry("image_bucket: ./a", "one\nkey: 1"), Entry("", "alone"), Entry("missing: auto", todo="say " * 40))
    text = document("$schema=" + "a" * 200, "head", [Section("dataset", entries)])
    assert yaml.safe_load(text) == {"dataset": {"image_bucket": "./a", "missing": "auto"}}
    assert text.splitlines()[0] == "# $schema=" + "a" * 200
    assert "  # one?key: 1\n  image_bucket: ./a\n  # alone\n  # TODO: say say" in text


def test_directories_of_tiles_are_found_at_every_depth(tmp_path: Path) -> None:
    tile = np.zeros((1, 2, 2), np.uint8)
    for name in (
        "3/1/2.tif",
        "a/3/1/2.tif",
        "a/3/1/3@2x.png",
        "b/c/3/1/2.tif",
        "b/c/3/1/2.tif.aux.xml",
        "b/c/notes.txt",
    ):
        write_tile(tmp_path / name, tile)
    scans = scan_layout(Location.parse(str(tmp_path)))
    tiles = {name: int((scan.table["sidecar"] == 0).sum()) for name, scan in scans.items()}
    assert tiles == {"": 1, "a": 2, "b/c": 1}
