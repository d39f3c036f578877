"""The search for a learning rate and a batch size."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import PREPROCESSING, make_module

from msrn.data import LabelledImages
from msrn.data.loader import build_loader
from msrn.errors import TrainingError
from msrn.training import OptimizerSettings, ScheduleSettings, TrainerSettings
from msrn.training.find import find_batch_size, find_learning_rate

SETTINGS = TrainerSettings(accelerator="cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files would be left."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_loader(images: LabelledImages, batch_size: int) -> Any:
    return build_loader(images, PREPROCESSING, batch_size=batch_size, shuffle=True)


def test_learning_rate_is_found_and_nothing_is_left(
    images: LabelledImages, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    home = sys.modules[torch.optim.SGD.__module__]
    sgd = home.sgd

    def watched(*arguments: Any, **options: Any) -> None:
        rates.append(options["lr"])
        sgd(*arguments, **options)

    monkeypatch.setattr(home, "sgd", watched)
    module = make_module(
        images,
        optimizer=OptimizerSettings("sgd", lr=0.01, backbone_factor=0.1),
        schedule=ScheduleSettings(warmup_steps=7),
    )
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    curve = find_learning_rate(module, SETTINGS, make_loader(images, 8), num_steps=40)
    assert 1e-4 < curve.suggestion < 1
    assert curve.suggestion == pytest.approx(curve.lowest / 10)
    assert min(curve.losses) == curve.losses[curve.rates.index(curve.lowest)] < curve.losses[0]
    assert len(curve.rates) == len(curve.losses) <= 40
    assert np.isfinite(curve.losses).all()
    assert list(curve.rates) == sorted(curve.rates)
    backbone, head = np.array(rates).reshape(-1, 2).T
    assert np.allclose(backbone, 0.1 * head, atol=0)
    assert np.allclose(head[: len(curve.rates)], curve.rates)
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert list(folder.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_curve_holds_the_losses_and_ends_where_they_diverge(images: LabelledImages, accumulate: int) -> None:
    module = make_module(images, optimizer=OptimizerSettings("sgd", lr=0.01, backbone_factor=1.0))
    number = 0

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal number
        number += 1
        value = logits.sum() * 0 + (3 - 0.1 * number if number < 20 else 1 + 0.5 * (number - 20))
        return value * float("nan") if number > 26 else value

    module.loss, module.group_loss_weight = loss, 0.0
    module.model.supervision = "sum"  # one loss a step
    settings = TrainerSettings(accelerator="cpu", accumulate=accumulate)
    curve = find_learning_rate(module, settings, make_loader(images, 4), num_steps=40)
    assert len(curve.rates) == 26 // accumulate
    assert curve.losses[0] == pytest.approx(2.9 if accumulate == 1 else 2.85)
    assert curve.losses[3] == pytest.approx(2.6 if accumulate == 1 else 2.25)  # means of a straight line
    losses = list(curve.losses)
    assert abs(losses.index(min(losses)) - 19 // accumulate) <= 3


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_loss_that_never_falls(images: LabelledImages, value: float) -> None:
    module = make_module(images)
    module.loss, module.group_loss_weight = (lambda logits, target: logits.sum() * 0 + value), 0.0
    with pytest.raises(TrainingError, match="the loss fell at no learning rate"):
        find_learning_rate(module, SETTINGS, make_loader(images, 8), num_steps=20)


def run_out_above(module: Any, size: int) -> None:
    """Say what PyTorch says where memory is full."""
    step = module.training_step

    def limited(batch: Any, batch_idx: int) -> torch.Tensor:
        if len(batch["images"]) > size:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        loss: torch.Tensor = step(batch, batch_idx)
        return loss

    module.training_step = limited


def test_batch_size_is_searched_up_to_the_limit(images: LabelledImages, folder: Path) -> None:
    tried = []

    def loader(size: int) -> Any:
        tried.append(size)
        return make_loader(images, size)

    sizes = find_batch_size(make_module(images), SETTINGS, loader, at_most=9)
    assert sizes.suggestion == 8
    assert list(sizes.images_per_s) == [2, 4, 8]
    assert sizes.images_per_s[sizes.fastest] == max(sizes.images_per_s.values())
    assert min(sizes.images_per_s.values()) > 0
    assert max(tried) <= 10  # the size after the last one is only asked for
    assert list(folder.iterdir()) == []


def test_batch_size_where_memory_runs_out(images: LabelledImages) -> None:
    module = make_module(images)
    run_out_above(module, 6)
    sizes = find_batch_size(module, SETTINGS, lambda size: make_loader(images, size), at_most=16)
    assert sizes.suggestion in (5, 6)
    assert 8 not in sizes.images_per_s


@pytest.mark.parametrize("at_most", [0, 16])
def test_not_even_two_images_fit(images: LabelledImages, at_most: int) -> None:
    module = make_module(images)
    run_out_above(module, 0)
    with pytest.raises(TrainingError, match="not even two images fit into memory"):
        find_batch_size(module, SETTINGS, lambda size: make_loader(images, size), at_most=at_most)
