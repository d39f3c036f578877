"""Finding a learning rate and a batch size with Lightning's tuner; nothing is kept of the training that it takes."""

import functools
import io
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.utils.data import DataLoader

from msrn.errors import NonFiniteLossError, TrainingError
from msrn.training.fit import TrainerSettings, check_precision, follow_epochs, quiet_lightning
from msrn.training.module import MSRNModule

# Rates that are tried, from one that changes nothing to one at which everything diverges.
_RATES = (1e-6, 10.0)
_NO_ROOM = "not even two images fit into memory. Choose a smaller data.size or model.backbone, or free some memory."


@dataclass(frozen=True)
class LearningRateCurve:
    """The loss of a short training whose learning rate rises from step to step.

    Attributes:
        rates: Learning rate of the head at each step.
        losses: Loss at each step, the mean with those of four steps before and after it; the curve ends where it diverged.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The rate at which the loss was lowest: just below those at which it rises again."""
        return self.rates[self.losses.index(min(self.losses))]

    @property
    def suggestion(self) -> float:
        """A tenth of that rate."""
        return self.lowest / 10


@dataclass(frozen=True)
class BatchSizes:
    """What batch sizes were tried.

    Attributes:
        suggestion: The largest that could be trained with, a twentieth less where memory ran out above it.
        images_per_s: Images a second at each size that could be trained with, reading included.
    """

    suggestion: int
    images_per_s: dict[int, float]

    @property
    def fastest(self) -> int:
        """The size with the most images a second."""
        return max(self.images_per_s, key=lambda size: self.images_per_s[size])


def find_learning_rate(
    module: MSRNModule, settings: TrainerSettings, train_loader: DataLoader[Any], *, num_steps: int = 100
) -> LearningRateCurve:
    """Train a little with a rate that rises from 1e-6 to 10, and see where the loss is lowest.

    The backbone keeps its part of the rate (`backbone_factor`). The curve ends early where the loss diverges. Lightning's own
    suggestion is not taken: it looks for the steepest fall over the rate, not over its logarithm, and so finds far too low ones.

    Args:
        module: What would be trained; make a new one for the training.
        settings: How it would be trained.
        train_loader: Training batches.
        num_steps: Steps of the optimizer, each with a higher rate.

    Raises:
        TrainingError: The loss never fell.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186.
    """
    configure, step = module.configure_optimizers, module.training_step
    losses: list[float] = []  # of every batch

    @functools.wraps(configure)
    def keep_ratios() -> Any:
        config = configure()
        _scale_rates(config["optimizer"], module.optimizer_settings.lr)
        return config

    @functools.wraps(step)
    def end_where_it_diverges(batch: Any, batch_index: int) -> Tensor | None:
        try:
            loss = step(batch, batch_index)
        except NonFiniteLossError:
            module.trainer.should_stop = True
            return None
        losses.append(loss.item())
        return loss

    module.configure_optimizers = keep_ratios  # type: ignore[method-assign]
    module.training_step = end_where_it_diverges  # type: ignore[method-assign, assignment]
    steps_per_epoch = max(1, len(train_loader) // settings.accumulate)
    with _tuned_trainer(settings, max_epochs=2 + num_steps // steps_per_epoch) as trainer:
        follow_epochs(train_loader, trainer)
        finder = Tuner(trainer).lr_find(
            module, train_loader, min_lr=_RATES[0], max_lr=_RATES[1], num_training=num_steps, update_attr=False
        )
    rates = [] if finder is None else finder.results["lr"]
    count = min(len(rates), len(losses) // settings.accumulate)
    smooth = _smooth(
        torch.tensor(losses[: count * settings.accumulate]).reshape(count, settings.accumulate).mean(dim=1)
    )
    curve = LearningRateCurve(tuple(rates[:count]), tuple(smooth))
    if not smooth or curve.lowest == curve.rates[0]:
        raise TrainingError(
            "the loss fell at no learning rate. Look at the data (msrn data check), or set trainer.precision=32-true."
        )
    return curve


def find_batch_size(
    module: MSRNModule,
    settings: TrainerSettings,
    make_loader: Callable[[int], DataLoader[Any]],
    *,
    at_most: int,
) -> BatchSizes:
    """Train a few steps with 2, 4, 8 ... images a batch until memory runs out, and search between the last two sizes.

    Only GPUs say that memory has run out; a system that runs out of its own ends programs instead. There `at_most` has to be what
    fits, see `estimate_training_memory`.

    Args:
        module: What would be trained; make a new one for the training.
        settings: How it would be trained.
        make_loader: Training batches of a size.
        at_most: No larger size is tried.

    Raises:
        TrainingError: Not even two images fit.
    """
    if at_most < 2:
        raise TrainingError(_NO_ROOM)
    starts: list[tuple[int, float]] = []  # batch size and time of every step
    step = module.training_step

    @functools.wraps(step)
    def timed(batch: Any, batch_index: int) -> Tensor:
        starts.append((len(batch["images"]), time.perf_counter()))
        return step(batch, batch_index)

    module.training_step = timed  # type: ignore[method-assign]
    with _tuned_trainer(settings, max_epochs=10) as trainer:
        data = _Batches(make_loader, trainer)
        found = Tuner(trainer).scale_batch_size(module, datamodule=data, mode="binsearch", max_val=at_most + 1)
    seconds: dict[int, list[float]] = {}
    for (size, start), (next_size, end) in itertools.pairwise(starts):
        if size == next_size:
            seconds.setdefault(size, []).append(end - start)
    if not seconds or found is None:
        raise TrainingError(_NO_ROOM)
    return BatchSizes(min(found, max(seconds)), {size: size / min(times) for size, times in sorted(seconds.items())})


class _Batches(pl.LightningDataModule):
    """Batches of the size that the tuner sets."""

    def __init__(self, make_loader: Callable[[int], DataLoader[Any]], trainer: pl.Trainer) -> None:
        super().__init__()
        self.make_loader = make_loader
        self.batch_size = 2
        self._trainer = trainer

    def train_dataloader(self) -> DataLoader[Any]:
        loader = self.make_loader(self.batch_size)
        follow_epochs(loader, self._trainer)
        return loader

    def val_dataloader(self) -> list[Any]:
        return []


def _scale_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let every group learn at its part of the rate that the tuner sets, which is the same for all."""
    parts = [group["initial_lr"] / lr for group in optimizer.param_groups]
    rates: list[float] = []

    def before(*_: Any) -> None:
        rates[:] = [group["lr"] for group in optimizer.param_groups]
        for group, part in zip(optimizer.param_groups, parts, strict=True):
            group["lr"] *= part

    def after(*_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _smooth(losses: Float[Tensor, " N"]) -> list[float]:
    """The mean of each loss and its neighbours, as many on either side, up to four."""
    count = len(losses)
    reach = [min(4, index, count - 1 - index) for index in range(count)]
    return [losses[index - side : index + side + 1].mean().item() for index, side in enumerate(reach)]


@contextmanager
def _tuned_trainer(settings: TrainerSettings, *, max_epochs: int) -> Iterator[pl.Trainer]:
    """A trainer as `fit` would make it, on one device, whose files vanish."""
    check_precision(settings)
    # The tuner's bar is for those who watch.
    quiet = redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet_lightning(), quiet:
        yield pl.Trainer(
            **settings.trainer_arguments(),
            max_epochs=max_epochs,
            devices=1,
            enable_checkpointing=False,
            default_root_dir=folder,
        )
