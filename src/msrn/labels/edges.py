"""Which labels of a graph have an edge: rules from counts to edges, and what a threshold leaves."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PUBLISHED_THRESHOLD = 0.4
SWEEP = tuple(round(0.05 * step, 2) for step in range(1, 19))
"""The thresholds that `sweep_thresholds` looks at: 0.05 to 0.9."""

RuleName = Literal["threshold", "top-k", "lift", "identity"]


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


def edges_by_threshold(
    co_occurrence: Int[Tensor, "L L"], label_counts: Int[Tensor, "L"], *, threshold: float = PUBLISHED_THRESHOLD
) -> Bool[Tensor, "L L"]:
    """Edges from label i to label j where P(j | i) >= threshold, as published.

    Raises:
        ValueError: The threshold is outside (0, 1].

    Example:
        >>> edges_by_threshold(torch.tensor([[0, 1], [1, 0]]), torch.tensor([4, 1]))
        tensor([[False, False],
                [ True, False]])

    Source: ML-GCN, https://arxiv.org/abs/1904.03582, equation 7.
    """
    if not 0 < threshold <= 1:
        raise ValueError(
            f"threshold is a probability above 0 and at most 1, got {threshold}. The published one is 0.4."
        )
    return conditional_probability(co_occurrence, label_counts) >= threshold


def edges_by_top_k(
    co_occurrence: Int[Tensor, "L L"], label_counts: Int[Tensor, "L"], *, k: int = 3
) -> Bool[Tensor, "L L"]:
    """Edges from every label i to the k labels j that follow it most often, those with the greatest P(j | i) > 0.

    Between equals the label j of fewer images wins, for which the pair has more lift, then the earlier one.

    Raises:
        ValueError: k is below 1.

    Example:
        >>> edges_by_top_k(torch.tensor([[0, 3, 1], [3, 0, 0], [1, 0, 0]]), torch.tensor([9, 3, 2]), k=1)
        tensor([[False,  True, False],
                [ True, False, False],
                [ True, False, False]])
    """
    if k < 1:
        raise ValueError(f"k is the number of edges from a label and at least 1, got {k}. 3 is a good start.")
    # Label i's followers in the order of their counts: sorting is stable, so the least important key comes first.
    rarest_first = label_counts.argsort(stable=True)  # (L,)
    order = co_occurrence[:, rarest_first].argsort(dim=1, descending=True, stable=True)[:, :k]  # (L, k)
    followers = rarest_first[order]  # (L, k)
    edges = torch.zeros_like(co_occurrence, dtype=torch.bool)
    return edges.scatter_(1, followers, co_occurrence.gather(1, followers) > 0)


def edges_by_lift(
    co_occurrence: Int[Tensor, "L L"],
    label_counts: Int[Tensor, "L"] | Int[Tensor, "L L"],
    *,
    num_images: int | Int[Tensor, "L L"],
    significance: float = 0.01,
) -> Bool[Tensor, "L L"]:
    """Edges, both ways, between labels that occur together more often than chance would have it.

    Each pair's images make a table of both, either and neither label. Its log-likelihood ratio against independent labels,
    G2 = 2 · sum of observed · ln(observed / expected), has p = erfc(sqrt(G2 / 2)); pairs with no lift (together no more
    often than expected) have p = 1. Of the L (L - 1) / 2 pairs, those are kept for which the share of
    false ones is expected to be at most `significance` (Benjamini and Hochberg).

    Args:
        co_occurrence: Images holding both labels.
        label_counts: Images holding each label; where entries are unknown, entry [i, j] is the images that hold i and of
            which j is known (`count_known`).
        num_images: Images counted, also those without a label; where entries are unknown, a number for each pair.
        significance: Greatest expected share of false edges, between 0 and 1.

    Raises:
        ValueError: The significance is not between 0 and 1, or there are fewer images than a label has.

    Example:
        >>> together = torch.tensor([[0, 40, 25], [40, 0, 25], [25, 25, 0]])    # of 100 images
        >>> edges_by_lift(together, torch.tensor([50, 50, 50]), num_images=100)
        tensor([[False,  True, False],
                [ True, False, False],
                [False, False, False]])

    Source: Dunning, Accurate Methods for the Statistics of Surprise and Coincidence, Computational Linguistics 19, 1993;
        Benjamini and Hochberg, Controlling the False Discovery Rate, Journal of the Royal Statistical Society B 57, 1995.
    """
    if not 0 < significance < 1:
        raise ValueError(f"significance is a share between 0 and 1, got {significance}. 0.01 is a good start.")
    num_labels = len(label_counts)
    counts = label_counts.to(torch.float64)
    if counts.ndim == 1:
        counts = counts[:, None].expand(-1, num_labels)  # (L, L)
    totals = torch.as_tensor(num_images, dtype=torch.float64).expand(num_labels, num_labels)
    wrong = (counts > totals).nonzero().tolist()
    if wrong:
        here = tuple(wrong[0])
        raise ValueError(
            f"num_images is {int(totals[here])}, but a label is in {int(counts[here])} images. Give the number of all images."
        )
    # Pairs that never occur together have no lift; leaving them out keeps this small for thousands of labels.
    i, j = co_occurrence.triu(1).nonzero(as_tuple=True)  # (pairs,)
    both, count_i, count_j, total = co_occurrence[i, j].to(torch.float64), counts[i, j], counts[j, i], totals[i, j]
    other_i, other_j = total - count_i, total - count_j
    table = torch.stack([both, count_i - both, count_j - both, other_i - count_j + both])  # (4, pairs)
    products = torch.stack([count_i * count_j, count_i * other_j, other_i * count_j, other_i * other_j])
    expected = products / total.clamp(min=1)
    ratio = 2 * torch.special.xlogy(table, table / expected.clamp(min=1e-300)).sum(dim=0).clamp(min=0)  # G2
    p_values = torch.where(both > expected[0], torch.erfc((ratio / 2).sqrt()), 1.0)
    ordered = p_values.sort().values
    rank = torch.arange(1, len(ordered) + 1, dtype=torch.float64)
    passing = ordered[ordered <= significance * rank / max(num_labels * (num_labels - 1) / 2, 1)]
    is_kept = p_values <= (passing[-1] if len(passing) else -1.0)
    edges = torch.zeros(num_labels, num_labels, dtype=torch.bool)
    edges[i[is_kept], j[is_kept]] = True
    return edges | edges.T


def num_alone(edges: Bool[Tensor, "L L"]) -> int:
    """Labels that no edge enters: they attend only to themselves.

    Example:
        >>> num_alone(torch.tensor([[False, True], [False, False]]))
        1
    """
    return int((~edges.any(dim=0)).sum())


@dataclass(frozen=True)
class SweepRow:
    """What a threshold leaves of the graph.

    Attributes:
        threshold: Least P(j | i) of an edge.
        edges: Edges between two different labels.
        labels_without_edge: Labels that no edge leaves or enters.
        labels_alone: Labels that no edge enters, so that they attend only to themselves.
    """

    threshold: float
    edges: int
    labels_without_edge: int
    labels_alone: int


def sweep_thresholds(co_occurrence: Int[Tensor, "L L"], label_counts: Int[Tensor, "L"]) -> tuple[SweepRow, ...]:
    """What each threshold of `SWEEP` leaves of the graph.

    Example:
        >>> sweep_thresholds(torch.tensor([[0, 1], [1, 0]]), torch.tensor([4, 1]))[7]
        SweepRow(threshold=0.4, edges=1, labels_without_edge=0, labels_alone=1)
    """
    rows = []
    for threshold in SWEEP:
        edges = edges_by_threshold(co_occurrence, label_counts, threshold=threshold)
        without = int((~(edges.any(dim=0) | edges.any(dim=1))).sum())
        rows.append(SweepRow(threshold, int(edges.sum()), without, num_alone(edges)))
    return tuple(rows)


@dataclass(frozen=True)
class EdgeRule:
    """A rule and its setting, as commands and recipes name them; the settings of other rules are not looked at.

    Attributes:
        name: "threshold", "top-k", "lift" or "identity" (no edges: every label attends to itself alone).
        threshold: Least P(j | i) of an edge.
        top_k: Edges from a label.
        significance: Greatest expected share of false edges.

    Example:
        >>> print(EdgeRule("top-k", top_k=2))
        the 2 labels that follow each most often
    """

    name: RuleName = "threshold"
    threshold: float = PUBLISHED_THRESHOLD
    top_k: int = 3
    significance: float = 0.01

    def __str__(self) -> str:
        match self.name:
            case "threshold":
                return f"P(j | i) >= {self.threshold:g}"
            case "top-k":
                return f"the {self.top_k} labels that follow each most often"
            case "lift":
                return f"labels together more often than by chance, significance {self.significance:g}"
            case "identity":
                return "no edges"

    def arguments(
        self,
        co_occurrence: Int[Tensor, "L L"],
        label_counts: Int[Tensor, "L"] | Int[Tensor, "L L"],
        num_images: int | Int[Tensor, "L L"],
    ) -> dict[str, Any]:
        """What a `LabelGraph` of these counts is given beside them; see `edges_by_lift` for counts where entries are unknown."""
        match self.name:
            case "threshold":
                return {"threshold": self.threshold}
            case "top-k":
                edges = edges_by_top_k(co_occurrence, label_counts, k=self.top_k)
            case "lift":
                edges = edges_by_lift(
                    co_occurrence, label_counts, num_images=num_images, significance=self.significance
                )
            case "identity":
                edges = torch.zeros_like(co_occurrence, dtype=torch.bool)
        return {"edges": edges, "rule": str(self)}
