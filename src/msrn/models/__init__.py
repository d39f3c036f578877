"""The network, a file for each part of the paper, and the heads it is compared with."""

import msrn._torchvision  # noqa: F401  (before timm)
from msrn.models import published
from msrn.models.attention import SemanticGuidedAttention, StageProjection
from msrn.models.backbone import Backbone, count_parameters
from msrn.models.baselines import (
    Classifier,
    CSRAHead,
    MLDecoderHead,
    MLGCNHead,
    PooledHead,
    build_csra,
    build_ml_decoder,
    build_ml_gcn,
    build_pooled,
    correlation_matrix,
)
from msrn.models.builders import (
    PUBLISHED,
    build_model,
    build_msrn,
    msrn_resnet101,
    use_channels_last,
)
from msrn.models.classifier import JointClassifier, PerLabelClassifier
from msrn.models.flops import count_flops
from msrn.models.folding import fold_batch_norms
from msrn.models.inference import ExportableMSRN, FoldedClassifier, InferenceMSRN
from msrn.models.label_group import DiffPool, GraphAttention, LabelGroupEmbedding, LabelGroups, group_loss
from msrn.models.msrn import MSRN

__all__ = [
    "MSRN",
    "PUBLISHED",
    "Backbone",
    "CSRAHead",
    "Classifier",
    "DiffPool",
    "ExportableMSRN",
    "FoldedClassifier",
    "GraphAttention",
    "InferenceMSRN",
    "JointClassifier",
    "LabelGroupEmbedding",
    "LabelGroups",
    "MLDecoderHead",
    "MLGCNHead",
    "PerLabelClassifier",
    "PooledHead",
    "SemanticGuidedAttention",
    "StageProjection",
    "build_csra",
    "build_ml_decoder",
    "build_ml_gcn",
    "build_model",
    "build_msrn",
    "build_pooled",
    "correlation_matrix",
    "count_flops",
    "count_parameters",
    "fold_batch_norms",
    "group_loss",
    "msrn_resnet101",
    "published",
    "use_channels_last",
]
