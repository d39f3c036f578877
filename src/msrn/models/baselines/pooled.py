"""The plainest head: one vector an image, one linear layer."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn


class PooledHead(nn.Module):
    """Pool the last feature map over all positions, then one linear layer: the plainest head.

    Args:
        channels: Channels of the feature map.
        num_labels: Labels L.
        pooling: "avg" or "max" over all positions.
    """

    def __init__(self, channels: int, num_labels: int, *, pooling: Literal["avg", "max"] = "avg") -> None:
        super().__init__()
        self.pooling = pooling
        self.linear = nn.Linear(channels, num_labels)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of feature maps."""
        pooled = feature_map.mean(dim=(2, 3)) if self.pooling == "avg" else feature_map.amax(dim=(2, 3))  # (B, C)
        logits: Tensor = self.linear(pooled)
        return logits
