"""The label graph: which labels occur together in the training images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PUBLISHED_THRESHOLD = 0.4


def count_co_occurrence(target: Int[Tensor, "N L"]) -> tuple[Int[Tensor, "L L"], Int[Tensor, "L"]]:
    """Count in how many images two labels occur together, and in how many each occurs.

    Args:
        target: 1 present, 0 absent, -1 unknown; only 1 counts.

    Returns:
        Images holding both labels, with a zero diagonal, and images holding each label.

    Example:
        >>> count_co_occurrence(torch.tensor([[1, 1, 0], [1, 0, -1]]))
        (tensor([[0, 1, 0],
                [1, 0, 0],
                [0, 0, 0]]), tensor([2, 1, 0]))
    """
    present = (target == 1).to(torch.float64)  # (N, L)
    both = (present.T @ present).round().to(torch.int64)  # (L, L), exact below 2^53 images
    label_counts = both.diagonal().clone()  # (L,)
    return both.fill_diagonal_(0), label_counts


def conditional_probability(co_occurrence: Int[Tensor, "L L"], label_counts: Int[Tensor, "L"]) -> Float[Tensor, "L L"]:
    """P(j | i) = co_occurrence[i, j] / label_counts[i], in float64; 0 for labels that never occur.

    Example:
        >>> conditional_probability(torch.tensor([[0, 1], [1, 0]]), torch.tensor([4, 1]))
        tensor([[0.0000, 0.2500],
                [1.0000, 0.0000]], dtype=torch.float64)
    """
    counts = label_counts.to(torch.float64)[:, None]  # (L, 1)
    probability = co_occurrence.to(torch.float64) / counts.clamp(min=1)
    return torch.where(counts > 0, probability, 0.0)


def build_adjacency(
    co_occurrence: Int[Tensor, "L L"], label_counts: Int[Tensor, "L"], *, threshold: float = PUBLISHED_THRESHOLD
) -> Float[Tensor, "L L"]:
    """Re-weighted adjacency of the label graph: adjacency[i, j] > 0 where j follows i, P(j | i) >= threshold.

    The edges that enter a label share a weight of 0.25, and every label has an edge of weight 1 to itself.
    Computed in float64 and stored in float32, as the authors do.

    Args:
        co_occurrence: Images holding both labels.
        label_counts: Images holding each label.
        threshold: Least P(j | i) of an edge, in (0, 1].

    Raises:
        ValueError: The threshold is outside (0, 1].

    Example:
        >>> build_adjacency(torch.tensor([[0, 1], [1, 0]]), torch.tensor([4, 1]))
        tensor([[1.0000, 0.0000],
                [0.2500, 1.0000]])

    Source: MSRN, https://arxiv.org/abs/2106.11596, after ML-GCN, https://arxiv.org/abs/1904.03582, equations 7 and 8.
    """
    if not 0 < threshold <= 1:
        raise ValueError(
            f"threshold is a probability above 0 and at most 1, got {threshold}. The published one is 0.4."
        )
    edges = (conditional_probability(co_occurrence, label_counts) >= threshold).to(torch.float64)  # (L, L)
    weights = edges * 0.25 / (edges.sum(dim=0, keepdim=True) + 1e-6)
    return (weights + torch.eye(len(label_counts), dtype=torch.float64)).float()


def build_attention_mask(adjacency: Float[Tensor, "L L"]) -> Bool[Tensor, "L L"]:
    """Which labels a label attends to: mask[i, j] where i follows j.

    The authors mask with the transpose of the symmetrically normalised graph. Normalising multiplies by positive
    numbers, so only the transpose matters.
    """
    return adjacency.T > 0


@dataclass(frozen=True, eq=False)
class LabelGraph:
    """Labels and how often they occur together.

    Attributes:
        label_names: The labels, in the order of the model's logits.
        co_occurrence: Images holding both labels, zero diagonal.
        label_counts: Images holding each label.
        threshold: Least P(j | i) of an edge from label i to label j.

    Raises:
        ValueError: Shapes disagree, a count is negative, or the threshold is outside (0, 1].

    Example:
        >>> graph = LabelGraph.from_target(torch.tensor([[1, 1], [1, 0], [1, 0]]), ["person", "horse"])
        >>> graph.num_edges    # every horse comes with a person
        1
    """

    label_names: tuple[str, ...]
    co_occurrence: Int[Tensor, "L L"]
    label_counts: Int[Tensor, "L"]
    threshold: float = PUBLISHED_THRESHOLD
    adjacency: Float[Tensor, "L L"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        num_labels = len(self.label_names)
        shapes = (tuple(self.co_occurrence.shape), tuple(self.label_counts.shape))
        if shapes != ((num_labels, num_labels), (num_labels,)):
            raise ValueError(
                f"{num_labels} labels need co_occurrence of shape ({num_labels}, {num_labels}) and label_counts of shape "
                f"({num_labels},), got {shapes[0]} and {shapes[1]}. Build both from the same images (LabelGraph.from_target)."
            )
        twice = sorted({name for name in self.label_names if self.label_names.count(name) > 1})
        if twice:
            raise ValueError(f"labels have names of their own, but '{twice[0]}' is there twice. Rename one.")
        if bool((self.co_occurrence < 0).any()) or bool((self.label_counts < 0).any()):
            raise ValueError(
                "co_occurrence and label_counts are numbers of images, got negative ones. Count them anew."
            )
        adjacency = build_adjacency(self.co_occurrence, self.label_counts, threshold=self.threshold)
        object.__setattr__(self, "adjacency", adjacency)

    @classmethod
    def from_target(
        cls, target: Int[Tensor, "N L"], label_names: Sequence[str], *, threshold: float = PUBLISHED_THRESHOLD
    ) -> "LabelGraph":
        """Count the graph over the *training* targets: 1 present, 0 absent, -1 unknown."""
        return cls(tuple(label_names), *count_co_occurrence(target), threshold=threshold)

    @property
    def num_labels(self) -> int:
        """Number of labels L."""
        return len(self.label_names)

    @property
    def num_edges(self) -> int:
        """Edges between two different labels."""
        return int((self.adjacency > 0).sum()) - self.num_labels
