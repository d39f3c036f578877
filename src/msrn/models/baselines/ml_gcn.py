"""ML-GCN: classifiers that a graph convolution makes from word vectors."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

# Length of a word vector, about that of GloVe's, which the published initialisation is made for.
_VECTOR_LENGTH = 6.0


class MLGCNHead(nn.Module):
    """Word vectors -> two graph convolutions over the labels -> one classifier a label, for the max-pooled feature.

    W = A · LeakyReLU(A · Z · W1) · W2 with the word vectors Z (L, E), the correlation matrix A (L, L) of `correlation_matrix`,
    W1 (E, hidden_dim) and W2 (hidden_dim, C); the logits are W · (maximum over positions of the feature map). As published
    there is no bias anywhere.

    Vectors of any source are brought to the mean length of GloVe's: those from co-occurrence have length 1, and two layers without
    a norm would start 6 times smaller and learn as much slower.

    Args:
        channels: Channels C of the feature map.
        word_vectors: One vector a label; kept as a buffer.
        edges: Edges from label i to label j, those that occur together; the matrix made from them is kept as a buffer.
        hidden_dim: Width between the two layers.
        neighbour_share: The paper's p.

    Raises:
        ValueError: Word vectors and edges disagree on the number of labels, or p is not between 0 and 1.

    Source: Chen, Wei, Wang, Guo, Multi-Label Image Recognition with Graph Convolutional Networks, CVPR 2019,
        https://arxiv.org/abs/1904.03582, section 3.
    """

    word_vectors: Tensor
    correlation: Tensor

    def __init__(
        self,
        channels: int,
        word_vectors: Float[Tensor, "L E"],
        edges: Bool[Tensor, "L L"],
        *,
        hidden_dim: int = 1024,
        neighbour_share: float = 0.2,
    ) -> None:
        super().__init__()
        if len(word_vectors) != len(edges):
            raise ValueError(
                f"{len(word_vectors)} word vectors and a label graph of {len(edges)} labels. Give one vector a label, in the "
                "order of the graph."
            )
        length = word_vectors.norm(dim=1).mean().clamp(min=1e-12)
        self.register_buffer("word_vectors", word_vectors * (_VECTOR_LENGTH / length))
        self.register_buffer("correlation", correlation_matrix(edges, neighbour_share=neighbour_share))
        self.weight1 = nn.Parameter(torch.empty(word_vectors.shape[1], hidden_dim))
        self.weight2 = nn.Parameter(torch.empty(hidden_dim, channels))
        for weight in (self.weight1, self.weight2):
            bound = weight.shape[1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, feature_map: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of a batch of feature maps."""
        pooled = feature_map.amax(dim=(2, 3))  # (B, C)
        return F.linear(pooled, self.classifiers())

    def classifiers(self) -> Float[Tensor, "L C"]:
        """One classifier a label, from the graph."""
        hidden = F.leaky_relu(self.correlation @ (self.word_vectors @ self.weight1), 0.2)  # (L, hidden_dim)
        classifiers: Tensor = self.correlation @ (hidden @ self.weight2)
        return classifiers


def correlation_matrix(edges: Bool[Tensor, "L L"], *, neighbour_share: float = 0.2) -> Float[Tensor, "L L"]:
    """The re-weighted and normalised correlation matrix of ML-GCN.

    A label keeps 1 - p of itself and takes p from the labels it has edges to, in equal parts (equation 8). Then D^-1/2 A D^-1/2,
    with the sums of the rows in D: 1, or 1 - p for a label without edges.

    The authors' program shares p over the columns and transposes the matrix, so that a label takes from those that have an edge
    to it; this is the paper's form.

    Args:
        edges: Edges from label i to label j, without loops.
        neighbour_share: The paper's p; 0 leaves every label alone, 1 leaves nothing of itself.

    Raises:
        ValueError: p is below 0, or not below 1.

    Example:
        >>> edges = torch.tensor([[False, True, True], [False, False, False], [False, True, False]])
        >>> correlation_matrix(edges, neighbour_share=0.2)
        tensor([[0.8000, 0.1118, 0.1000],
                [0.0000, 1.0000, 0.0000],
                [0.0000, 0.2236, 0.8000]])

    Source: https://arxiv.org/abs/1904.03582, equations 7 and 8, after Kipf and Welling, https://arxiv.org/abs/1609.02907.
    """
    if not 0 <= neighbour_share < 1:
        raise ValueError(f"neighbour_share is at least 0 and below 1, got {neighbour_share}. The published one is 0.2.")
    values = edges.float()
    shared = neighbour_share * values / values.sum(dim=1, keepdim=True).clamp(min=1)
    weights = shared + (1 - neighbour_share) * torch.eye(len(edges), device=edges.device)  # (L, L)
    factors = weights.sum(dim=1).rsqrt()  # (L,)
    return factors[:, None] * weights * factors
