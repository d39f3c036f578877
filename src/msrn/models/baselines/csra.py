"""Class-specific residual attention: average pooling, and beside it the positions at which a label scores highest."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Temperatures of the heads, by their number. The paper writes 99 where it takes the greatest score alone, as at infinity.
TEMPERATURES: dict[int, tuple[float, ...]] = {
    1: (1,),
    2: (1, math.inf),
    4: (1, 2, 4, math.inf),
    6: (1, 2, 3, 4, 5, math.inf),
    8: (1, 2, 3, 4, 5, 6, 7, math.inf),
}


class CSRAHead(nn.Module):
    """Class-specific residual attention (CSRA).

    A linear layer scores every position for every label: s[l, p] = w[l] · f[p]. A label's logit is the sum over heads of
    mean over p of s[l, p] + lam · sum over p of softmax_p(T · s[l, p]) s[l, p], each head with its own w and temperature T. That
    is a linear layer on the mean feature plus lam times the feature that the label attends to.

    Args:
        channels: Channels of the feature map.
        num_labels: Labels L.
        num_heads: Heads: 1, 2, 4, 6 or 8, which decides their temperatures (`TEMPERATURES`).
        lam: Weight lambda of the attention; 0 is average pooling.
        normalize: Bring every w to length 1, as the authors' program does. Their paper's formulas do not have it.

    Raises:
        ValueError: There are no temperatures for this number of heads, or `lam` is negative.

    Source: Zhu and Wu, Residual Attention: A Simple but Effective Method for Multi-Label Recognition, ICCV 2021,
        https://arxiv.org/abs/2108.02456.
    """

    def __init__(
        self, channels: int, num_labels: int, *, num_heads: int = 1, lam: float = 0.1, normalize: bool = True
    ) -> None:
        super().__init__()
        if num_heads not in TEMPERATURES:
            raise ValueError(f"CSRA has {', '.join(map(str, TEMPERATURES))} heads, got {num_heads}.")
        if lam < 0:
            raise ValueError(f"lam is the weight of CSRA's attention and at least 0, got {lam}.")
        self.temperatures = TEMPERATURES[num_heads]
        self.lam = lam
        self.normalize = normalize
        self.classifiers = nn.Conv2d(channels, num_heads * num_labels, 1, bias=False)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of feature maps."""
        weight = self.classifiers.weight  # (heads·L, C, 1, 1)
        if self.normalize:
            weight = F.normalize(weight, dim=1)
        scores = F.conv2d(feature_map, weight).flatten(2)  # (B, heads·L, P)
        logits = scores.new_zeros(())
        for temperature, own in zip(self.temperatures, scores.chunk(len(self.temperatures), dim=1), strict=True):
            logits = logits + own.mean(dim=2) + self.lam * _attend(own, temperature)  # (B, L)
        return logits


def _attend(scores: Float[Tensor, "B L P"], temperature: float) -> Float[Tensor, "B L"]:
    """Scores averaged by how high they are."""
    if temperature == math.inf:
        return scores.amax(dim=2)
    return ((temperature * scores).softmax(dim=2) * scores).sum(dim=2)
