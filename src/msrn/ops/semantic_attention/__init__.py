"""Semantic guided attention: one function in front of the forms that compute it."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from msrn.ops.semantic_attention import cpu, operator
from msrn.ops.semantic_attention.common import centred
from msrn.ops.semantic_attention.fixed import FixedNodes
from msrn.ops.semantic_attention.reference import attend_reference

__all__ = ["Backend", "FixedNodes", "attention_maps", "semantic_guided_attention"]

Backend = Literal["auto", "reference", "cpu", "triton", "nodes"]


def semantic_guided_attention(
    feature_map: Float[Tensor, "B D H W"], embeddings: Float[Tensor, "L D"], *, backend: Backend = "auto"
) -> Float[Tensor, "B L D"]:
    """Pool a feature map into one vector per label, guided by the label embeddings.

    Each channel of each label attends over the positions p on its own:
    out[b, l, d] = sum over p of softmax_p(f[b, d, p] · e[l, d]) · f[b, d, p].

    Args:
        feature_map: Projected features of one backbone stage.
        embeddings: Label or group embeddings; a zero row gives plain average pooling.
        backend: "auto" chooses for the device and the data. "reference" is the plain formulation, made of standard operators; it
            builds a (B, L, H·W, D) tensor. The others recompute in the backward pass and store nothing of that size. "cpu" is
            exact, tile by tile, on any device. "triton" is exact and fused, for CUDA. "nodes" evaluates a few nodes and
            interpolates to float32's rounding (1e-10 in float64); channels where it cannot take an exact form.

    Returns:
        One vector per label, each entry between the least and greatest of its channel.

    Raises:
        ValueError: The feature map is empty (H or W is 0), the widths differ, or the backend is unknown.
        ImportError: backend="triton" without the triton package.

    Example:
        >>> import torch
        >>> feature_map = torch.tensor([[[[0.0, 2.0]]]])   # B=1, D=1, H=1, W=2
        >>> embeddings = torch.tensor([[0.0], [100.0]])    # L=2, D=1
        >>> semantic_guided_attention(feature_map, embeddings).flatten()
        tensor([1., 2.])

    Source: MSRN, https://arxiv.org/abs/2106.11596.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is one of {', '.join(get_args(Backend))}, got '{backend}'.")
    _check(feature_map, embeddings)
    features = feature_map.flatten(2).transpose(1, 2)  # (B, P, D)
    if backend == "reference":
        return attend_reference(features, embeddings.to(features.dtype))
    pooled: Tensor = operator.attend(features, embeddings, backend).to(features.dtype)
    return pooled


@torch.no_grad()
def attention_maps(
    feature_map: Float[Tensor, "B D H W"],
    embeddings: Float[Tensor, "N D"],
    channel_weights: Float[Tensor, "B N D"] | None = None,
) -> Float[Tensor, "B N H W"]:
    """Where the labels chosen look: their attention weights, averaged over channels.

    map[b, n, p] = sum over d of u[b, n, d] · softmax_p(f[b, d, p] · e[n, d]), with u = |channel_weights|, scaled to sum 1.

    Args:
        feature_map: Projected features of one backbone stage.
        embeddings: Embeddings of the labels chosen.
        channel_weights: What each channel means to the classifier; only the size counts. None, or all zero, weighs all alike.

    Returns:
        One map a label; each sums to 1. No gradient flows back.

    Raises:
        ValueError: The feature map is empty (H or W is 0), or the widths differ.

    Example:
        >>> feature_map = torch.tensor([[[[0.0, 2.0]]]])
        >>> attention_maps(feature_map, torch.tensor([[0.0], [100.0]])).flatten().round(decimals=2)
        tensor([0.5000, 0.5000, 0.0000, 1.0000])

    Source: the attention of MSRN, https://arxiv.org/abs/2106.11596; the average is ours.
    """
    _check(feature_map, embeddings)
    num_images, dim, height, width = feature_map.shape
    if num_images == 0 or len(embeddings) == 0:
        return feature_map.new_empty(num_images, len(embeddings), height, width)
    values, _ = centred(feature_map.flatten(2).transpose(1, 2))  # (B, P, D)
    weights = values.new_ones(num_images, len(embeddings), dim)
    if channel_weights is not None:
        weights = channel_weights.abs().to(values.dtype)
    total = weights.sum(dim=-1, keepdim=True)  # (B, N, 1)
    weights = torch.where(total > 0, weights / total, 1 / dim)  # (B, N, D)
    with torch.autocast(values.device.type, enabled=False):
        maps = cpu.average_weights(values, embeddings.to(values.dtype), weights)  # (B, N, P)
    result: Tensor = maps.unflatten(2, (height, width)).to(feature_map.dtype)
    return result


def _check(feature_map: Tensor, embeddings: Tensor) -> None:
    if feature_map.shape[-1] == 0 or feature_map.shape[-2] == 0:
        raise ValueError(
            f"the feature map is empty: shape {tuple(feature_map.shape)}. Use larger images or a backbone of smaller stride."
        )
    if feature_map.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"the feature map has {feature_map.shape[1]} channels, the embeddings are {embeddings.shape[1]} wide. Project the "
            "features to the width of the embeddings."
        )
