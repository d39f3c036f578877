"""One run in several processes: how they are started, what they add up, and how they end together."""

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msrn.errors import MSRNError, TrainingError
from msrn.models.backbone import Backbone
from msrn.processes import rank_and_world_size

StrategyName = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True)
class ProcessPlan:
    """The processes of a run.

    Attributes:
        devices: Processes of each machine.
        num_nodes: Machines.
        strategy: "ddp": each process holds the model; "fsdp": each holds a part of it; "single" trains in one process.
        sync_batch_norm: Whether batch norms take the statistics of all processes' images.
        device_type: "cpu" or "cuda".
    """

    devices: int
    num_nodes: int
    strategy: Literal["single", "ddp", "fsdp"]
    sync_batch_norm: bool
    device_type: Literal["cpu", "cuda"]

    @property
    def world_size(self) -> int:
        """All processes."""
        return self.devices * self.num_nodes

    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of Lightning's trainer; one process is what it chooses on its own."""
        if self.strategy == "single":
            return {"devices": 1}
        # Shares of the images are ours, without the padding of Lightning's sampler. Buffers are broadcast ahead of every forward
        # pass by default, also in validation; ours are the same everywhere after every step.
        strategy = (
            FSDPStrategy(auto_wrap_policy={Backbone})
            if self.strategy == "fsdp"
            else DDPStrategy(broadcast_buffers=False)
        )
        # Lightning would put a run back into SLURM's queue by files of its own; ours is resumed by --resume.
        plugins = [SLURMEnvironment(auto_requeue=False)] if _launcher() == "SLURM" else None
        return {
            "devices": self.devices,
            "num_nodes": self.num_nodes,
            "accelerator": "gpu" if self.device_type == "cuda" else "cpu",
            "strategy": strategy,
            "plugins": plugins,
            "use_distributed_sampler": False,
        }


def plan_processes(
    *,
    devices: int | None,
    num_nodes: int | None,
    strategy: StrategyName,
    sync_batch_norm: bool | None,
    device_type: Literal["cpu", "cuda"],
) -> ProcessPlan:
    """Check what was asked for against the machine, and against the processes that torchrun or SLURM has started.

    Args:
        devices: Processes of each machine; None takes those that were started, else 1.
        num_nodes: Machines; None takes those on which processes were started, else 1.
        strategy: "auto" is "ddp" in several processes.
        sync_batch_norm: None synchronises on GPUs in several processes.
        device_type: "cpu" or "cuda".

    Raises:
        TrainingError: More processes than GPUs, other numbers than were started, or what only GPUs can do on a CPU.
    """
    launcher = _launcher()
    started = _started_processes(launcher)
    given = (devices or started[0], num_nodes or started[1])
    if launcher is not None and given != started:
        raise TrainingError(
            f"{launcher} has started {started[0]} processes on each of {started[1]} machines, the recipe asks for {given[0]} on "
            f"each of {given[1]}. Leave trainer.devices and trainer.num_nodes out, or start as many."
        )
    devices, num_nodes = given
    world_size = devices * num_nodes
    if device_type == "cpu":
        if strategy == "fsdp":
            raise TrainingError(
                "trainer.strategy=fsdp shards a model over GPUs, this trains on a CPU. Use ddp, or GPUs."
            )
        if sync_batch_norm:
            raise TrainingError(
                "trainer.sync_batch_norm=true needs GPUs, this trains on a CPU. Leave it out, or set model.freeze_batch_norm=true."
            )
    elif devices > torch.cuda.device_count():
        raise TrainingError(
            f"trainer.devices={devices} needs as many GPUs, PyTorch finds {torch.cuda.device_count()}. Lower trainer.devices."
        )
    is_synchronised = world_size > 1 and (device_type == "cuda" if sync_batch_norm is None else sync_batch_norm)
    if strategy == "auto":
        return ProcessPlan(devices, num_nodes, "ddp" if world_size > 1 else "single", is_synchronised, device_type)
    return ProcessPlan(devices, num_nodes, strategy, is_synchronised, device_type)


