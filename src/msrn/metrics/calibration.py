"""Probabilities that mean what they say: of the images given 0.8, eight in ten have the label.

A calibration maps each label's logit to a probability and never turns two logits around, so rankings and mAP stay as they are.
It is fitted on validation images; labels with few positives are drawn towards the calibration of all labels together.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from msrn.errors import MissingDependencyError
from msrn.metrics.functional import checked_target

METHODS = ("temperature", "platt", "isotonic")
# So many images' worth of evidence does the calibration of all labels have against a label's own.
PRIOR_STRENGTH = 20.0
# Of reliability diagrams and calibration errors, everywhere.
NUM_BINS = 15
_MAX_KNOTS = 64
_LEAST = 1e-6
_END = 40.0  # knots end at these logits, where float32 probabilities have long been 0 and 1
_NUM_STEPS = 50


@dataclass(frozen=True)
class ScaledLogits:
    """Temperature scaling and Platt's: sigmoid(scale · logit + offset), a label.

    Attributes:
        scales: Above 0; one over the temperature.
        offsets: All 0 for temperature scaling.
        method: `temperature` or `platt`.

    Source: Guo et al., https://arxiv.org/abs/1706.04599; Platt, "Probabilistic outputs for support vector machines", 1999.
    """

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    method: str = "temperature"

    def __call__(self, logits: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Calibrated probabilities."""
        return (logits * logits.new_tensor(self.scales) + logits.new_tensor(self.offsets)).sigmoid()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"method": self.method, "scales": list(self.scales), "offsets": list(self.offsets)}


@dataclass(frozen=True)
class PiecewiseLinear:
    """Isotonic regression: each label's probability is linear in the logit between knots, and constant beyond the outer two.

    The knots lie at the centres of the blocks of equal probability (centred isotonic regression), so that different logits keep
    different probabilities.

    Attributes:
        logits: Knots of each label, rising.
        probs: Their probabilities, rising.

    Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates", 2002; Oron and
        Flournoy, https://arxiv.org/abs/1701.05964.
    """

    logits: tuple[tuple[float, ...], ...]
    probs: tuple[tuple[float, ...], ...]
    method: str = "isotonic"

    def __call__(self, logits: Float[Tensor, "N L"]) -> Float[Tensor, "N L"]:
        """Calibrated probabilities."""
        values = logits.detach().cpu().double().numpy()
        columns = [
            np.interp(values[:, label], self.logits[label], self.probs[label]) for label in range(len(self.logits))
        ]
        return torch.from_numpy(np.stack(columns, axis=1)).to(logits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "method": self.method,
            "logits": [list(row) for row in self.logits],
            "probs": [list(row) for row in self.probs],
        }


Calibration = ScaledLogits | PiecewiseLinear


def calibration_from_dict(values: dict[str, Any], num_labels: int) -> Calibration:
    """Read what `to_dict` wrote; strangers may have written anything.

    Raises:
        ValueError: A key is missing, a list has another length, or numbers that no calibration has.
    """
    method = values.get("method")
    if method in ("temperature", "platt"):
        scales, offsets = (_floats(values.get(name), name, num_labels) for name in ("scales", "offsets"))
        if min(scales) <= 0:
            raise ValueError(f"scales must be above 0, got {min(scales)}.")
        return ScaledLogits(scales, offsets, method)
    if method != "isotonic":
        raise ValueError(f"'{method}' is no calibration; expected {', '.join(METHODS)}.")
    knots: list[tuple[tuple[float, ...], ...]] = []
    for name in ("logits", "probs"):
        rows = values.get(name)
        if not isinstance(rows, list) or len(rows) != num_labels:
            raise ValueError(f"{name} must hold one list for each of {num_labels} labels.")
        knots.append(tuple(_floats(row, name, None) for row in rows))
    for logits, probs in zip(*knots, strict=True):
        rising = all(a < b for a, b in pairwise(logits))
        if (
            not rising
            or len(logits) != len(probs)
            or not all(a < b for a, b in pairwise(probs))
            or not 0 <= probs[0] <= probs[-1] <= 1
        ):
            raise ValueError(
                "the knots of isotonic calibration must rise, and their probabilities lie between 0 and 1."
            )
    return PiecewiseLinear(knots[0], knots[1])


