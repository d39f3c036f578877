"""How many floating-point operations a model takes, counted without doing them."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Module = TypeVar("Module", bound=nn.Module)


def count_flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Floating-point operations of one image's forward pass in evaluation mode.

    A multiply-add counts 2. Counted are matrix products, convolutions and attention; norms, activations and pooling, which are
    a small part, are not. Semantic guided attention counts as its exact form does it, 5 an image, label, channel and position,
    though nodes may do less. Label embeddings, which are constants in evaluation mode, cost nothing an image. The pass runs on a
    copy whose tensors have a shape but no data: nothing is computed, and the model stays as it is.

    Args:
        model: From images (B, 3, H, W) to anything.
        size: Height and width of the image.

    Raises:
        ModelError: The backbone does not take images of this size.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 4 * 5, 10))
        >>> count_flops(model, (4, 5))    # 2 · (3 · 8 · 20 + 160 · 10)
        4160
    """
    model = without_data(model, "meta").eval()
    images = torch.empty(1, 3, *size, device="meta")
    with torch.no_grad():
        model(images)  # makes what is constant from then on
        with FlopCounterMode(display=False) as counter:
            model(images)
    return int(counter.get_total_flops())


def without_data(module: Module, device: str) -> Module:
    """A copy with other tensors, made under the modes in force: same shapes, strides and types, and nothing in them."""
    memo: dict[int, Tensor] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return copy.deepcopy(module, memo)  # what the memo holds already is not copied
