"""Metrics of multi-label classification as pure functions of probabilities and targets.

Every function takes `preds` (N, L), probabilities, and `target` (N, L), 1 present, 0 absent, -1 unknown. Unknown
entries never count. Results are fractions; NaN says that nothing could be measured.

Why these are not torchmetrics' functions (1.9.0): its multi-label average precision gives -0 and a warning for a label
without positives, fails on a label without known entries and on a single label, and rounds in float32, so that a
perfect ranking can score 1.0000001; its ranking loss depends on the order of tied labels; with ignore_index, its
coverage error and ranking loss still count the ignored labels; its LRAP loops over images in Python. Ours share one
count, `_at_or_above`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DEFAULT_THRESHOLD = 0.5

# Entries sorted at once: bounds the working memory at some 200 MB, however many images and labels there are.
BLOCK_SIZE = 2**22


class F1Scores(NamedTuple):
    """Precision, recall and F1 by label (C, for class) and over all decisions (O, for overall).

    Attributes:
        CP: Mean over labels of their precision.
        CR: Mean over labels of their recall.
        CF1: Harmonic mean of CP and CR; by the field's convention, not the mean of the labels' F1.
        OP: Precision of all decisions taken together.
        OR: Recall of all decisions taken together.
        OF1: Harmonic mean of OP and OR.
    """

    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float


def average_precision(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"]) -> Float[Tensor, " L"]:
    """Average precision of each label: the mean, over its positive images, of the precision at their score.

    Images with the same score are taken together, as scikit-learn does, so their order does not matter.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.

    Returns:
        One fraction per label, NaN for a label without positives.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, or target holds other values.

    Example:
        >>> preds = torch.tensor([[0.9, 0.3], [0.8, 0.2], [0.7, 0.1]])
        >>> target = torch.tensor([[1, 0], [0, 0], [1, -1]])
        >>> average_precision(preds, target)  # label 0: (1/1 + 2/3) / 2
        tensor([0.8333,    nan], dtype=torch.float64)
    """
    target = checked_target(preds, target)
    return _by_row(_row_average_precision, preds.T, target.T)


def mean_average_precision(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"]) -> Float[Tensor, ""]:
    """Mean of the average precision over the labels that have positives (mAP); NaN if none has.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.

    Returns:
        A fraction.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, or target holds other values.

    Example:
        >>> preds = torch.tensor([[0.9, 0.3], [0.8, 0.2]])
        >>> mean_average_precision(preds, torch.tensor([[1, 0], [0, 1]]))  # (1/1 + 1/2) / 2
        tensor(0.7500, dtype=torch.float64)
    """
    return average_precision(preds, target).nanmean()


def f1_scores(
    preds: Float[Tensor, "N L"],
    target: Int[Tensor, "N L"],
    *,
    threshold: float | Float[Tensor, " L"] = DEFAULT_THRESHOLD,
    top_k: int | None = None,
) -> F1Scores:
    """Precision, recall and F1, averaged over labels (CP, CR, CF1) and over all decisions (OP, OR, OF1).

    A label is predicted where its probability is at least the threshold or, with `top_k`, where it is one of the k
    highest known labels of its image; among equal probabilities the label that comes first is taken. The top k are
    plain: no threshold applies to them, although some papers also ask for a probability above 0.5 in their "top-3"
    columns.

    A label without positives is left out of CP and CR. A precision without predictions is 0.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.
        threshold: Least probability of a predicted label, one for all labels or one per label. Unused with `top_k`.
        top_k: Labels to predict per image.

    Returns:
        Six fractions, all NaN if nothing is present in any image.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, target holds other values, or top_k is below 1.

    Example:
        >>> preds = torch.tensor([[0.9, 0.6], [0.2, 0.7]])
        >>> f1_scores(preds, torch.tensor([[1, 0], [1, 1]]))
        F1Scores(CP=0.75, CR=0.75, CF1=0.75, OP=0.6666666666666666, OR=0.6666666666666666, OF1=0.6666666666666666)
    """
    target = checked_target(preds, target)
    if isinstance(threshold, Tensor):
        if threshold.shape not in {(), preds.shape[1:]}:
            raise ValueError(
                f"threshold must be one number or {preds.shape[1]} numbers, one per label, got shape "
                f"{tuple(threshold.shape)}. Pass thresholds in the order of the columns of preds."
            )
        threshold = threshold.to(preds.device)
    known = target != -1
    predicted = (preds >= threshold if top_k is None else _highest(preds, known, top_k)) & known
    positive = target == 1
    # The counts are small: Python's floats carry them exactly, and the report needs plain floats anyway.
    num_correct = (predicted & positive).sum(0).tolist()
    num_predicted = predicted.sum(0).tolist()
    num_positive = positive.sum(0).tolist()

    labels = [label for label, count in enumerate(num_positive) if count > 0]
    if not labels:
        return F1Scores(*[math.nan] * 6)
    CP = math.fsum(num_correct[i] / max(num_predicted[i], 1) for i in labels) / len(labels)
    CR = math.fsum(num_correct[i] / num_positive[i] for i in labels) / len(labels)
    OP = sum(num_correct) / max(sum(num_predicted), 1)
    OR = sum(num_correct) / sum(num_positive)
    return F1Scores(CP, CR, _harmonic_mean(CP, CR), OP, OR, _harmonic_mean(OP, OR))


def coverage_error(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"]) -> Float[Tensor, ""]:
    """How many of an image's labels, from the highest down, cover all that are present; the mean over images.

    Tied labels all count, as in scikit-learn. An image with nothing present counts as 0; one without a known label is
    left out.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.

    Returns:
        A number of labels, at best the mean number of labels present; NaN if nothing is known.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, or target holds other values.

    Example:
        >>> preds = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.8, 0.6]])
        >>> coverage_error(preds, torch.tensor([[1, 0, 0], [1, -1, 0]]))  # (1 + 2) / 2
        tensor(1.5000, dtype=torch.float64)
    """
    return _by_image(_row_coverage, preds, target)


def label_ranking_average_precision(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"]) -> Float[Tensor, ""]:
    """Average precision of each image's ranking of its labels, and the mean over images (LRAP).

    As in scikit-learn, an image whose known labels are all present or all absent counts as 1. One without a known label
    is left out.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.

    Returns:
        A fraction, at best 1; NaN if nothing is known.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, or target holds other values.

    Example:
        >>> preds = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.8, 0.6]])
        >>> label_ranking_average_precision(preds, torch.tensor([[1, 0, 0], [1, -1, 0]]))  # (1/1 + 1/2) / 2
        tensor(0.7500, dtype=torch.float64)
    """
    # Average precision along the image's labels; it is NaN only where nothing is present.
    return _by_image(lambda preds, target: _row_average_precision(preds, target).nan_to_num(1.0), preds, target)


def ranking_loss(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"]) -> Float[Tensor, ""]:
    """Share of an image's (present, absent) pairs of labels in the wrong order; the mean over images.

    A tie counts as wrong, as in scikit-learn. An image whose known labels are all present or all absent counts as 0;
    one without a known label is left out.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.

    Returns:
        A fraction, at best 0; NaN if nothing is known.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, or target holds other values.

    Example:
        >>> preds = torch.tensor([[0.9, 0.5, 0.1], [0.3, 0.8, 0.6]])
        >>> ranking_loss(preds, torch.tensor([[0, 1, 0], [1, -1, 0]]))  # (1/2 + 1/1) / 2
        tensor(0.7500, dtype=torch.float64)
    """
    return _by_image(_row_ranking_loss, preds, target)


def evaluate_predictions(
    preds: Float[Tensor, "N L"],
    target: Int[Tensor, "N L"],
    label_names: Sequence[str],
    *,
    threshold: float | Float[Tensor, " L"] = DEFAULT_THRESHOLD,
    fitted: Float[Tensor, " L"] | None = None,
) -> dict[str, Any]:
    """The evaluation report: every metric of this module, as plain values that JSON can hold.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.
        label_names: Names of the columns.
        threshold: Least probability of a predicted label in CP to OF1, one for all labels or one per label.
        fitted: Thresholds fitted on validation images, one a label, to measure beside it.

    Returns:
        Fractions under `mAP`, `CP`, `CR`, `CF1`, `OP`, `OR`, `OF1`, the last six also with `_top3` and, if given, `_fitted`,
        `label_ranking_average_precision` and `ranking_loss`; `coverage_error`, a number of labels; `labels`, average
        precision by name; `labels_without_positives`, their names; `num_images`; `num_unknown`, entries of target that
        are -1. None stands for what could not be measured.

    Raises:
        ValueError: Shapes or the number of names differ, preds are no probabilities, or target holds other values.

    Example:
        >>> preds = torch.tensor([[0.9, 0.3], [0.8, 0.2], [0.7, 0.1]])
        >>> report = evaluate_predictions(preds, torch.tensor([[1, 0], [0, 0], [1, -1]]), ["cat", "dog"])
        >>> round(report["mAP"], 4), report["CR"], report["labels_without_positives"], report["num_unknown"]
        (0.8333, 1.0, ['dog'], 1)
    """
    target = checked_target(preds, target)
    if len(label_names) != preds.shape[1] or len(set(label_names)) != len(label_names):
        raise ValueError(
            f"label_names must give one distinct name per column of preds ({preds.shape[1]}), got {len(label_names)} "
            f"names, {len(set(label_names))} of them distinct. Pass the names the model was trained with."
        )
    by_label = average_precision(preds, target)
    at_threshold = f1_scores(preds, target, threshold=threshold)
    top3 = f1_scores(preds, target, top_k=3)
    measured = {
        "mAP": by_label.nanmean().item(),
        **at_threshold._asdict(),
        **{f"{name}_top3": value for name, value in top3._asdict().items()},
        **({} if fitted is None else _at_fitted(preds, target, fitted)),
        "coverage_error": coverage_error(preds, target).item(),
        "label_ranking_average_precision": label_ranking_average_precision(preds, target).item(),
        "ranking_loss": ranking_loss(preds, target).item(),
    }
    labels = {name: _none_for_nan(value) for name, value in zip(label_names, by_label.tolist(), strict=True)}
    return {
        **{name: _none_for_nan(value) for name, value in measured.items()},
        "labels": labels,
        "labels_without_positives": [name for name, value in labels.items() if value is None],
        "num_images": len(preds),
        "num_unknown": int((target == -1).sum()),
    }


def _at_fitted(preds: Tensor, target: Tensor, fitted: Tensor) -> dict[str, float]:
    return {f"{name}_fitted": value for name, value in f1_scores(preds, target, threshold=fitted)._asdict().items()}


def checked_target(preds: Tensor, target: Tensor) -> Tensor:
    """Check what every metric is given; return target on the device of preds."""
    if preds.ndim != 2 or preds.shape != target.shape:
        raise ValueError(
            f"preds and target must have the same shape (N, L), got {tuple(preds.shape)} and {tuple(target.shape)}. "
            "Give both one row an image and one column a label."
        )
    if not preds.is_floating_point():
        raise ValueError(f"preds must be floating point, got {preds.dtype}. Pass probabilities, not decisions.")
    # One pass over the data in the usual case: a NaN fails both comparisons.
    if not bool(((preds >= 0) & (preds <= 1)).all()):
        invalid_rows = preds.isnan().any(1).nonzero()
        if len(invalid_rows):
            raise ValueError(
                f"preds must be probabilities, got NaN in {len(invalid_rows)} rows, the first is row "
                f"{int(invalid_rows[0])}. Look at that image and at the model's weights."
            )
        raise ValueError(
            f"preds must be probabilities in [0, 1], got values from {preds.min().item():.4g} to "
            f"{preds.max().item():.4g}. Apply torch.sigmoid to logits first."
        )
    invalid = target[(target != 0) & (target != 1) & (target != -1)]
    if len(invalid):
        raise ValueError(
            f"target must hold 1 (present), 0 (absent) or -1 (unknown), got {invalid[0].item()}. "
            "Map other values to these first."
        )
    return target.to(preds.device)


def _by_row(function: Callable[[Tensor, Tensor], Tensor], preds: Tensor, target: Tensor) -> Tensor:
    """`function` of blocks of rows, (R, C) to (R,), joined."""
    num_rows = max(1, BLOCK_SIZE // max(1, preds.shape[1]))
    blocks = zip(preds.split(num_rows), target.split(num_rows), strict=True)
    return torch.cat([function(preds, target) for preds, target in blocks])


def _by_image(function: Callable[[Tensor, Tensor], Tensor], preds: Tensor, target: Tensor) -> Tensor:
    """Mean of `function` over the images of which anything is known."""
    target = checked_target(preds, target)
    is_known = (target != -1).any(1)  # (N,)
    return _by_row(function, preds[is_known], target[is_known]).mean()


def _at_or_above(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By row and falling preds: is the entry positive; how many positive, and known, entries score at least as much."""
    # Probabilities are never below 0, so unknown entries come last and add to no count before them.
    scores, order = preds.masked_fill(target == -1, -1.0).sort(dim=1, descending=True)  # (R, C)
    ordered = target.gather(1, order)
    is_positive = ordered == 1
    position = torch.arange(preds.shape[1], device=preds.device).expand_as(order)
    is_last_of_tie = torch.ones_like(is_positive)
    is_last_of_tie[:, :-1] = scores[:, 1:] != scores[:, :-1]
    # From each entry to the end of its tie: the nearest marked position at or after it.
    end = position.masked_fill(~is_last_of_tie, preds.shape[1]).flip(1).cummin(1).values.flip(1)
    return is_positive, is_positive.cumsum(1).gather(1, end), (ordered != -1).cumsum(1).gather(1, end)


