"""What is measured while a model trains: loss, gradients, time and memory."""

import math
import statistics
import time
from collections import deque
from typing import Any, TypedDict

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from msrn.machine import process_peak_bytes

# Of so many steps the median time is taken; more say nothing new and would swell the checkpoints.
_TIMED_STEPS = 1000


class Summary(TypedDict):
    """What a run took.

    Attributes:
        seconds_per_step: Median time of a step of the optimizer, reading images included; None where none was taken.
        images_per_s: Training images a second, validation left out.
        peak_memory_bytes: Most memory held while training: tensors of a GPU, or this whole process; None where it is not known.
    """

    seconds_per_step: float | None
    images_per_s: float | None
    peak_memory_bytes: int | None


class Meter(pl.Callback):
    """Measures every step; what it has measured travels with the checkpoint, so that a resumed run goes on with it.

    Attributes:
        loss: Loss of the last batch.
        grad_norm: L2 norm of all gradients together at the last step, after a scaler's factor is taken out and before
            clipping.
    """

    def __init__(self) -> None:
        self.loss: Tensor | None = None
        self.grad_norm: Tensor | None = None
        self._step_s: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._total = {"images": 0, "seconds": 0.0}
        self._peak_bytes = 0
        self._tick_s = 0.0
        self._step = 0
        self._trainer: pl.Trainer | None = None
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._sums = torch.zeros(4)  # loss x images, images, gradient norms, steps
        self._epoch = {"images": 0, "seconds": 0.0}
        self._since_step_s = 0.0

    # What others read

    @property
    def images_per_s(self) -> float:
        """Training images a second in this epoch so far, by all processes together, without validation."""
        return self._epoch["images"] / max(1e-9, self._epoch["seconds"])

    @property
    def epoch_seconds(self) -> float:
        """Time of this epoch so far, validation included, interruptions left out."""
        return self._epoch["seconds"] + time.perf_counter() - self._tick_s

    def epoch_means(self) -> dict[str, float]:
        """`train/loss` an image and `train/grad_norm` a step in this epoch, over all processes; all of them have to ask."""
        loss, images, norm, steps = self._mean_sums().tolist()
        return {
            "train/loss": loss / images if images else math.nan,
            "train/grad_norm": norm / steps if steps else math.nan,
        }

    def summary(self) -> Summary:
        """What the run took, in all its parts."""
        seconds = self._total["seconds"]
        return {
            "seconds_per_step": statistics.median(self._step_s) if self._step_s else None,
            "images_per_s": self._total["images"] / seconds if seconds else None,
            "peak_memory_bytes": self._peak_bytes or None,
        }

    # What Lightning calls

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Know the processes that train together."""
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        """Everything measured so far, in numbers; every process goes on from sums of its own, to the same rounding."""
        return {
            "sums": self._all_sums().tolist(),
            "epoch": self._epoch,
            "total": self._total,
            "step_s": list(self._step_s),
            "peak_bytes": self._peak_bytes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what was measured before."""
        sums = torch.tensor(state_dict["sums"])  # (processes, 4); one row for all in checkpoints of before
        self._sums = sums[self._trainer.global_rank if self._trainer is not None else 0] if sums.ndim == 2 else sums
        self._epoch, self._total = dict(state_dict["epoch"]), dict(state_dict["total"])
        self._step_s.extend(state_dict["step_s"])
        self._peak_bytes = state_dict["peak_bytes"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock, also of an epoch that goes on."""
        self._tick_s = time.perf_counter()
        self._step = trainer.global_step
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin anew."""
        self._begin_epoch()
        self._tick_s = time.perf_counter()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradients that the optimizer is given, ahead of clipping."""
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self.grad_norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(trainer.strategy, FSDPStrategy):  # each process holds a part of every gradient
            self.grad_norm = trainer.strategy.reduce(self.grad_norm**2, reduce_op="sum").sqrt()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Add this batch."""
        now = time.perf_counter()
        elapsed, self._tick_s = now - self._tick_s, now
        images = len(batch["images"])
        for times in (self._epoch, self._total):
            times["images"] += images * trainer.world_size
            times["seconds"] += elapsed
        self.loss = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning has divided it
        self._sums = self._sums.to(pl_module.device)
        self._sums[0] += self.loss * images
        self._sums[1] += images
        self._since_step_s += elapsed
        if trainer.global_step > self._step and self.grad_norm is not None:
            self._step = trainer.global_step
            self._step_s.append(self._since_step_s)
            self._since_step_s = 0.0
            # A scaler skips steps whose gradients are not finite.
            self._sums[2] += self.grad_norm.nan_to_num(0.0, 0.0, 0.0)
            self._sums[3] += self.grad_norm.isfinite()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the memory that has been taken."""
        self._peak_bytes = max(self._peak_bytes, peak_memory_bytes(pl_module.device))

    def _all_sums(self) -> Float[Tensor, "processes 4"]:
        """The sums of every process; all of them have to ask."""
        assert self._trainer is not None, "training has not been set up"
        gathered: Tensor = self._trainer.strategy.all_gather(self._sums.clone())
        return gathered.reshape(-1, len(self._sums)).cpu()

    def _mean_sums(self) -> Tensor:
        """The sums, averaged over all processes: the mean of means is theirs too."""
        assert self._trainer is not None, "training has not been set up"
        sums: Tensor = self._trainer.strategy.reduce(self._sums.clone(), reduce_op="mean")
        return sums


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: on a GPU its tensors, elsewhere all of it; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_peak_bytes() or 0
