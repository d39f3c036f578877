"""Local and global label semantics: graph attention over the label graph, then DiffPool into label groups."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from msrn.labels.graph import build_attention_mask

GROUP_LOSS_WEIGHT = 1e-4


class LabelGroups(NamedTuple):
    """What the label-group embedding returns.

    Attributes:
        label_embeddings: Local semantics, one row a label (L, D).
        group_embeddings: Global semantics, one row a group (G, D).
        assignment: Soft membership of labels in groups (L, G); rows sum to 1.
    """

    label_embeddings: Float[Tensor, "L D"]
    group_embeddings: Float[Tensor, "G D"]
    assignment: Float[Tensor, "L G"]


class GraphAttention(nn.Module):
    """One graph attention layer with a residual of its own input projection.

    Source: Veličković et al., Graph Attention Networks, https://arxiv.org/abs/1710.10903, equations 1 to 4; the residual before
    ELU is MSRN's.
    """

    def __init__(self, in_dim: int, out_dim: int, *, negative_slope: float = 0.2) -> None:
        super().__init__()
        self.projection = nn.Linear(in_dim, out_dim, bias=False)
        self.attention_target = nn.Parameter(torch.empty(out_dim))
        self.attention_source = nn.Parameter(torch.empty(out_dim))
        self.negative_slope = negative_slope
        nn.init.xavier_uniform_(self.projection.weight, gain=1.414)
        bound = 1.414 * (6 / (2 * out_dim + 1)) ** 0.5  # xavier for the pair as one (2 · out_dim, 1) matrix
        nn.init.uniform_(self.attention_target, -bound, bound)
        nn.init.uniform_(self.attention_source, -bound, bound)

    def forward(self, labels: Float[Tensor, "L I"], mask: Bool[Tensor, "L L"]) -> Float[Tensor, "L O"]:
        """Mix each label with those it attends to; `mask[i, j]` says that label i attends to label j."""
        projected = self.projection(labels)  # (L, O)
        target = projected @ self.attention_target  # (L,)
        source = projected @ self.attention_source  # (L,)
        scores = F.leaky_relu(target[:, None] + source[None, :], self.negative_slope)  # (L, L)
        attention = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)  # (L, L)
        return F.elu(attention @ projected + projected)  # (L, O)


class DiffPool(nn.Module):
    """Pool labels softly into groups: groups = assignment^T · embedding, both computed by graph attention.

    Source: Ying et al., Hierarchical Graph Representation Learning with Differentiable Pooling,
    https://arxiv.org/abs/1806.08804, equations 3, 5 and 6.
    """

    def __init__(self, dim: int, num_groups: int) -> None:
        super().__init__()
        self.embed = GraphAttention(dim, dim)
        self.assign = GraphAttention(dim, num_groups)

    def forward(
        self, labels: Float[Tensor, "L D"], mask: Bool[Tensor, "L L"]
    ) -> tuple[Float[Tensor, "G D"], Float[Tensor, "L G"]]:
        """Group embeddings and the assignment of labels to groups."""
        assignment = self.assign(labels, mask).softmax(dim=1)  # (L, G)
        return assignment.T @ self.embed(labels, mask), assignment  # (G, D)


class LabelGroupEmbedding(nn.Module):
    """Label embeddings from word vectors and the label graph, and embeddings of groups of labels.

    Word vectors (L, E) -> Linear -> graph attention -> graph attention -> label embeddings (L, D); DiffPool over their ReLU ->
    group embeddings (G, D). Depends on no image: compute it once a step, and once and for all in evaluation.

    Args:
        word_vectors: One vector a label; kept as a buffer.
        adjacency: Label graph from `msrn.labels.build_adjacency`; kept as a buffer.
        num_groups: Groups G; 0 leaves global semantics out.
        dim: Width D of the embeddings.
        input_dim: Width of the projected word vectors.
        hidden_dim: Width between the two graph attention layers.
        bound: Keep every entry of the embeddings within (-bound, bound) by a scaled tanh, so that attention scores stay
            bounded too; None leaves them as they are, as published.
        gain: Factor on the embeddings ahead of the bound. A small one lets attention start near average pooling, which an
            embedding of zero is.
        learn_vectors: Train the word vectors, from random ones of the same width and of length 1.

    Raises:
        ValueError: Word vectors and adjacency disagree on the number of labels, or `num_groups` is negative.

    Source: MSRN, https://arxiv.org/abs/2106.11596, sections 3.2 and 3.3.
    """

    word_vectors: Tensor
    adjacency: Tensor

    def __init__(
        self,
        word_vectors: Float[Tensor, "L E"],
        adjacency: Float[Tensor, "L L"],
        *,
        num_groups: int,
        dim: int = 512,
        input_dim: int = 256,
        hidden_dim: int = 300,
        bound: float | None = None,
        gain: float = 1.0,
        learn_vectors: bool = False,
    ) -> None:
        super().__init__()
        if len(word_vectors) != len(adjacency):
            raise ValueError(
                f"{len(word_vectors)} word vectors and a label graph of {len(adjacency)} labels. Give one vector a label, in the "
                "order of the graph."
            )
        if num_groups < 0:
            raise ValueError(f"num_groups is 0 or more, got {num_groups}. 0 leaves the groups out.")
        if learn_vectors:
            self.word_vectors = nn.Parameter(torch.randn_like(word_vectors) * word_vectors.shape[1] ** -0.5)
        else:
            self.register_buffer("word_vectors", word_vectors.clone())
        self.register_buffer("adjacency", adjacency.clone())
        self.projection = nn.Linear(word_vectors.shape[1], input_dim)
        self.layers = nn.ModuleList([GraphAttention(input_dim, hidden_dim), GraphAttention(hidden_dim, dim)])
        self.pool = DiffPool(dim, num_groups) if num_groups > 0 else None
        self.bound = bound
        self.gain = gain

    def forward(self) -> LabelGroups:
        """Label embeddings, group embeddings and the assignment between them."""
        mask = build_attention_mask(self.adjacency)
        labels = self.projection(self.word_vectors)  # (L, input_dim)
        for layer in self.layers:
            labels = layer(labels, mask)  # (L, D) after the last
        if self.pool is None:
            groups, assignment = labels[:0], labels[:, :0]
        else:
            groups, assignment = self.pool(F.relu(labels), mask)  # (G, D), (L, G)
        return LabelGroups(self._bounded(labels), self._bounded(groups), assignment)

    def _bounded(self, embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        scaled = self.gain * embeddings
        return scaled if self.bound is None else self.bound * torch.tanh(scaled / self.bound)


def group_loss(label_groups: LabelGroups, *, weight: float = GROUP_LOSS_WEIGHT) -> Float[Tensor, ""]:
    """Pull each label towards its most likely group: weight · sum over labels of their distance.

    Example:
        >>> labels, groups = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]])
        >>> group_loss(LabelGroups(labels, groups, torch.tensor([[0.8, 0.2]])), weight=1.0)
        tensor(5.)

    Source: MSRN, https://arxiv.org/abs/2106.11596, the loss of the label-group embedding.
    """
    if len(label_groups.group_embeddings) == 0:
        return label_groups.label_embeddings.new_zeros(())
    nearest = label_groups.group_embeddings[label_groups.assignment.argmax(dim=1)]  # (L, D)
    distances: Tensor = (label_groups.label_embeddings - nearest).norm(dim=1)  # (L,)
    return weight * distances.sum()
