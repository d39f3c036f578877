"""The training run: what the optimizer sees, which epoch is chosen, and that a resumed run ends as if never stopped."""

import csv
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
from PIL import Image
from rich.console import Console
from torch import Tensor

from msrn.data import LabelledImages
from msrn.data.loader import EpochSampler, ImageDataset, build_loader
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.errors import NonFiniteLossError, TrainingError
from msrn.labels import LabelGraph
from msrn.models import build_msrn
from msrn.training import (
    FitResult,
    MSRNModule,
    OptimizerSettings,
    ScheduleSettings,
    TrainerSettings,
    fit,
    multilabel_soft_margin_loss,
)

LABELS = ("red", "green", "blue", "warm")
PREPROCESSING = Preprocessing((32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """Sixteen pictures whose labels can be seen in their colour."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    paths, rows = [], []
    for number in range(16):
        present = rng.random(3) < 0.5
        pixels = rng.integers(0, 90, (32, 32, 3)) + 150 * present
        path = folder / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        paths.append(path)
        rows.append([*present, present[0] and not present[2]])
    return LabelledImages(tuple(paths), np.array(rows, dtype=np.int8), LABELS, "train")


def make_module(images: LabelledImages, *, freeze: bool = False, drop_path: float = 0.0, **options: Any) -> MSRNModule:
    torch.manual_seed(0)
    backbone: dict[str, Any] = {
        "backbone": "resnet10t",
        "backbone_options": {"channels": [8, 8, 16, 16], "drop_path_rate": drop_path},
    }
    graph = LabelGraph.from_target(torch.from_numpy(images.target), LABELS)
    model = build_msrn(graph, dim=8, freeze_batch_norm=freeze, **backbone)
    defaults = {"optimizer": OptimizerSettings("adamw", lr=3e-3, backbone_factor=1.0), "image_paths": images.paths}
    return MSRNModule(model, LABELS, **{**defaults, **options})


def run(
    images: LabelledImages,
    run_dir: Path,
    *,
    epochs: int = 3,
    workers: int = 0,
    batch_size: int = 4,
    gradient_clip: float | None = None,
    resume: bool = False,
    module: MSRNModule | None = None,
    val: LabelledImages | None = None,
    console: Console | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    loader = build_loader(
        images,
        TrainTransform(PREPROCESSING, crop_scale=(0.7, 1.0)),
        batch_size=batch_size,
        num_workers=workers,
        shuffle=True,
        seed=3,
    )
    val_loader = build_loader(val or images, PREPROCESSING, batch_size=8)
    settings = TrainerSettings(epochs, gradient_clip=gradient_clip, accelerator="cpu", seed=3, **(trainer or {}))
    module = module or make_module(images, **options)
    return fit(module, settings, loader, val_loader, run_dir, resume=resume, console=console)


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_weights(run_dir: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


class Spy(MSRNModule):
    """Calls `before_step` with its epoch and batch index before every training step."""

    before_step: Callable[[int, int], None] = staticmethod(lambda epoch, batch: None)
    seen: list[tuple[int, list[int]]]

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        self.before_step(self.current_epoch, batch_index)
        if not hasattr(self, "seen"):
            self.seen = []
        self.seen.append((self.current_epoch, batch["index"].tolist()))
        return super().training_step(batch, batch_index)


def make_spy(images: LabelledImages, **options: Any) -> Spy:
    module = make_module(images, **options)
    module.__class__ = Spy
    assert isinstance(module, Spy)
    return module


def stop_at(epoch: int, batch: int, error: type[BaseException]) -> Callable[[int, int], None]:
    def stop(at_epoch: int, at_batch: int) -> None:
        if (at_epoch, at_batch) == (epoch, batch):
            raise error

    return stop


def forget(module: MSRNModule) -> None:
    """All logits of a label become the same, so that the epoch cannot be the best."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


# Learning


def test_it_learns_a_tiny_set(images: LabelledImages, tmp_path: Path) -> None:
    result = run(images, tmp_path, epochs=20, batch_size=8)
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


# Resuming


class StoppedError(Exception):
    """What stops a run in these tests."""


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt])
def test_resumed_run_ends_as_if_never_stopped(
    images: LabelledImages, tmp_path: Path, error: type[BaseException]
) -> None:
    options: dict[str, Any] = {"drop_path": 0.3, "schedule": ScheduleSettings("cosine", warmup_steps=5)}
    once = run(images, tmp_path / "once", epochs=4, **options)
    assert len({row["val/mAP"] for row in once.rows}) > 1

    handler = signal.getsignal(signal.SIGINT)
    module = make_spy(images, **options)
    module.before_step = stop_at(2, 2, error)
    torch.manual_seed(12345)  # whatever the state of the process
    with pytest.raises(error):
        run(images, tmp_path / "twice", epochs=4, module=module)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(read_rows(tmp_path / "twice")) == 2
    torch.manual_seed(54321)
    moved = (tmp_path / "twice").rename(tmp_path / "moved")
    twice = run(images, moved, epochs=4, resume=True, **options)

    for name, value in last_weights(tmp_path / "once").items():
        assert torch.equal(value, last_weights(moved)[name]), name
    assert (twice.best_epoch, twice.best_mAP) == (once.best_epoch, once.best_mAP)
    assert all(torch.equal(value, twice.state_dict[name]) for name, value in once.state_dict.items())
    timing = {"images_per_s", "seconds"}
    for row, expected in zip(read_rows(moved), read_rows(tmp_path / "once"), strict=True):
        assert {k: v for k, v in row.items() if k not in timing} == {
            k: v for k, v in expected.items() if k not in timing
        }
    assert all(row["seconds"] < 600 for row in twice.rows)
    assert twice.seconds == pytest.approx(sum(row["seconds"] for row in twice.rows))


