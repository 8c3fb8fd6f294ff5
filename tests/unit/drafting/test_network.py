"""Which network a draft takes for the amount of tiles and this machine."""

import pytest

from robosat_pink.drafting import network
from robosat_pink.drafting.network import model


@pytest.mark.parametrize(
    ("has_gpu", "pairs", "side", "expected"),
    [
        (False, 5000, 512, ["name: unet", "recipe: strong"]),
        (True, 999, 256, ["name: unet", "recipe: strong"]),
        (True, 1000, 256, ["name: albunet", "recipe: strong"]),
        (True, 1000, 100, ["name: albunet", "recipe: strong", "tile_size: 128"]),
        (False, 10, 100, ["name: unet", "recipe: strong", "tile_size: 112"]),
    ],
)
def test_network_is_for_the_amount_of_tiles_and_this_machine(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool, pairs: int, side: int, expected: list[str]
) -> None:
    monkeypatch.setattr(network.torch.cuda, "is_available", lambda: has_gpu)
    assert [entry.yaml for entry in model(pairs, side).entries] == expected
