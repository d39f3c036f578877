"""Everything that the evaluation page shows, as plain values: metrics with intervals, curves, reliability, errors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from msrn.bundle import Bundle
from msrn.data import LabelledImages
from msrn.errors import LabelMismatchError
from msrn.metrics import (
    calibration_error,
    co_errors,
    evaluate_predictions,
    interval,
    likely_annotation_errors,
    reliability,
    resample_metrics,
)
from msrn.predict import Predictor, evaluation_protocol

# The numbers at the head of the page.
HEADLINE = ("mAP", "CF1", "OF1", "macro_F1", "ECE")
NUM_CURVE_POINTS = 80
NUM_SHOWN = 6  # misses and false alarms a label
NUM_PAIRS = 300
NUM_SUSPECTS = 60
NUM_MATRIX = 24  # labels of the co-error matrix
# Below so many positives an interval of average precision says nothing.
_LEAST_POSITIVES = 5
# Numbers that the bootstrap adds up at most: resamples x images x labels.
_MOST_ADDED = 2**31


@dataclass(frozen=True)
class Scores:
    """What one model said of a split.

    Attributes:
        name: What the model is called on the page.
        label_names: The columns.
        preds: Probabilities, calibrated where the bundle is.
        target: 1 present, 0 absent, -1 unknown.
        thresholds: The least probability of each label that is predicted.
        protocol: How it was measured.
        is_shared: Which labels share one fitted threshold.
    """

    name: str
    label_names: tuple[str, ...]
    preds: Float[Tensor, "N L"]
    target: Int[Tensor, "N L"]
    thresholds: Float[Tensor, " L"]
    protocol: dict[str, Any]
    is_shared: tuple[bool, ...]


def read_scores(
    predictor: Predictor,
    images: LabelledImages,
    name: str,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Run a model over a labelled split whose columns are the model's (`msrn.predict.align_labels`).

    Raises:
        UnreadableImageError: An image cannot be read.
    """
    preds, target = [], []
    for probs, wanted in predictor.probs_of_split(images, batch_size=batch_size, num_workers=num_workers):
        preds.append(probs)
        target.append(wanted)
        if progress is not None:
            progress(len(probs))
    bundle = predictor.bundle
    protocol = evaluation_protocol(bundle, images)
    if bundle.thresholds is not None:
        del protocol["threshold"]  # everything on the page is at the fitted ones
    if warning := _warning(bundle, protocol["sha256"]):
        protocol = {"warning": warning, **protocol}
    return Scores(
        name,
        predictor.label_names,
        torch.cat(preds),
        torch.cat(target),
        bundle.label_thresholds,
        protocol,
        (False,) * len(bundle.label_names) if bundle.thresholds is None else bundle.thresholds.is_shared,
    )


def _warning(bundle: Bundle, sha256: str) -> str | None:
    """What makes these images too easy for this model, if anything does."""
    splits = bundle.training.get("splits")
    train = splits.get("train") if isinstance(splits, dict) else None
    if isinstance(train, dict) and train.get("sha256") == sha256:
        return "the model was trained on these images: every number is too good, and annotation errors are repeated"
    if bundle.thresholds is not None and bundle.thresholds.fitted_on.get("sha256") == sha256:
        return (
            "thresholds and calibration were fitted on these images: F1, precision, recall and calibration are too good"
        )
    return None


def in_order(scores: Scores, label_names: Sequence[str]) -> Scores:
    """The same with the columns in another order, to compare models that name the same labels in another.

    Raises:
        LabelMismatchError: The labels are not the same.
    """
    if set(label_names) != set(scores.label_names):
        odd = sorted(set(label_names) ^ set(scores.label_names))
        raise LabelMismatchError(
            f"{scores.name} and the other model know different labels, such as '{odd[0]}'. Compare models of the same labels."
        )
    columns = [scores.label_names.index(name) for name in label_names]
    return Scores(
        scores.name,
        tuple(label_names),
        scores.preds[:, columns],
        scores.target[:, columns],
        scores.thresholds[columns],
        scores.protocol,
        tuple(scores.is_shared[column] for column in columns),
    )