def _floats(values: Any, name: str, count: int | None) -> tuple[float, ...]:
    if not isinstance(values, list) or not values or (count is not None and len(values) != count):
        raise ValueError(f"{name} must be a list of {'some' if count is None else count} numbers.")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30 for v in values):
        raise ValueError(f"{name} must hold finite numbers alone.")
    return tuple(float(value) for value in values)


def fit_calibration(
    logits: Float[Tensor, "N L"],
    target: Int[Tensor, "N L"],
    method: str = "temperature",
    *,
    prior_strength: float = PRIOR_STRENGTH,
) -> Calibration:
    """Fit a calibration on validation images.

    Args:
        logits: The model's output.
        target: 1 present, 0 absent, -1 unknown.
        method: `temperature` (one scale a label), `platt` (a scale and an offset) or `isotonic` (any rising curve).
        prior_strength: How strongly labels are drawn to the calibration of all labels together, in images.

    Raises:
        ValueError: No such method, shapes differ, or logits that are not finite.
        MissingDependencyError: scikit-learn is not installed, for `isotonic`.
    """
    if method not in METHODS:
        raise ValueError(f"'{method}' is no calibration. Take {', '.join(METHODS)}.")
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite. Check the model's weights.")
    logits = logits.detach().cpu().double()
    target = checked_target(logits.sigmoid(), target.cpu())
    if method == "isotonic":
        return _fit_isotonic(logits, target, prior_strength)
    has_offset = method == "platt"
    shared = _fit_scaled(
        logits.reshape(-1, 1), target.reshape(-1, 1), torch.tensor([[1.0, 0.0]]).double(), 1.0, has_offset
    )
    fitted = _fit_scaled(logits, target, shared, prior_strength, has_offset)
    scales, offsets = fitted.unbind(1)
    return ScaledLogits(tuple(scales.tolist()), tuple(offsets.tolist()), method)


def _fit_scaled(
    logits: Tensor, target: Tensor, prior: Float[Tensor, "_ 2"], strength: float, has_offset: bool
) -> Float[Tensor, "L 2"]:
    """Scale and offset of each column, by Newton's method on the log loss and a Gaussian around the prior.

    The loss is convex in both. The prior weighs as `strength` images of probability one half at the logits' own spread.
    """
    known = (target != -1).double()
    spread = ((logits.square() * known).sum(0) / known.sum(0).clamp(min=1)).clamp(min=1e-3)  # (L,)
    weight = strength / 4 * torch.stack([spread, torch.ones_like(spread)], dim=1)  # (L, 2)
    params = prior.expand(logits.shape[1], 2).clone()
    start = params.clone()
    for _ in range(_NUM_STEPS):
        probs = (logits * params[:, 0] + params[:, 1]).sigmoid()
        error = (probs - target) * known
        slope = probs * (1 - probs) * known
        gradient = torch.stack([(error * logits).sum(0), error.sum(0)], dim=1) + weight * (params - start)
        a = (slope * logits.square()).sum(0) + weight[:, 0]
        b = (slope * logits).sum(0) * float(has_offset)
        c = slope.sum(0) + weight[:, 1]
        determinant = a * c - b * b
        if not has_offset:
            gradient[:, 1] = 0.0
        step = torch.stack(
            [(c * gradient[:, 0] - b * gradient[:, 1]), (a * gradient[:, 1] - b * gradient[:, 0])], dim=1
        ) / determinant.unsqueeze(1)
        # Half the scale at most in one step, so that it stays above 0.
        step[:, 0] = step[:, 0].clamp(-params[:, 0], params[:, 0] / 2)
        params = params - step.clamp(-2.0, 2.0)
        if float(step.abs().max()) < 1e-9:
            break
    return params


def _fit_isotonic(logits: Tensor, target: Tensor, strength: float) -> PiecewiseLinear:
    known = target != -1
    pooled_x, pooled_y = _isotonic_knots(
        logits[known].numpy(), target[known].double().numpy(), np.ones(int(known.sum())), num_fictive=2.0
    )
    rows = []
    for label in range(logits.shape[1]):
        x, y = logits[known[:, label], label].numpy(), target[known[:, label], label].double().numpy()
        # The common curve, as so many images more, spread as this label's are.
        at = np.quantile(x, np.linspace(0, 1, _MAX_KNOTS)) if len(x) else np.linspace(-5, 5, _MAX_KNOTS)
        rows.append(
            _isotonic_knots(
                np.concatenate([x, at]),
                np.concatenate([y, np.interp(at, pooled_x, pooled_y)]),
                np.concatenate([np.ones(len(x)), np.full(len(at), max(strength, 1e-6) / len(at))]),
            )
        )
    return PiecewiseLinear(tuple(tuple(x.tolist()) for x, _ in rows), tuple(tuple(y.tolist()) for _, y in rows))


