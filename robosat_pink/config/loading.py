"""Loads an experiment file and its overrides as a Config, and converts a Config to a tree. Called through `config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robosat_pink.config.formats import read_tree
from robosat_pink.config.hints import take_out_misplaced
from robosat_pink.config.keys import sections_of
from robosat_pink.config.overrides import override
from robosat_pink.config.parsing import build, plain
from robosat_pink.config.problems import Problems
from robosat_pink.config.recipes import fill_in
from robosat_pink.config.sections import Config


def load_config(
    path: str | Path,
    hyperparameters: Mapping[str, str] | None = None,
    arguments: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> Config:
    """The experiment of a file, overridden by hyperparameters and then by command-line arguments (dotted keys).

    `content` is that of a file that is not written yet; errors name it by its path all the same.
    Raises a ConfigError with one line per problem: where, key, value, what is accepted, the nearest name.
    """
    path = Path(path)
    problems = Problems(path.name)
    sections = sections_of(Config)
    tree = read_tree(path, sections, content)
    override(tree, hyperparameters or {}, "hyperparameters.json", problems)
    override(tree, arguments or {}, "command line", problems)
    take_out_misplaced(tree, sections, problems)
    fill_in(tree)
    config = build(Config, tree, problems)
    problems.raise_if_any()
    assert config is not None
    return config


def to_tree(config: Config) -> dict[str, Any]:
    """The experiment as nested dicts and lists, with keys spelt as in the file."""
    tree: dict[str, Any] = plain(config)
    return tree
