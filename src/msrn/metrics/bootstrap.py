"""How far a metric would move on other images of the same kind: resampled images, with every label of an image together."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from msrn.metrics.calibration import NUM_BINS
from msrn.metrics.functional import BLOCK_SIZE, DEFAULT_THRESHOLD, checked_target

NUM_RESAMPLES = 200
LEVEL = 0.95


class Resampled(NamedTuple):
    """Metrics of every resample.

    Attributes:
        average_precision: Of each label, NaN where the resample has no positive of it.
        mAP: Its mean over labels with positives.
        CF1: As `f1_scores` has it.
        OF1: As `f1_scores` has it.
        macro_F1: Mean F1 over labels with positives.
        ECE: Expected calibration error of all labels together.
    """

    average_precision: Float[Tensor, "R L"]
    mAP: Float[Tensor, " R"]
    CF1: Float[Tensor, " R"]
    OF1: Float[Tensor, " R"]
    macro_F1: Float[Tensor, " R"]
    ECE: Float[Tensor, " R"]


def resample_metrics(
    preds: Float[Tensor, "N L"],
    target: Int[Tensor, "N L"],
    *,
    threshold: float | Float[Tensor, " L"] = DEFAULT_THRESHOLD,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Draw as many images as there are, with replacement, again and again, and measure each time.

    The same seed and number of images draw the same images, so that two models on one split are compared image by image.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.
        threshold: Least probability of a predicted label, one for all labels or one per label.
        num_resamples: How often.
        seed: Of the draws.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, target holds other values, or there are no images.

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979.
    """
    target = checked_target(preds, target).cpu()
    preds = preds.cpu()
    if num_resamples < 1 or not len(preds):
        raise ValueError(f"resampling needs images and a resample, got {len(preds)} and {num_resamples}. Raise them.")
    rng = np.random.default_rng(seed)
    num_images = len(preds)
    drawn = [np.bincount(rng.integers(num_images, size=num_images), minlength=num_images) for _ in range(num_resamples)]
    counts = torch.from_numpy(np.stack(drawn)).float()  # (R, N): how often each image is drawn
    known = target != -1
    positive = target == 1
    predicted = (preds >= (threshold.cpu() if isinstance(threshold, Tensor) else threshold)) & known
    correct, chosen, present = (counts @ mask.float() for mask in (predicted & positive, predicted, positive))  # (R, L)
    has_positives = present > 0
    num_labels = has_positives.sum(1).clamp(min=1)
    CP = (correct / chosen.clamp(min=1)).masked_fill(~has_positives, 0).sum(1) / num_labels
    CR = (correct / present.clamp(min=1)).masked_fill(~has_positives, 0).sum(1) / num_labels
    OP = correct.sum(1) / chosen.sum(1).clamp(min=1)
    OR = correct.sum(1) / present.sum(1).clamp(min=1)
    num_rows = max(1, BLOCK_SIZE // num_images)  # resamples at a time
    columns = [
        torch.cat(
            [_weighted_average_precision(preds[:, label], target[:, label], block) for block in counts.split(num_rows)]
        )
        for label in range(preds.shape[1])
    ]
    average_precision = torch.stack(columns, dim=1)
    f1 = (2 * correct / (chosen + present).clamp(min=1)).masked_fill(~has_positives, 0).sum(1) / num_labels
    nothing = ~has_positives.any(1)  # of resamples without a positive nothing can be said
    CF1, OF1, macro = (
        values.double().masked_fill(nothing, torch.nan) for values in (_harmonic(CP, CR), _harmonic(OP, OR), f1)
    )
    ECE = _calibration_errors(preds, target, counts)
    return Resampled(average_precision, average_precision.nanmean(1), CF1, OF1, macro, ECE)


def interval(
    values: Float[Tensor, "R *rest"], estimate: float | Float[Tensor, "*rest"] | None = None, *, level: float = LEVEL
) -> tuple[Tensor, Tensor]:
    """An interval around an estimate: the middle share of the values over resamples, moved by their bias.

    Images that are drawn twice raise average precision, and labels whose few predictions are not drawn lower F1. With many labels
    that moves the resamples further than they spread, so the mean of the resamples is moved onto the estimate.

    Args:
        values: Of each resample.
        estimate: On the images as they are; None leaves the values where they are.
        level: How much lies between the bounds.

    Returns:
        Lower and upper bound, NaN where there is none.

    Example:
        >>> low, high = interval(torch.arange(101).double(), level=0.9)
        >>> round(float(low), 6), round(float(high), 6)
        (5.0, 95.0)
    """
    tail = (1 - level) / 2
    bounds = torch.nanquantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    if estimate is not None:
        bounds = bounds + (estimate - values.double().nanmean(0))
    return bounds[0], bounds[1]


def _weighted_average_precision(preds: Tensor, target: Tensor, counts: Tensor) -> Float[Tensor, " R"]:
    """Average precision of one label where image i is there counts[r, i] times."""
    known = (target != -1).nonzero().squeeze(1)
    scores, order = preds[known].sort(descending=True)
    order = known[order]
    is_positive = (target[order] == 1).float()
    drawn = counts[:, order]  # (R, K)
    hits = drawn * is_positive
    # Images with the same score count together: each looks at the end of its tie.
    is_last = torch.ones(len(scores), dtype=torch.bool)
    is_last[:-1] = scores[1:] != scores[:-1]
    ends = is_last.nonzero().squeeze(1)
    end = ends[torch.searchsorted(ends, torch.arange(len(scores)))]
    precision = hits.cumsum(1)[:, end] / drawn.cumsum(1)[:, end].clamp(min=1)
    return (hits * precision).sum(1).double() / hits.sum(1)  # 0 / 0 is NaN


def _calibration_errors(
    preds: Tensor, target: Tensor, counts: Float[Tensor, "R N"], num_bins: int = NUM_BINS
) -> Float[Tensor, " R"]:
    """Expected calibration error of each resample, from sums over each image's entries."""
    known = target != -1
    index = (preds.double() * num_bins).long().clamp(max=num_bins - 1)
    sums = [torch.zeros(len(preds), num_bins, dtype=torch.float64) for _ in range(3)]
    for total, values in zip(sums, (known, preds.double() * known, (target == 1) & known), strict=True):
        total.scatter_add_(1, index, values.double())
    num_known, probs, present = (counts.double() @ total for total in sums)  # (R, bins)
    distance = (probs - present).abs().sum(1)
    return distance / num_known.sum(1)  # 0 / 0 is NaN


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    return (2 * a * b / (a + b)).nan_to_num(0.0).double()
