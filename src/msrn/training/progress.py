"""Progress that people can read."""

from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from msrn.training.meter import Meter


class ProgressBar(pl.Callback):
    """A moving bar with images a second.

    Args:
        console: Where the bar moves; it vanishes at the end.
        meter: Knows the rate.
    """

    def __init__(self, console: Console, meter: Meter) -> None:
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[rate]}",
            TimeRemainingColumn(),
        )
        self.meter = meter
        self.progress = Progress(*columns, console=console, transient=True)
        self._task = self.progress.add_task("", rate="")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the bar, also of an epoch that goes on."""
        self.progress.start()
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin anew."""
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.progress.reset(self._task, total=trainer.num_training_batches, description=epoch, rate="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance."""
        self.progress.update(self._task, completed=batch_idx + 1, rate=f"{self.meter.images_per_s:.0f} images/s")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what takes time now."""
        self.progress.update(
            self._task, description=f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, validation"
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the bar away."""
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Take the bar away."""
        self.progress.stop()


def progress_callbacks(console: Console, meter: Meter) -> list[pl.Callback]:
    """A moving bar where someone watches a terminal; elsewhere the epoch lines are enough."""
    return [ProgressBar(console, meter)] if console.is_terminal else []
