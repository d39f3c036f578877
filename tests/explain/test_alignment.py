"""Cells of feature maps lie where they look, not where they seem to."""

from typing import Any

import pytest
import torch

from msrn.explain.alignment import projected_shifts, stage_shifts
from msrn.explain.contributions import grow
from msrn.labels import LabelGraph
from msrn.models import build_msrn

PADDED: dict[str, Any] = {"backbone": "resnet18", "backbone_options": {"channels": [8, 8, 16, 16]}}
PATCHES: dict[str, Any] = {
    "backbone": "convnext_atto",
    "backbone_options": {"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
}


@pytest.mark.parametrize(("backbone", "shift"), [(PADDED, -0.5), (PATCHES, 0.0)], ids=["padded", "patches"])
@pytest.mark.parametrize("size", [(96, 96), (128, 64)])
def test_the_shift_of_a_backbone_is_found(
    label_graph: LabelGraph, backbone: dict[str, Any], shift: float, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = build_msrn(label_graph, dim=8, **backbone).eval()
    with torch.inference_mode():
        shifts = stage_shifts(model, size)
    assert shifts == (shift,) * 3
    assert stage_shifts(model, size) is shifts  # measured once
    # The stages that are pooled 2x2 have larger cells.
    assert projected_shifts(model, shifts) == (shift / 2, shift / 2, shift)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_grown_map_is_greatest_where_its_cell_is() -> None:
    maps = torch.zeros(1, 1, 7, 7)
    maps[0, 0, 3, 5] = 1.0
    for shift, (row, column) in ((0.0, (112, 176)), (-0.5, (96, 160))):
        grown = grow(maps, (224, 224), shift)[0, 0]
        at = divmod(int(grown.argmax()), 224)
        assert at[0] == pytest.approx(row, abs=1.5)
        assert at[1] == pytest.approx(column, abs=1.5)
        assert float(grown.sum()) == pytest.approx(1, rel=0.01)


def test_growing_without_a_shift_is_plain_interpolation() -> None:
    maps = torch.randn(2, 3, 5, 4)
    expected = torch.nn.functional.interpolate(maps * 20 / (40 * 36), (40, 36), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grow(maps, (40, 36), 0.0), expected, atol=1e-6, rtol=1e-4)
