"""`python -m robosat_pink.reference experiments` generates the schema, the key tables and SageMaker's files.

It derives them from keys and registries. People run it in a clone after adding a key, a loss or a network.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robosat_pink import models, sagemaker
from robosat_pink.config import Config
from robosat_pink.config.keys import Key, leaf_keys
from robosat_pink.config.recipes import RECIPES
from robosat_pink.config.schema import json_schema

# A table row with the columns key, accepted, default and description.
KEY_ROW = re.compile(r"^\| `(\w+[\w.\[\]]*\.\w+)` \|[^|\n]*\|[^|\n]*\| (.*) \|$", re.MULTILINE)
NETWORK_HEAD = "| network | encoders, the default first | sides | ImageNet weights |\n|---|---|---|---|\n"
RECIPE_HEAD = "| key | `strong` |\n|---|---|\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="robosat_pink.reference", description="Write schema, key tables and SageMaker's files."
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the clone's folder experiments")
    folder = parser.parse_args(argv).folder
    try:
        page = (folder / "README.md").read_text()
        keys, descriptions = dict(leaf_keys(Config)), descriptions_in(page)
        if missing := sorted(keys.keys() - descriptions.keys()):
            row = row_of(missing[0], keys[missing[0]], "WHAT IT IS")
            parser.error(f"README.md has no row for {', '.join(missing)}; add it to its section: {row}")
        if unknown := sorted(descriptions.keys() - keys.keys()):
            parser.error(f"README.md has a row for {', '.join(unknown)}, which is no key; delete it")
        (folder / "README.md").write_text(with_tables_written(page, keys))
        schema = json.dumps(json_schema(descriptions), indent=2, ensure_ascii=False)
        (folder / "experiment.schema.json").write_text(f"{schema}\n")
        sagemaker.write_files(folder / "sagemaker", sagemaker.EXAMPLE_ACCOUNT)
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    return 0


def descriptions_in(page: str) -> dict[str, str]:
    """The description of each key in the page's tables, the only place where descriptions are edited."""
    return {name: re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text) for name, text in KEY_ROW.findall(page)}


def with_tables_written(page: str, keys: Mapping[str, Key]) -> str:
    """The page with the row of every key rewritten, except its description, and the tables of networks and recipes."""
    page = KEY_ROW.sub(lambda row: row_of(row[1], keys[row[1]], row[2]), page)
    for head, rows in ((NETWORK_HEAD, network_rows()), (RECIPE_HEAD, recipe_rows())):
        before, _, after = page.partition(head)
        page = before + head + rows + re.sub(r"\A(\|.*\n)*", "", after)
    return page


def row_of(name: str, key: Key, description: str) -> str:
    default = key.default if isinstance(key.default, str) else json.dumps(None if key.is_required else key.default)
    return f"| `{name}` | {key.accepts} | {'required' if key.is_required else f'`{default}`'} | {description} |"


def network_rows() -> str:
    rows = []
    for name, entry in models.MODELS.items():
        encoders = ", ".join(f"`{encoder}`" for encoder in entry.encoders)
        has_weights = "yes" if entry.pretrained_part else "no"
        rows.append(f"| `{name}` | {encoders} | multiples of {entry.size_multiple} | {has_weights} |\n")
    return "".join(rows)


def recipe_rows() -> str:
    rows = []
    for section, defaults in RECIPES["strong"].items():
        name = f"{section}[]" if section == "channels" else section
        rows += [f"| `{name}.{key}` | `{yaml_of(value)}` |\n" for key, value in defaults.items()]
    return "".join(rows)


def yaml_of(value: Any) -> str:
    """A value as it stands in an experiment file, on one line; for words and numbers."""
    return json.dumps(value).replace('"', "")


if __name__ == "__main__":
    sys.exit(main())
