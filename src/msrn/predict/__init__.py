"""Prediction and evaluation with a trained model."""

from msrn.predict.decisions import fit_decisions
from msrn.predict.evaluate import align_labels, evaluate, read_labelled
from msrn.predict.predictor import Predictor, load
from msrn.predict.protocol import evaluation_protocol, protocol_lines
from msrn.prediction import LabelProbability, Prediction

__all__ = [
    "LabelProbability",
    "Prediction",
    "Predictor",
    "align_labels",
    "evaluate",
    "evaluation_protocol",
    "fit_decisions",
    "load",
    "protocol_lines",
    "read_labelled",
]
