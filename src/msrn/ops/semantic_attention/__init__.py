"""Semantic guided attention: one function in front of the forms that compute it."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from msrn.ops.semantic_attention.cpu import attend_by_label
from msrn.ops.semantic_attention.reference import attend_reference

Backend = Literal["auto", "reference", "cpu"]

_BACKENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto": attend_by_label,
    "reference": attend_reference,
    "cpu": attend_by_label,
}


def semantic_guided_attention(
    feature_map: Float[Tensor, "B D H W"], embeddings: Float[Tensor, "L D"], *, backend: Backend = "auto"
) -> Float[Tensor, "B L D"]:
    """Pool a feature map into one vector per label, guided by the label embeddings.

    Each channel of each label attends over the positions p on its own:
    out[b, l, d] = sum over p of softmax_p(f[b, d, p] · e[l, d]) · f[b, d, p].

    Args:
        feature_map: Projected features of one backbone stage.
        embeddings: Label or group embeddings; a zero row gives plain average pooling.
        backend: "reference" is the plain formulation, which builds a (B, L, D, H·W) tensor; "cpu" is exact, one label at a
            time, and recomputes in the backward pass; "auto" chooses.

    Returns:
        One vector per label, each entry between the least and greatest of its channel.

    Raises:
        ValueError: The feature map is empty (H or W is 0), or the backend is unknown.

    Example:
        >>> import torch
        >>> feature_map = torch.tensor([[[[0.0, 2.0]]]])   # B=1, D=1, H=1, W=2
        >>> embeddings = torch.tensor([[0.0], [100.0]])    # L=2, D=1
        >>> semantic_guided_attention(feature_map, embeddings).flatten()
        tensor([1., 2.])

    Source: MSRN, https://arxiv.org/abs/2106.11596.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend is one of {', '.join(_BACKENDS)}, got '{backend}'.")
    if feature_map.shape[-1] == 0 or feature_map.shape[-2] == 0:
        raise ValueError(
            f"the feature map is empty: shape {tuple(feature_map.shape)}. Use larger images or a backbone of smaller stride."
        )
    features = feature_map.flatten(2).contiguous()  # (B, D, P)
    return _BACKENDS[backend](features, embeddings.to(features.dtype))
