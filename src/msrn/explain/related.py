"""How far a related label moves a score: the change when its edge in the label graph is taken away."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from msrn.models import MSRN
from msrn.models.classifier import PerLabelClassifier
from msrn.models.label_group import LabelGroups

# What is pooled at a time takes no more memory than about this.
_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Related:
    """One edge of the label graph and what it does.

    Attributes:
        label: Index of the label whose score moves.
        other: Index of the label that it attends to.
        effects: For each image, the logit less what it is without the edge: above 0 the other label raises it.
    """

    label: int
    other: int
    effects: Float[Tensor, " B"]


class EdgeRemovals:
    """The label graph of a network read anew without each edge, kept for the labels last asked for.

    That does not depend on images, and takes longer than all the rest. The network's weights must not change in between.

    Args:
        model: The network, in evaluation mode.
        most_bytes: What is kept takes no more memory than about this.
    """

    def __init__(self, model: MSRN, *, most_bytes: int = 2**28) -> None:
        self.model = model
        groups = model.embed()
        num_edges = int((model.label_group.adjacency > 0).sum(dim=0).max())
        num_rows = len(groups.group_embeddings) + (1 if _is_per_label(model) else len(groups.label_embeddings))
        most = max(1, most_bytes // max(1, 4 * num_edges * num_rows * groups.label_embeddings.shape[1]))
        self.of = functools.lru_cache(most)(self._of)

    @torch.no_grad()
    def _of(self, label: int) -> tuple[tuple[int, LabelGroups], ...]:
        """For each label that this one attends to, its index and what the graph gives without the edge.

        With a per-label classifier that is the label's own row alone, and all groups.
        """
        label_group = self.model.label_group
        adjacency = label_group.adjacency  # an edge leads from the label that is followed; the follower attends to it
        found = []
        for other in (adjacency[:, label] > 0).nonzero().squeeze(1).tolist():
            if other == label:
                continue
            less = adjacency.clone()
            less[other, label] = 0.0
            without: LabelGroups = functional_call(label_group, {"adjacency": less}, ())
            found.append((other, _rows(without, [label]) if _is_per_label(self.model) else without))
        return tuple(found)


@torch.no_grad()
def related_effects(
    model: MSRN,
    images: Float[Tensor, "B 3 H W"],
    labels: Sequence[int],
    *,
    feature_maps: Sequence[Float[Tensor, "B _c _h _w"]] | None = None,
    removals: EdgeRemovals | None = None,
) -> list[Related]:
    """What the labels that each label attends to do to its logit.

    For every edge that leads to a chosen label the label graph is read anew without it, with all that follows: embeddings, groups
    and membership.

    Args:
        model: The network, in evaluation mode.
        images: A batch, preprocessed.
        labels: Indices of labels.
        feature_maps: What the backbone makes of the images, where that is known already.
        removals: Kept from one call to the next, the label graph is read once an edge.

    Returns:
        One entry an edge, in the order of the labels, for each the greatest mean effect first.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("the network is in training mode, where its logits are others. Call model.eval() first.")
    if feature_maps is None:
        feature_maps = model.backbone(images)
    removals = removals or EdgeRemovals(model)
    projected = model.attention.project(feature_maps)
    whole = model.embed()
    found = []
    for block in _blocks(model, labels, removals, batch=len(images)):
        graphs = [
            [_rows(whole, [label]) if _is_per_label(model) else whole, *(groups for _, groups in without)]
            for label, without in block
        ]
        logits = _attended_logits(model, projected, graphs, [label for label, _ in block])
        for label, without in block:
            with_all = next(logits)
            edges = [Related(label, other, model.path_weight * (with_all - next(logits))) for other, _ in without]
            found += sorted(edges, key=lambda edge: -float(edge.effects.abs().mean()))
    return found


_Block = list[tuple[int, tuple[tuple[int, LabelGroups], ...]]]


def _blocks(model: MSRN, labels: Sequence[int], removals: EdgeRemovals, *, batch: int) -> Iterator[_Block]:
    """Labels that have edges, with what the graph gives without each, as many at a time as are pooled at once."""
    block: _Block = []
    num_graphs = 0
    for label in labels:
        if not (without := removals.of(label)):
            continue
        groups = without[0][1]
        num_rows = len(groups.label_embeddings) + len(groups.group_embeddings)
        width = len(model.attention.stages) * groups.label_embeddings.shape[1]
        most = _MOST_BYTES // (4 * batch * num_rows * width)
        if block and num_graphs + len(without) + 1 > most:
            yield block
            block, num_graphs = [], 0
        block.append((label, without))
        num_graphs += len(without) + 1
    if block:
        yield block


def _attended_logits(
    model: MSRN, projected: Sequence[Tensor], graphs: Sequence[Sequence[LabelGroups]], labels: Sequence[int]
) -> Iterator[Float[Tensor, " B"]]:
    """Each label's logit of the attended stages alone, by each of its graphs; a joint classifier needs all labels to say one."""
    classifier = model.classifier
    pairs = [(label, own) for label, of_label in zip(labels, graphs, strict=True) for own in of_label]
    if not isinstance(classifier, PerLabelClassifier):
        for label, own in pairs:
            yield classifier(*model.attention.attend(projected, own), own.assignment)[:, label]
        return
    # All in one pass: most of what attention costs does not depend on how many ask.
    embeddings = [torch.cat([own.label_embeddings, own.group_embeddings]) for _, own in pairs]  # k x (1 + G, D)
    pooled = model.attention.pool(projected, torch.cat(embeddings)).split([len(own) for own in embeddings], dim=1)
    for (label, own), features in zip(pairs, pooled, strict=True):
        yield classifier(features[:, :1], features[:, 1:], own.assignment, slice(label, label + 1))[:, 0]


def _is_per_label(model: MSRN) -> bool:
    return isinstance(model.classifier, PerLabelClassifier)


def _rows(groups: LabelGroups, labels: list[int]) -> LabelGroups:
    """Some labels alone, with all groups."""
    return LabelGroups(groups.label_embeddings[labels], groups.group_embeddings, groups.assignment[labels])
