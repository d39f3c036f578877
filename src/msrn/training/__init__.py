"""Training: losses, optimizers, the Lightning module and the run around it."""

import msrn._torchvision  # noqa: F401  (before torchmetrics and Lightning, which import torchvision)
from msrn.errors import MissingDependencyError

try:
    import lightning  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingDependencyError("training needs Lightning: pip install 'msrn[train]'.") from error

from msrn.training.fit import FitResult, TrainerSettings, check_processes, fit, planned_processes, training_device_type
from msrn.training.losses import (
    LossSettings,
    MultilabelLoss,
    asymmetric_loss,
    focal_loss,
    multilabel_soft_margin_loss,
    positive_weights,
)
from msrn.training.memory import MemoryEstimate, estimate_training_memory, free_memory_bytes
from msrn.training.module import MSRNModule
from msrn.training.optim import OptimizerSettings, ScheduleSettings, build_optimizer, build_schedule
from msrn.training.trial import Trial, try_training

__all__ = [
    "FitResult",
    "LossSettings",
    "MSRNModule",
    "MemoryEstimate",
    "MultilabelLoss",
    "OptimizerSettings",
    "ScheduleSettings",
    "TrainerSettings",
    "Trial",
    "asymmetric_loss",
    "build_optimizer",
    "build_schedule",
    "check_processes",
    "estimate_training_memory",
    "fit",
    "focal_loss",
    "free_memory_bytes",
    "multilabel_soft_margin_loss",
    "planned_processes",
    "positive_weights",
    "training_device_type",
    "try_training",
]
