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
    assert 1e-6 < curve.suggestion < 10
    assert curve.suggestion in curve.rates
    assert len(curve.rates) == len(curve.losses) <= 40
    assert np.isfinite(curve.losses).all()
    assert list(curve.rates) == sorted(curve.rates)
    backbone, head = np.array(rates).reshape(-1, 2).T
    assert np.allclose(backbone, 0.1 * head, atol=0)
    assert np.allclose(head[: len(curve.rates)], curve.rates)
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    assert list(folder.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_curve_ends_where_the_loss_diverges(images: LabelledImages) -> None:
    module = make_module(images, optimizer=OptimizerSettings("sgd", lr=0.01, backbone_factor=1.0))
    scale = 0.0

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal scale
        scale += 1
        return logits.square().mean() * (float("nan") if scale > 25 else 1.0)

    module.loss = loss
    curve = find_learning_rate(module, SETTINGS, make_loader(images, 8), num_steps=40)
    assert 20 < len(curve.rates) <= 25


def test_too_few_steps_for_a_curve(images: LabelledImages) -> None:
    module = make_module(images)
    module.loss = lambda logits, target: logits.mean() * float("nan")
    with pytest.raises(TrainingError, match="diverged before a learning rate could be found"):
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
