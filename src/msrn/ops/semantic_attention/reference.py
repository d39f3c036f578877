"""The plain formulation: the truth that every faster form is compared with."""

from jaxtyping import Float
from torch import Tensor


def attend_reference(features: Float[Tensor, "B P D"], embeddings: Float[Tensor, "L D"]) -> Float[Tensor, "B L D"]:
    """Weighted mean over positions, one softmax for every image, label and channel; builds a (B, L, P, D) tensor."""
    values = features[:, None]  # (B, 1, P, D)
    # One softmax per channel, not per label: the paper's attention is channel-wise.
    weights = (values * embeddings[None, :, None, :]).softmax(dim=2)  # (B, L, P, D)
    return (weights * values).sum(dim=2)  # (B, L, D)
