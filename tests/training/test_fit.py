"""The training run: what the optimizer sees, which epoch is chosen, and what is left where something goes wrong."""

import io
import math
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_training import (
    LABELS,
    PREPROCESSING,
    Spy,
    StoppedError,
    forget,
    make_module,
    make_spy,
    read_rows,
    run,
    stop_at,
)
from torch import Tensor

from msrn.data import LabelledImages
from msrn.data.loader import EpochSampler, ImageDataset, build_loader
from msrn.data.transforms import TrainTransform
from msrn.errors import NonFiniteLossError, TrainingError
from msrn.training import (
    OptimizerSettings,
    ScheduleSettings,
    multilabel_soft_margin_loss,
)

# Learning


def test_it_learns_a_tiny_set(images: LabelledImages, tmp_path: Path) -> None:
    optimizer = OptimizerSettings("adamw", lr=1e-2, backbone_factor=1.0)
    result = run(images, tmp_path, epochs=20, batch_size=8, optimizer=optimizer)
    losses = [row["train/loss"] for row in result.rows]
    assert np.mean(losses[-3:]) < 0.4 * losses[0]
    assert result.best_mAP > 0.99
    assert result.state_dict.keys() == make_module(images).model.state_dict().keys()


def test_best_epoch_is_the_first_of_the_greatest_validation_mAP(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images)
    weights: list[dict[str, Tensor]] = []
    ends = {epoch: epoch for epoch in range(5)}

    def remember(epoch: int, batch: int) -> None:
        if batch == 0 and ends.pop(epoch, None) is not None:
            weights.append({name: value.clone() for name, value in module.model.state_dict().items()})
        if epoch >= 3:
            forget(module)

    module.before_step = remember
    result = run(images, tmp_path, epochs=5, module=module)
    scores = [row["val/mAP"] for row in result.rows]
    assert result.best_epoch == int(np.argmax(scores)) < 3
    assert result.best_mAP == max(scores)
    expected = weights[result.best_epoch + 1]  # as they were when the next epoch began
    assert all(torch.equal(value, expected[name]) for name, value in result.state_dict.items())


def test_validation_without_positives_is_an_error(images: LabelledImages, tmp_path: Path) -> None:
    nothing = LabelledImages(images.paths, np.zeros_like(images.target), LABELS, "val")
    with pytest.raises(TrainingError, match="no epoch had a finite validation mAP"):
        run(images, tmp_path, epochs=1, val=nothing)


# What the optimizer sees


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_clipped_where_the_optimizer_sees_them(
    images: LabelledImages, tmp_path: Path, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def watched_step(self: torch.optim.SGD, closure: Callable[[], Any] | None = None) -> Any:
        result = closure() if closure is not None else None  # Lightning computes the gradients in here
        gradients = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(gradients).norm()))
        step(self)
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", watched_step)
    run(images, tmp_path, epochs=1, gradient_clip=clip, optimizer=OptimizerSettings("sgd", lr=0.01))
    assert len(norms) == 4
    if clip is None:
        assert min(norms) > 0.05
    else:
        assert max(norms) <= clip * 1.001
        assert min(norms) > 0.9 * clip


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (
            ScheduleSettings("cosine", warmup_steps=2),
            [0.5, 1.0, *(0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6))],
        ),
        (ScheduleSettings("step", milestones=(1,), step_factor=0.1), [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
    ],
)
def test_schedule_moves_every_step(
    images: LabelledImages, tmp_path: Path, schedule: ScheduleSettings, expected: list[float]
) -> None:
    module = make_spy(images, optimizer=OptimizerSettings("sgd", lr=0.01), schedule=schedule)
    rates: list[list[float]] = []
    module.before_step = lambda epoch, batch: rates.append([g["lr"] for g in module.optimizers().param_groups])
    result = run(images, tmp_path, epochs=2, module=module)
    assert np.allclose([head for _, head in rates], 0.01 * np.array(expected))
    assert np.allclose([backbone for backbone, _ in rates], 0.001 * np.array(expected))
    assert len(result.rows) == 2


