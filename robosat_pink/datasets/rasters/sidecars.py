"""The files that GDAL reads with a tile: NAME.msk, its valid pixels, and NAME.aux.xml, more of its metadata.

Called by `decode`. Here GDAL may not open them with the tile: files and addresses that they name must not be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree

from robosat_pink.datasets.rasters.band_tags import BandTags
from robosat_pink.datasets.rasters.georeference import Georeference, from_auxiliary
from robosat_pink.errors import DataError

MASK, AUXILIARY = ".msk", ".aux.xml"
HARMLESS_TAGS = {  # elements that change no pixel
    *("Metadata", "Histograms", "UnitType", "CategoryNames", "SRS", "GeoTransform", "GCPList", "xml:ESRI"),
    *("GDALRasterAttributeTable", "Statistics"),
}
PIXEL_KEYS = ("NODATA_VALUES", "PIXELTYPE")  # metadata keys that do change pixels


@dataclass(frozen=True)
class Sidecars:
    """The content of a tile's sidecar files; bands are numbered from 1."""

    mask: bytes | None = None
    nodata: Mapping[int, float] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    scales: Mapping[int, float] = field(default_factory=dict)
    offsets: Mapping[int, float] = field(default_factory=dict)
    georeference: Georeference | None = None

    def __bool__(self) -> bool:
        return self != NONE

    @classmethod
    def parse(cls, files: Mapping[str, bytes | memoryview], name: str) -> Sidecars:
        """Take the files by suffix, and parse the .aux.xml. Raises DataError for an element that cannot be honoured."""
        if not files:
            return NONE
        mask = bytes(files[MASK]) if MASK in files else None
        values: dict[str, dict[int, str]] = {element: {} for element in (*FIELDS, *GEOREFERENCE)}
        for band, element, text in _elements(bytes(files.get(AUXILIARY, b"")), f"{name}{AUXILIARY}"):
            values[element][band] = text
        srs, transform = (values.pop(element).get(0, "") for element in GEOREFERENCE)
        try:
            numbers = {
                FIELDS[element]: {
                    band: text if element == "Description" else float(text) for band, text in by_band.items()
                }
                for element, by_band in values.items()
            }
        except ValueError as error:
            raise DataError(f"{name}{AUXILIARY}: {error}; write the file again by GDAL, or remove it") from error
        georeference = from_auxiliary(srs, transform) if srs and transform else None
        return cls(mask, **numbers, georeference=georeference)  # type: ignore[arg-type]

    def over(self, tags: BandTags) -> BandTags:
        """The tags of the tile's file, overridden by those of its sidecars."""
        numbers = range(1, len(tags.names) + 1)
        return tags._replace(
            names=tuple(self.names.get(number, tags.names[number - 1]) for number in numbers),
            scales=tuple(self.scales.get(number, tags.scales[number - 1]) for number in numbers),
            offsets=tuple(self.offsets.get(number, tags.offsets[number - 1]) for number in numbers),
        )


GEOREFERENCE = ("SRS", "GeoTransform")
FIELDS = {"NoDataValue": "nodata", "Description": "names", "Scale": "scales", "Offset": "offsets"}
NONE = Sidecars()


def _elements(data: bytes, name: str) -> Iterator[tuple[int, str, str]]:
    """Band (0: the whole file), element and text of all FIELDS and GEOREFERENCE in an .aux.xml file.

    The format is GDAL's "PAM", PAMDataset.
    """
    if not data:
        return
    if b"<!" in data.replace(b"<!--", b"") or b"<!\0" in data:
        raise DataError(f"{name}: declares entities, or has CDATA; accepted: what GDAL writes; remove it if unused")
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - without entities there is nothing to expand
    except ElementTree.ParseError as error:
        raise DataError(f"{name}: not readable as XML: {error}; write it again by GDAL, or remove it") from error
    for element in root:
        if element.tag == "PAMRasterBand":
            yield from _of_band(element, name)
        elif element.tag in GEOREFERENCE:
            yield 0, element.tag, (element.text or "").strip()
        elif not _is_harmless(element):
            raise _not_honoured(element, name)


def _of_band(band: ElementTree.Element, name: str) -> Iterator[tuple[int, str, str]]:
    number = band.get("band", "")
    if not number.isdecimal() or not int(number):
        raise DataError(
            f"{name}: band {number!r}; accepted: a number from 1; write the file again by GDAL, or remove it"
        )
    for element in band:
        is_plain_color = element.tag == "ColorInterp" and element.text not in ("Alpha", "Palette")
        if element.tag in FIELDS:
            yield int(number), element.tag, (element.text or "").strip()
        elif not _is_harmless(element) and not is_plain_color:
            raise _not_honoured(element, name)


def _is_harmless(element: ElementTree.Element) -> bool:
    return element.tag in HARMLESS_TAGS and not any(item.get("key") in PIXEL_KEYS for item in element.iter("MDI"))


def _not_honoured(element: ElementTree.Element, name: str) -> DataError:
    return DataError(
        f"{name}: {element.tag} of the tile beside it is not honoured here; accepted: "
        f"{', '.join(FIELDS)} and what changes no pixel. Write it into the tile itself, by gdal_translate, and remove "
        "this file"
    )
