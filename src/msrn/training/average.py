"""A moving average of the weights, which is validated and kept in their stead."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel


class AverageWeights(pl.Callback):
    """Keeps an exponential moving average of the model's weights; buffers, as the statistics of batch norms, are copied.

    The decay rises from 0.18 after the first step as (1 + n) / (10 + n), so that short runs are not ruled by the weights they
    began with. The average takes the model's place in every validation.

    Args:
        decay: Share of the old average that each step keeps.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: AveragedModel | None = None
        self._own_model: Any = None
        self._step = 0

    @property
    def average(self) -> AveragedModel:
        """The averaged model, from the moment that training is set up."""
        assert self._average is not None, "training has not been set up"
        return self._average

    def state_dict(self) -> dict[str, Any]:
        """The average, as `module.NAME`, and the number of steps in it."""
        return dict(self.average.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the average of a checkpoint."""
        self.average.load_state_dict(state_dict)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Copy the model."""
        self._average = AveragedModel(pl_module.model, multi_avg_fn=self._move).eval().requires_grad_(False)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Follow the model to its device."""
        self.average.to(pl_module.device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember the step of the checkpoint that the run goes on from."""
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take in the new weights, where the optimizer has moved them."""
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.average.update_parameters(pl_module.model)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put the average in the model's place."""
        self._own_model, pl_module.model = pl_module.model, self.average.module

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put the model back."""
        pl_module.model, self._own_model = self._own_model, None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Put the model back where a validation was cut short."""
        if self._own_model is not None:
            self.on_validation_epoch_end(trainer, pl_module)

    def _move(self, averages: Any, weights: Any, num_averaged: Tensor | int) -> None:
        count = float(num_averaged)  # steps in the average so far; the first one is copied
        torch._foreach_lerp_(averages, weights, 1 - min(self.decay, (1 + count) / (10 + count)))


def averaged_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor] | None:
    """The model's averaged weights in a checkpoint, or None where none were kept."""
    state = checkpoint["callbacks"].get(AverageWeights.__qualname__)
    if state is None:
        return None
    prefix = "module."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
