"""Optimizers and learning-rate schedules from plain settings."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

# What FSDP puts into the names of a model's parts that it shards.
_SHARD = "_fsdp_wrapped_module."


@dataclass(frozen=True)
class OptimizerSettings:
    """An optimizer with a learning rate of its own for the backbone.

    Attributes:
        name: "sgd" (with momentum) or "adamw".
        lr: Learning rate of the head.
        backbone_factor: The backbone learns at `lr` times this.
        momentum: Momentum of SGD.
        weight_decay: Applied to every parameter by SGD (as published), to matrices and filters only by AdamW.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    backbone_factor: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate moves over training.

    Attributes:
        name: "cosine" falls to 0 at the last step; "step" multiplies by `step_factor` at each of `milestones`.
        warmup_steps: Steps over which the rate rises linearly from 0.
        milestones: Epochs at which "step" acts.
        step_factor: Factor of "step".
    """

    name: Literal["cosine", "step"] = "cosine"
    warmup_steps: int = 0
    milestones: tuple[int, ...] = (30,)
    step_factor: float = 0.1


def build_optimizer(
    model: nn.Module, settings: OptimizerSettings, *, matrices: Collection[str] | None = None
) -> torch.optim.Optimizer:
    """The optimizer over the model's backbone and head, each with its learning rate.

    Args:
        model: The model.
        settings: Its settings.
        matrices: Names of the parameters with two dimensions or more, where the model does not show them as they are.
    """
    if matrices is None:
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    groups: list[dict[str, Any]] = []
    for is_backbone, lr in ((True, settings.lr * settings.backbone_factor), (False, settings.lr)):
        part = "backbone" if is_backbone else "head"
        named = {
            name.replace(_SHARD, ""): parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith("backbone.") == is_backbone
        }
        if settings.name == "sgd":
            groups.append(
                {"name": part, "params": list(named.values()), "lr": lr, "weight_decay": settings.weight_decay}
            )
        else:
            for is_matrix, decay in ((True, settings.weight_decay), (False, 0.0)):
                chosen = [parameter for name, parameter in named.items() if (name in matrices) == is_matrix]
                groups.append({"name": part, "params": chosen, "lr": lr, "weight_decay": decay})
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr)


def build_schedule(settings: ScheduleSettings, *, steps_per_epoch: int, max_epochs: int) -> Callable[[int], float]:
    """The factor on every learning rate as a function of the step, for `LambdaLR`.

    Example:
        >>> factor = build_schedule(ScheduleSettings("cosine", warmup_steps=2), steps_per_epoch=5, max_epochs=2)
        >>> [round(factor(step), 3) for step in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    num_steps = max(1, steps_per_epoch * max_epochs)
    warmup = min(settings.warmup_steps, num_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.name == "cosine":
            progress = (step - warmup) / max(1, num_steps - warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        passed = sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)
        return float(settings.step_factor**passed)

    return factor
