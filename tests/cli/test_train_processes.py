"""`msrn train ... trainer.devices=2` as a user starts it: Lightning starts the second process by the same command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from PIL import Image

from msrn.bundle import load_bundle
from msrn.predict import Predictor, evaluate, read_labelled

SETTINGS = [
    "data.size=[32,32]",
    "data.batch_size=3",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.devices=2",
]


def write_data(folder: Path) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["path,labels,split"]
    for number in range(24):
        split = "train" if number < 14 else "val" if number < 19 else "test"
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'common|rare' if number % 3 == 0 else 'common' if number % 2 else '[]'},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed command, in processes of its own."""
    command = Path(sys.executable).with_name("msrn")
    if not command.exists():
        pytest.skip(f"no {command}: msrn is not installed in this environment")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    words = [str(command), "train", "scenes", *map(str, arguments), *SETTINGS]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)


def test_two_processes_write_and_say_everything_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    done = start(f"data.root={data}", "--out", out, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for line in ("2 processes (ddp), 3 images each: 6 a batch", "epoch   1/2", "epoch   2/2", "best epoch", "bundle: "):
        assert done.stdout.count(line) == 1, line
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    bundle = {f"bundle/{name}" for name in ("README.md", "config.json", "model.safetensors")}
    checkpoints = {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files == {"recipe.yaml", "splits.json", "metrics.csv", "test.json", *bundle, *checkpoints}
    assert len((out / "metrics.csv").read_text().splitlines()) == 3

    test = json.loads((out / "test.json").read_text())
    predictor = Predictor(load_bundle(out / "bundle"))
    again = evaluate(predictor, read_labelled(data, "test", predictor.label_names))
    assert test["num_images"] == 5
    assert test["mAP"] == pytest.approx(again["mAP"])

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test"] == test
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, text, _ = run(capsys, "train", "scenes", f"data.root={data}", "--out", out, "--resume", *SETTINGS)
    assert code == 0
    assert "best epoch" in text  # read back as it is, without a second process
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_an_image_that_one_process_cannot_read_ends_both(tmp_path: Path, number: int) -> None:
    """Which process comes to it is drawn by the seed; either way the message is there and nothing hangs."""
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    image = data / f"{number}.png"
    image.write_bytes(image.read_bytes()[:100])
    done = start(f"data.root={data}", "--out", out)
    assert done.returncode != 0
    assert len(re.findall(rf"error: .*{number}\.png", done.stderr)) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "bundle").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_said_once(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    done = start(f"data.root={data}", "--out", out, "optimizer.name=sgd", "optimizer.lr=1e30")
    assert done.returncode == 1
    assert len(re.findall(r"error: the loss became", done.stderr)) == 1, done.stderr
    assert done.stderr.count("error") == 1
    assert not out.exists()
