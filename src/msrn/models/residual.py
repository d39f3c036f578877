"""The head beside MSRN's attended stages, on the last stage as it is."""

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, nn

from msrn.models.baselines import PooledHead

ResidualName = Literal["attended", "avg", "max"]
RESIDUALS = get_args(ResidualName)


class AttendedHead(nn.Module):
    """Trained as average pooling; in evaluation it also looks where a label scores highest.

    A linear layer scores every position for every label: s[l, p] = w[l] · f[p]. In training a label's logit is their mean over
    positions. In evaluation it is (1 - weight) times that plus `weight` times their mean under softmax_p(s[l, p]).

    Args:
        channels: Channels of the feature map.
        num_labels: Labels L.
        weight: Weight of the attended scores, 0 to 1; 0 leaves average pooling.

    Raises:
        ValueError: The weight is out of range.

    Source: Zhu and Wu, Residual Attention: A Simple but Effective Method for Multi-Label Recognition, ICCV 2021,
        https://arxiv.org/abs/2108.02456, which adds it to trained heads too.
    """

    def __init__(self, channels: int, num_labels: int, *, weight: float = 0.3) -> None:
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"residual_attention is the weight of a mean, 0 to 1, got {weight}.")
        self.weight = weight
        self.linear = nn.Linear(channels, num_labels)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of feature maps."""
        mean: Tensor = self.linear(feature_map.mean(dim=(2, 3)))  # (B, L)
        if self.training:
            return mean
        weight = self.linear.weight[:, :, None, None]
        # (B, L, P), with the bias, which no weighted mean changes
        scores = nn.functional.conv2d(feature_map, weight, self.linear.bias).flatten(2)
        attended = (scores.softmax(dim=2) * scores).sum(dim=2)  # float32 under autocast of a GPU
        return (1 - self.weight) * mean + self.weight * attended


def build_residual(name: ResidualName, channels: int, num_labels: int, *, attention: float = 0.3) -> nn.Module:
    """The head of this name; `attention` is the weight of what an "attended" one attends to.

    Raises:
        ValueError: There is no such head, or the weight is out of range.
    """
    if name not in RESIDUALS:
        raise ValueError(f"residual is one of {', '.join(RESIDUALS)}, or None; got {name!r}.")
    if name == "attended":
        return AttendedHead(channels, num_labels, weight=attention)
    return PooledHead(channels, num_labels, pooling=name)
