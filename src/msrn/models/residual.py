"""The head beside MSRN's stages: it scores the last stage's positions for every label and pools the scores."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from msrn.models.baselines import PooledHead

ResidualName = Literal["attended", "avg", "max"]


class AttendedHead(nn.Module):
    """Average pooling, and beside it the positions at which a label scores highest.

    A linear layer scores every position for every label: s[l, p] = w[l] · f[p]. A label's logit is the mean of its scores, plus
    `weight` times their mean weighted by softmax_p(s[l, p]), plus a bias.

    Args:
        channels: Channels of the feature map.
        num_labels: Labels L.
        weight: Weight of the attended scores; 0 leaves average pooling.

    Source: Zhu and Wu, Residual Attention: A Simple but Effective Method for Multi-Label Recognition, ICCV 2021,
        https://arxiv.org/abs/2108.02456, equations 2 to 6, with one head.
    """

    def __init__(self, channels: int, num_labels: int, *, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = weight
        self.linear = nn.Linear(channels, num_labels)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of feature maps."""
        positions = feature_map.flatten(2).transpose(1, 2)  # (B, P, C)
        scores = nn.functional.linear(positions, self.linear.weight)  # (B, P, L)
        attended = (scores.softmax(dim=1) * scores).sum(dim=1)
        logits: Tensor = scores.mean(dim=1) + self.weight * attended + self.linear.bias
        return logits


def build_residual(name: ResidualName, channels: int, num_labels: int, *, attention: float = 0.3) -> nn.Module:
    """The head of this name; `attention` is the weight of what an "attended" one attends to."""
    if name == "attended":
        return AttendedHead(channels, num_labels, weight=attention)
    return PooledHead(channels, num_labels, pooling=name)
