"""Watching the validation mAP: stopping where it no longer rises, and saying so where it never did."""

from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Int
from rich.console import Console
from torch import Tensor

from msrn.training.table import EpochTable

# A run is called stuck after so many epochs near chance, or so many in which the mAP has not moved.
CHANCE_EPOCHS = 3
STILL_EPOCHS = 5
_ADVICE = (
    "Look for a learning rate (msrn train RECIPE --find lr), start from pre-trained weights (model.pretrained=true), "
    "and check the labels (msrn data check)."
)


class StopEarly(pl.Callback):
    """Stops a run whose validation mAP has not risen for some epochs.

    It decides from the rows of the table alone, so that a run that is resumed stops where it would have stopped.

    Args:
        table: Keeps the mAP of every epoch.
        patience: Epochs without a better mAP.
    """

    def __init__(self, table: EpochTable, patience: int) -> None:
        self.table = table
        self.patience = patience

    @property
    def is_over(self) -> bool:
        """Whether the last epochs have brought nothing."""
        return len(self.table.rows) - 1 - best_epoch(self.table.rows) >= self.patience

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin no further epoch where the run was over already."""
        trainer.should_stop = trainer.should_stop or self.is_over

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the table, to which this epoch has been added."""
        if self.is_over and trainer.current_epoch + 1 < (trainer.max_epochs or 0):
            trainer.should_stop = True
            if self.table.console is not None and trainer.is_global_zero:
                best = best_epoch(self.table.rows) + 1
                self.table.console.print(
                    f"stopped early: no better val mAP for {self.patience} epochs, since epoch {best}", highlight=False
                )


class WarnWhenStuck(pl.Callback):
    """Warns once where the validation mAP stays near chance, and once where it has stopped moving far from the top.

    Args:
        table: Keeps the mAP of every epoch.
        chance_mAP: What a random ranking gets, see `chance_mean_average_precision`.
        console: Where warnings are printed.
    """

    def __init__(self, table: EpochTable, chance_mAP: float, console: Console) -> None:
        self.table = table
        self.chance_mAP = chance_mAP
        self.console = console

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the table, to which this epoch has been added."""
        text = self.warning([row["val/mAP"] for row in self.table.rows])
        if text is not None and trainer.is_global_zero:
            self.console.print(f"warning: {text} {_ADVICE}", highlight=False, markup=False, style="yellow")

    def warning(self, scores: list[float]) -> str | None:
        """What there is to say after these epochs; the same thing is said once.

        Example:
            >>> from pathlib import Path
            >>> from msrn.training.meter import Meter
            >>> watch = WarnWhenStuck(EpochTable(Path("metrics.csv"), Meter()), 0.3, Console())
            >>> watch.warning([0.3, 0.31, 0.3])
            'val mAP is 31.00 after 3 epochs, where chance gives 30.00.'
            >>> watch.warning([0.3, 0.31, 0.3, 0.3]) is None
            True
        """
        best = max(scores)
        near_chance = self.chance_mAP + 0.02 * (1 - self.chance_mAP)
        if len(scores) == CHANCE_EPOCHS and best <= near_chance:
            return f"val mAP is {100 * best:.2f} after {len(scores)} epochs, where chance gives {100 * self.chance_mAP:.2f}."
        if _is_still(scores) and not _is_still(scores[:-1]) and best < 0.99:
            return f"val mAP has stayed at {100 * scores[-1]:.2f} for {STILL_EPOCHS} epochs."
        return None


def best_epoch(rows: list[dict[str, float]]) -> int:
    """The first epoch with the greatest validation mAP, or -1; an mAP that is NaN is never the greatest."""
    best = -1
    for epoch, row in enumerate(rows):
        if row["val/mAP"] > (rows[best]["val/mAP"] if best >= 0 else float("-inf")):
            best = epoch
    return best


def chance_mean_average_precision(target: Int[Tensor, "N L"]) -> float:
    """The mAP to expect of images in random order.

    A label with k positives among n known images gets (H + (n - H) (k - 1) / (n - 1)) / n with H = 1 + 1/2 + ... + 1/n, a
    little above its share k / n.

    Returns:
        The mean over labels with positives; NaN where there is none.

    Example:
        >>> round(chance_mean_average_precision(torch.tensor([[1], [0]])), 3)    # first or second: (1 + 1/2) / 2
        0.75
    """
    expected = []
    for column in target.T:
        n, k = int((column >= 0).sum()), int((column == 1).sum())
        if k:
            harmonic = float((1 / torch.arange(1, n + 1, dtype=torch.float64)).sum())
            expected.append((harmonic + (n - harmonic) * (k - 1) / max(1, n - 1)) / n)
    return sum(expected) / len(expected) if expected else float("nan")


def _is_still(scores: list[float]) -> bool:
    last = scores[-STILL_EPOCHS:]
    return len(last) == STILL_EPOCHS and max(last) - min(last) < 1e-4
