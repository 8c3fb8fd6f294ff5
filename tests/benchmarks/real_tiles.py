"""The scenes of the folder of real tiles (../shared/data) and the split that its manifest says.

Called by accuracy.py's methods and by two_hosts.py.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[3] / "shared" / "data"
BANDS = (1, 2, 3, 4)  # blue, green, red, near infrared


class Scene(NamedTuple):
    directories: str  # regular expression for the scene's directories, of images and masks
    class_name: str


SCENES = {
    "s2_virginia_water": Scene("s2_virginia_water$", "water"),
    "l7_everest_glacier": Scene("l7_everest_glacier$", "glacier"),
    "l8_himachal_snow": Scene("l8_himachal_snow$", "snow"),
    "modis_patagonia_snow": Scene(r"modis_patagonia_snow_(?P<day>2015\d{3})$", "snow"),
}


def dataset(scene: str, folder: Path | str = FOLDER) -> dict[str, Any]:
    """The keys of `dataset`, without the split, for a copy of the tiles in `folder`."""
    expression = SCENES[scene].directories
    return {
        "image_bucket": f"{folder}/imagery",
        "mask_bucket": f"{folder}/mask",
        "imagery_directory_regex": expression,
        "mask_directory_regex": expression,
    }


def val_ids(scene: str, folder: Path | str = FOLDER) -> list[str]:
    """The ids of the tiles to evaluate, as a run writes them to test_ids.txt if the tiles are in `folder`."""
    root = f"{folder}/imagery".replace("/", "_")
    with (FOLDER / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["scene"].startswith(scene) and row["split"] == "val"]
    return [f"{root}_{row['scene']}-{row['x']}-{row['y']}-{row['z']}" for row in rows]