@pytest.mark.parametrize(
    ("settings", "workers", "starts"),
    [
        ({"checkpoint_steps": 1}, 1, (9, 13, 23)),
        ({"checkpoint_steps": 2, "accumulate": 3, "ema_decay": 0.9, "precision": "bf16-mixed"}, 0, (8, 11, 22)),
        ({"ema_decay": 0.9, "accumulate": 2}, 0, (8, 8, 16)),
    ],
    ids=["every step", "accumulation and average", "whole epochs"],
)
def test_run_stopped_within_epochs_ends_as_if_never_stopped(
    images: LabelledImages, tmp_path: Path, settings: dict[str, Any], workers: int, starts: tuple[int, ...]
) -> None:
    """Eight batches an epoch; the run is stopped three times and goes on from these batches."""
    options: dict[str, Any] = {"epochs": 3, "batch_size": 2, "workers": workers, "trainer": settings}
    kind: dict[str, Any] = {"drop_path": 0.3, "schedule": ScheduleSettings("cosine", warmup_steps=5)}
    whole = make_spy(images, **kind)
    once = run(images, tmp_path / "once", module=whole, **options)
    spies = []
    for number, stop in enumerate([(1, 1), (1, 5), (2, 7)]):
        spies.append(make_spy(images, **kind))
        spies[-1].before_step = stop_at(*stop, StoppedError)
        torch.manual_seed(number)  # whatever the state of the process
        with pytest.raises(StoppedError):
            run(images, tmp_path / "often", module=spies[-1], resume=number > 0, **options)
    spies.append(make_spy(images, **kind))
    often = run(images, tmp_path / "often", module=spies[-1], resume=True, **options)

    assert same(last_weights(tmp_path / "once"), last_weights(tmp_path / "often"))
    assert same(once.state_dict, often.state_dict)
    assert without_times(often.rows) == without_times(once.rows)
    checkpoints = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("once", "often")
    ]
    for key in ("epoch", "global_step", "loops", "lr_schedulers"):
        assert checkpoints[0][key] == checkpoints[1][key], key
    # What was done before a checkpoint is neither read nor trained again.
    seen = [spy.seen for spy in spies[1:]]
    assert seen == [whole.seen[start : start + len(part)] for start, part in zip(starts, seen, strict=True)]
    assert len(seen[-1]) == 24 - starts[-1]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("images_per_s", "seconds")} for row in rows]


def test_best_score_survives_resuming(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images)

    def forget_and_stop(epoch: int, batch: int) -> None:
        if epoch >= 2:
            forget(module)
        stop_at(3, 1, StoppedError)(epoch, batch)

    module.before_step = forget_and_stop
    with pytest.raises(StoppedError):
        run(images, tmp_path, epochs=4, module=module)
    before = [float(row["val/mAP"]) for row in read_rows(tmp_path)]
    assert len(before) == 3  # epoch 2 is kept in last.ckpt though it was no better
    assert max(before[:2]) > before[2]
    resumed = make_spy(images)
    resumed.before_step = lambda epoch, batch: forget(resumed)
    result = run(images, tmp_path, epochs=4, resume=True, module=resumed)
    scores = [row["val/mAP"] for row in result.rows]
    assert scores[:3] == before
    assert (result.best_epoch, result.best_mAP) == (int(np.argmax(scores)), max(scores))


def test_finished_run_can_be_resumed(images: LabelledImages, tmp_path: Path) -> None:
    once = run(images, tmp_path, epochs=2)
    module = make_spy(images)
    again = run(images, tmp_path, epochs=2, resume=True, module=module)
    assert not hasattr(module, "seen")
    assert again.rows == once.rows
    assert (again.best_epoch, again.best_mAP) == (once.best_epoch, once.best_mAP)
    assert all(torch.equal(value, again.state_dict[name]) for name, value in once.state_dict.items())


def test_nothing_to_resume(images: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no checkpoints/last\.ckpt to resume from"):
        run(images, tmp_path, resume=True)


# Losses that are not finite


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(images: LabelledImages, tmp_path: Path) -> None:
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
    assert [row["epoch"] for row in resumed.rows] == [0, 1, 2]


def test_the_image_that_spoils_a_batch_is_named(images: LabelledImages, tmp_path: Path) -> None:
    module = make_spy(images)
    forward = module.model.forward

    def spoilt(pixels: Tensor, *args: Any) -> Tensor:
        logits: Tensor = forward(pixels, *args)
        rows = torch.tensor(module.seen[-1][1] if module.training else [0] * len(logits)) == 7
        return torch.where(rows[:, None], math.nan, logits)

    module.model.forward = spoilt  # type: ignore[method-assign]
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
    assert lines[1].startswith("epoch   2/2  loss 0.")
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
