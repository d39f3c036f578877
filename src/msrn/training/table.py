"""The table of a run: a row of metrics an epoch."""

import csv
import io
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console

from msrn.files import write_text
from msrn.training.meter import Meter

VALIDATION_COLUMNS = ("val/loss", "val/mAP", "val/CF1", "val/OF1")
COLUMNS = ("epoch", "train/loss", *VALIDATION_COLUMNS, "lr", "train/grad_norm", "images_per_s", "seconds")


class EpochTable(pl.Callback):
    """Writes one row an epoch to a CSV file and prints it; the rows travel with the checkpoint, so a resumed run keeps them.

    Args:
        path: The CSV file, rewritten whole each epoch.
        meter: Knows the loss, the gradients and the time of the epoch.
        console: Where the rows are printed; None prints nothing.
    """

    def __init__(self, path: Path, meter: Meter, console: Console | None = None) -> None:
        self.path = path
        self.meter = meter
        self.console = console
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Add this epoch's row ahead of the checkpoint, which holds the rows too; write the table and print the row."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch,
            **{name: values.get(name, math.nan) for name in VALIDATION_COLUMNS},
            **self.meter.epoch_means(),
            "lr": float(trainer.optimizers[0].param_groups[-1]["lr"]),
            "images_per_s": round(self.meter.images_per_s, 1),
            "seconds": round(self.meter.epoch_seconds, 1),
        }
        self.rows = [*self.rows[: trainer.current_epoch], row]
        if not trainer.is_global_zero:
            return
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
