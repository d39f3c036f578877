"""Prediction and evaluation with a trained model."""

import msrn._torchvision  # noqa: F401  (before torchmetrics, which imports torchvision)
from msrn.predict.evaluate import align_labels, evaluate, read_labelled
from msrn.predict.predictor import LabelProbability, Prediction, Predictor, load

__all__ = ["LabelProbability", "Prediction", "Predictor", "align_labels", "evaluate", "load", "read_labelled"]
