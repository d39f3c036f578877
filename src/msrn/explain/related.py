"""How far a related label moves a score: the change when its edge in the label graph is taken away."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from msrn.models import MSRN
from msrn.models.classifier import PerLabelClassifier
from msrn.models.label_group import LabelGroups


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


@torch.no_grad()
def related_effects(model: MSRN, images: Float[Tensor, "B 3 H W"], labels: Sequence[int]) -> list[Related]:
    """What the labels that each label attends to do to its logit.

    For every edge that leads to a chosen label the label graph is read anew without it, with all that follows: embeddings, groups
    and membership.

    Args:
        model: The network, in evaluation mode.
        images: A batch, preprocessed.
        labels: Indices of labels.

    Returns:
        One entry an edge, in the order of the labels, for each the greatest mean effect first.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("the network is in training mode, where its logits are others. Call model.eval() first.")
    feature_maps = model.backbone(images)
    projected = model.attention.project(feature_maps)
    factor = model.path_weight
    whole = model.embed()
    attended = _attended_logits(model, projected, whole, list(labels))
    adjacency = model.label_group.adjacency  # an edge leads from the label that is followed; the follower attends to it
    found = []
    for column, label in enumerate(labels):
        edges = []
        for other in (adjacency[:, label] > 0).nonzero().squeeze(1).tolist():
            if other == label:
                continue
            less = adjacency.clone()
            less[other, label] = 0.0
            without: LabelGroups = functional_call(model.label_group, {"adjacency": less}, ())
            effect = attended[:, column] - _attended_logits(model, projected, without, [label])[:, 0]
            edges.append(Related(label, other, factor * effect))
        found += sorted(edges, key=lambda edge: -float(edge.effects.abs().mean()))
    return found


def _attended_logits(
    model: MSRN, projected: Sequence[Tensor], label_groups: LabelGroups, labels: list[int]
) -> Float[Tensor, "B n"]:
    """The logits of the attended stages alone, of the labels chosen; a joint classifier needs all labels to say one."""
    classifier = model.classifier
    if not isinstance(classifier, PerLabelClassifier):
        features = model.attention.attend(projected, label_groups)
        logits: Tensor = classifier(*features, label_groups.assignment)
        return logits[:, labels]
    embeddings = torch.cat([label_groups.label_embeddings[labels], label_groups.group_embeddings])
    pooled = model.attention.pool(projected, embeddings)  # (B, n + G, S·D)
    own, shared = pooled[:, : len(labels)], pooled[:, len(labels) :]
    columns = [
        classifier(own[:, [column]], shared, label_groups.assignment[[label]], slice(label, label + 1))
        for column, label in enumerate(labels)
    ]
    return torch.cat(columns, dim=1)
