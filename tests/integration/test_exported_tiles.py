"""Exported networks on real tiles, with the numbers that files have."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from saved_networks import NETWORKS, saved

SCENES = {"s2_virginia_water": "uint16", "l7_everest_glacier": "uint8", "l8_himachal_snow": "int16"}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "scene"), list(zip(NETWORKS, SCENES, strict=True)), ids=[*SCENES])
def test_program_computes_the_probabilities_of_real_tiles(
    network: dict[str, Any], scene: str, shared: Path, tmp_path: Path
) -> None:
    trained = saved(tmp_path, **network, scale="auto")
    trained.export(tmp_path / "model.pt2", dtype=SCENES[scene])
    module = torch.export.load(tmp_path / "model.pt2").module()
    for path in sorted((shared / "data/imagery" / scene).rglob("*.tif"))[:2]:
        with rasterio.open(path) as file:
            image = file.read([1, 2])
        assert image.dtype == SCENES[scene]
        found = module(torch.from_numpy(image[None].astype(np.float32))).numpy()[0]
        expected = trained.probabilities(image)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert expected.std() > 1e-3
