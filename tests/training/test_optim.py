import math

import pytest
import torch
from torch import nn

from msrn.training.optim import OptimizerSettings, ScheduleSettings, build_optimizer, build_schedule


class Model(nn.Module):
    """A backbone and a head, each with a matrix and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.backbone_like = nn.Linear(2, 3)


def settings_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_sgd_gives_the_backbone_its_own_rate_and_decays_everything() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimizerSettings("sgd", lr=0.5, backbone_factor=0.1, momentum=0.8))
    assert settings_by_name(model, optimizer) == {
        "backbone.weight": (0.05, 1e-4),
        "backbone.bias": (0.05, 1e-4),
        "backbone_like.weight": (0.5, 1e-4),
        "backbone_like.bias": (0.5, 1e-4),
    }
    assert {group["momentum"] for group in optimizer.param_groups} == {0.8}


def test_adamw_decays_matrices_only() -> None:
    model = Model()
    optimizer = build_optimizer(model, OptimizerSettings("adamw", lr=0.5, backbone_factor=1.0, weight_decay=0.05))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert settings_by_name(model, optimizer) == {
        "backbone.weight": (0.5, 0.05),
        "backbone.bias": (0.5, 0.0),
        "backbone_like.weight": (0.5, 0.05),
        "backbone_like.bias": (0.5, 0.0),
    }


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parameters_that_are_not_trained_are_left_out(name) -> None:
    model = Model()
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerSettings(name))
    assert set(settings_by_name(model, optimizer)) == {"backbone_like.weight", "backbone_like.bias"}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_backbone_factor_of_zero_freezes_the_backbone(name) -> None:
    model = Model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimizerSettings(name, backbone_factor=0.0))
    (model.backbone_like(model.backbone(torch.ones(1, 2)))).sum().backward()
    optimizer.step()
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"backbone_like.weight", "backbone_like.bias"}


def test_cosine_rises_linearly_then_falls_to_zero() -> None:
    factor = build_schedule(ScheduleSettings("cosine", warmup_steps=4), steps_per_epoch=10, max_epochs=2)
    assert [factor(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4) == 1.0
    for step in range(4, 21):
        assert factor(step) == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 4) / 16)))
    assert factor(20) == factor(1000) == 0.0


def test_step_acts_at_its_milestones() -> None:
    schedule = ScheduleSettings("step", milestones=(2, 3), step_factor=0.1)
    factor = build_schedule(schedule, steps_per_epoch=5, max_epochs=4)
    assert [factor(step) for step in (0, 9, 10, 14, 15, 19)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_longer_than_training_still_ends_at_the_full_rate() -> None:
    factor = build_schedule(ScheduleSettings("cosine", warmup_steps=100), steps_per_epoch=5, max_epochs=1)
    assert factor(4) == 1.0
    assert 0 <= factor(5) <= 1


def test_no_step_at_all() -> None:
    factor = build_schedule(ScheduleSettings("cosine"), steps_per_epoch=0, max_epochs=0)
    assert factor(0) == 1.0
