"""Where on the image the cells of a feature map are.

A map of h cells suggests that cell i lies at (i + 0.5) / h of the height. With strided convolutions that are padded alike on both
sides (ResNet, MobileNet and most others, on even sizes) it does not: cell i looks at around pixel stride · i, half a cell nearer to
the upper left corner. Patches that do not overlap (ConvNeXt, ViT) lie where they seem to.
"""

from weakref import WeakKeyDictionary

import torch
from torch import nn

from msrn.models import MSRN
from msrn.models.attention import StageProjection

_HALF_CELL = 0.5
_KNOWN: "WeakKeyDictionary[nn.Module, dict[tuple[int, int], tuple[float, ...]]]" = WeakKeyDictionary()


def stage_shifts(model: MSRN, size: tuple[int, int]) -> tuple[float, ...]:
    """How far the cells of each backbone stage lie from where they seem to, in cells: 0, or -0.5 towards the upper left.

    Measured once for a network and a size (height, width): on noise, the centre of the pixels that move the cells in the middle.

    Args:
        model: The network, in evaluation mode.
        size: Of its input.
    """
    known = _KNOWN.setdefault(model.backbone, {})
    if size not in known:
        known[size] = _measure(model.backbone, size)
    return known[size]


def projected_shifts(model: MSRN, shifts: tuple[float, ...]) -> tuple[float, ...]:
    """The same for the stages as attention sees them: a 2x2 pooling joins two cells, so that half a cell is a quarter of theirs."""
    found = []
    for stage, shift in zip(model.attention.stages, shifts, strict=True):
        assert isinstance(stage, StageProjection)
        found.append(shift if stage.pooling == "none" else shift / 2)
    return tuple(found)


def _measure(backbone: nn.Module, size: tuple[int, int]) -> tuple[float, ...]:
    parameter = next(backbone.parameters())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, *size, generator=generator).to(parameter)
    # Images made in inference mode take no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        images = noise.clone().requires_grad_()
        shifts = []
        for stage in backbone(images):
            measured = []
            height, width = stage.shape[-2:]
            for row, column in {(height // 2, width // 2), ((height - 1) // 2, (width - 1) // 2)}:
                moved = stage[:, :, row, column].square().sum()
                slopes = torch.autograd.grad(moved, images, retain_graph=True)[0].abs().sum(dim=(0, 1)).cpu()
                for axis, (cell, cells, pixels) in enumerate(((row, height, size[0]), (column, width, size[1]))):
                    weight = slopes.sum(dim=1 - axis)
                    centre = float((weight * torch.arange(pixels)).sum() / weight.sum().clamp(min=1e-30))
                    measured.append((centre + 0.5) * cells / pixels - (cell + 0.5))
            mean = sum(measured) / len(measured)
            shifts.append(-_HALF_CELL if mean < -_HALF_CELL / 2 else 0.0)
    return tuple(shifts)