def _isotonic_knots(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, *, num_fictive: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Knots at the centres of the blocks that isotonic regression pools, strictly rising, between two far ends."""
    try:
        from sklearn.isotonic import IsotonicRegression
    except ModuleNotFoundError as error:
        raise MissingDependencyError("isotonic calibration needs scikit-learn: pip install 'msrn[report]'.") from error
    if num_fictive:  # an image of either kind at each end, so that no probability is 0 or 1
        x, y = np.concatenate([x, [x.min(), x.max()]]), np.concatenate([y, [1.0, 0.0]])
        weight = np.concatenate([weight, [num_fictive / 2] * 2])
    order = np.argsort(x, kind="stable")
    x, weight = x[order], weight[order]
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(x, y[order], sample_weight=weight)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(fitted) > 1e-12]))
    sums = np.add.reduceat(weight, starts)
    centres = np.add.reduceat(weight * x, starts) / sums
    values = np.clip(fitted[starts], 10 * _LEAST, 1 - 10 * _LEAST)
    keep = np.concatenate([[True], (np.diff(values) > 0) & (np.diff(centres) > 0)])
    centres, values = centres[keep], values[keep]
    if len(centres) > _MAX_KNOTS:  # evenly over the images
        position = np.linspace(0, len(centres) - 1, _MAX_KNOTS).round().astype(int)
        centres, values = centres[position], values[position]
    inside = np.abs(centres) < _END
    centres, values = centres[inside], values[inside]
    return np.concatenate([[-_END], centres, [_END]]), np.concatenate([[_LEAST], values, [1 - _LEAST]])


class Reliability(NamedTuple):
    """Predicted probability against how often the label was there, in bins of equal width.

    Attributes:
        counts: Known entries in each bin.
        mean_probs: Their mean probability, NaN in an empty bin.
        shares: Which share of them was present, NaN in an empty bin.
    """

    counts: Int[Tensor, " bins"]
    mean_probs: Float[Tensor, " bins"]
    shares: Float[Tensor, " bins"]

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain values for JSON; None stands for what an empty bin does not tell."""
        means, shares = (
            [None if math.isnan(value) else value for value in values.tolist()]
            for values in (self.mean_probs, self.shares)
        )
        return {"counts": self.counts.tolist(), "probs": means, "shares": shares}

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of probability and share over the entries, NaN without any."""
        distance = (self.mean_probs - self.shares).abs().nan_to_num()
        total = int(self.counts.sum())
        return float((distance * self.counts).sum() / total) if total else math.nan


def reliability(preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"], *, num_bins: int = NUM_BINS) -> Reliability:
    """The reliability diagram of all labels together, or of one by a column of its own.

    Example:
        >>> found = reliability(torch.tensor([[0.9], [0.9], [0.1]]), torch.tensor([[1], [0], [0]]), num_bins=2)
        >>> found.counts.tolist(), found.shares.tolist(), round(found.error, 3)
        ([1, 2], [0.0, 0.5], 0.3)
    """
    target = checked_target(preds, target)
    known = target != -1
    probs, present = preds[known].double(), (target[known] == 1).double()
    index = (probs * num_bins).long().clamp(max=num_bins - 1)
    counts = torch.bincount(index, minlength=num_bins)
    sums = [torch.bincount(index, weights=values, minlength=num_bins) for values in (probs, present)]
    mean_probs, shares = (values / counts for values in sums)  # 0 / 0 is NaN
    return Reliability(counts, mean_probs, shares)


def calibration_error(
    preds: Float[Tensor, "N L"], target: Int[Tensor, "N L"], *, num_bins: int = NUM_BINS
) -> dict[str, float]:
    """Expected calibration error, as fractions.

    Returns:
        `ECE`, of all labels together, and `ECE_by_label`, the mean of the labels' own. With many labels most entries
        are near 0, which makes either small.
    """
    by_label = [
        reliability(preds[:, [label]], target[:, [label]], num_bins=num_bins).error for label in range(preds.shape[1])
    ]
    measured = [error for error in by_label if not math.isnan(error)]
    mean = sum(measured) / len(measured) if measured else math.nan
    return {"ECE": reliability(preds, target, num_bins=num_bins).error, "ECE_by_label": mean}
