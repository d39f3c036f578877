"""Train a few batches to see that it works, how long a batch takes and how much memory; nothing is kept."""

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from msrn.errors import TrainingError, is_out_of_memory
from msrn.training.fit import TrainerSettings, check_precision, quiet_lightning, training_device_type
from msrn.training.meter import peak_memory_bytes
from msrn.training.module import MSRNModule

# Batches after the first, which warms up, and the time after which no further one is begun.
_TIMED_BATCHES = 3
_ENOUGH_S = 60.0


@dataclass(frozen=True)
class Trial:
    """What a few training batches showed.

    Attributes:
        loss: Loss of the first batch.
        warm_up_s: Time of the first batch: starting the processes that read, and memory that is taken for the first time.
        step_s: Median time of the batches after it, reading images included; of the first where there is no other.
        timed_batches: How many batches that is the median of; 0 where there is only the first.
        val_batch_s: Time of one validation batch.
        peak_bytes: The most memory held: tensors of a GPU, or this whole process; None where the system does not tell.
    """

    loss: float
    warm_up_s: float
    step_s: float
    timed_batches: int
    val_batch_s: float
    peak_bytes: int | None

    def epoch_seconds(self, num_batches: int, num_val_batches: int) -> float:
        """Time of an epoch of that many batches, with its validation."""
        return num_batches * self.step_s + num_val_batches * self.val_batch_s

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, for JSON."""
        return asdict(self)


def try_training(
    module: MSRNModule, settings: TrainerSettings, train_loader: DataLoader[Any], val_loader: DataLoader[Any]
) -> Trial:
    """Train on the first batches and validate on one, as `fit` does: forward and backward pass, clipping, optimizer step.

    Args:
        module: Model, loss and optimizer settings; it is not what it was afterwards.
        settings: Precision, clipping, where to train.
        train_loader: Training batches.
        val_loader: Validation batches.

    Raises:
        TrainingError: The settings ask for a GPU that PyTorch does not find, for a precision that the device does not have, or
            for more memory than the GPU has.
        NonFiniteLossError: The loss became NaN or infinite.
    """
    check_precision(settings)
    clock = _Clock(settings.accumulate)
    if training_device_type(settings) == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with quiet_lightning():
        trainer = pl.Trainer(
            **settings.trainer_arguments(),
            max_epochs=1,
            limit_train_batches=min(len(train_loader), 1 + _TIMED_BATCHES),
            limit_val_batches=1,
            devices=1,
            enable_checkpointing=False,
            callbacks=[clock],
        )
        try:
            trainer.fit(module, train_loader, val_loader)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                "memory ran out in the first batches. Lower data.batch_size, or set trainer.precision=bf16-mixed."
            ) from None
    warm_up, *timed = clock.batch_s
    step_s = statistics.median(timed) if timed else warm_up
    return Trial(clock.loss, warm_up, step_s, len(timed), clock.val_batch_s, peak_memory_bytes(module.device) or None)


class _Clock(pl.Callback):
    """Times from the end of one batch to the end of the next, so that waiting for images counts."""

    def __init__(self, accumulate: int) -> None:
        self.accumulate = accumulate
        self.batch_s: list[float] = []
        self.val_batch_s = 0.0
        self.loss = 0.0
        self._start_s = self._tick_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._start_s = self._tick_s = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.loss = float(outputs["loss"]) * self.accumulate  # Lightning has divided it
        self.batch_s.append(self._lap(pl_module))
        # At most one batch more than there is time for, but one that is warm.
        trainer.should_stop = len(self.batch_s) > 1 and time.perf_counter() - self._start_s > _ENOUGH_S

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._lap(pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val_batch_s = self._lap(pl_module)

    def _lap(self, pl_module: Any) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        now = time.perf_counter()
        lap, self._tick_s = now - self._tick_s, now
        return lap
