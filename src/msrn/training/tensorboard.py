"""Curves for TensorBoard."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from msrn.errors import MissingDependencyError
from msrn.training.meter import Meter
from msrn.training.table import EpochTable


class TensorBoardCurves(pl.Callback):
    """Writes `step/...` every few steps and the columns of the table every epoch, over the steps of the optimizer.

    A run that goes on hides the points behind its checkpoint, so that no point comes twice.

    Args:
        folder: Where the event files are kept.
        table: Keeps the metrics of every epoch.
        meter: Knows loss and gradients of the last step.
        every_steps: Steps between two points.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, table: EpochTable, meter: Meter, *, every_steps: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "trainer.tensorboard=true needs tensorboard: pip install 'msrn[train]'."
            ) from error
        self._open = SummaryWriter
        self.folder = folder
        self.table = table
        self.meter = meter
        self.every_steps = every_steps
        self._writer: Any = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Open the file; what an earlier file holds of later steps is done again."""
        self._step = trainer.global_step
        if trainer.is_global_zero:
            self._writer = self._open(str(self.folder), purge_step=self._step + 1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add a point where the optimizer has moved."""
        has_stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if self._writer is None or not has_stepped or self._step % self.every_steps:
            return
        values = {"loss": self.meter.loss, "grad_norm": self.meter.grad_norm}
        # The schedule has set the rates of the next step already: those of backbone and head are at its beginning.
        rates = {f"lr_{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        self._write({f"step/{name}": value for name, value in {**values, **rates}.items() if value is not None})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add the row that the table has been given."""
        if self._writer is not None:
            row = self.table.rows[-1]
            self._write({name: value for name, value in row.items() if name != "epoch" and math.isfinite(value)})

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave no point in memory that a run going on from this checkpoint would miss."""
        if self._writer is not None:
            self._writer.flush()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, self._step)
