"""Metrics: pure functions, and torchmetrics modules that gather batches around them."""

import msrn._torchvision  # noqa: F401  (first: torchmetrics imports torchvision)
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
from msrn.metrics.modules import MeanAveragePrecision, MultilabelMetrics

__all__ = [
    "F1Scores",
    "MeanAveragePrecision",
    "MultilabelMetrics",
    "average_precision",
    "coverage_error",
    "evaluate_predictions",
    "f1_scores",
    "label_ranking_average_precision",
    "mean_average_precision",
    "ranking_loss",
]
