"""A run that was stopped at any point goes on and ends as if it had never been."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import StoppedError, forget, last_weights, make_spy, read_rows, run, same, stop_at, without_times

from msrn.data import LabelledImages
from msrn.errors import TrainingError
from msrn.training import ScheduleSettings


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
