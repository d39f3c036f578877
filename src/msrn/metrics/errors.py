"""What goes wrong: labels said in place of others, and labels of the data that are themselves likely wrong."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from msrn.metrics.functional import DEFAULT_THRESHOLD, checked_target


def co_errors(
    preds: Float[Tensor, "N L"],
    target: Int[Tensor, "N L"],
    *,
    threshold: float | Float[Tensor, " L"] = DEFAULT_THRESHOLD,
) -> Int[Tensor, "L L"]:
    """In how many images label i was said though absent while label j was missed.

    A confusion matrix asks for one label an image; this one is valid for many: an entry is evidence that i is taken for j where
    it is large beside what the errors of both would give by chance. Unknown labels are no errors.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.
        threshold: Least probability of a predicted label, one for all labels or one per label.

    Returns:
        Rows: said and absent. Columns: missed.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1], [0.9, 0.2], [0.2, 0.9]])
        >>> co_errors(preds, torch.tensor([[0, 1], [0, 1], [0, 1]])).tolist()  # twice label 0 for label 1
        [[0, 2], [0, 0]]
    """
    target = checked_target(preds, target)
    predicted = preds >= (threshold.to(preds.device) if isinstance(threshold, Tensor) else threshold)
    false_alarm = (predicted & (target == 0)).float()
    miss = (~predicted & (target == 1)).float()
    return (false_alarm.T @ miss).round().long()


class Suspects(NamedTuple):
    """Entries of the target in order of how likely they are wrong, the likeliest first.

    Attributes:
        images: Row of each entry.
        labels: Column of each entry.
        probs: The model's probability that it is wrong.
    """

    images: Int[Tensor, " K"]
    labels: Int[Tensor, " K"]
    probs: Float[Tensor, " K"]


def likely_annotation_errors(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"], *, most: int = 100) -> Suspects:
    """The entries of the target that the model contradicts most: a present label of low probability, an absent one of high.

    The order is that of self-confidence in confident learning (`docs/evaluation.md` measures it).

    Args:
        preds: Probabilities of a model that was not trained on these images: on its training images it repeats their errors.
        target: 1 present, 0 absent, -1 unknown.
        most: Entries at most.

    Example:
        >>> preds = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.1], [0.2, 0.9]])
        >>> target = torch.tensor([[1, 0], [0, 0], [0, 0], [0, 1]])
        >>> found = likely_annotation_errors(preds, target, most=1)
        >>> int(found.images[0]), int(found.labels[0])  # image 1 has label 0 by the model, and not by the data
        (1, 0)

    Source: Northcutt et al., "Confident learning", https://arxiv.org/abs/1911.00068.
    """
    target = checked_target(preds, target)
    wrong = torch.where(target == 1, 1 - preds.double(), preds.double()).masked_fill(target == -1, -1.0)
    found = wrong.flatten().topk(min(most, int((target != -1).sum())))
    return Suspects(found.indices // preds.shape[1], found.indices % preds.shape[1], found.values)
