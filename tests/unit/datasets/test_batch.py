"""A batch has the axes and types that it says, or is refused with the name of the axis."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from robosat_pink.datasets.batch import NO_TILES, Batch


def batch(**fields: Any) -> Batch:
    """Two samples of 3 bands, 4 rows and 5 columns."""
    right: dict[str, Any] = {
        "image": torch.zeros(2, 3, 4, 5, dtype=torch.uint8),
        "mask": torch.zeros(2, 4, 5, dtype=torch.uint8),
        "scale": torch.ones(2, 3),
        "symmetry": (0, 7),
        "rows": (8, 9),
        "sizes": ((4, 5), (1, 2)),
    }
    return Batch(**(right | fields))


def test_batch_whose_axes_agree_is_accepted() -> None:
    assert len(batch()) == 2
    assert len(NO_TILES) == 0
    assert batch(image=torch.zeros(2, 3, 4, 5)).image.dtype == torch.float32


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image", torch.zeros(2, 4, 5, 3), "mask (2, 4, 5) has 4 along H, not 5"),
        ("image", torch.zeros(3, 4, 5), "image (3, 4, 5) has 3 axes, not N, C, H, W"),
        ("mask", torch.zeros(2, 5, 4, dtype=torch.uint8), "mask (2, 5, 4) has 5 along H, not 4"),
        ("mask", torch.zeros(2, 4, 6, dtype=torch.uint8), "mask (2, 4, 6) has 6 along W, not 5"),
        ("mask", torch.zeros(2, 1, 4, 5, dtype=torch.uint8), "mask (2, 1, 4, 5) has 4 axes, not N, H, W"),
        ("mask", torch.zeros(2, 4, 5, dtype=torch.int64), "mask is of type torch.int64, not torch.uint8"),
        ("scale", torch.ones(3, 2), "scale (3, 2) has 3 along N, not 2"),
        ("scale", torch.ones(2, 4), "scale (2, 4) has 4 along C, not 3"),
        ("scale", torch.ones(2, 3, dtype=torch.float64), "scale is of type torch.float64, not torch.float32"),
        ("symmetry", (0,), "symmetry (1,) has 1 along N, not 2"),
        ("rows", (8, 9, 10), "rows (3,) has 3 along N, not 2"),
        ("sizes", ((4, 5),), "sizes (1,) has 1 along N, not 2"),
        ("sizes", ((4, 5), (5, 4)), "row 9 is 5 high and 4 wide, more than H = 4 or W = 5"),
    ],
)
def test_wrong_axis_or_type_is_refused_by_its_name(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^batch: {re.escape(message)}.*accepted: image .N, C, H, W., mask .N, H, W."):
        batch(**{field: value})


def test_batch_that_is_changed_is_checked_again() -> None:
    with pytest.raises(ValueError, match="along H"):
        dataclasses.replace(batch(), mask=torch.zeros(2, 3, 5, dtype=torch.uint8))
