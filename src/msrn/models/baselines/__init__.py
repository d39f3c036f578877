"""The heads that MSRN is compared with, under the same backbone and trainer, a file for each paper."""

from msrn.models.baselines.classifier import (
    BackboneArguments,
    Classifier,
    build_csra,
    build_ml_decoder,
    build_ml_gcn,
    build_pooled,
)
from msrn.models.baselines.csra import CSRAHead
from msrn.models.baselines.ml_decoder import MLDecoderHead
from msrn.models.baselines.ml_gcn import MLGCNHead, correlation_matrix
from msrn.models.baselines.pooled import PooledHead

__all__ = [
    "BackboneArguments",
    "CSRAHead",
    "Classifier",
    "MLDecoderHead",
    "MLGCNHead",
    "PooledHead",
    "build_csra",
    "build_ml_decoder",
    "build_ml_gcn",
    "build_pooled",
    "correlation_matrix",
]
