"""The heads that MSRN is compared with, under the same backbone and trainer."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from msrn.models.backbone import Backbone


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


class PooledClassifier(nn.Module):
    """A backbone under a `PooledHead`: what a practitioner would train without MSRN."""

    def __init__(self, backbone: Backbone, head: PooledHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of images."""
        logits: Tensor = self.head(self.backbone(images)[-1])
        return logits
