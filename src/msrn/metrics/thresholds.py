"""From which probability a label is predicted: thresholds fitted on validation images, without overfitting the rare labels.

The threshold that did best on a few positives is noise. So a label's own images count the less the fewer positives it has, and
the rest of the weight goes to what its calibrated probabilities expect; how much is found by cross-fitting: thresholds fitted on
four fifths of the images are measured on the last. Labels with very few positives take one shared threshold, and
`Thresholds.is_shared` says which.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from msrn.metrics.calibration import fit_calibration
from msrn.metrics.functional import BLOCK_SIZE, checked_target

OBJECTIVES = ("f1", "precision", "recall", "labels")
# Below so many positives a label takes the shared threshold.
MIN_POSITIVES = 5
# Positives at which a label's own images and its calibrated probabilities count alike; the last asks the probabilities alone.
_SHRINKAGES = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0, math.inf)
# By how much more than was asked precision is demanded, on the scale of logits.
_MARGINS = (0.0, 0.25, 0.5, 1.0, 1.5)
_NUM_SHARED_CANDIDATES = 512
# So many images' worth does the curve of all labels weigh in what a label's probabilities expect.
_CURVE_PRIOR = 100.0
_EPS = 1e-12
# What no probability reaches: the threshold of a label that is never predicted.
NEVER = math.nextafter(1.0, 2.0)


@dataclass(frozen=True)
class Objective:
    """What thresholds are fitted for.

    Attributes:
        name: `f1`, the best F1 of every label; `precision` or `recall`, at least `value` for every label; `labels`, an image gets
            `value` labels on average, each label in proportion to how often it is present.
        value: A fraction for precision and recall, a number of labels for labels, None for f1.

    Raises:
        ValueError: No such objective, or a value that it cannot have.

    Example:
        >>> Objective.parse("precision=0.9")
        Objective(name='precision', value=0.9)
        >>> str(Objective.parse("labels=3"))
        'labels=3'
    """

    name: str = "f1"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"'{self.name}' is no objective. Take f1, precision=0.9, recall=0.8 or labels=3.")
        if self.name == "f1":
            if self.value is not None:
                raise ValueError(f"f1 takes no value, got {self.value:g}. Write f1 alone.")
        elif self.value is None or not math.isfinite(self.value) or self.value <= 0:
            raise ValueError(f"{self.name} needs a number above 0, such as {self.name}={_EXAMPLES[self.name]}.")
        elif self.name != "labels" and self.value >= 1:
            raise ValueError(
                f"{self.name} is a fraction below 1, got {self.value:g}. Write {self.name}={_EXAMPLES[self.name]}."
            )

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """Read `f1`, `precision=0.9`, `recall=0.8` or `labels=3`."""
        name, equals, number = (part.strip() for part in text.partition("="))
        try:
            value = float(number) if equals else None
        except ValueError:
            raise ValueError(f"'{number}' is no number. Write {name}={_EXAMPLES.get(name, 0.9)}.") from None
        return cls(name, value)

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value:g}"


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_probability(value: Any) -> TypeGuard[float]:
    return _is_number(value) and 0 <= value <= NEVER


_EXAMPLES = {"precision": 0.9, "recall": 0.8, "labels": 3}


@dataclass(frozen=True)
class Thresholds:
    """The least probability of a predicted label, a label.

    Attributes:
        values: One probability a label, in the labels' order; just above 1 for one that is never predicted.
        shared: The threshold of labels with too few positives.
        is_shared: Which labels take the shared threshold, as they have too few positives for one of their own.
        is_out_of_reach: Which labels cannot meet the objective at any threshold, and so are never predicted.
        objective: What they were fitted for.
        crossfit: What cross-fitting measured for the objective on images left out (macro F1, precision, recall, or labels an
            image), or None.
        fitted_on: On what they were fitted, in plain values.
    """

    values: tuple[float, ...]
    shared: float
    is_shared: tuple[bool, ...]
    is_out_of_reach: tuple[bool, ...]
    objective: str
    crossfit: float | None = None
    fitted_on: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("values", "is_shared", "is_out_of_reach")}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, values: dict[str, Any], num_labels: int) -> "Thresholds":
        """Read what `to_dict` wrote; strangers may have written anything.

        Raises:
            ValueError: A key is missing, a list has another length, or numbers that are no probabilities.
        """
        numbers, shared = values.get("values"), values.get("shared")
        if not isinstance(numbers, list) or len(numbers) != num_labels or not all(map(_is_probability, numbers)):
            raise ValueError(f"values must be {num_labels} probabilities, one a label.")
        if not _is_probability(shared):
            raise ValueError(f"shared must be a probability, got {shared!r}.")
        flags = []
        for name in ("is_shared", "is_out_of_reach"):
            own = values.get(name)
            if not isinstance(own, list) or len(own) != num_labels or not {*map(type, own)} <= {bool}:
                raise ValueError(f"{name} must be {num_labels} truth values, one a label.")
            flags.append(tuple(own))
        objective, crossfit = values.get("objective"), values.get("crossfit")
        if not isinstance(objective, str) or not (crossfit is None or _is_number(crossfit)):
            raise ValueError("objective must be a word and crossfit a number or null.")
        fitted_on = values.get("fitted_on", {})
        if not isinstance(fitted_on, dict):
            raise ValueError("fitted_on must be an object of keys and values.")
        return cls(tuple(map(float, numbers)), float(shared), flags[0], flags[1], objective, crossfit, fitted_on)

    def tensor(self) -> Float[Tensor, " L"]:
        """The values, in float64."""
        return torch.tensor(self.values, dtype=torch.float64)

    def shared_labels(self, label_names: Sequence[str]) -> list[str]:
        """The names of the labels that take the shared threshold."""
        return [name for name, is_shared in zip(label_names, self.is_shared, strict=True) if is_shared]


def fit_thresholds(
    preds: Float[Tensor, "N L"],
    target: Int[Tensor, "N L"],
    objective: Objective | str = "f1",
    *,
    min_positives: int = MIN_POSITIVES,
    shrinkage: float | None = None,
    calibration: str | None = None,
    num_folds: int = 5,
    seed: int = 0,
) -> Thresholds:
    """Fit a threshold for every label on validation images.

    - `f1`: the threshold of best F1. A label with P positives counts its own images for P / (P + shrinkage), and for the rest the
      F1 that its probabilities expect, after an isotonic calibration that is mostly that of all labels.
    - `precision=p`: the lowest threshold at which the precision is at least p even if the next predicted image were a false
      alarm; p is raised where cross-fitting falls short of it. A label that reaches it nowhere is never predicted.
    - `recall=r`: the highest threshold with recall at least r even if the next positive image were missed, as in conformal
      prediction.
    - `labels=n`: every label is predicted as often as it is present, times n over the mean number of labels present (PCut; Yang,
      "A study of thresholding strategies for text categorization", 2001).

    Labels with too few positives share one threshold: for precision and recall that of these labels taken together, for labels
    that of all together, for f1 the one of best mean F1 over all labels.

    Args:
        preds: Probabilities.
        target: 1 present, 0 absent, -1 unknown.
        objective: What to fit for.
        min_positives: Labels with fewer positives take the shared threshold.
        shrinkage: For f1, positives at which a label's own images and its probabilities count alike: 0 takes the best on these
            images as it is, infinity what the probabilities expect; None finds it by cross-fitting: the strongest whose mean F1 is
            within a standard error of the best.
        calibration: Fit for the probabilities that `fit_calibration` makes of these by this method; within cross-fitting it is
            fitted anew without the images left out.
        num_folds: Parts of the images for cross-fitting.
        seed: Of the parts.

    Returns:
        The thresholds, with what cross-fitting measured.

    Raises:
        ValueError: Shapes differ, preds are no probabilities, nothing is present, or the objective cannot be met.
        MissingDependencyError: scikit-learn is not installed, for f1.

    Example:
        >>> preds = torch.tensor([[0.9, 0.3], [0.8, 0.2], [0.3, 0.4], [0.1, 0.1]])
        >>> target = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]])
        >>> fitted = fit_thresholds(preds, target, min_positives=1, shrinkage=0)
        >>> [round(value, 2) for value in fitted.values]  # between 0.8 and 0.3, and between 0.3 and 0.2
        [0.57, 0.25]
    """
    objective = Objective.parse(objective) if isinstance(objective, str) else objective
    target = checked_target(preds, target)
    preds = preds.double()
    if min_positives < 1 or num_folds < 2:
        raise ValueError(
            f"min_positives is at least 1 and num_folds at least 2, got {min_positives} and {num_folds}. Raise them."
        )
    if shrinkage is not None and not shrinkage >= 0:
        raise ValueError(f"shrinkage is a number of positives, 0 or more, got {shrinkage}. Pass None to have it found.")
    if not bool((target == 1).any()):
        raise ValueError("no label is present in any image, so there is nothing to fit. Give images with labels.")
    if objective.name == "labels" and (objective.value or 0) > preds.shape[1]:
        raise ValueError(f"an image cannot have {objective.value:g} of {preds.shape[1]} labels. Ask for fewer.")
    strengths: tuple[float, ...]
    match objective.name:
        case "f1":
            strengths = _SHRINKAGES if shrinkage is None else (float(shrinkage),)
        case "precision":
            strengths = _MARGINS
        case _:
            strengths = (0.0,)
    settings = _Settings(objective, strengths, min_positives, calibration)
    best, crossfit = _cross_fit(preds, target, settings, num_folds, seed)
    fitted = _fit(preds, target, settings._replace(strengths=strengths[best : best + 1]))
    values, is_out_of_reach = fitted.values[0], fitted.is_out_of_reach[0]
    if bool(is_out_of_reach.all()):
        more_or_less = "more labels" if objective.name == "labels" else "less"
        raise ValueError(
            f"no threshold reaches {objective.name} {objective.value:g} on these {len(preds)} images. Ask for {more_or_less}, or "
            "give more images."
        )
    return Thresholds(
        tuple(values.tolist()),
        float(fitted.shared[0]),
        tuple(fitted.is_shared.tolist()),
        tuple(is_out_of_reach.tolist()),
        str(objective),
        crossfit,
    )


class _Settings(NamedTuple):
    objective: Objective
    strengths: tuple[float, ...]
    min_positives: int
    calibration: str | None


class _Fitted(NamedTuple):
    """Thresholds for each strength.

    Attributes:
        values: What to use; `NEVER` where the objective is out of reach.
        shared: The shared threshold.
        is_shared: Labels that take it.
        is_out_of_reach: Labels that no threshold serves.
        calibrate: From probabilities to those that the thresholds are for.
    """

    values: Float[Tensor, "K L"]
    shared: Float[Tensor, " K"]
    is_shared: Bool[Tensor, " L"]
    is_out_of_reach: Bool[Tensor, "K L"]
    calibrate: Callable[[Tensor], Tensor]


def _cross_fit(
    preds: Tensor, target: Tensor, settings: _Settings, num_folds: int, seed: int
) -> tuple[int, float | None]:
    """Which strength does best on images left out of the fit, and what it reaches there, if that could be measured."""
    objective, strengths = settings.objective, settings.strengths
    fold = torch.from_numpy(np.random.default_rng(seed).permutation(len(preds)) % num_folds).to(preds.device)
    counts = torch.zeros(3, len(strengths), preds.shape[1], dtype=torch.float64)  # correct, predicted, present
    for left_out in range(num_folds):
        is_out = fold == left_out
        rest = target[~is_out]
        if not bool((rest == 1).any()) or not bool(is_out.any()):
            return len(strengths) - 1, None  # nothing tells that the images deserve belief
        fitted = _fit(preds[~is_out], rest, settings)
        positive, known = target[is_out] == 1, target[is_out] != -1
        calibrated = fitted.calibrate(preds[is_out])
        for number, thresholds in enumerate(fitted.values):
            predicted = (calibrated >= thresholds) & known
            for row, found in enumerate((predicted & positive, predicted, positive)):
                counts[row, number] += found.sum(0).cpu()
    correct, predicted, present = counts
    match objective.name:
        case "f1":
            f1 = 2 * correct / (predicted + present).clamp(min=1)
            f1 = f1[:, present[0] > 0]
            score = f1.mean(1)
            # The strongest that is not behind the best by more than its standard error over labels (Breiman's rule).
            behind = f1[score.argmax()] - f1
            error = behind.std(1, correction=0) / math.sqrt(f1.shape[1])
            best = int((behind.mean(1) <= error).nonzero().max())
        case "precision":
            score = correct.sum(1) / predicted.sum(1).clamp(min=1)
            reached = (score >= objective.value).nonzero()
            best = int(reached[0]) if len(reached) else int(score.argmax())
        case "recall":
            score, best = correct.sum(1) / present.sum(1).clamp(min=1), 0
        case _:
            score, best = predicted.sum(1) / len(preds), 0
    return best, float(score[best])


def _fit(preds: Tensor, target: Tensor, settings: _Settings) -> _Fitted:
    """Every label's threshold for each strength."""
    objective, strengths = settings.objective, settings.strengths
    logits = preds.logit(_EPS)

    def calibrate(probs: Tensor) -> Tensor:
        return probs

    if settings.calibration is not None:
        calibration = fit_calibration(logits, target, settings.calibration)

        def calibrate(probs: Tensor) -> Tensor:
            return calibration(probs.logit(_EPS)).to(probs)

    positives = (target == 1).sum(0)
    is_rare = positives < settings.min_positives
    scores = calibrate(preds)
    num_rows = max(1, BLOCK_SIZE // max(1, len(preds)))
    if objective.name == "f1":
        # A curve that is mostly that of all labels: a label's own would fit these very images too well.
        curves = fit_calibration(logits, target, "isotonic", prior_strength=_CURVE_PRIOR)
        expected = curves(logits).to(preds)
        blocks = zip(
            scores.T.split(num_rows),
            target.T.split(num_rows),
            expected.T.split(num_rows),
            positives.split(num_rows),
            strict=True,
        )
        own = torch.cat(
            [_best_f1(rows, wanted, probs, count, strengths) for rows, wanted, probs, count in blocks], dim=1
        )
        shared = _shared_for_f1(scores, target).expand(len(strengths))
        takes_shared = is_rare | own.isnan()[0]
        return _Fitted(
            torch.where(takes_shared, shared[:, None], own), shared, takes_shared, own.isnan() & False, calibrate
        )
    # labels=n: how often a label is predicted for once that it is present.
    prevalence = positives / (target != -1).sum(0).clamp(min=1)
    asked = objective.value or 0.0
    factor = _saturated(prevalence.double(), asked) / prevalence.clamp(min=_EPS)
    pooled_factor = asked * len(preds) / (target == 1).sum()
    together = is_rare if bool(is_rare.any()) and objective.name != "labels" else torch.ones_like(is_rare)
    owns, shareds = [], []
    for strength in strengths:
        value = asked
        if objective.name == "precision":
            value = min(float((torch.tensor(asked, dtype=torch.float64).logit() + strength).sigmoid()), 1 - _EPS)
        pairs = zip(scores.T.split(num_rows), target.T.split(num_rows), strict=True)
        factors = factor.split(num_rows)
        own_cuts = [
            _best_cut(rows, wanted, objective.name, value, own.unsqueeze(1))
            for (rows, wanted), own in zip(pairs, factors, strict=True)
        ]
        owns.append(torch.cat(own_cuts))
        for chosen in (together, torch.ones_like(is_rare)):
            pool, wanted = scores[:, chosen].reshape(1, -1), target[:, chosen].reshape(1, -1)
            pooled = _best_cut(pool, wanted, objective.name, value, pooled_factor).squeeze(0)
            # Precision is a promise: what these few labels cannot show is not lent to them by the others.
            if objective.name == "precision" or not bool(pooled.isnan()):
                break
        shareds.append(pooled)
    own, shared = torch.stack(owns), torch.stack(shareds)
    takes_shared = is_rare if objective.name == "precision" else is_rare | own.isnan().any(0)
    values = torch.where(takes_shared, shared[:, None], own)
    return _Fitted(values.nan_to_num(NEVER), shared.nan_to_num(NEVER), takes_shared, values.isnan(), calibrate)


def _saturated(prevalence: Float[Tensor, " L"], total: float) -> Float[Tensor, " L"]:
    """Shares in proportion to the prevalence, none above 1, that sum to the total as far as there are labels.

    Example:
        >>> _saturated(torch.tensor([0.5, 0.2, 0.1]).double(), 1.6)  # 1 and twice and a half times the others would be 1.75
        tensor([1.0000, 0.4000, 0.2000], dtype=torch.float64)
    """
    low, high = 0.0, total / max(float(prevalence[prevalence > 0].min()), _EPS)
    for _ in range(100):
        middle = (low + high) / 2
        if float((middle * prevalence).clamp(max=1).sum()) < total:
            low = middle
        else:
            high = middle
    return (high * prevalence).clamp(max=1)


def _ordered(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows by falling preds, unknown entries last as -1; their order; how many come so far; where one may cut behind an entry."""
    scores, order = preds.masked_fill(target == -1, -1.0).sort(dim=1, descending=True)  # (R, C)
    is_cut = scores >= 0
    is_cut[:, :-1] &= scores[:, :-1] != scores[:, 1:]  # equal scores stay together
    predicted = torch.arange(1, preds.shape[1] + 1, device=preds.device, dtype=torch.float64)
    return scores, order, predicted, is_cut


def _best_f1(
    preds: Tensor, target: Tensor, expected: Tensor, positives: Tensor, strengths: tuple[float, ...]
) -> Float[Tensor, "K R"]:
    """The threshold of best F1 of each row, for each weight of what is expected against what is there."""
    scores, order, predicted, is_cut = _ordered(preds, target)
    known = target != -1
    there = (target == 1).double().gather(1, order).cumsum(1)
    assumed = (expected * known).gather(1, order).cumsum(1)
    thresholds = []
    for strength in strengths:
        weight = torch.ones(len(preds), 1).to(preds)
        if math.isfinite(strength):
            weight = (strength / (positives + strength).clamp(min=_EPS)).unsqueeze(1).to(preds)
        correct = there.lerp(assumed, weight)
        f1 = (2 * correct / (predicted + correct[:, -1:])).masked_fill(~is_cut, -1.0)
        index = f1.argmax(1, keepdim=True)  # the first of equals: the highest threshold
        found = correct.gather(1, index) > 0
        thresholds.append(_threshold(scores, index).masked_fill(~found, math.nan).squeeze(1))
    return torch.stack(thresholds)


def _best_cut(preds: Tensor, target: Tensor, objective: str, value: float, factor: Tensor) -> Float[Tensor, " R"]:
    """The threshold of each row that meets the objective, NaN where nothing does."""
    scores, order, predicted, is_cut = _ordered(preds, target)
    correct = (target == 1).double().gather(1, order).cumsum(1)
    positives = correct[:, -1:]
    if objective == "labels":
        wanted = (positives * factor).minimum((target != -1).sum(1, keepdim=True))
        index = (predicted - wanted).abs().masked_fill(~is_cut, math.inf).argmin(1, keepdim=True)
        found = wanted >= 0.5
    elif objective == "precision":
        # One image more is counted as a false alarm: what the next one may be.
        meets = is_cut & (correct / (predicted + 1) >= value)
        index = scores.shape[1] - 1 - meets.flip(1).int().argmax(1, keepdim=True)  # the last: the lowest threshold
        found = meets.any(1, keepdim=True)
    else:
        meets = is_cut & (correct / (positives + 1) >= value)
        index = meets.int().argmax(1, keepdim=True)  # the first: the highest threshold
        found = meets.any(1, keepdim=True)
    return _threshold(scores, index).masked_fill(~found, math.nan).squeeze(1)


def _threshold(scores: Tensor, index: Tensor) -> Float[Tensor, "R 1"]:
    """A threshold that keeps the entry at the index and not the next."""
    below = torch.cat([scores[:, 1:], scores.new_full((len(scores), 1), -1.0)], dim=1)
    return _between(scores.gather(1, index), below.gather(1, index))


def _between(at: Tensor, below: Tensor) -> Tensor:
    """A threshold that keeps the one score and not the other: their middle on the scale of logits."""
    middle = ((at.logit(_EPS) + below.clamp(min=0).logit(_EPS)) / 2).sigmoid()
    return torch.where((below < 0) | (middle <= below) | (middle > at), at, middle)


def _shared_for_f1(preds: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """The one threshold of best mean F1 over the labels that are present."""
    # The best candidate is the score of a positive.
    scores = preds[target == 1].sort().values
    steps = torch.linspace(0, len(scores) - 1, min(_NUM_SHARED_CANDIDATES, len(scores)), dtype=torch.float64)
    candidates = scores[steps.round().long().to(preds.device)].unique()
    total = torch.zeros(len(candidates), dtype=torch.float64, device=preds.device)
    num_rows = max(1, BLOCK_SIZE // max(1, len(preds)))
    for rows, wanted in zip(preds.T.split(num_rows), target.T.split(num_rows), strict=True):
        keys = candidates.expand(len(rows), -1).contiguous()
        correct, predicted = (
            rows.shape[1] - torch.searchsorted(rows.masked_fill(~chosen, -1.0).sort(1).values, keys)  # (R, T)
            for chosen in (wanted == 1, wanted != -1)
        )
        positives = (wanted == 1).sum(1, keepdim=True)
        f1 = 2 * correct / (predicted + positives).clamp(min=1)
        total += f1[positives.squeeze(1) > 0].sum(0)
    at = candidates[int(total.argmax())]
    below = preds[(target != -1) & (preds < at)]
    return _between(at, below.max() if len(below) else at.new_tensor(-1.0))
