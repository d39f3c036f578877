"""Runs killed at any moment go on to the very files of a run that never was."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from msrn.recipes import load_recipe
from msrn.recipes.run import train_recipe

Lost = Callable[[Any, Any, str], None]
RECIPE = [
    "data.size=[32,32]",
    "data.batch_size=4",
    "data.num_workers=1",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16], drop_path_rate: 0.2}",
    "model.dim=8",
    "optimizer.name=adamw",
    "optimizer.lr=0.003",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=6",
]
VARIANTS = {
    "whole epochs": ["trainer.early_stopping=30"],
    "everything": ["trainer.checkpoint_steps=1", "trainer.accumulate=2", "trainer.ema_decay=0.9", "data.mixup=0.2"],
    "two processes": ["trainer.devices=2", "trainer.checkpoint_steps=1", "trainer.ema_decay=0.9", "data.num_workers=0"],
}
# Of a run that is killed again and again most of the time goes into starting: so many epochs are seconds of training.
LONG = ["trainer.max_epochs=40"]
NUM_KILLS = 5
TIMES = ("images_per_s", "seconds")


def write_data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["path,labels,split"]
    for split, count in (("train", 48), ("val", 12), ("test", 12)):
        for number in range(count):
            present = rng.random(3) < 0.5
            pixels = rng.integers(0, 140, (40, 40, 3)) + 100 * present
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}-{number}.png")
            labels = [name for name, is_there in zip(("red", "green", "blue"), present, strict=True) if is_there]
            rows.append(f"{split}-{number}.png,{'|'.join(labels) or '[]'},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def start(data: Path, overrides: list[str], out: Path, *, resume: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "msrn.cli.main", "train", "scenes", f"data.root={data}", *RECIPE, *overrides]
    options = ["--out", str(out), *(["--resume"] if resume else [])]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([*command, *options], **pipes, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output.decode()


def wait_until(process: subprocess.Popen[bytes], condition: Any) -> bool:
    """Whether it became true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def files_of(run_dir: Path) -> dict[str, Any]:
    """What has to be the same: weights, metrics and test result, times left out."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]
    config = json.loads((run_dir / "bundle" / "config.json").read_text())
    measured = ("train_seconds", "seconds_per_step", "images_per_s", "peak_memory_bytes")
    return {
        "weights": (run_dir / "bundle" / "model.safetensors").read_bytes(),
        "rows": rows,
        "test": json.loads((run_dir / "test.json").read_text()),
        "training": {name: value for name, value in config["training"].items() if name not in measured},
        "names": sorted(str(path.relative_to(run_dir)) for path in run_dir.rglob("*")),
    }


def count_rows(run_dir: Path) -> int:
    """Epochs in the run's table so far."""
    try:
        return (run_dir / "metrics.csv").read_text().count("\n") - 1
    except FileNotFoundError:
        return 0


def is_training(run_dir: Path, since: int) -> bool:
    """Whether a checkpoint was written after that time, in nanoseconds, and the run has not ended."""
    try:
        return (run_dir / "checkpoints" / "last.ckpt").stat().st_mtime_ns > since
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.fault("kills of runs with every setting, and of two processes")
@pytest.mark.parametrize("variant", VARIANTS)
def test_run_killed_at_random_moments_ends_as_if_never_killed(tmp_path: Path, variant: str, lost: Lost) -> None:
    data, overrides = write_data(tmp_path / "data"), [*LONG, *VARIANTS[variant]]
    finish(start(data, overrides, tmp_path / "once", resume=False))
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    run_dir = tmp_path / "killed"
    story = [f"seed {seed}"]
    for number in range(NUM_KILLS):
        # Each run gets on by one checkpoint at least, and is killed well before its end: how long an epoch takes varies.
        since = time.time_ns()
        process = start(data, overrides, run_dir, resume=number > 0)
        assert wait_until(process, lambda since=since: is_training(run_dir, since)), story
        epochs, moment = count_rows(run_dir) + rng.randrange(5), rng.uniform(0, 0.1)
        assert wait_until(process, lambda epochs=epochs: count_rows(run_dir) >= epochs), story
        time.sleep(moment)
        assert process.poll() is None, story
        os.killpg(process.pid, signal.SIGKILL)  # those that read images or train with it too, as a batch system does
        process.communicate()
        assert not (run_dir / "bundle").exists(), story
        story.append(f"killed {moment:.3f} s after epoch {epochs}, with {count_rows(run_dir)} epochs")
    process = start(data, overrides, run_dir, resume=True)
    finish(process)
    once, killed = files_of(tmp_path / "once"), files_of(run_dir)
    for name, value in once.items():
        assert killed[name] == value, (name, story)
    lost(once, killed.keys() & once.keys(), "files of the run")


MOMENTS = {
    "as the recipe is written": ("write_json", "splits.json", 0),
    "between best and last": ("replace", "last.ckpt", 1),
    "as the bundle is written": ("save_file", "model.safetensors", 0),
    "before the test result is written": ("write_json", "test.json", 0),
}
KILLER = """
import os, signal, sys
from pathlib import Path
import msrn.bundle.bundle, msrn.recipes.run, msrn.training.checkpoints
name, file, passed = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
owner = {"write_json": msrn.recipes.run, "save_file": msrn.bundle.bundle, "replace": Path}[name]
real = getattr(owner, name)
def deadly(*arguments, **options):
    global passed
    if any(str(argument).endswith(file) for argument in arguments):
        if passed == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        passed -= 1
    return real(*arguments, **options)
setattr(owner, name, deadly)
from msrn.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.fault("a kill just where a file of a run is put in place")
def test_run_killed_where_files_are_put_in_place_ends_as_if_never_killed(tmp_path: Path, lost: Lost) -> None:
    """One run, killed at each of the moments in turn."""
    overrides = [f"data.root={write_data(tmp_path / 'data')}", *RECIPE, "trainer.max_epochs=2", "data.num_workers=0"]
    overrides += ["trainer.ema_decay=0.9", "trainer.checkpoint_steps=5"]
    recipe = load_recipe("scenes", overrides)
    train_recipe(recipe, tmp_path / "once")
    run_dir = tmp_path / "killed"
    arguments = ["train", "scenes", *overrides, "--out", str(run_dir)]
    for what, (name, file, passed) in MOMENTS.items():
        resume = ["--resume"] if (run_dir / "recipe.yaml").exists() else []
        command = [sys.executable, "-c", KILLER, name, file, str(passed), *arguments, *resume]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, (what, done.stderr)
    assert (run_dir / "bundle").exists()
    train_recipe(recipe, run_dir, resume=True)
    once, killed = files_of(tmp_path / "once"), files_of(run_dir)
    for name, value in once.items():
        assert killed[name] == value, name
    lost(once, killed.keys() & once.keys(), "files of the run")