def _row_average_precision(preds: Tensor, target: Tensor) -> Tensor:
    is_positive, positives, known = _at_or_above(preds, target)
    precision = positives.to(_precise(preds)) / known.clamp(min=1)
    return precision.masked_fill(~is_positive, 0.0).sum(1) / is_positive.sum(1)  # (R,), 0 / 0 is NaN


def _row_coverage(preds: Tensor, target: Tensor) -> Tensor:
    lowest_positive = preds.masked_fill(target != 1, math.inf).amin(1, keepdim=True)  # (R, 1)
    return ((preds >= lowest_positive) & (target != -1)).sum(1).to(_precise(preds))


def _row_ranking_loss(preds: Tensor, target: Tensor) -> Tensor:
    is_positive, positives, known = _at_or_above(preds, target)
    num_wrong = (known - positives).masked_fill(~is_positive, 0).sum(1)
    num_pairs = (target == 1).sum(1) * (target == 0).sum(1)
    return num_wrong.to(_precise(preds)) / num_pairs.clamp(min=1)


def _highest(preds: Tensor, known: Tensor, k: int) -> Bool[Tensor, "N L"]:
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}. Pass None to use thresholds.")
    order = preds.masked_fill(~known, -1.0).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(known).scatter(1, order[:, :k], True)


def _precise(preds: Tensor) -> torch.dtype:
    return torch.float32 if preds.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
