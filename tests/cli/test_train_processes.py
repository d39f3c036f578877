"""`msrn train ... trainer.devices=2` as a user starts it: Lightning starts the second process by the same command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image

from msrn.bundle import load_bundle
from msrn.predict import Predictor, evaluate, read_labelled

Lost = Callable[[Any, Any, str], None]
SETTINGS = [
    "data.size=[32,32]",
    "data.batch_size=3",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
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


def start(*arguments: object, launcher: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """The installed command, in processes of its own."""
    command = Path(sys.executable).with_name("msrn")
    if not command.exists():
        pytest.skip(f"no {command}: msrn is not installed in this environment")
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", **variables}
    words = [*launcher, str(command), "train", "scenes", *SETTINGS, *map(str, arguments)]
    # Where the tests run in the background, Ctrl-C is ignored, by default in here too.
    heeds_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, preexec_fn=heeds_interrupts, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    try:
        output, errors = process.communicate(timeout=500)
    finally:
        process.kill()
    return process.returncode, output, errors


@pytest.mark.slow
def test_two_processes_write_and_say_everything_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    given = [f"data.root={data}", "--out", out, "trainer.devices=2"]
    code, output, errors = finish(start(*given, "--json", tmp_path / "result.json"))
    assert code == 0, errors
    assert errors == ""
    for line in ("2 processes (ddp), 3 images each: 6 a batch", "epoch   1/2", "epoch   2/2", "best epoch", "bundle: "):
        assert output.count(line) == 1, line
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
    code, text, _ = run(capsys, "train", "scenes", *given, "--resume", *SETTINGS)
    assert code == 0
    assert "best epoch" in text  # read back as it is, without a second process
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


@pytest.mark.slow
@pytest.mark.fault("an image that one of several processes that train cannot read")
@pytest.mark.parametrize("number", [0, 1])
def test_an_image_that_one_process_cannot_read_ends_both(tmp_path: Path, number: int, lost: Lost) -> None:
    """Which process comes to it is drawn by the seed; either way the message is there and nothing hangs."""
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    image = data / f"{number}.png"
    before = sorted(path.name for path in data.iterdir())
    image.write_bytes(image.read_bytes()[:100])
    code, _, errors = finish(start(f"data.root={data}", "--out", out, "trainer.devices=2"))
    assert code != 0
    assert len(re.findall(rf"error: .*{number}\.png", errors)) == 1, errors
    assert "Traceback" not in errors
    assert not (out / "bundle").exists()
    lost(before, [path.name for path in data.iterdir()], "files")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_said_once(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    given = [f"data.root={data}", "--out", out, "trainer.devices=2", "optimizer.name=sgd", "optimizer.lr=1e30"]
    code, _, errors = finish(start(*given))
    assert code == 1
    assert len(re.findall(r"error: the loss became", errors)) == 1, errors
    assert errors.count("error") == 1
    assert not out.exists()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "SLURM", "two machines"])
def test_processes_that_others_start(tmp_path: Path, launcher: str) -> None:
    """SLURM and the second machine are played by the variables that they set."""
    given = [f"data.root={write_data(tmp_path / 'data')}", "--out", tmp_path / "run"]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    if launcher == "torchrun":
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python")
        processes = [start(*given, launcher=torchrun)]
    elif launcher == "SLURM":
        job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
        ranks = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"} for rank in "01"]
        processes = [start(*given, **address, **job, **rank) for rank in ranks]
    else:
        two = [*given, "trainer.devices=1", "trainer.num_nodes=2"]
        processes = [start(*two, **address, NODE_RANK=rank) for rank in "01"]
    results = [finish(process) for process in processes]
    assert [code for code, _, _ in results] == [0] * len(results), results
    output = "".join(output for _, output, _ in results)
    for line in ("2 processes (ddp), 3 images each: 6 a batch", "epoch   2/2", "bundle: "):
        assert output.count(line) == 1, output
    assert (tmp_path / "run" / "test.json").is_file()
    if launcher == "torchrun":
        code, output, errors = finish(start(*given, "--resume", launcher=torchrun))
        assert code == 0, errors
        assert output.count("bundle: ") == 1


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C or SIGTERM while several processes train")
@pytest.mark.parametrize("to", ["the first process", "all processes, as a cluster does"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_processes(tmp_path: Path, sent: signal.Signals, to: str, lost: Lost) -> None:
    given = [f"data.root={write_data(tmp_path / 'data')}", "--out", tmp_path / "run", "trainer.devices=2"]
    first = start(*given, "trainer.max_epochs=100000")
    while not (tmp_path / "run" / "metrics.csv").exists():
        time.sleep(0.1)
        assert first.poll() is None, finish(first)
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    (second,) = children.read_text().split()
    before = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    first.send_signal(sent)
    if to != "the first process":
        os.kill(int(second), sent)
    code, _, errors = finish(first)
    assert code == 128 + sent
    assert errors.count("error") == errors.count("stopped by") == 1, errors
    stat = Path(f"/proc/{second}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody has asked how it ended
    epochs = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] >= len(epochs) - 1
    lost(before, epochs[: len(before)], "epochs")
