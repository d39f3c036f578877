"""The same metrics as torchmetrics modules: they gather batches, on one device or on many, and compute at the end."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from msrn.metrics.functional import DEFAULT_THRESHOLD, checked_target, evaluate_predictions, mean_average_precision


class _GatheredPredictions(Metric):
    """Keeps preds and target of all batches: rankings need them together."""

    is_differentiable = False
    full_state_update = False

    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("preds", default=[], dist_reduce_fx="cat")
        self.add_state("target", default=[], dist_reduce_fx="cat")

    def update(self, preds: Float[Tensor, "B L"], target: Int[Tensor, "B L"]) -> None:
        """Add a batch: probabilities, and 1 present, 0 absent, -1 unknown.

        Raises:
            ValueError: Shapes differ, preds are no probabilities, or target holds other values.
        """
        self.target.append(checked_target(preds, target).to(torch.int8))
        self.preds.append(preds.detach())

    def _gathered(self) -> tuple[Tensor, Tensor]:
        return dim_zero_cat(self.preds), dim_zero_cat(self.target)


class MultilabelMetrics(_GatheredPredictions):
    """Gathers predictions and computes the evaluation report, see `evaluate_predictions`.

    Args:
        label_names: Names of the columns of preds and target.
        threshold: Least probability of a predicted label, one for all labels or one per label.
        fitted: Thresholds fitted on validation images, one a label, to measure beside it.
        kwargs: Options of every torchmetrics metric, such as `compute_on_cpu`.

    Example:
        >>> metrics = MultilabelMetrics(["cat", "dog"])
        >>> metrics.update(torch.tensor([[0.9, 0.2]]), torch.tensor([[1, 0]]))
        >>> metrics.update(torch.tensor([[0.3, 0.4]]), torch.tensor([[0, 1]]))
        >>> report = metrics.compute()
        >>> report["mAP"], report["CR"], report["num_images"]
        (1.0, 0.5, 2)
    """

    def __init__(
        self,
        label_names: Sequence[str],
        *,
        threshold: float | Float[Tensor, " L"] = DEFAULT_THRESHOLD,
        fitted: Float[Tensor, " L"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.label_names = tuple(label_names)
        self.threshold = threshold
        self.fitted = fitted

    def compute(self) -> dict[str, Any]:
        """The report over all batches since the last reset."""
        return evaluate_predictions(*self._gathered(), self.label_names, threshold=self.threshold, fitted=self.fitted)


class MeanAveragePrecision(_GatheredPredictions):
    """Gathers predictions and computes the mean average precision over labels, see `mean_average_precision`.

    Example:
        >>> metric = MeanAveragePrecision()
        >>> metric.update(torch.tensor([[0.9, 0.3]]), torch.tensor([[1, 0]]))
        >>> metric.update(torch.tensor([[0.8, 0.2]]), torch.tensor([[0, 1]]))
        >>> metric.compute()
        tensor(0.7500, dtype=torch.float64)
    """

    higher_is_better = True

    def compute(self) -> Float[Tensor, ""]:
        """The mean average precision over all batches since the last reset."""
        return mean_average_precision(*self._gathered())
