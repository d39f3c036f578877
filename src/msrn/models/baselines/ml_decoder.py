"""ML-Decoder: a transformer decoder layer whose queries are not learnt, each of which answers for a group of labels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class MLDecoderHead(nn.Module):
    """Queries, drawn once, attend to the positions of the feature map; each decides a group of labels.

    Positions E = ReLU(Linear(feature map)); queries Q = LayerNorm(fixed); Q = LayerNorm(Q + attention(Q, E, E));
    Q = LayerNorm(Q + feed-forward(Q)); label l of query l // g has the logit W[l] · Q[l // g] + b[l], with g labels a query. No
    self-attention: on queries that are the same for all images it would be a constant.

    Labels are dealt to queries in their order, and the last query may answer for fewer. Dropout acts on what attention and
    feed-forward add and within both; the authors' program also drops entries of the queries, which the paper does not mention.

    Args:
        channels: Channels of the feature map.
        num_labels: Labels L.
        num_groups: Most queries K; no more are made than labels need, g = ceil(L / K) each.
        dim: Width of queries and positions.
        num_heads: Heads of the attention.
        hidden_dim: Width within the feed-forward layers.
        dropout: Share of entries dropped in training.

    Raises:
        ValueError: `num_groups` is below 1.

    Source: Ridnik, Sharir, Ben-Cohen, Ben-Baruch, Noy, ML-Decoder: Scalable and Versatile Classification Head, WACV 2023,
        https://arxiv.org/abs/2111.12933, section 2.
    """

    queries: Tensor

    def __init__(
        self,
        channels: int,
        num_labels: int,
        *,
        num_groups: int = 100,
        dim: int = 768,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if num_groups < 1:
            raise ValueError(f"num_groups is at least 1, got {num_groups}. The published one is 100, or one a label.")
        group_size = -(-num_labels // min(num_groups, num_labels))
        num_groups = -(-num_labels // group_size)  # no more than have something to answer
        self.num_labels = num_labels
        self.register_buffer("queries", torch.randn(num_groups, dim))
        self.projection = nn.Linear(channels, dim)
        self.query_norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_dim, dim)
        )
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.weight = nn.Parameter(torch.empty(num_groups, dim, group_size))
        self.bias = nn.Parameter(torch.zeros(num_labels))
        for group in self.weight.detach():
            nn.init.xavier_normal_(group)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of feature maps."""
        positions = F.relu(self.projection(feature_map.flatten(2).transpose(1, 2)))  # (B, P, dim)
        queries = self.query_norm(self.queries).expand(len(positions), -1, -1)  # (B, K, dim)
        attended, _ = self.attention(queries, positions, positions, need_weights=False)
        decoded = self.attention_norm(queries + self.dropout(attended))
        decoded = self.feed_forward_norm(decoded + self.dropout(self.feed_forward(decoded)))  # (B, K, dim)
        by_group = torch.einsum("bkd,kdg->bkg", decoded, self.weight)
        return by_group.flatten(1)[:, : self.num_labels] + self.bias
