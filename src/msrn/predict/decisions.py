"""Fit what turns scores into decisions, calibration and thresholds, on a labelled validation split."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msrn.bundle import Bundle
from msrn.data import LabelledImages, split_hash
from msrn.errors import DataError
from msrn.metrics import Calibration, Objective, f1_scores, fit_calibration, fit_thresholds, reliability
from msrn.metrics.calibration import METHODS
from msrn.metrics.thresholds import MIN_POSITIVES
from msrn.predict.predictor import Predictor

AUTO = "auto"
NONE = "none"
_NUM_FOLDS = 5


def fit_decisions(
    predictor: Predictor,
    images: LabelledImages,
    *,
    objective: Objective | str = "f1",
    calibration: str = AUTO,
    min_positives: int = MIN_POSITIVES,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[Bundle, dict[str, Any]]:
    """Fit calibration and thresholds on a validation split.

    Args:
        predictor: The model.
        images: Labelled images whose columns are the model's (`align_labels`), best those of validation: on training images the
            model is too sure, and test images must not choose anything.
        objective: What the thresholds are for, see `msrn.metrics.fit_thresholds`.
        calibration: `temperature`, `platt`, `isotonic`, `none`, or `auto`: the one of least log loss by cross-fitting.
        min_positives: Labels with fewer positives share one threshold.
        batch_size: Images a pass.
        num_workers: Processes that read images.
        progress: Called with the number of images after each batch.

    Returns:
        The bundle with both, and a report in plain values: `objective`, `crossfit` (what the objective reaches on images left out),
        `calibration`, `log_loss`, `ECE` and `reliability` of each method by cross-fitting, `labels` (threshold, positives, whether
        it is shared or out of reach, a label), `fitted_on`, `is_training_split`, and CF1 and OF1 `before` and `after` on these
        images. The bundle keeps calibration error and reliability before and after beside its thresholds.

    Raises:
        DataError: The objective cannot be met, or nothing is known of the images; the test split of the model's training.
        UnreadableImageError: An image cannot be read.
    """
    if calibration not in (*METHODS, AUTO, NONE):
        raise ValueError(f"'{calibration}' is no calibration. Take {', '.join((*METHODS, AUTO, NONE))}.")
    split = split_hash(images)
    is_training_split = _check_split(predictor.bundle, images.split, split)
    outputs = []
    for logits, target in predictor.logits_of_split(images, batch_size=batch_size, num_workers=num_workers):
        outputs.append((logits, target))
        if progress is not None:
            progress(len(logits))
    logits, target = torch.cat([logits for logits, _ in outputs]), torch.cat([target for _, target in outputs])
    if not bool((target == 1).any()):
        raise DataError(
            f"no label is present in any of the {len(images)} images of split '{images.split}', so there is nothing to fit. "
            "Give images with labels."
        )
    methods = (NONE, *METHODS) if calibration == AUTO else tuple(dict.fromkeys((NONE, calibration)))
    quality = {method: _crossfit_quality(logits, target, method) for method in methods}
    chosen = min(quality, key=lambda method: quality[method]["log_loss"]) if calibration == AUTO else calibration
    fitted = None if chosen == NONE else fit_calibration(logits, target, chosen)
    fitted_on = {"split": images.split, "images": len(images), "sha256": split}
    bundle = dataclasses.replace(predictor.bundle, calibration=fitted, thresholds=None)
    preds = bundle.probs(logits)
    try:
        thresholds = fit_thresholds(
            logits.sigmoid(),
            target,
            objective,
            min_positives=min_positives,
            calibration=None if chosen == NONE else chosen,
        )
    except ValueError as error:
        raise DataError(str(error)) from None
    before_and_after = {name: quality[method]["reliability"] for name, method in (("before", NONE), ("after", chosen))}
    errors = {name: quality[method]["ECE"] for name, method in (("before", NONE), ("after", chosen))}
    kept = {**fitted_on, "ECE": errors, "reliability": before_and_after}
    thresholds = dataclasses.replace(thresholds, fitted_on=kept)
    bundle = dataclasses.replace(bundle, thresholds=thresholds)
    before = predictor.bundle
    scores = {
        "before": f1_scores(before.probs(logits), target, threshold=before.label_thresholds)._asdict(),
        "after": f1_scores(preds, target, threshold=bundle.label_thresholds)._asdict(),
    }
    positives = (target == 1).sum(0).tolist()
    report = {
        "objective": thresholds.objective,
        "crossfit": thresholds.crossfit,
        "shared": thresholds.shared,
        "calibration": chosen,
        **{
            name: {method: values[name] for method, values in quality.items()}
            for name in ("log_loss", "ECE", "reliability")
        },
        "labels": {
            name: {"threshold": value, "positives": count, "is_shared": is_shared, "is_out_of_reach": is_out_of_reach}
            for name, value, count, is_shared, is_out_of_reach in zip(
                bundle.label_names,
                thresholds.values,
                positives,
                thresholds.is_shared,
                thresholds.is_out_of_reach,
                strict=True,
            )
        },
        **scores,
        "fitted_on": fitted_on,
        "is_training_split": is_training_split,
    }
    return bundle, report


def _check_split(bundle: Bundle, name: str, sha256: str) -> bool:
    """Refuse the split that the training reports its test result on; say whether it is the one that was trained on."""
    splits = bundle.training.get("splits")
    hashes = {
        use: own.get("sha256")
        for use, own in (splits if isinstance(splits, dict) else {}).items()
        if isinstance(own, dict)
    }
    if sha256 == hashes.get("test"):
        raise DataError(
            f"split '{name}' is the one this model was tested on; thresholds fitted there would make its test result too good. "
            "Give the validation split."
        )
    return sha256 == hashes.get("train")


def _crossfit_quality(logits: Tensor, target: Tensor, method: str) -> dict[str, Any]:
    """Log loss, calibration error and reliability of a method on images left out of its fit."""
    probs = logits.sigmoid()
    if method != NONE:
        fold = torch.from_numpy(np.random.default_rng(0).permutation(len(logits)) % _NUM_FOLDS)
        for left_out in range(_NUM_FOLDS):
            is_out = fold == left_out
            if bool((target[~is_out] != -1).any()) and bool(is_out.any()):
                calibration: Calibration = fit_calibration(logits[~is_out], target[~is_out], method)
                probs[is_out] = calibration(logits[is_out])
    known = target != -1
    clipped = probs[known].clamp(1e-7, 1 - 1e-7)
    log_loss = torch.nn.functional.binary_cross_entropy(clipped, target[known].double())
    diagram = reliability(probs, target)
    return {"log_loss": float(log_loss), "ECE": diagram.error, "reliability": diagram.to_dict()}