@pytest.mark.parametrize("freeze", [True, False])
def test_batch_norm_statistics_freeze(images: LabelledImages, tmp_path: Path, freeze: bool) -> None:
    module = make_module(images, freeze=freeze)
    before = {
        name: value.clone()
        for name, value in module.model.state_dict().items()
        if name.startswith("backbone") and "running_" in name
    }
    run(images, tmp_path, epochs=1, module=module)
    after = module.model.state_dict()
    assert before
    assert all(torch.equal(value, after[name]) == freeze for name, value in before.items())


# Order of images


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_has_its_own_order_fresh_and_resumed(images: LabelledImages, tmp_path: Path, workers: int) -> None:
    module = make_spy(images)
    module.before_step = stop_at(2, 1, RuntimeError)
    with pytest.raises(RuntimeError):
        run(images, tmp_path, epochs=4, workers=workers, module=module)
    resumed = make_spy(images)
    run(images, tmp_path, epochs=4, workers=workers, module=resumed, resume=True)

    def order(epoch: int) -> list[int]:
        return [index for _, index in EpochSampler(16, seed=3, current_epoch=lambda: epoch)]

    def seen(spy: Spy, epoch: int) -> list[int]:
        return [index for at, batch in spy.seen if at == epoch for index in batch]

    assert [seen(module, epoch) for epoch in (0, 1)] == [order(0), order(1)]
    assert seen(module, 2) == order(2)[:4]
    assert [seen(resumed, epoch) for epoch in (2, 3)] == [order(2), order(3)]
    assert {epoch for epoch, _ in resumed.seen} == {2, 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_differs_between_epochs(
    images: LabelledImages, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[int, list[float]] = {}

    class Watch(Spy):
        def training_step(self, batch: Any, batch_index: int) -> Tensor:
            for index, image in zip(batch["index"].tolist(), batch["images"], strict=True):
                keys.setdefault(index, []).append(image.sum().item())
            return super().training_step(batch, batch_index)

    module = make_spy(images)
    module.__class__ = Watch
    run(images, tmp_path, epochs=2, workers=workers, module=module)
    dataset = ImageDataset(images, TrainTransform(PREPROCESSING, crop_scale=(0.7, 1.0)), seed=3)
    for index, sums in keys.items():
        assert sums == pytest.approx([dataset[epoch, index]["images"].sum().item() for epoch in (0, 1)])
    assert sum(first != second for first, second in keys.values()) > 8


# Losses that are not finite


@pytest.mark.fault("numbers that are none while a model trains")
def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    images: LabelledImages, tmp_path: Path, lost: Callable[[Any, Any, str], None]
) -> None:
    module = make_spy(images)
    is_spoilt = False

    def spoil(epoch: int, batch: int) -> None:
        nonlocal is_spoilt
        is_spoilt = (epoch, batch) == (1, 2)

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return multilabel_soft_margin_loss(logits, target) * (math.nan if is_spoilt else 1.0)

    module.before_step, module.loss = spoil, loss
    with pytest.raises(NonFiniteLossError) as caught:
        run(images, tmp_path, epochs=3, module=module)
    message = str(caught.value)
    batch = module.seen[-1][1]
    assert message.startswith("the loss became nan in epoch 2 of 3, batch 3 (images ")
    assert f"(images {', '.join(str(images.paths[i]) for i in batch[:3])}, ...)" in message
    assert message.endswith(
        "Epoch 1 is kept in last.ckpt. Lower optimizer.lr, set trainer.gradient_clip, or look at these images."
    )
    assert len(read_rows(tmp_path)) == 1
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    resumed = run(images, tmp_path, epochs=3, resume=True)  # without what spoilt it
    lost([0, 1, 2], [row["epoch"] for row in resumed.rows], "epochs")


def test_the_image_that_spoils_a_batch_is_named(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images)
    supervised = module.model.supervised

    def spoilt(pixels: Tensor, *args: Any) -> list[Tensor]:
        stages, residual = supervised(pixels, *args)
        rows = torch.tensor(module.seen[-1][1]) == 7
        return [stages, torch.where(rows[:, None], math.nan, residual)]

    module.model.supervised = spoilt  # type: ignore[method-assign]
    with pytest.raises(NonFiniteLossError, match=rf"batch \d \(images {images.paths[7]}\)\. Lower"):
        run(images, tmp_path, epochs=1, module=module)


def test_weights_that_explode_in_the_last_step_are_noticed_in_validation(
    images: LabelledImages, tmp_path: Path
) -> None:
    module = make_module(images, optimizer=OptimizerSettings("sgd", lr=1e30), val_image_paths=images.paths)
    with pytest.raises(NonFiniteLossError, match=r"validation loss became nan in epoch 1 of 1, validation batch 1 \("):
        run(images, tmp_path, epochs=1, batch_size=16, module=module)
    assert not list(tmp_path.rglob("*.ckpt"))


# What a run leaves and shows


def test_metrics_have_a_row_an_epoch(images: LabelledImages, tmp_path: Path) -> None:
    text = io.StringIO()
    result = run(images, tmp_path, epochs=2, console=Console(file=text, width=200))
    rows = read_rows(tmp_path)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert list(rows[0]) == [
        *("epoch", "train/loss", "val/loss", "val/mAP", "val/CF1", "val/OF1"),
        *("lr", "train/grad_norm", "images_per_s", "seconds"),
    ]
    assert float(rows[1]["val/mAP"]) == result.rows[1]["val/mAP"]
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"epoch   2/2  loss {float(rows[1]['train/loss']):.4f}  val mAP ")
    assert float(rows[0]["images_per_s"]) > 0


