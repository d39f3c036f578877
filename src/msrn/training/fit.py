"""Run the trainer: best epoch by validation mAP, checkpoints, and resuming from the last one."""

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from msrn.data.loader import ImageDataset, ImageLoader
from msrn.errors import MSRNError, TrainingError, is_out_of_memory
from msrn.torch_files import TorchFileError, load_torch_file
from msrn.training.average import AverageWeights, averaged_weights
from msrn.training.checkpoints import BEST_FILE, LAST_FILE, DirectCheckpointIO, KeepCheckpoints, SeedEveryStep
from msrn.training.distributed import (
    ProcessPlan,
    StrategyName,
    TrainTogether,
    ending_together,
    plan_processes,
    synchronised_batch_norms,
)
from msrn.training.meter import Meter
from msrn.training.module import MSRNModule
from msrn.training.progress import progress_callbacks
from msrn.training.stopping import StopWhenAsked
from msrn.training.table import EpochTable
from msrn.training.tensorboard import TensorBoardCurves
from msrn.training.watch import StopEarly, WarnWhenStuck, chance_mean_average_precision

DeviceType = Literal["cpu", "cuda"]
# The exit code of a run that was told to end, as shells know it: 128 + SIGTERM.
TERMINATED = 143


@dataclass(frozen=True)
class TrainerSettings:
    """How long and on what a model is trained.

    Attributes:
        max_epochs: Epochs to train.
        gradient_clip: Greatest L2 norm of all gradients together, applied after the backward pass; None clips nothing.
        accumulate: Batches whose gradients are averaged for one step of the optimizer.
        ema_decay: Decay of a moving average of the weights, which is validated and kept in their stead; None keeps none.
        early_stopping: Epochs without a better validation mAP after which a run stops; None trains all epochs.
        checkpoint_steps: Steps of the optimizer between checkpoints within an epoch; None keeps finished epochs only.
        tensorboard: Write curves for TensorBoard.
        log_steps: Steps of the optimizer between two points of those curves.
        precision: Lightning's name of a precision, as in "32-true" or "bf16-mixed".
        accelerator: "auto", "cpu" or "gpu".
        devices: Processes of each machine; None takes those that torchrun or SLURM has started, else 1.
        num_nodes: Machines; None takes those on which torchrun or SLURM has started processes, else 1.
        strategy: How several processes share the work: "ddp" (as does "auto"), or "fsdp" to shard the model over GPUs.
        sync_batch_norm: Let batch norms take the statistics of all processes' images; None does so on GPUs.
        seed: Seed of weights, order and augmentation.
    """

    max_epochs: int = 10
    gradient_clip: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    early_stopping: int | None = None
    checkpoint_steps: int | None = None
    tensorboard: bool = False
    log_steps: int = 10
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int | None = None
    num_nodes: int | None = None
    strategy: StrategyName = "auto"
    sync_batch_norm: bool | None = None
    seed: int = 0

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of Lightning's trainer that a run and a trial of it share."""
        return {
            "gradient_clip_val": self.gradient_clip,
            "accumulate_grad_batches": self.accumulate,
            "precision": self.precision,
            "accelerator": self.accelerator,
            "logger": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        }


@dataclass(frozen=True)
class FitResult:
    """What training found.

    Attributes:
        best_epoch: Epoch (from 0) of the greatest validation mAP.
        best_mAP: That mAP, as a fraction.
        state_dict: The model's weights at that epoch, averaged where the settings say so.
        rows: One row of metrics an epoch.
        seconds: Time of all epochs.
        seconds_per_step: Median time of a step of the optimizer, reading images included; None where none was taken.
        images_per_s: Training images a second, validation left out.
        peak_memory_bytes: Most memory held while training: tensors of a GPU, or this whole process; None where it is not known.
    """

    best_epoch: int
    best_mAP: float
    state_dict: dict[str, Tensor]
    rows: list[dict[str, float]]
    seconds: float
    seconds_per_step: float | None = None
    images_per_s: float | None = None
    peak_memory_bytes: int | None = None


