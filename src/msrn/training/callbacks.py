"""What happens around the training loop: a table of metrics a run, and progress people can read."""

import csv
import io
import math
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from msrn.data.loader import mix_seed
from msrn.files import write_text

BEST_FILE = "best.ckpt"
LAST_FILE = "last.ckpt"
COLUMNS = ("epoch", "train/loss", "val/loss", "val/mAP", "val/CF1", "val/OF1", "lr", "images_per_s", "seconds")


class EpochTable(pl.Callback):
    """Writes one row an epoch to a CSV file and prints it; the rows travel with the checkpoint, so a resumed run keeps them.

    Args:
        path: The CSV file, rewritten whole each epoch.
        console: Where the rows are printed; None prints nothing.
    """

    def __init__(self, path: Path, console: Console | None = None) -> None:
        self.path = path
        self.console = console
        self.rows: list[dict[str, float]] = []
        self._start_s = 0.0
        self._images_per_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the epoch's clock."""
        self._start_s = time.perf_counter()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the rate of training before validation begins."""
        self._images_per_s = pl_module.images_per_s

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add this epoch's row ahead of the checkpoint, which holds the rows too; write the table and print the row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch,
            **{name: values.get(name, math.nan) for name in COLUMNS[1:6]},
            "lr": float(trainer.optimizers[0].param_groups[-1]["lr"]),
            "images_per_s": round(self._images_per_s, 1),
            "seconds": round(time.perf_counter() - self._start_s, 1),
        }
        self.rows = [*self.rows[: trainer.current_epoch], row]
        self.write()
        if self.console is not None:
            self.console.print(
                f"epoch {trainer.current_epoch + 1:>3}/{trainer.max_epochs}  loss {row['train/loss']:.4f}  "
                f"val mAP {100 * row['val/mAP']:.2f}  CF1 {100 * row['val/CF1']:.2f}  "
                f"{row['images_per_s']:.0f} images/s  {row['seconds']:.0f} s",
                highlight=False,
            )

    def write(self) -> None:
        """Write all rows."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows({name: row.get(name, math.nan) for name in COLUMNS} for row in self.rows)
        write_text(self.path, text.getvalue())


class KeepCheckpoints(Checkpoint):
    """Keeps `last.ckpt` of the last finished epoch and `best.ckpt` of the one with the greatest validation mAP.

    Lightning's own ModelCheckpoint (2.6) renews its last.ckpt only where the score improves, and forgets the best score
    when the folder has moved.

    Args:
        folder: Where the two files are kept; they are replaced whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_epoch = -1
        self.best_mAP = -math.inf

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far and its score."""
        return {"best_epoch": self.best_epoch, "best_mAP": self.best_mAP}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best epoch of a checkpoint."""
        self.best_epoch, self.best_mAP = state_dict["best_epoch"], state_dict["best_mAP"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save this epoch, and keep it if it is the best so far."""
        score = float(trainer.callback_metrics["val/mAP"])
        is_best = score > self.best_mAP
        if is_best:
            self.best_epoch, self.best_mAP = trainer.current_epoch, score
        partial = self.folder / "partial.ckpt"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            if is_best:
                copy = self.folder / "partial-best.ckpt"
                shutil.copyfile(partial, copy)
                copy.replace(self.folder / BEST_FILE)
            # Best before last: a run that is killed in between repeats the epoch and finds the same score.
            partial.replace(self.folder / LAST_FILE)


class SeedEveryEpoch(pl.Callback):
    """Seeds PyTorch's generator from the run's seed and the epoch, so that dropout too goes on as it would have.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Seed the epoch."""
        torch.manual_seed(mix_seed(self.seed, trainer.current_epoch))


class ProgressBar(pl.Callback):
    """A moving bar with images a second.

    Args:
        console: Where the bar moves; it vanishes at the end.
    """

    def __init__(self, console: Console) -> None:
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            "{task.fields[rate]}",
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self._task = self.progress.add_task("", rate="")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the bar."""
        self.progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin anew."""
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self.progress.reset(self._task, total=trainer.num_training_batches, description=epoch, rate="")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Advance."""
        rate = f"{pl_module.images_per_s:.0f} images/s"
        self.progress.update(self._task, completed=batch_idx + 1, rate=rate)

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


def progress_callbacks(console: Console | None) -> list[pl.Callback]:
    """A moving bar where someone watches a terminal; elsewhere the epoch lines are enough."""
    return [ProgressBar(console)] if console is not None and console.is_terminal else []
