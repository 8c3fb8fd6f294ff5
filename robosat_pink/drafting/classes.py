"""Drafts the classes from the values of some masks. Called by `draft`."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from robosat_pink.config.sections import MOST_CLASSES
from robosat_pink.container.some_names import some_names
from robosat_pink.datasets.pair_decoder import NEAR, SPREAD
from robosat_pink.drafting.samples import MOST_VALUES, MaskLook
from robosat_pink.drafting.text import Entry, Section, quoted
from robosat_pink.errors import DataError

SHOWN = 8  # values in a text
TOPS = (255, 65535, 2**31 - 1, 2**32 - 1)  # the highest values of types, which often stand for no class
MOST_BESIDE = 100  # the highest class number beside which such a value does
FEWEST_LOSSY = 5  # values
MEANINGLESS = re.compile("(?i)band|gr[ae]y|mask|label|class|data|value")  # descriptions of bands that name no class


class Classes(NamedTuple):
    section: Section
    ignored: tuple[Entry, ...]  # of `dataset`


def classes(looks: Sequence[MaskLook], masks: int) -> Classes:
    """The section `classes`, and the values to ignore, from what was seen in some of so many masks.

    Raises DataError if the values cannot be classes.
    """
    counts: Counter[float] = Counter()
    for look in looks:
        counts.update(look.values)
    _check_whole(counts, looks)
    values = sorted(map(int, counts))
    ignored = _ignored(values)
    values = [value for value in values if value not in ignored]
    _check_classes(values, looks, masks)
    total = sum(counts.values())
    shares = [f"{value} ({counts[value] / total:.1%})" for value in values]
    seen = f"values in {len(looks)} of {masks} masks: {some_names(shares, SHOWN)}"
    return Classes(_section(values, looks, seen), _ignored_entry(ignored, looks))


def _section(values: Sequence[int], looks: Sequence[MaskLook], seen: str) -> Section:
    is_binary = len(values) == 2 and values[0] == 0
    shown = values[1:] if is_binary else values
    names, colors = _names(shown, looks, is_binary), _colors(shown, looks)
    background = "; 0 is the background of a single class" if is_binary else ""
    todos = []
    if any(name is None for name in names.values()):
        unnamed = [str(value) for value, name in names.items() if name is None]
        todos.append(f"the masks do not say what {some_names(unnamed, SHOWN)} stands for: give each class its name")
    if not is_binary and names[shown[0]] == "background":
        todos.append("0 is taken for the background")
    if len(values) > MOST_VALUES:
        todos.append(f"{len(values)} values are many for classes: where they are shares or heights, write other masks")
    if hidden := _hidden(looks):
        todos.append(hidden)
    entries = [
        Entry(
            f"- {{name: {quoted(names[value] or f'class {value}')}, color: {quoted(colors[value])}, values: [{value}]}}"
        )
        for value in shown
    ]
    entries[0] = entries[0]._replace(why=seen + background, todo="; ".join(todos))
    return Section("classes", tuple(entries))


def _names(values: Sequence[int], looks: Sequence[MaskLook], is_binary: bool) -> dict[int, str | None]:
    """The name of each value as the files say it: None where they do not, or differ."""
    told: dict[int, set[str]] = {value: set() for value in values}
    for look in looks:
        for value in values:
            described = look.description if is_binary and not MEANINGLESS.match(look.description) else ""
            told[value].add(look.class_names.get(value, described))
    names = {value: next(iter(texts)) if len(texts) == 1 else "" for value, texts in told.items()}
    if not is_binary and 0 in names:
        names[0] = names[0] or "background"
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    return {value: None if not name.strip() or name in repeated else name for value, name in names.items()}


def _colors(values: Sequence[int], looks: Sequence[MaskLook]) -> dict[int, str]:
    """By the palettes if they agree; otherwise white for a single class, and hues evenly apart for several."""
    palettes = [look.palette for look in looks if look.palette]
    colors = {}
    for number, value in enumerate(values):
        painted = {palette[value] for palette in palettes if value in palette}
        if len(painted) == 1:
            colors[value] = painted.pop()
        elif len(values) == 1:
            colors[value] = "white"
        else:
            red, green, blue = colorsys.hsv_to_rgb(number / len(values), 0.7, 0.9)
            colors[value] = (
                "black" if value == 0 else f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"
            )
    return colors


def _ignored(values: Sequence[int]) -> list[int]:
    """Values that stand for no class: negative ones, and the highest of a type beside small class numbers."""
    inner = [value for value in values if 0 <= value <= MOST_BESIDE]
    outer = [value for value in values if value < 0 or value in TOPS]
    return outer if len(inner) >= 2 and len(inner) + len(outer) == len(values) else []


def _ignored_entry(ignored: Sequence[int], looks: Sequence[MaskLook]) -> tuple[Entry, ...]:
    nodata = sorted({look.nodata for look in looks if look.nodata})
    entries = []
    if nodata:
        why = (
            f"pixels of the masks that are {' or '.join(nodata)} are left out of loss and metrics, as the files declare"
        )
        entries.append(Entry("", why))
    if ignored:
        listed = ", ".join(map(str, ignored))
        todo = f"{listed} is taken to stand for no class, and ignored; if it is one, list it in classes instead"
        entries.append(Entry(f"ignore_values: [{listed}]", todo=todo))
    return tuple(entries)


def _hidden(looks: Sequence[MaskLook]) -> str:
    """What to do if the masks declare 0 as nodata, so that no background is learnt."""
    hidden = sum(look.hidden for look in looks if look.nodata == "0")
    if not hidden:
        return ""
    total = hidden + sum(sum(look.values.values()) for look in looks)
    return (
        f"the masks declare 0 as nodata ({hidden / total:.1%} of their pixels), and so nothing is learnt of it. If it "
        "is the background, write them without that declaration (gdal_edit.py -unsetnodata FILE), and run init again"
    )


def _check_whole(counts: Mapping[float, int], looks: Sequence[MaskLook]) -> None:
    broken = [value for value in counts if value != np.floor(value)]
    if broken:
        name = next(look.name for look in looks if broken[0] in look.values)
        raise DataError(
            f"{name}: mask value {broken[0]:g}; accepted: whole class numbers. Where these are shares, write new "
            "masks, with a number for each class"
        )


def _check_classes(values: Sequence[int], looks: Sequence[MaskLook], masks: int) -> None:
    where = f"the masks, such as {looks[0].name}"
    listed = some_names(list(map(str, values)), SHOWN)
    if len(values) > MOST_CLASSES:
        raise DataError(
            f"{where}: {len(values)} different values, {listed}; accepted: at most {MOST_CLASSES} classes, for 255 "
            "means ignore in what the network learns from. Where they are no classes, write masks with a number for "
            "each"
        )
    highest = max(values, default=0)
    is_near = all(min(value, highest - value) <= NEAR for value in values)
    if len(values) >= FEWEST_LOSSY and highest > SPREAD and is_near:
        raise DataError(
            f"{where}: the values {listed}, as a lossy format or resampling leaves them; accepted: a number for each "
            "class. Write the masks again from their source (resampled by nearest)"
        )
    if len(values) < 2:
        only = f"hold {listed} only" if values else "hold no data"
        way_out = _hidden(looks) or "choose masks that have a class and what is not of it, by --masks FOLDER"
        raise DataError(f"{where}: the {len(looks)} masks read, of {masks}, {only}: {way_out}")