def _launcher() -> str | None:
    """What has started the processes of this run, where it was not the user."""
    if TorchElasticEnvironment.detect():
        return "torchrun"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that srun is there and not used
        return "SLURM" if SLURMEnvironment.detect() else None


def _started_processes(launcher: str | None) -> tuple[int, int]:
    """Processes of each machine and machines, as the launcher tells; 1 and 1 without one."""
    if launcher is None:
        return 1, 1
    if launcher == "torchrun":
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return local, world // local
    world, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
    if world > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise TrainingError(
            f"SLURM has started {world} tasks and does not say how many a machine. Ask for them by --ntasks-per-node."
        )
    return world // nodes, nodes


# What the processes add up


def share_of_mean(loss: Tensor, target: Tensor, is_finite: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the mean over this process' known labels into its part in the mean over those of all processes.

    Gradients are averaged over the processes afterwards, hence the factor of their number: what comes out are the gradients of
    one process that holds all images, however the unknown labels are spread.

    Args:
        loss: Mean over the known labels of this process' images.
        target: Target of these images; -1 unknown.
        is_finite: Whether this process can go on.

    Returns:
        The part; its mean over the processes is the loss of all. And whether all of them can go on.
    """
    _, world_size = rank_and_world_size()
    known = (target >= 0).sum()
    total = torch.stack([known, (~is_finite).long()])
    dist.all_reduce(total)
    return loss * (world_size * known / total[0].clamp(min=1)), total[1] == 0


@torch.no_grad()
def average_batch_norms(model: nn.Module) -> None:
    """Give the running statistics of batch norms, which every process has of its own images, their mean over the processes.

    Frozen batch norms and those that are synchronised have the same everywhere. So that every process validates, averages and saves
    the same model, this follows every step.
    """
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm) and module.training
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


@contextmanager
def synchronised_batch_norms(model: nn.Module, *, is_on: bool) -> Iterator[None]:
    """Let batch norms take the statistics of all processes' images for a while; parameters and buffers stay the same tensors.

    Lightning's own switch (2.6) would lose the activations that timm keeps in its batch norms.
    """
    originals = (
        {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)} if is_on else {}
    )
    if originals:
        convert_sync_batchnorm(model)
    try:
        yield
    finally:
        for name, original in originals.items():
            changed = model.get_submodule(name)
            for key, parameter in changed._parameters.items():  # a move to another device makes new ones
                original._parameters[key] = parameter
            for key, buffer in changed._buffers.items():
                original._buffers[key] = buffer
            original.training = changed.training
            model.set_submodule(name, original)


# How they end together


def raise_together(error: MSRNError | None) -> None:
    """Raise in every process the first error that one of them brings, so that the run ends with one message.

    Every process has to call this at the same point; it returns where none brings an error.
    """
    _, world_size = rank_and_world_size()
    errors: list[MSRNError | None] = [error]
    if world_size > 1:
        errors *= world_size
        dist.all_gather_object(errors, error)
    first = next((one for one in errors if one is not None), None)
    if first is not None:
        first.is_in_every_process = world_size > 1
        raise first


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Around training: no process waits for one that has failed, and all have seen what the first one wrote.

    Raises:
        TrainingError: Another process has failed or was killed.
    """
    try:
        yield
    except BaseException as error:
        is_lost = isinstance(error, RuntimeError) and _is_lost_connection(error)
        launcher = trainer.strategy.launcher
        if launcher is not None and hasattr(launcher, "kill"):
            # Those that wait for this one do not hear anything gentler.
            launcher.kill(getattr(signal, "SIGKILL", signal.SIGTERM))
        if is_lost:
            lost = TrainingError(
                "another process of this run has ended early; where it was not killed, its own message says why. "
                "Go on with --resume."
            )
            lost.is_in_every_process = True
            raise lost from error
        raise
    trainer.strategy.barrier("end")


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed")
    )


class TrainTogether(pl.Callback):
    """Makes sure that every process sees the folder of checkpoints that the first one makes.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Make it, and look for it."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
        trainer.strategy.barrier("folder")
        is_there = self.folder.is_dir()
        raise_together(
            None
            if is_there
            else TrainingError(
                f"not every process of this run sees {self.folder}. Put the run folder on a file system that all machines share."
            )
        )
