"""Curves for TensorBoard, read back as TensorBoard reads them."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_training import StoppedError, make_spy, run, stop_at

from msrn.data import LabelledImages
from msrn.errors import MissingDependencyError
from msrn.training import ScheduleSettings

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SETTINGS = {"tensorboard": True, "log_steps": 2, "checkpoint_steps": 1}


def read_curves(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = event_accumulator.EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def test_curves_hold_steps_and_epochs(images: LabelledImages, tmp_path: Path) -> None:
    result = run(images, tmp_path, epochs=2, trainer=SETTINGS, schedule=ScheduleSettings("step", milestones=(9,)))
    curves = read_curves(tmp_path)
    for name in ("step/loss", "step/grad_norm", "step/lr_backbone", "step/lr_head"):
        assert [step for step, _ in curves[name]] == [2, 4, 6, 8], name
    assert curves["step/lr_head"][0][1] == pytest.approx(0.003)
    for name in ("train/loss", "val/mAP", "val/loss", "images_per_s", "train/grad_norm", "lr"):
        assert [step for step, _ in curves[name]] == [4, 8], name
    assert [value for _, value in curves["val/mAP"]] == pytest.approx([row["val/mAP"] for row in result.rows])


def test_curves_of_a_resumed_run_are_those_of_one_never_stopped(images: LabelledImages, tmp_path: Path) -> None:
    run(images, tmp_path / "once", epochs=2, trainer=SETTINGS)
    settings = {**SETTINGS, "checkpoint_steps": 3}  # points between the checkpoint and the end are made again
    module = make_spy(images)
    module.before_step = stop_at(1, 3, StoppedError)
    with pytest.raises(StoppedError):
        run(images, tmp_path / "twice", epochs=2, module=module, trainer=settings)
    run(images, tmp_path / "twice", epochs=2, resume=True, trainer=settings)
    once, twice = read_curves(tmp_path / "once"), read_curves(tmp_path / "twice")
    assert once.keys() == twice.keys()
    for name in once.keys() - {"images_per_s", "seconds"}:
        assert once[name] == twice[name], name
    assert [step for step, _ in twice["seconds"]] == [4, 8]


def test_missing_package_is_named(images: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    gone: Any = None
    monkeypatch.setitem(sys.modules, "tensorboard", gone)
    with pytest.raises(
        MissingDependencyError, match=r"tensorboard=true needs tensorboard: pip install 'msrn\[train\]'"
    ):
        run(images, tmp_path, epochs=1, trainer=SETTINGS)