def evaluate_scores(scores: Scores, *, num_resamples: int | None = None) -> dict[str, Any]:
    """Measure everything that the page shows of one model.

    Args:
        scores: What the model said.
        num_resamples: For the intervals; by default 200, fewer where that would take minutes.

    Returns:
        Plain values for JSON. `metrics` is the report of `msrn.metrics.evaluate_predictions` with CP to OF1 at the thresholds
        used, `macro_F1` and `ECE`; `intervals` are those of the headline. `labels` has a dict a label, in the labels' order;
        `reliability` the bins of all labels together; `co_errors` and `suspects` the likeliest first, `co_error_matrix` the labels
        with most co-errors. Images are numbers: rows of the split. None stands for what could not be measured.
    """
    scores = replace(scores, preds=scores.preds.double(), thresholds=scores.thresholds.double())
    preds, target, names = scores.preds, scores.target, scores.label_names
    if num_resamples is None:
        num_resamples = max(20, min(200, _MOST_ADDED // max(1, preds.numel())))
    resampled = resample_metrics(preds, target, threshold=scores.thresholds, num_resamples=num_resamples)
    metrics = evaluate_predictions(preds, target, names, threshold=scores.thresholds)
    by_label = [metrics["labels"][name] for name in names]
    low, high = interval(resampled.average_precision, _or_nan(by_label))
    num_shown = max(1, min(NUM_SHOWN, 800 // (2 * len(names))))
    labels = [
        {
            "name": name,
            "AP": metrics["labels"][name],
            "AP_interval": _share_pair(low[column], high[column])
            if int((target[:, column] == 1).sum()) >= _LEAST_POSITIVES
            else None,
            "is_shared": scores.is_shared[column],
            **_label(preds[:, column], target[:, column], float(scores.thresholds[column]), num_shown),
        }
        for column, name in enumerate(names)
    ]
    found = [row["F1"] for row in labels if row["F1"] is not None]
    errors = {name: _number(value) for name, value in calibration_error(preds, target).items()}
    metrics = {**metrics, "macro_F1": sum(found) / len(found) if found else None, "ECE": errors["ECE"]}
    return {
        "name": scores.name,
        "protocol": scores.protocol,
        "num_images": len(preds),
        "num_resamples": num_resamples,
        "metrics": metrics,
        "intervals": {
            name: None
            if metrics[name] is None or len(preds) < 2
            else _share_pair(*interval(getattr(resampled, name), metrics[name]))
            for name in HEADLINE
        },
        "labels": labels,
        "reliability": reliability(preds, target).to_dict(),
        **errors,
        "co_errors": _pairs_of_errors(scores),
        "co_error_matrix": _matrix_of_errors(scores),
        "suspects": _suspects(scores),
    }


def compare_scores(
    ours: Scores, theirs: Scores, report: dict[str, Any] | None = None, *, num_resamples: int | None = None
) -> dict[str, Any]:
    """Two models on the same images: the other one whole, and differences, ours minus theirs, over the same resamples.

    Args:
        ours: What our model said.
        theirs: What the other said.
        report: What `evaluate_scores` returned of ours, where that is known already.
        num_resamples: For the intervals.

    Returns:
        What `evaluate_scores` returns of the other, with `differences` of mAP, CF1, OF1, macro F1 and ECE, each with `value` and
        `interval`, and in every entry of `labels` the `difference` of AP and its `difference_interval`.

    Raises:
        ValueError: The models have other labels, or saw other images.
    """
    if ours.label_names != theirs.label_names or not torch.equal(ours.target, theirs.target):
        raise ValueError("two models are compared on the same images and labels. Read both on one split.")
    if num_resamples is None:
        num_resamples = max(20, min(200, _MOST_ADDED // max(1, ours.preds.numel())))
    found = evaluate_scores(theirs, num_resamples=num_resamples)
    metrics = (report or evaluate_scores(ours, num_resamples=1))["metrics"]
    resampled, other = (
        resample_metrics(own.preds, own.target, threshold=own.thresholds, num_resamples=num_resamples)
        for own in (ours, theirs)
    )
    differences = [_difference(metrics["labels"][name], found["metrics"]["labels"][name]) for name in ours.label_names]
    low, high = interval(resampled.average_precision - other.average_precision, _or_nan(differences))
    found["differences"] = {}
    for name in HEADLINE:
        value = _difference(metrics[name], found["metrics"][name])
        bounds = None
        if value is not None and len(ours.preds) > 1:
            bounds = _pair(*interval(getattr(resampled, name) - getattr(other, name), value))
        found["differences"][name] = {"value": value, "interval": bounds}
    for column, row in enumerate(found["labels"]):
        row["difference"] = differences[column]
        row["difference_interval"] = _pair(low[column], high[column]) if row["positives"] >= _LEAST_POSITIVES else None
    return found


def shown_images(report: dict[str, Any]) -> list[int]:
    """The rows of the split that the page shows, each once."""
    rows = {row for label in report["labels"] for kind in ("misses", "false_alarms") for row, _ in label[kind]}
    return sorted(rows | {suspect["image"] for suspect in report["suspects"]})


def _label(preds: Float[Tensor, " N"], target: Int[Tensor, " N"], threshold: float, num_shown: int) -> dict[str, Any]:
    known = target != -1
    rows = known.nonzero().squeeze(1)
    probs, present = preds[rows], target[rows] == 1
    predicted = probs >= threshold
    num_known, num_positive, num_predicted = len(rows), int(present.sum()), int(predicted.sum())
    num_correct = int((predicted & present).sum())
    precision = num_correct / num_predicted if num_predicted else None
    recall = num_correct / num_positive if num_positive else None
    misses, false_alarms = (present & ~predicted), (predicted & ~present)
    return {
        "positives": num_positive,
        "known": num_known,
        "threshold": threshold,
        "predicted": num_predicted,
        "correct": num_correct,
        "precision": precision,
        "precision_interval": _wilson(num_correct, num_predicted),
        "recall": recall,
        "recall_interval": _wilson(num_correct, num_positive),
        "F1": 2 * num_correct / (num_predicted + num_positive) if num_positive else None,
        "curve": _curve(probs, present, threshold),
        "reliability": reliability(preds.unsqueeze(1), target.unsqueeze(1)).to_dict(),
        "misses": _worst(rows, probs, misses, num_shown, lowest=True),
        "false_alarms": _worst(rows, probs, false_alarms, num_shown, lowest=False),
    }


def _curve(probs: Tensor, present: Tensor, threshold: float) -> dict[str, list[float] | list[int]]:
    """Correct and predicted images at thresholds that are closer together where few images lie above; rising thresholds."""
    if not len(probs):
        return {"thresholds": [], "correct": [], "predicted": []}
    ordered = probs.sort(descending=True).values
    ranks = np.unique(np.geomspace(1, len(ordered), NUM_CURVE_POINTS).round().astype(int)) - 1
    candidates = torch.cat([ordered[torch.from_numpy(ranks)], ordered.new_tensor([threshold])]).unique()
    every, hits = probs.sort().values, probs[present].sort().values
    return {
        "thresholds": candidates.tolist(),
        "correct": (len(hits) - torch.searchsorted(hits, candidates)).tolist(),
        "predicted": (len(every) - torch.searchsorted(every, candidates)).tolist(),
    }


def _worst(rows: Tensor, probs: Tensor, mask: Tensor, count: int, *, lowest: bool) -> list[list[float]]:
    """Row and probability of the images of the mask that are furthest on the wrong side."""
    chosen = mask.nonzero().squeeze(1)
    order = probs[chosen].argsort(descending=not lowest, stable=True)[:count]
    return [[int(rows[index]), float(probs[index])] for index in chosen[order]]


def _errors_of(scores: Scores) -> tuple[Int[Tensor, "L L"], Float[Tensor, "L L"]]:
    """In how many images a label was said while another was missed, and in how many by chance."""
    counts = co_errors(scores.preds, scores.target, threshold=scores.thresholds)
    predicted = scores.preds >= scores.thresholds
    alarms = (predicted & (scores.target == 0)).sum(0).double()
    misses = (~predicted & (scores.target == 1)).sum(0).double()
    return counts, alarms.outer(misses) / max(1, len(scores.preds))


def _matrix_of_errors(scores: Scores) -> dict[str, Any]:
    """The co-error matrix of the labels with most co-errors: rows were said though absent, columns missed."""
    counts, expected = _errors_of(scores)
    totals = counts.sum(0) + counts.sum(1)
    chosen = [
        label for label in totals.argsort(descending=True, stable=True)[:NUM_MATRIX].tolist() if totals[label] > 0
    ]
    return {
        "labels": [scores.label_names[label] for label in chosen],
        "images": counts[chosen][:, chosen].tolist(),
        "expected": expected[chosen][:, chosen].tolist(),
    }


def _pairs_of_errors(scores: Scores) -> list[dict[str, Any]]:
    """Pairs of labels by how much oftener one is said where the other is missed than chance would have it."""
    counts, expected = _errors_of(scores)
    found = counts.nonzero()
    # The surprise of so many where so few are expected: the signed deviance of a Poisson count.
    seen, by_chance = counts[found[:, 0], found[:, 1]].double(), expected[found[:, 0], found[:, 1]]
    surprise = seen * (seen / by_chance).log() - (seen - by_chance)
    surprise = torch.where(seen > by_chance, surprise, -surprise)
    order = surprise.argsort(descending=True, stable=True)[:NUM_PAIRS]
    return [
        {
            "said": scores.label_names[int(found[index, 0])],
            "missed": scores.label_names[int(found[index, 1])],
            "images": int(seen[index]),
            "expected": float(by_chance[index]),
        }
        for index in order
    ]


def _suspects(scores: Scores) -> list[dict[str, Any]]:
    found = likely_annotation_errors(scores.preds, scores.target, most=NUM_SUSPECTS)
    return [
        {
            "image": int(image),
            "label": scores.label_names[int(label)],
            "is_present": bool(scores.target[image, label] == 1),
            "probability": float(scores.preds[image, label]),
        }
        for image, label in zip(found.images, found.labels, strict=True)
    ]


def _wilson(num_right: int, total: int) -> list[float] | None:
    """95 % interval of a share (Wilson, 1927)."""
    if not total:
        return None
    z, share = 1.96, num_right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return [max(0.0, centre - half), min(1.0, centre + half)]


def _share_pair(low: Tensor, high: Tensor) -> list[float] | None:
    """An interval of a share, which ends at 0 and 1."""
    return _pair(low.clamp(0, 1), high.clamp(0, 1))


def _pair(low: Tensor, high: Tensor) -> list[float] | None:
    pair = [float(low), float(high)]
    return None if any(map(math.isnan, pair)) else pair


def _or_nan(values: Sequence[float | None]) -> Float[Tensor, " L"]:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs
