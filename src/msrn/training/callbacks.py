"""What happens around the training loop: a table of metrics a run, and progress people can read."""

import csv
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from rich.console import Console

from msrn.files import write_text

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


class ImagesPerSecondBar(TQDMProgressBar):
    """Lightning's progress bar with images a second instead of a version number."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        """What stands behind the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        metrics["images/s"] = f"{pl_module.images_per_s:.0f}"
        return metrics


def progress_callbacks(console: Console | None) -> list[pl.Callback]:
    """A moving bar where someone watches a terminal; elsewhere the epoch lines are enough."""
    if console is None or not sys.stderr.isatty():
        return []
    return [ImagesPerSecondBar(leave=False)]
