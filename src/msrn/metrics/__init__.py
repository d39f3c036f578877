"""Metrics: pure functions, and torchmetrics modules that gather batches around them.

Importing the package leaves torchmetrics out, which takes longer to import than PyTorch: the modules bring it in.
"""

from typing import TYPE_CHECKING, Any

import msrn._torchvision  # noqa: F401  (first: torchmetrics imports torchvision)
from msrn.metrics.bootstrap import Resampled, interval, resample_metrics
from msrn.metrics.calibration import (
    Calibration,
    Reliability,
    calibration_error,
    calibration_from_dict,
    fit_calibration,
    reliability,
)
from msrn.metrics.errors import Suspects, co_errors, likely_annotation_errors
from msrn.metrics.functional import (
    F1Scores,
    average_precision,
    coverage_error,
    evaluate_predictions,
    f1_scores,
    label_ranking_average_precision,
    mean_average_precision,
    ranking_loss,
)
from msrn.metrics.thresholds import Objective, Thresholds, fit_thresholds

if TYPE_CHECKING:
    from msrn.metrics.modules import MeanAveragePrecision, MultilabelMetrics

__all__ = [
    "Calibration",
    "F1Scores",
    "MeanAveragePrecision",
    "MultilabelMetrics",
    "Objective",
    "Reliability",
    "Resampled",
    "Suspects",
    "Thresholds",
    "average_precision",
    "calibration_error",
    "calibration_from_dict",
    "co_errors",
    "coverage_error",
    "evaluate_predictions",
    "f1_scores",
    "fit_calibration",
    "fit_thresholds",
    "interval",
    "label_ranking_average_precision",
    "likely_annotation_errors",
    "mean_average_precision",
    "ranking_loss",
    "reliability",
    "resample_metrics",
]


def __getattr__(name: str) -> Any:
    if name not in ("MeanAveragePrecision", "MultilabelMetrics"):
        raise AttributeError(f"module 'msrn.metrics' has no attribute '{name}'")
    from msrn.metrics import modules

    return getattr(modules, name)
