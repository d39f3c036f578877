"""The label graph: which labels occur together in the training images."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from msrn.errors import DataError, LabelMismatchError
from msrn.labels.edges import PUBLISHED_THRESHOLD, EdgeRule, edges_by_threshold, num_alone
from msrn.machine import lack_of_room

# Targets are turned into floats this many entries at a time, and at most so many images, whose counts float32 holds exactly.
_CHUNK_ENTRIES = 1 << 24
_CHUNK_IMAGES = 1 << 16


def count_co_occurrence(target: Int[Tensor, "N L"]) -> tuple[Int[Tensor, "L L"], Int[Tensor, "L"]]:
    """Count in how many images two labels occur together, and in how many each occurs.

    Args:
        target: 1 present, 0 absent, -1 unknown; only 1 counts.

    Returns:
        Images holding both labels, with a zero diagonal, and images holding each label.

    Raises:
        DataError: The counts of so many labels take more memory than is free.

    Example:
        >>> count_co_occurrence(torch.tensor([[1, 1, 0], [1, 0, -1]]))
        (tensor([[0, 1, 0],
                [1, 0, 0],
                [0, 0, 0]]), tensor([2, 1, 0]))
    """
    num_labels = target.shape[1]
    if lack := lack_of_room(3 * 8 * num_labels**2):  # counts, and the two graphs that are made of them
        raise DataError(
            f"to count {num_labels:,} labels together takes {lack}. Check that the column of labels is one, or name the labels to "
            "read (--label-names, data.label_names)."
        )
    both = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=target.device)
    for rows in target.split(_rows_at_once(num_labels)):
        present = (rows == 1).to(torch.float32)  # (n, L)
        both += (present.T @ present).round().to(torch.int64)  # (L, L), exact below 2^24 images
    label_counts = both.diagonal().clone()  # (L,)
    return both.fill_diagonal_(0), label_counts


def count_known(target: Int[Tensor, "N L"]) -> tuple[Int[Tensor, "L L"], Int[Tensor, "L L"]]:
    """For every two labels i and j: the images that hold i and of which j is known, and those of which both are known.

    Args:
        target: 1 present, 0 absent, -1 unknown.

    Example:
        >>> count_known(torch.tensor([[1, 1], [1, -1], [0, 0]]))
        (tensor([[2, 1],
                [1, 1]]), tensor([[3, 2],
                [2, 2]]))
    """
    num_labels = target.shape[1]
    counts = torch.zeros(num_labels, num_labels, dtype=torch.int64, device=target.device)
    num_images = torch.zeros_like(counts)
    for rows in target.split(_rows_at_once(num_labels)):
        present, known = (rows == 1).to(torch.float32), (rows >= 0).to(torch.float32)  # (n, L)
        counts += (present.T @ known).round().to(torch.int64)
        num_images += (known.T @ known).round().to(torch.int64)
    return counts, num_images


def _rows_at_once(num_labels: int) -> int:
    return min(_CHUNK_IMAGES, max(1, _CHUNK_ENTRIES // max(1, num_labels)))


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
    return weigh_edges(edges_by_threshold(co_occurrence, label_counts, threshold=threshold))


def weigh_edges(edges: Bool[Tensor, "L L"]) -> Float[Tensor, "L L"]:
    """The adjacency of edges: those that enter a label share a weight of 0.25, and every label has one of 1 to itself.

    Example:
        >>> weigh_edges(torch.tensor([[False, True], [False, False]]))
        tensor([[1.0000, 0.2500],
                [0.0000, 1.0000]])
    """
    values = edges.to(torch.float64)  # (L, L)
    weights = values * 0.25 / (values.sum(dim=0, keepdim=True) + 1e-6)
    return (weights + torch.eye(len(edges), dtype=torch.float64)).float()


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
        threshold: Least P(j | i) of an edge from label i to label j; not looked at where edges are given.
        edges: Edges from label i to label j that another rule chose, or None for those of the threshold.
        rule: How the edges were chosen, in words.

    Raises:
        ValueError: Shapes disagree, a count is negative, a label has an edge to itself, or the threshold is outside (0, 1].

    Example:
        >>> graph = LabelGraph.from_target(torch.tensor([[1, 1], [1, 0], [1, 0]]), ["person", "horse"])
        >>> graph.num_edges    # every horse comes with a person
        1
    """

    label_names: tuple[str, ...]
    co_occurrence: Int[Tensor, "L L"]
    label_counts: Int[Tensor, "L"]
    threshold: float = PUBLISHED_THRESHOLD
    edges: Bool[Tensor, "L L"] | None = field(default=None, repr=False)
    rule: str = ""
    adjacency: Float[Tensor, "L L"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        num_labels = len(self.label_names)
        shapes = (tuple(self.co_occurrence.shape), tuple(self.label_counts.shape))
        if shapes != ((num_labels, num_labels), (num_labels,)):
            raise ValueError(
                f"{num_labels} labels need co_occurrence of shape ({num_labels}, {num_labels}) and label_counts of shape "
                f"({num_labels},), got {shapes[0]} and {shapes[1]}. Build both from the same images (LabelGraph.from_target)."
            )
        twice = sorted(name for name, number in Counter(self.label_names).items() if number > 1)
        if twice:
            raise ValueError(f"labels have names of their own, but '{twice[0]}' is there twice. Rename one.")
        if bool((self.co_occurrence < 0).any()) or bool((self.label_counts < 0).any()):
            raise ValueError(
                "co_occurrence and label_counts are numbers of images, got negative ones. Count them anew."
            )
        if self.edges is None:
            adjacency = build_adjacency(self.co_occurrence, self.label_counts, threshold=self.threshold)
        else:
            if tuple(self.edges.shape) != (num_labels, num_labels) or bool(self.edges.diagonal().any()):
                raise ValueError(
                    f"edges join different labels and have shape ({num_labels}, {num_labels}), got "
                    f"{tuple(self.edges.shape)}{'' if self.edges.shape != shapes[0] else ' with a label joined to itself'}."
                    " Make them with msrn.labels.edges_by_top_k or edges_by_lift."
                )
            adjacency = weigh_edges(self.edges)
        object.__setattr__(self, "adjacency", adjacency)
        if not self.rule:
            rule = str(EdgeRule(threshold=self.threshold)) if self.edges is None else "given edges"
            object.__setattr__(self, "rule", rule)

    @classmethod
    def from_target(
        cls,
        target: Int[Tensor, "N L"],
        label_names: Sequence[str],
        *,
        threshold: float = PUBLISHED_THRESHOLD,
        rule: EdgeRule | None = None,
    ) -> "LabelGraph":
        """Count the graph over the *training* targets: 1 present, 0 absent, -1 unknown; `rule` goes before `threshold`."""
        both, counts = count_co_occurrence(target)
        rule = rule or EdgeRule(threshold=threshold)
        if rule.name == "lift" and bool((target < 0).any()):
            arguments = rule.arguments(both, *count_known(target))
        else:
            arguments = rule.arguments(both, counts, len(target))
        return cls(tuple(label_names), both, counts, **arguments)

    @property
    def num_labels(self) -> int:
        """Number of labels L."""
        return len(self.label_names)

    @property
    def num_edges(self) -> int:
        """Edges between two different labels."""
        return int((self.adjacency > 0).sum()) - self.num_labels

    @property
    def num_alone(self) -> int:
        """Labels that attend only to themselves."""
        return num_alone((self.adjacency > 0).fill_diagonal_(False))

    def reorder(self, label_names: Sequence[str]) -> "LabelGraph":
        """The same graph with its labels in another order.

        Raises:
            LabelMismatchError: The names are not those of the graph; the message says which are missing and which more.

        Example:
            >>> LabelGraph.from_target(torch.tensor([[1, 0], [1, 1]]), ["cat", "dog"]).reorder(["dog", "cat"]).label_counts
            tensor([1, 2])
        """
        index = {name: number for number, name in enumerate(self.label_names)}
        missing = [name for name in label_names if name not in index]
        more = sorted(index.keys() - set(label_names))
        if missing or more or len(label_names) != self.num_labels:
            lacks = f" It lacks {_shown(missing)}." if missing else ""
            has = f" It has {_shown(more)} beside them." if more else ""
            raise LabelMismatchError(
                f"the label graph knows {self.num_labels} labels, the data has {len(label_names)}.{lacks}{has} "
                "Count the graph on the same data (msrn labels graph)."
            )
        order = torch.tensor([index[name] for name in label_names])
        edges = None if self.edges is None else self.edges[order][:, order]
        both, counts = self.co_occurrence[order][:, order], self.label_counts[order]
        return LabelGraph(tuple(label_names), both, counts, self.threshold, edges, self.rule)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
