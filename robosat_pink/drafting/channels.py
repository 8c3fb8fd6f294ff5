"""Drafts bands, their scale, and what counts as missing, from some images. Called by `draft`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robosat_pink.datasets.normalisation import AUTO_SCALE, better_scale
from robosat_pink.drafting.samples import ImageLook
from robosat_pink.drafting.text import Entry, Section, quoted
from robosat_pink.errors import DataError

MOST_NAMED = 20  # bands whose descriptions a comment lists
BRIGHTEST = 98  # percentile, as in `survey`
MANY_ZEROS = 0.005  # share of the pixels


def channels(looks: Sequence[ImageLook]) -> Section:
    """The section `channels`. Raises DataError if the images differ in their bands."""
    first = looks[0]
    for look in looks:
        if look.bands != first.bands:
            raise DataError(
                f"{look.name} has the bands {_listed(look.bands)}, {first.name} has {_listed(first.bands)}; take "
                "images that have the same, by --images FOLDER"
            )
    bands, why, todo = _bands(looks)
    scale, scale_why, scale_todo = _scale(looks)
    yaml = f"- {{bands: [{bands}], mean: auto, std: auto, scale: {scale}}}"
    measured = "mean and std are measured in the training tiles"
    todos = [text for text in (todo, scale_todo) if text]
    entry = Entry(yaml, f"{why}; {scale_why}; {measured}", "; ".join(todos))
    return Section("channels", (entry,))


def missing(looks: Sequence[ImageLook]) -> tuple[Entry, ...]:
    """An entry of `dataset` on pixels that are 0 in all bands of images that declare nothing, if there are any."""
    zeros, total = sum(look.zeros for look in looks), sum(look.size[0] * look.size[1] for look in looks)
    if zeros:
        why = (
            f"{zeros / total:.2%} of the pixels are 0 in all bands of images that declare no nodata: they count as "
            "missing; declared: as values"
        )
        return (Entry("missing: auto", why),)
    nodata = sorted({look.nodata for look in looks if look.nodata})
    silent = [look for look in looks if not look.nodata]
    how_many = f"{len(looks) - len(silent)} of {len(looks)} files declare"
    declared = f"pixels of the images that are {' or '.join(nodata)} are missing, as {how_many}"
    share = float(np.mean([look.zero_share for look in silent])) if silent else 0.0
    if share < MANY_ZEROS or (len(looks[0].bands) == 1 and not nodata):
        return (Entry("", declared),) if nodata else ()
    if nodata:
        todo = f"{declared}; {share:.2%} of the pixels of the others are 0 in all bands, and are learnt as values"
        return (Entry("missing: auto", todo=todo),)
    todo = (
        f"{share:.2%} of the pixels are 0 in all bands, and the files declare no nodata: they are learnt as values. If "
        "they are missing, set missing: zero"
    )
    return (Entry("missing: auto", todo=todo),)


def _bands(looks: Sequence[ImageLook]) -> tuple[str, str, str]:
    """The bands as YAML, what they are, and what is open."""
    first = looks[0]
    names = [look.tags.names for look in looks]
    numbers = ", ".join(map(str, first.bands))
    dtypes = " and ".join(sorted({look.dtype for look in looks}))
    of = f"{len(first.bands)} band{'s' if len(first.bands) > 1 else ''} of {dtypes}"
    if "palette" in first.tags.colors:
        return numbers, f"{of}: red, green and blue of the files' palettes", ""
    if first.alphas and not first.alpha_values and not any(look.alpha_values for look in looks):
        return numbers, f"{of}; band {_listed(first.alphas)} is alpha, which marks missing pixels", ""
    values = next((look.alpha_values for look in looks if look.alpha_values), ())
    todo = ""
    if values:
        todo = (
            f"band {_listed(first.alphas)} is tagged as alpha, but holds values such as {_listed(values)}: it is taken "
            "as data, such as near infrared. If it is transparency, leave it out of bands"
        )
    if len(set(names)) == 1 and any(names[0]):
        described = [names[0][band - 1] or "-" for band in first.bands][:MOST_NAMED]
        return numbers, f"{of}: {', '.join(described)}", todo
    if len({frozenset(name) for name in names}) == 1 and all(names[0]) and len(set(names[0])) == len(names[0]):
        chosen = ", ".join(quoted(names[0][band - 1]) for band in first.bands)
        return chosen, f"{of}, by name, for the files have them in different orders", todo
    return numbers, f"{of}, counted from 1", todo


def _scale(looks: Sequence[ImageLook]) -> tuple[str, str, str]:
    """The scale as YAML, why, and what is open."""
    tags = {(look.tags.scales, look.tags.offsets) for look in looks}
    is_tagged = [any(scale != 1 for scale in scales) or any(offsets) for scales, offsets in tags]
    if all(is_tagged):
        return "tags", "their numbers are made physical by the files' own scale and offset", ""
    todo = ""
    if any(is_tagged):
        todo = "some images have a scale or an offset of their own, others have none: check that their numbers agree"
    dtypes = sorted({look.dtype for look in looks})
    if len(dtypes) > 1 and all(dtype in AUTO_SCALE for dtype in dtypes):
        usual = ", ".join(f"{AUTO_SCALE[dtype]:g} for {dtype}" for dtype in dtypes)
        both = (
            f"the images are of {' and '.join(dtypes)}: check that equal values mean the same after this scale; if "
            "not, take images of one kind, by --images FOLDER"
        )
        return "auto", f"their numbers are divided by {usual}", "; ".join(filter(None, [todo, both]))
    brightest = _brightest(looks)
    scale = better_scale(AUTO_SCALE.get(dtypes[0], 1.0), brightest)
    return (
        f"{scale:g}",
        f"their numbers are divided by scale: the brightest are around {brightest:.4g}, {brightest / scale:.2g} then",
        todo,
    )


def _brightest(looks: Sequence[ImageLook]) -> float:
    pixels = np.concatenate([look.pixels for look in looks], axis=1)
    if not pixels.size:
        declared = f", {looks[0].nodata}" if looks[0].nodata else ""
        raise DataError(
            f"{looks[0].name}: no valid pixel, like the other {len(looks) - 1} images read; check what they declare as "
            f"nodata{declared}, or take other images by --images FOLDER"
        )
    return float(np.percentile(pixels, BRIGHTEST, axis=1).max())


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
