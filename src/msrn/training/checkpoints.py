"""Checkpoints from which a run goes on exactly as if it had never stopped."""

import math
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from msrn.data.loader import mix_seed
from msrn.files import put_in_place
from msrn.training.stopping import StopWhenAsked

BEST_FILE = "best.ckpt"
LAST_FILE = "last.ckpt"
# What is being written; a run that was killed at it leaves it behind.
_PARTIAL_FILE = "partial.ckpt"
_PARTIAL_BEST_FILE = "partial-best.ckpt"


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint where it is told to.

    Lightning's own (2.6) writes it to the system's temporary folder and copies it from there: that folder may be small, and keeps
    the file of a run that is killed.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: The disk is full, or the file cannot be written for another reason.
        """
        try:
            with open(path, "wb") as file:  # noqa: PTH123  (given a name, PyTorch keeps the system's reason to itself)
                torch.save(checkpoint, file)
        except RuntimeError as error:  # PyTorch's writer, which could not end its file
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class KeepCheckpoints(Checkpoint):
    """Keeps `last.ckpt` of the last finished epoch or step, and `best.ckpt` of the epoch with the greatest validation mAP.

    Lightning's own ModelCheckpoint (2.6) renews its last.ckpt only where the score improves, and forgets the best score
    when the folder has moved.

    Args:
        folder: Where the two files are kept; they are replaced whole.
        every_steps: Also renew `last.ckpt` after every so many steps of the optimizer; None waits for the end of the epoch.
        stopping: Tells when to save and stop; None never does.
        can_save_steps: Whether a run can go on within an epoch; otherwise it stops without another checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int | None = None,
        stopping: StopWhenAsked | None = None,
        can_save_steps: bool = True,
    ) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.stopping = stopping
        self.can_save_steps = can_save_steps
        self.best_epoch = -1
        self.best_mAP = -math.inf
        self.kept = ""
        self._num_batches = 0
        self._step = 0

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Remove what a killed run left half written."""
        if trainer.is_global_zero:
            for name in (_PARTIAL_FILE, _PARTIAL_BEST_FILE):
                (self.folder / name).unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """The best epoch so far and its score, what this checkpoint is in words, and how far it is in an unfinished epoch."""
        names = ("best_epoch", "best_mAP", "kept")
        return {**{name: getattr(self, name) for name in names}, "num_batches": self._num_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best epoch of a checkpoint."""
        self.best_epoch, self.best_mAP = state_dict["best_epoch"], state_dict["best_mAP"]
        self.kept, self._num_batches = state_dict["kept"], state_dict["num_batches"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave out the batches before the checkpoint that the run goes on from."""
        # Lightning (2.6) forgets the state of a loader where the optimizer has asked how many steps there will be.
        if self._num_batches:
            trainer.train_dataloader.num_skipped = self._num_batches
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save between two steps; the last step of an epoch is followed by the checkpoint of the epoch."""
        # Only where the optimizer has just moved: gradients that are still being accumulated are not saved.
        has_stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if not has_stepped or trainer.is_last_batch:
            return
        is_over = self.stopping is not None and self.stopping.is_over(trainer)
        is_due = self.every_steps is not None and self._step % self.every_steps == 0
        if is_due or (is_over and self.can_save_steps):
            self._num_batches = batch_idx + 1
            self._save(trainer, f"Epoch {trainer.current_epoch + 1} up to batch {batch_idx + 1}", is_best=False)
        if is_over and self.stopping is not None:
            self.stopping.stop()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Save this epoch, and keep it if it is the best so far."""
        score = float(trainer.callback_metrics["val/mAP"])
        is_best = score > self.best_mAP
        if is_best:
            self.best_epoch, self.best_mAP = trainer.current_epoch, score
        self._num_batches = 0
        self._save(trainer, f"Epoch {trainer.current_epoch + 1}", is_best=is_best)
        if self.stopping is not None and self.stopping.is_over(trainer, is_epoch_end=True):
            self.stopping.stop()

    def _save(self, trainer: pl.Trainer, what: str, *, is_best: bool) -> None:
        before, self.kept = self.kept, what
        partial = self.folder / _PARTIAL_FILE
        try:
            trainer.save_checkpoint(partial)
            if trainer.is_global_zero:
                if is_best:
                    copy = self.folder / _PARTIAL_BEST_FILE
                    shutil.copyfile(partial, copy)
                    put_in_place(copy, self.folder / BEST_FILE)
                # Best before last: a run that is killed in between repeats the epoch and finds the same score.
                put_in_place(partial, self.folder / LAST_FILE)
        except BaseException:
            self.kept = before
            partial.unlink(missing_ok=True)
            raise


class SeedEveryStep(pl.Callback):
    """Seeds PyTorch's generator from the run's seed, the epoch and the batch, so that dropout too goes on as it would have.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed the step; processes that train together draw apart."""
        torch.manual_seed(mix_seed(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank))
