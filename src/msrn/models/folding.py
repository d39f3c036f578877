"""Batch norms of frozen statistics, merged into the convolutions ahead of them while they run; stored are the weights of both."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


class FoldedConv2d(nn.Conv2d):
    """A convolution and the batch norm behind it: filters are scaled and shifted instead of feature maps.

    norm(conv(x)) = (w · scale) * x + shift, and the gradients to w and to the norm's weight and bias follow. The feature map
    between the two is neither computed nor kept for the backward pass.
    """

    norm: "tuple[FoldedNorm]"  # in a tuple, so that its parameters are not this module's too

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """What the norm would return."""
        scale, shift = self.norm[0].scale_and_shift()
        output: Tensor = self._conv_forward(x, self.weight * scale[:, None, None, None], shift)
        return output


class FoldedNorm(nn.Module):
    """What is left of a batch norm of stored statistics: its weights, and for timm's kind the activation behind it."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps: float

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """The activation, where there is one."""
        for child in self.children():
            x = child(x)
        return x

    def scale_and_shift(self) -> tuple[Float[Tensor, "D"], Float[Tensor, "D"]]:
        """The norm as a factor and a summand of each channel."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


def fold_batch_norms(model: nn.Module, is_frozen: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Merge batch norms into the convolutions that stand right ahead of them, in place.

    The modules change their class and keep their names, parameters and buffers, so that states are stored, loaded, moved and
    copied as before. From then on the norms use their stored statistics, in training too.

    A pair is a convolution without a bias and the batch norm registered right behind it: the bias was left out because the norm has
    one. Compared with the two apart in a model of nearly every family of timm.

    Args:
        model: Any model; what is no such pair is left alone.
        is_frozen: Whether the statistics of the norm of this name stay as they are; all of them by default.

    Returns:
        Names of the norms that were merged.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> fold_batch_norms(model)
        ['1']
    """
    folded = []
    for conv, name, norm in list(_pairs(model)):
        if is_frozen(name):
            conv.__class__ = FoldedConv2d
            norm.__class__ = FoldedNorm
            conv.norm = (norm,)
            folded.append(name)
    return folded


def _pairs(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """Each convolution with the name of the batch norm behind it, and that norm."""
    for parent_name, parent in model.named_modules():
        for (_, conv), (name, norm) in pairwise(parent.named_children()):
            while type(conv) is nn.Sequential and len(conv) > 0:  # a stem of several layers ahead of a norm
                conv = conv[-1]
            if type(conv) is nn.Conv2d and type(norm) in (nn.BatchNorm2d, BatchNormAct2d):
                has_weights = norm.affine and norm.track_running_stats
                if has_weights and conv.bias is None and norm.num_features == conv.out_channels:
                    yield conv, f"{parent_name}.{name}".removeprefix("."), norm