def test_terminal_shows_a_bar_with_images_per_second(images: LabelledImages, tmp_path: Path) -> None:
    text = io.StringIO()
    run(images, tmp_path, epochs=1, console=Console(file=text, force_terminal=True, width=120))
    assert "images/s" in text.getvalue()
    assert "epoch 1/1" in text.getvalue()


def test_bar_and_cursor_are_restored_after_an_error(images: LabelledImages, tmp_path: Path) -> None:
    text = io.StringIO()
    module = make_spy(images)
    module.before_step = stop_at(0, 1, StoppedError)
    with pytest.raises(StoppedError):
        run(images, tmp_path, module=module, console=Console(file=text, force_terminal=True, width=120))
    assert text.getvalue().rfind("\x1b[?25h") > text.getvalue().rfind("\x1b[?25l") >= 0


def test_interrupt_from_the_keyboard_can_come_again(images: LabelledImages, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without one
    try:
        check_interrupts(images, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def check_interrupts(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images)
    module.before_step = lambda epoch, batch: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path, module=module)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_is_told_to_end_is_not_taken_for_a_finished_one(images: LabelledImages, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    module = make_spy(images)
    module.before_step = lambda epoch, batch: os.kill(os.getpid(), signal.SIGTERM) if (epoch, batch) == (1, 1) else None
    with pytest.raises(SystemExit) as stop:
        run(images, tmp_path, module=module)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == handler
    assert len(read_rows(tmp_path)) == 1


def test_fit_is_quiet(images: LabelledImages, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(images, tmp_path, epochs=1)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_lightning_trainer_runs_without_our_fit(images: LabelledImages, tmp_path: Path) -> None:
    """The module is an ordinary LightningModule."""
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = build_loader(images, PREPROCESSING, batch_size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(make_module(images), loader, loader)
    assert {"train/loss", "val/loss", "val/mAP", "val/CF1", "val/OF1"} <= trainer.callback_metrics.keys()
