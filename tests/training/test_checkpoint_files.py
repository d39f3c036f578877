"""Checkpoints that can be read, but are not of this run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import make_module, run

from msrn.data import LabelledImages
from msrn.errors import TrainingError
from msrn.training.fit import read_checkpoint, shapes_of

Lost = Callable[[Any, Any, str], None]

CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nothing": (lambda checkpoint: {}, "its 'state_dict' is missing"),
    "a list": (lambda checkpoint: [1, 2], "it holds a list"),
    "no callbacks": (lambda checkpoint: checkpoint.pop("callbacks"), "its 'callbacks' is missing"),
    "no loops": (lambda checkpoint: checkpoint.pop("loops"), "its 'loops' is missing"),
    "loops of another kind": (lambda checkpoint: checkpoint.update(loops={"x": 1}), "KeyError"),
    "a tensor too few": (lambda checkpoint: checkpoint["state_dict"].popitem(), r"the tensor '.*' is missing"),
    "a tensor too many": (lambda checkpoint: checkpoint["state_dict"].update(x=torch.zeros(1)), "'x' is not known"),
    "a tensor of another shape": (
        lambda checkpoint: checkpoint["state_dict"].update(
            {name: torch.zeros(7) for name in list(checkpoint["state_dict"])[:1]}
        ),
        "is no tensor of shape",
    ),
    "no state of the optimizer": (
        lambda checkpoint: checkpoint.update(optimizer_states=[]),
        "'optimizer_states' is missing, empty",
    ),
    "no rows": (lambda checkpoint: checkpoint["callbacks"]["EpochTable"].clear(), "no rows of metrics"),
    "rows that are none": (lambda checkpoint: checkpoint["callbacks"]["EpochTable"].update(rows=[1]), "no rows"),
    "no best epoch": (lambda checkpoint: checkpoint["callbacks"]["KeepCheckpoints"].clear(), "which epoch is the best"),
}


@pytest.fixture(scope="module")
def begun(images: LabelledImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    run(images, folder, epochs=1)
    return folder


@pytest.mark.fault("a checkpoint of something else")
@pytest.mark.parametrize("what", CHANGES)
def test_checkpoint_of_something_else(
    images: LabelledImages, begun: Path, tmp_path: Path, lost: Lost, what: str
) -> None:
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change, message = CHANGES[what]
    changed = change(checkpoint)
    torch.save(changed if what in ("nothing", "a list") else checkpoint, path)
    before = {own.name: own.read_bytes() for own in path.parent.iterdir()}
    with pytest.raises(TrainingError, match=rf"last\.ckpt is no checkpoint that this run can go on from.*({message})"):
        run(images, tmp_path, epochs=2, resume=True)
    lost(before.items(), {own.name: own.read_bytes() for own in path.parent.iterdir()}.items(), "checkpoints")


def test_checkpoint_of_this_run_is_read(images: LabelledImages, begun: Path) -> None:
    assert read_checkpoint(begun / "checkpoints" / "last.ckpt", shapes_of(make_module(images)))["epoch"] == 0