def fit(
    module: MSRNModule,
    trainer_settings: TrainerSettings,
    train_loader: DataLoader[Any],
    val_loader: DataLoader[Any],
    run_dir: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> FitResult:
    """Train and return the weights of the best epoch by validation mAP.

    `run_dir/checkpoints` keeps `best.ckpt` and `last.ckpt`, `run_dir/metrics.csv` a row an epoch and, where the settings ask for
    them, `run_dir/tensorboard` curves. With `resume`, weights, optimizer, schedule, average, best score and table go on from
    `last.ckpt`, within an epoch too; order, augmentation and dropout depend on seed, epoch and batch alone. On a CPU a resumed run
    ends with the very weights of one that was never stopped.

    Where the settings ask for several processes, Lightning starts this program again for each of the others. All of them return
    the same; only the first writes and prints. Loaders have to deal their images out, as those of `build_loader` do.

    Ctrl-C or SIGTERM once lets the step of the optimizer end and saves it as `last.ckpt`; at the end of an epoch it is validated
    first. A second one stops at once, and what is kept is the last checkpoint.

    Raises:
        TrainingError: The loss is not finite, there is nothing to resume from, or there are too few GPUs or images for so many
            processes.
    """
    checkpoint_dir = run_dir / "checkpoints"
    last = checkpoint_dir / LAST_FILE
    if resume and not last.is_file():
        raise TrainingError(f"{run_dir} holds no checkpoints/{LAST_FILE} to resume from. Start it without --resume.")
    meter = Meter()
    table = EpochTable(run_dir / "metrics.csv", meter, console)
    if trainer_settings.checkpoint_steps is not None and not isinstance(train_loader, ImageLoader):
        raise TrainingError(
            f"checkpoint_steps needs a loader that can begin within an epoch, got a {type(train_loader).__name__}. "
            "Build it with msrn.data.loader.build_loader, or leave checkpoint_steps out."
        )
    check_precision(trainer_settings)
    plan = planned_processes(trainer_settings)
    check_processes(plan, trainer_settings, train_loader, val_loader)
    shapes = shapes_of(module)  # before processes share the model out
    if resume:
        read_checkpoint(last, shapes)
    stopping = StopWhenAsked(is_quiet=console is None)
    checkpoints = KeepCheckpoints(
        checkpoint_dir,
        every_steps=trainer_settings.checkpoint_steps,
        stopping=stopping,
        can_save_steps=isinstance(train_loader, ImageLoader),
    )
    callbacks = [*_callbacks(trainer_settings, table, meter, val_loader), stopping, checkpoints]
    with quiet_lightning(), _interruptible(), _ending_workers(train_loader, val_loader):
        arguments = {**trainer_settings.trainer_arguments(), **plan.trainer_arguments()}
        plugins = [*(arguments.pop("plugins", None) or ()), DirectCheckpointIO()]
        trainer = pl.Trainer(
            **arguments,
            max_epochs=trainer_settings.max_epochs,
            callbacks=callbacks,
            plugins=plugins,
            default_root_dir=run_dir,
        )
        follow_epochs(train_loader, trainer)
        with (
            ending_together(trainer),
            synchronised_batch_norms(module.model, is_on=plan.sync_batch_norm),
            _going_on_from(last if resume else None, stopping),
        ):
            trainer.fit(module, train_loader, val_loader, ckpt_path=last if resume else None, weights_only=True)
    if checkpoints.best_epoch < 0:
        raise TrainingError(
            "no epoch had a finite validation mAP. Give a validation split whose labels have positives."
        )
    checkpoint = read_checkpoint(checkpoint_dir / BEST_FILE, shapes)
    prefix = "model."
    weights = {n[len(prefix) :]: value for n, value in checkpoint["state_dict"].items() if n.startswith(prefix)}
    return FitResult(
        checkpoints.best_epoch,
        checkpoints.best_mAP,
        averaged_weights(checkpoint) or weights,
        table.rows,
        seconds=sum(row["seconds"] for row in table.rows),
        **meter.summary(),
    )


@contextmanager
def _ending_workers(*loaders: DataLoader[Any]) -> Iterator[None]:
    """Training over, or stopped by an error, nobody reads any more."""
    try:
        yield
    finally:
        for loader in loaders:
            if isinstance(loader, ImageLoader):
                loader.end_workers()


@contextmanager
def _going_on_from(path: Path | None, stopping: StopWhenAsked) -> Iterator[None]:
    """Say of what ends training before its first step that the checkpoint is not what it should be."""
    try:
        yield
    except MSRNError:
        raise
    except Exception as error:  # Lightning and PyTorch take what a checkpoint holds as it is
        if path is None or stopping.has_begun or is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise TrainingError(
            f"{path} is no checkpoint that this run can go on from ({reason}). Start the run anew with another --out."
        ) from error


def shapes_of(module: torch.nn.Module) -> dict[str, torch.Size]:
    """The tensors of a module that is not sharded yet: what its checkpoints hold."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def read_checkpoint(path: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """Read a checkpoint of a run whose module has these tensors.

    Raises:
        TrainingError: The file is damaged, or holds something else.
    """
    try:
        checkpoint: dict[str, Any] = load_torch_file(path, map_location="cpu", mmap=True)
    except Exception as error:  # a damaged file can fail in any way
        reason = error if isinstance(error, TorchFileError) else type(error).__name__
        raise TrainingError(
            f"{path} is damaged ({reason}); nothing in it was run. Start the run anew with another --out."
        ) from None
    if problem := _problem(checkpoint, shapes):
        raise TrainingError(
            f"{path} is no checkpoint that this run can go on from: {problem}. Start the run anew with another --out."
        )
    return checkpoint


_CHECKPOINT_KEYS = {
    "state_dict": dict,
    "callbacks": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
}


def _problem(checkpoint: Any, shapes: Mapping[str, torch.Size]) -> str | None:
    """What a checkpoint lacks or has too much of, if anything."""
    if not isinstance(checkpoint, dict):
        return f"it holds a {type(checkpoint).__name__}"
    for key, kind in _CHECKPOINT_KEYS.items():
        if not isinstance(checkpoint.get(key), kind) or (kind is not int and not checkpoint[key]):
            return f"its '{key}' is missing, empty or no {kind.__name__}"
    given = checkpoint["state_dict"]
    for name in sorted(shapes.keys() ^ given.keys(), key=str):
        return f"the tensor '{name}' is {'missing' if name in shapes else 'not known'}"
    for name, shape in shapes.items():
        if not isinstance(given[name], Tensor) or given[name].shape != shape:
            return f"'{name}' is no tensor of shape {tuple(shape)}"
    table, best = (checkpoint["callbacks"].get(own.__qualname__) for own in (EpochTable, KeepCheckpoints))
    rows = table.get("rows") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values()) for row in rows
    ):
        return "it holds no rows of metrics"
    kinds = {"best_epoch": int, "best_mAP": int | float, "kept": str, "num_batches": int}
    if not isinstance(best, dict) or not all(isinstance(best.get(name), kind) for name, kind in kinds.items()):
        return "it does not say which epoch is the best"
    return None


def _callbacks(
    settings: TrainerSettings, table: EpochTable, meter: Meter, val_loader: DataLoader[Any]
) -> Iterator[pl.Callback]:
    """What goes on around the loop, in an order: the table asks the meter, and those who watch look at the table.

    Lightning moves the checkpoints behind all of them: they hold what these know.
    """
    yield from (TrainTogether(table.path.parent / "checkpoints"), SeedEveryStep(settings.seed), meter, table)
    if settings.ema_decay is not None:
        yield AverageWeights(settings.ema_decay)
    if settings.early_stopping is not None:
        yield StopEarly(table, settings.early_stopping)
    if settings.tensorboard:
        yield TensorBoardCurves(table.path.parent / "tensorboard", table, meter, every_steps=settings.log_steps)
    if table.console is not None:
        if isinstance(val_loader.dataset, ImageDataset):
            yield WarnWhenStuck(table, chance_mean_average_precision(val_loader.dataset.target), table.console)
        yield from progress_callbacks(table.console, meter)


def check_precision(settings: TrainerSettings) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        TrainingError: 16-mixed without a GPU, for which Lightning would take bf16-mixed; or the GPU that is asked for is not there.
    """
    is_cpu = training_device_type(settings) == "cpu" and not torch.backends.mps.is_available()
    if settings.precision == "16-mixed" and is_cpu:
        raise TrainingError("trainer.precision=16-mixed needs a GPU. On a CPU take bf16-mixed or 32-true.")


def follow_epochs(loader: DataLoader[Any], trainer: pl.Trainer) -> None:
    """Let the order of the images depend on the epoch that is trained."""
    if hasattr(loader.sampler, "current_epoch"):
        loader.sampler.current_epoch = lambda: trainer.current_epoch


def planned_processes(settings: TrainerSettings) -> ProcessPlan:
    """The processes that train under these settings.

    Raises:
        TrainingError: The settings ask for what this machine has not.
    """
    return plan_processes(
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        sync_batch_norm=settings.sync_batch_norm,
        device_type=training_device_type(settings),
    )


def check_processes(
    plan: ProcessPlan, settings: TrainerSettings, train_loader: DataLoader[Any], val_loader: DataLoader[Any]
) -> None:
    """Every process needs images, and a model that is sharded cannot do all that others can.

    Raises:
        TrainingError: There are fewer images than processes, or the settings ask for a moving average of a sharded model.
    """
    for name, loader in (("training", train_loader), ("validation", val_loader)):
        num_images = len(loader.dataset)  # type: ignore[arg-type]
        if num_images < plan.world_size:
            raise TrainingError(
                f"{plan.world_size} processes need an image each, there are {num_images} {name} images. Lower trainer.devices."
            )
    if plan.strategy == "fsdp" and settings.ema_decay is not None:
        raise TrainingError(
            "trainer.ema_decay needs a whole model in each process. Use trainer.strategy=ddp, or set it to null."
        )


def training_device_type(settings: TrainerSettings) -> DeviceType:
    """Where these settings train; the GPUs of a Mac share its memory and count as CPU.

    Raises:
        TrainingError: The settings ask for a GPU that PyTorch does not find.
    """
    has_gpu = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not has_gpu:
        raise TrainingError("PyTorch finds no GPU here. Set trainer.accelerator=cpu, or leave it out.")
    return "cuda" if has_gpu and settings.accelerator != "cpu" else "cpu"


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let signals arrive: Lightning ends without an error on either, and ignores Ctrl-C from then on."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if is_main else None
    try:
        yield
    except SIGTERMException:
        raise SystemExit(TERMINATED) from None
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if is_main:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning's advice on workers, loggers and devices is for those who write the loop."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
