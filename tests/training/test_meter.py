"""What is measured in training."""

import io
import math
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from rich.console import Console
from tiny_training import StoppedError, last_weights, make_module, make_spy, read_rows, run, same, stop_at
from torch import nn

from msrn.data import LabelledImages
from msrn.errors import NonFiniteLossError, TrainingError
from msrn.training import OptimizerSettings
from msrn.training.meter import peak_memory_bytes


def test_gradient_norm_is_that_before_clipping(images: LabelledImages, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "optimizer": OptimizerSettings("sgd", lr=1e-9, momentum=0.0),
        "epochs": 1,
        "batch_size": 16,
    }
    module = make_module(images, optimizer=options["optimizer"])
    batch: dict[str, Any] = {}
    step = module.training_step

    def keep(given: Any, batch_idx: int) -> Any:
        batch.update(given)
        return step(given, batch_idx)

    module.training_step = keep  # type: ignore[method-assign]
    clipped = run(images, tmp_path / "clipped", gradient_clip=1e-3, module=module, **options)
    free = run(images, tmp_path / "free", **options)
    assert clipped.rows[0]["train/grad_norm"] == free.rows[0]["train/grad_norm"]
    fresh = make_module(images)
    sum(fresh.loss(logits, batch["target"]) for logits in fresh.model.supervised(batch["images"])).backward()
    norms = [parameter.grad.norm() for parameter in fresh.parameters() if parameter.grad is not None]
    expected = float(torch.stack(norms).norm())
    assert clipped.rows[0]["train/grad_norm"] == pytest.approx(expected, rel=0.01)  # but for the group loss


@pytest.mark.parametrize("accumulate", [1, 3])
def test_loss_of_an_epoch_is_the_mean_over_its_images(images: LabelledImages, tmp_path: Path, accumulate: int) -> None:
    module = make_module(images)
    losses: list[float] = []
    step = module.training_step

    def keep(batch: Any, batch_idx: int) -> Any:
        loss = step(batch, batch_idx)
        losses.append(loss.item())
        return loss

    module.training_step = keep  # type: ignore[method-assign]
    result = run(images, tmp_path, epochs=1, batch_size=2, module=module, trainer={"accumulate": accumulate})
    assert result.rows[0]["train/loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_accumulated_gradients_are_those_of_the_larger_batch(images: LabelledImages, tmp_path: Path) -> None:
    weights = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        module = make_spy(images, optimizer=OptimizerSettings("sgd", lr=0.01))
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        module.before_step = lambda epoch, batch, norms=norms: [
            norm.eval() for norm in norms
        ]  # they see their own batch only
        run_dir = tmp_path / f"{batch_size}"
        run(images, run_dir, epochs=1, batch_size=batch_size, module=module, trainer={"accumulate": accumulate})
        weights.append(module.model.state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name


def test_run_tells_its_time_and_memory(images: LabelledImages, tmp_path: Path) -> None:
    result = run(images, tmp_path, epochs=2)
    assert result.seconds_per_step is not None
    assert result.images_per_s is not None
    assert 0 < result.seconds_per_step < 60
    assert result.images_per_s == pytest.approx(4 / result.seconds_per_step, rel=5)
    assert result.peak_memory_bytes is not None
    assert 10**7 < result.peak_memory_bytes <= peak_memory_bytes(torch.device("cpu"))
    again = run(images, tmp_path, epochs=2, resume=True)
    assert again.seconds_per_step == result.seconds_per_step
    assert again.images_per_s == result.images_per_s


def test_gradient_norms_are_in_the_table(images: LabelledImages, tmp_path: Path) -> None:
    run(images, tmp_path, epochs=1, console=Console(file=io.StringIO()))
    assert math.isfinite(float(read_rows(tmp_path)[0]["train/grad_norm"]))


# Precision


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "bf16-mixed"}, {"accumulate": 2, "checkpoint_steps": 1}],
    ids=["single", "bfloat16", "accumulation"],
)
def test_one_spoilt_image_is_named(images: LabelledImages, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Though batch norms spread it over the whole batch."""
    module = make_spy(images)
    step = module.training_step

    def spoil(batch: Any, batch_idx: int) -> Any:
        if module.current_epoch == 1:
            batch["images"][batch["index"] == 7, 0, 3, 5] = math.nan
        return step(batch, batch_idx)

    module.training_step = spoil  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError) as caught:
        run(images, tmp_path, epochs=2, module=module, trainer=settings)
    message = str(caught.value)
    assert f"(images {images.paths[7]})" in message
    is_within = "checkpoint_steps" in settings and not message.startswith(
        "the loss became nan in epoch 2 of 2, batch 1 "
    )
    assert ("Epoch 2 up to batch " in message) <= is_within
    assert " is kept in last.ckpt. Lower optimizer.lr" in message


def test_half_precision_needs_a_gpu(images: LabelledImages, tmp_path: Path) -> None:
    if torch.backends.mps.is_available():
        pytest.skip("Macs have one")
    with pytest.raises(TrainingError, match=r"16-mixed needs a GPU\. On a CPU take bf16-mixed or 32-true"):
        run(images, tmp_path, trainer={"precision": "16-mixed"})


def test_the_scaler_goes_on_too(images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with the scaler that PyTorch has for CPUs."""
    scalers: list[torch.amp.GradScaler] = []
    real = pl.Trainer

    def trainer(**options: Any) -> pl.Trainer:
        scalers.append(torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3))
        del options["precision"]
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scalers[-1]), *options["plugins"]]
        return real(**options)

    module_of_fit = sys.modules["msrn.training.fit"]
    monkeypatch.setattr(module_of_fit.pl, "Trainer", trainer)
    monkeypatch.setattr(module_of_fit, "check_precision", lambda settings: None)
    settings = {"precision": "16-mixed", "checkpoint_steps": 1}
    run(images, tmp_path / "once", epochs=2, trainer=settings)
    module = make_spy(images)
    module.before_step = stop_at(1, 2, StoppedError)
    with pytest.raises(StoppedError):
        run(images, tmp_path / "twice", epochs=2, module=module, trainer=settings)
    run(images, tmp_path / "twice", epochs=2, resume=True, trainer=settings)
    once, _, twice = scalers
    assert once.state_dict() == twice.state_dict()
    assert once.get_scale() > 2.0**12
    assert same(last_weights(tmp_path / "once"), last_weights(tmp_path / "twice"))
