"""What systems do to a program: full disks, read-only folders, files that go, killed processes, signals."""

import csv
import ctypes
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from command_line import run
from forked_command import start_command
from PIL import Image
from pyarrow import parquet
from running_server import running_server
from tiny_bundle import TINY, noise

from msrn.bundle import load_bundle
from msrn.errors import MSRNError
from msrn.server.metrics import FOLDER, Metrics

Lost = Callable[[Any, Any, str], None]
NUM_TRAIN = 16
RECIPE = [
    "data.size=[32,32]", "data.batch_size=4", "data.num_workers=0", "data.test=null",
    "trainer.max_epochs=3", "trainer.accelerator=cpu",
    f"model.backbone={TINY['backbone']}", "model.backbone_options={channels: [8, 8, 16, 16]}", "model.dim=8",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["path,labels,split"]
    for number in range(NUM_TRAIN + 4):
        noise(number).save(folder / f"{number:02d}.png")
        rows.append(
            f"{number:02d}.png,{'cat' if number % 2 else 'cat|dog'},{'val' if number >= NUM_TRAIN else 'train'}"
        )
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


class Disk:
    """A file system of its own, in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, *, leave: int = 0) -> None:
        """Leave so many bytes free."""
        free = shutil.disk_usage(self.folder).free
        with (self.folder / "filler").open("wb") as file:
            file.write(b"\0" * max(0, free - leave))

    def make_room(self) -> None:
        (self.folder / "filler").unlink()

    def close(self) -> None:
        """Let nothing be written any more."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def open(self) -> None:
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a full disk needs a file system that can be filled, and this user may not mount one")
    yield Disk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def command(photos: Path, out: Path, *more: str, resume: bool = False) -> list[str]:
    options = [*RECIPE, *more, "--out", str(out), *(["--resume"] if resume else [])]
    return [sys.executable, "-m", "msrn.cli.main", "train", "scenes", f"data.root={photos}", *options]


def train(capsys: Any, photos: Path, out: Path, *more: str, resume: bool = False) -> tuple[int, str, str]:
    return run(capsys, *command(photos, out, *more, resume=resume)[3:])


def weights_of(run_dir: Path) -> bytes:
    return (run_dir / "bundle" / "model.safetensors").read_bytes()


def check_whole(folder: Path) -> list[str]:
    """Every file of a run that is there can be read; their names."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.name.startswith((".", "partial")) or not path.is_file() or path.name == "filler":
            continue
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True, map_location="cpu")
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".yaml":
            assert path.read_text().endswith("\n")
        elif path.suffix == ".safetensors":
            load_bundle(path.parent)
        found.append(path.name)
    return found


def contents(folder: Path) -> list[tuple[str, int, bytes]]:
    """Every file, hidden ones too, with its size and how it begins."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                found.append((str(path.relative_to(folder)), path.stat().st_size, file.read(100_000)))
    return found


def as_ordinary_user() -> None:
    """Let permissions count for root too, in a process that is about to start its program."""
    if os.geteuid() == 0:
        drop_capability, dac_override, dac_read_search = 24, 1, 2
        for capability in (dac_override, dac_read_search):
            if ctypes.CDLL(None).prctl(drop_capability, capability, 0, 0, 0) != 0:
                os._exit(77)


def take_permission(*folders: Path) -> None:
    for folder in folders:
        folder.chmod(0o555)


def give_permission(*folders: Path) -> None:
    for folder in folders:
        folder.chmod(0o755)


def wait_for(process: subprocess.Popen[Any], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], bytes]:
    """The weights that a recipe comes to without a fault, by what is added to it."""
    return {}


def expected(capsys: Any, photos: Path, once: dict[tuple[str, ...], bytes], *more: str) -> bytes:
    if more not in once:
        assert train(capsys, photos, photos.parent / "once", *more)[0] == 0
        once[more] = weights_of(photos.parent / "once")
    return once[more]


# Disks


@pytest.mark.fault("a disk that is full while a model trains")
def test_full_disk_while_training(capsys: Any, photos: Path, disk: Disk, once: Any, lost: Lost) -> None:
    weights = expected(capsys, photos, once)
    out = disk.folder / "run"
    disk.fill(leave=600_000)  # a checkpoint or two
    code, _, errors = train(capsys, photos, out)
    assert code == 1
    assert "No space left" in errors
    assert "Traceback" not in errors
    left = check_whole(out)
    assert "model.safetensors" not in left
    disk.make_room()
    code, _, errors = train(capsys, photos, out, resume="recipe.yaml" in left)
    assert code == 0, (left, errors)
    lost([weights], [weights_of(out)], "runs")


@pytest.mark.fault("a disk that is full while images are tagged")
def test_full_disk_while_tagging(capsys: Any, photos: Path, bundle_dir: Path, disk: Disk, lost: Lost) -> None:
    out = disk.folder / "tags.jsonl"
    arguments = ["predict", bundle_dir, photos, "--out", out, "--workers", "0", "--batch-size", "4", "--part-size", "4"]
    disk.fill(leave=20_000)
    code, _, errors = run(capsys, *arguments)
    assert code == 1
    assert "No space left" in errors
    assert not out.exists()
    disk.make_room()
    assert run(capsys, *arguments)[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    lost([path.name for path in photos.glob("*.png")], [Path(row["path"]).name for row in rows], "rows")


OUTPUTS = {
    "a report": (["report", "{bundle}", "--data", "{photos}", "--split", "val", "--out", "{out}/report"], "report"),
    "a model for ONNX": (["export", "{bundle}", "--calibration", "{photos}", "--out", "{out}/m.onnx"], "m.onnx"),
    "explanations": (["explain", "{bundle}", "{photos}/00.png", "--top", "1", "--out", "{out}/why"], "why"),
    "thresholds": (
        ["thresholds", "{bundle}", "--data", "{photos}", "--split", "val", "--target", "f1", "--out", "{out}/tagger"],
        "tagger",
    ),
    "a label graph": (["labels", "graph", "{photos}", "--json", "{out}/graph.json"], "graph.json"),
    "a split": (["data", "split", "{photos}", "--force", "--out", "{out}/split.csv"], "split.csv"),
}


@pytest.mark.fault("a disk that is full when a result is written")
@pytest.mark.parametrize("what", [pytest.param(what, marks=[pytest.mark.slow] * ("ONNX" in what)) for what in OUTPUTS])
def test_full_disk_at_the_end(capsys: Any, photos: Path, bundle_dir: Path, disk: Disk, lost: Lost, what: str) -> None:
    """An earlier result stays as it was, with nothing beside it."""
    arguments, name = OUTPUTS[what]
    given = [text.format(bundle=bundle_dir, photos=photos, out=disk.folder) for text in arguments]
    code, _, errors = run(capsys, *given)  # an earlier result
    assert code == 0, errors
    assert (disk.folder / name).exists()
    disk.fill()
    before = contents(disk.folder)
    code, _, errors = run(capsys, *given)
    assert code == 1, errors
    assert "No space left" in errors
    assert "Traceback" not in errors
    lost(before, contents(disk.folder), "files")


@pytest.mark.fault("a temporary folder that is full while the server answers")
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_full_temporary_folder_while_serving(
    bundle_dir: Path, tmp_path: Path, disk: Disk, lost: Lost, workers: int
) -> None:
    """Files of requests are kept in memory, also large ones; workers have room for their counts."""
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1200), 90).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 1_100_000  # above 1 MiB a web framework would write a file
    paths = ["/", "/metrics", "/v1/labels", "/v1/model", "/openapi.json", "/readyz"]  # each is counted on its own
    environment = {"TMPDIR": str(disk.folder)}
    with running_server(bundle_dir, tmp_path / "log", "--workers", str(workers), env=environment) as server:

        def ask() -> int:
            answer = httpx.post(f"{server.address}/v1/predict", files={"images": buffer.getvalue()}, timeout=60)
            return answer.status_code

        statuses = [ask()]
        disk.fill()
        statuses += [ask(), *(httpx.get(server.address + path, timeout=60).status_code for path in paths)]
    assert "a worker ended" not in (tmp_path / "log").read_text()
    lost([200] * (2 + len(paths)), statuses, "answers")


def test_counts_of_a_worker_have_room_or_it_does_not_start(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(disk.folder))
    Metrics()
    files = list(disk.folder.glob("*.db"))
    assert len(files) == 3
    for path in files:
        assert 512 * path.stat().st_blocks >= path.stat().st_size > 0  # no holes, which a full disk could not fill
        path.unlink()
    disk.fill()
    with pytest.raises(MSRNError, match="cannot be written: No space left on device"):
        Metrics()


@pytest.mark.fault("a folder that may only be read")
@pytest.mark.parametrize("what", OUTPUTS)
def test_read_only(capsys: Any, photos: Path, bundle_dir: Path, disk: Disk, lost: Lost, what: str) -> None:
    arguments, _ = OUTPUTS[what]
    (disk.folder / "mine").write_text("mine")
    disk.close()
    code, _, errors = run(
        capsys, *(text.format(bundle=bundle_dir, photos=photos, out=disk.folder) for text in arguments)
    )
    assert code == 1
    assert "Read-only file system" in errors
    assert "Traceback" not in errors
    lost(["mine"], [path.name for path in disk.folder.iterdir()], "files")


@pytest.mark.slow
@pytest.mark.fault("permission to write that is lost while a model trains")
def test_permission_lost(photos: Path, once: Any, capsys: Any, lost: Lost) -> None:
    weights = expected(capsys, photos, once, "trainer.max_epochs=30")
    out = photos.parent / "run"
    process = subprocess.Popen(
        command(photos, out, "trainer.max_epochs=30"), stderr=subprocess.PIPE, text=True, preexec_fn=as_ordinary_user
    )
    wait_for(process, (out / "checkpoints" / "last.ckpt").exists)
    take_permission(out, out / "checkpoints")
    _, errors = process.communicate()
    give_permission(out, out / "checkpoints")
    if process.returncode == 77:
        pytest.skip("root may not give up what lets it write anywhere")
    assert process.returncode == 1, errors
    assert "Permission denied" in errors
    assert "Traceback" not in errors
    check_whole(out)
    code, _, errors = train(capsys, photos, out, "trainer.max_epochs=30", resume=True)
    assert code == 0, errors
    lost([weights], [weights_of(out)], "runs")


@pytest.mark.fault("a folder that may not be listed")
@pytest.mark.parametrize("writes", [False, True], ids=["printed", "written"])
def test_folder_that_may_not_be_listed(bundle_dir: Path, tmp_path: Path, lost: Lost, writes: bool) -> None:
    for name in ("a.png", "closed/b.png", "open/c.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(1).save(path)
    (tmp_path / "photos" / "closed").chmod(0)
    out = tmp_path / "tags.jsonl"
    tag = [sys.executable, "-m", "msrn.cli.main", "predict", bundle_dir, tmp_path / "photos"]
    if not writes:  # what cannot be looked at is an unreadable image, and is in the way of no other
        tag += [tmp_path / "photos" / "closed" / "b.png", tmp_path / "photos" / "closed"]
    done = subprocess.run(
        [*tag, *(["--out", out] if writes else ["--json", "-"])],
        capture_output=True, text=True, check=False, preexec_fn=as_ordinary_user,
    )  # fmt: skip
    (tmp_path / "photos" / "closed").chmod(0o755)
    if done.returncode == 77:
        pytest.skip("root may not give up what lets it read anywhere")
    assert done.returncode == (0 if writes else 1), done.stderr  # a table tells of it in its file of errors
    assert "Traceback" not in done.stderr
    named = (tmp_path / "tags.jsonl.errors.jsonl").read_text() if writes else done.stderr
    assert "closed: the folder cannot be listed (Permission denied), so its images are missing. Change its" in named
    answers = list(map(json.loads, (out.read_text() if writes else done.stdout).splitlines()))
    assert [Path(answer["path"]).name for answer in answers if "error" in answer] == ([] if writes else ["b.png"])
    found = [Path(answer["path"]).name for answer in answers if "error" not in answer]
    lost(["a.png", "c.png"], found, "answers")


@pytest.mark.slow
@pytest.mark.fault("permission to write that is lost while images are tagged")
def test_permission_lost_while_tagging(many: Path, bundle_dir: Path, capsys: Any, lost: Lost) -> None:
    out = many.parent / "out" / "tags.jsonl"
    process = start_tagging(bundle_dir, many, out, preexec_fn=as_ordinary_user)
    take_permission(out.parent, parts_of(out))
    _, errors = process.communicate()
    give_permission(out.parent, parts_of(out))
    if process.returncode == 77:
        pytest.skip("root may not give up what lets it write anywhere")
    assert process.returncode == 1, errors
    assert "Permission denied" in errors
    assert "Traceback" not in errors
    assert not out.exists()
    go_on_tagging(capsys, bundle_dir, many, out, lost)


# Files that go


@pytest.mark.slow
@pytest.mark.fault("an image that vanishes while a model trains")
def test_image_vanishes_while_training(capsys: Any, photos: Path, once: Any, lost: Lost) -> None:
    """A run on fewer images would be another run: it stops, and goes on once the image is back."""
    more = ("trainer.max_epochs=30", "data.cache_gb=0")
    weights = expected(capsys, photos, once, *more)
    out, away = photos.parent / "run", photos.parent / "away.png"
    process = subprocess.Popen(command(photos, out, *more), stderr=subprocess.PIPE, text=True)
    wait_for(process, (out / "checkpoints" / "last.ckpt").exists)
    (photos / "03.png").rename(away)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "03.png: no such file" in errors
    check_whole(out)
    away.rename(photos / "03.png")
    assert train(capsys, photos, out, *more, resume=True)[0] == 0
    lost([weights], [weights_of(out)], "runs")


@pytest.mark.fault("an image that vanishes while images are tagged")
def test_image_vanishes_while_tagging(capsys: Any, photos: Path, bundle_dir: Path, lost: Lost) -> None:
    from msrn.bulk import tag_images
    from msrn.predict import load

    names = [path.name for path in photos.glob("*.png")]
    out = photos.parent / "tags.jsonl"

    def vanish(done: int, unreadable: int) -> None:
        (photos / "19.png").unlink(missing_ok=True)

    result = tag_images(load(bundle_dir), [photos], out, batch_size=2, num_workers=0, on_progress=vanish)
    assert result.num_unreadable == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    errors = [json.loads(line) for line in out.with_name("tags.jsonl.errors.jsonl").read_text().splitlines()]
    assert [Path(row["path"]).name for row in errors] == ["19.png"]
    lost(names, [Path(row["path"]).name for row in (*rows, *errors)], "images, answered or listed")


# Processes


def workers_of(process: subprocess.Popen[Any]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    found = map(int, children.read_text().split())
    return [pid for pid in found if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.fault("a worker that the system kills while a model trains")
def test_worker_killed_while_training(capsys: Any, photos: Path, once: Any, lost: Lost) -> None:
    more = ("trainer.max_epochs=60", "data.num_workers=1", "data.cache_gb=0")
    weights = expected(capsys, photos, once, *more)
    out = photos.parent / "run"
    process = subprocess.Popen(command(photos, out, *more), stderr=subprocess.PIPE, text=True)
    wait_for(process, (out / "checkpoints" / "last.ckpt").exists)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert (
        "a process that reads images was killed, as systems do where memory runs out. Lower data.num_workers" in errors
    )
    check_whole(out)
    assert train(capsys, photos, out, *more, resume=True)[0] == 0
    lost([weights], [weights_of(out)], "runs")


@pytest.fixture
def many(photos: Path) -> Path:
    """Images for some seconds of tagging."""
    folder = photos.parent / "many"
    folder.mkdir()
    for number in range(2000):
        (folder / f"{number:04d}.png").hardlink_to(photos / f"{number % 20:02d}.png")
    return folder


def tag_command(bundle: Path, photos: Path, out: Path, *, workers: int = 0) -> list[str]:
    options = ["--workers", str(workers), "--batch-size", "4", "--part-size", "4", "--out", str(out)]
    return [sys.executable, "-m", "msrn.cli.main", "predict", str(bundle), str(photos), *options]


def parts_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def start_tagging(bundle: Path, many: Path, out: Path, *, workers: int = 0, **options: Any) -> "subprocess.Popen[str]":
    """A process that has tagged some of the images, and is at work."""
    out.parent.mkdir(exist_ok=True)
    process = subprocess.Popen(
        tag_command(bundle, many, out, workers=workers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    wait_for(process, lambda: process.poll() == 77 or len(list(parts_of(out).glob("*.jsonl"))) > 2)
    return process


def go_on_tagging(capsys: Any, bundle: Path, many: Path, out: Path, lost: Lost) -> None:
    """The same command ends the job, from where it was."""
    assert len(list(parts_of(out).glob("*.jsonl"))) > 2
    code, said, errors = run(capsys, *tag_command(bundle, many, out)[3:])
    assert code == 0, errors
    assert "went on behind" in said
    names = [json.loads(line)["path"] for line in out.read_text().splitlines()]
    lost(map(str, many.iterdir()), names, "rows")


@pytest.mark.slow
@pytest.mark.fault("a worker that the system kills while images are tagged")
def test_worker_killed_while_tagging(many: Path, bundle_dir: Path, capsys: Any, lost: Lost) -> None:
    out = many.parent / "tags.jsonl"
    process = start_tagging(bundle_dir, many, out, workers=1)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "a process that reads images was killed, as systems do where memory runs out. Lower --workers" in errors
    assert "Traceback" not in errors
    go_on_tagging(capsys, bundle_dir, many, out, lost)


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C, SIGTERM while images are tagged: once, and twice")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_signals_while_tagging(
    many: Path, bundle_dir: Path, capsys: Any, lost: Lost, number: signal.Signals, times: int
) -> None:
    """To the whole group of processes; it stops at once, and nothing that was done is done again."""
    out = many.parent / "tags.jsonl"
    process = start_tagging(bundle_dir, many, out, workers=1, start_new_session=True)
    for _ in range(times):
        if process.poll() is None:
            os.killpg(process.pid, number)
            time.sleep(0.002)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}." in errors
    assert "Traceback" not in errors
    assert not out.exists()
    go_on_tagging(capsys, bundle_dir, many, out, lost)


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C, SIGTERM, SIGKILL while a model is exported")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_while_exporting(
    photos: Path, bundle_dir: Path, tmp_path: Path, capsys: Any, lost: Lost, number: signal.Signals
) -> None:
    """An earlier file stays. What was begun is cleared away; after SIGKILL, which nobody hears, by the next export."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.onnx").write_bytes(b"earlier")
    (out / "m.onnx.md").write_bytes(b"mine")
    before = contents(out)
    arguments = ["export", bundle_dir, "--calibration", photos, "--out", out / "m.onnx"]
    command = [sys.executable, "-m", "msrn.cli.main", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(process, lambda: any(out.glob(".m.onnx.*")))
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert any(out.glob(".m.onnx.*"))
        assert (out / "m.onnx").read_bytes() == b"earlier"
        assert run(capsys, *arguments)[0] == 0
        assert (out / "m.onnx").read_bytes() != b"earlier"
        lost(["m.onnx", "m.onnx.md"], [path.name for path in out.iterdir()], "files")
    else:
        assert process.returncode == 128 + number, errors
        assert errors == f"error: stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}.\n"
        lost(before, contents(out), "files")


@pytest.mark.slow
@pytest.mark.fault("memory that runs out while a model trains")
def test_out_of_memory(photos: Path, lost: Lost) -> None:
    """The system gives no more: what to lower, and what the estimate says."""
    program = (
        "import resource, sys, torch\n"
        "import msrn.cli.main as cli, msrn.training.fit, lightning.pytorch\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)\n"
        "cli.main()"
    )
    arguments = command(photos, photos.parent / "run", "data.size=[1024,1024]", "data.batch_size=16")[3:]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "memory ran out" in done.stderr
    estimate = re.search(r"By estimate a step takes ([\d.]+) GB; ([\d.]+) GB are free now", done.stderr)
    assert estimate, done.stderr
    assert float(estimate[1]) > 0.4  # more than it was given
    assert float(estimate[2]) > 0
    assert "data.batch_size" in done.stderr
    assert "Traceback" not in done.stderr
    lost(range(NUM_TRAIN + 4), range(len(list(photos.glob("*.png")))), "images")


# Sends itself a signal within the second step of the second epoch, with all processes of its group, as a terminal and a batch
# system do.
SIGNALLED = """
import os, sys, time
import msrn.cli.main as cli
from msrn.training.module import MSRNModule
number, times, real = int(sys.argv[1]), int(sys.argv[2]), MSRNModule.training_step
del sys.argv[1:3]
def step(self, batch, batch_idx):
    if self.trainer.current_epoch == 1 and batch_idx == 1:
        for _ in range(times):
            os.killpg(0, number)
            time.sleep(0.02)
    return real(self, batch, batch_idx)
MSRNModule.training_step = step
cli.main()
"""
STEPS = NUM_TRAIN // 4
STOPS = {  # signal, how often, exit code, steps that are saved, whether it says something
    "Ctrl-C once": (signal.SIGINT, 1, 130, STEPS + 2, True),
    "Ctrl-C twice": (signal.SIGINT, 2, 130, STEPS, True),
    "SIGTERM once": (signal.SIGTERM, 1, 143, STEPS + 2, True),
    "SIGTERM twice": (signal.SIGTERM, 2, 143, STEPS, True),
    "SIGKILL": (signal.SIGKILL, 1, -signal.SIGKILL, STEPS, False),
}


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C, SIGTERM: once, and twice")
@pytest.mark.parametrize("what", STOPS)
def test_signals(capsys: Any, photos: Path, once: Any, lost: Lost, what: str) -> None:
    """The step that it is in is finished and saved after one, and not after two; nor after a kill, with which they are compared."""
    number, times, code, num_steps, speaks = STOPS[what]
    more = ("trainer.max_epochs=3", "data.num_workers=1", "data.cache_gb=0")
    weights = expected(capsys, photos, once, *more)
    out = photos.parent / "run"
    arguments = [sys.executable, "-c", SIGNALLED, str(int(number)), str(times), *command(photos, out, *more)[3:]]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.returncode == code, done.stderr
    assert ("this step is finished and saved first" in done.stderr) == speaks
    assert ("stopped by" in done.stderr) == speaks
    assert "Traceback" not in done.stderr
    check_whole(out)
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == num_steps
    assert train(capsys, photos, out, *more, resume=True)[0] == 0
    lost([weights], [weights_of(out)], "runs")


# A comparison whose run does the same within that step, to all or to the comparison alone, and goes on once it has been told.
COMPARED = """
import os, signal, sys, time
from pathlib import Path
import msrn.compare.execute as execute
Path(sys.argv[1]).write_text('''
import os, sys, time
import msrn.compare.worker as worker
from msrn.training.module import MSRNModule
from msrn.training.stopping import StopWhenAsked
number, times, whom, real = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], MSRNModule.training_step
del sys.argv[1:4]
def step(self, batch, batch_idx):
    if self.trainer.current_epoch == 1 and batch_idx == 1:
        (stopping,) = (one for one in self.trainer.callbacks if isinstance(one, StopWhenAsked))
        for count in range(1000 if times > 1 else 1):  # more than once, until it is killed
            os.killpg(0, number) if whom == "all" else os.kill(os.getppid(), number)
            while stopping.asked is None:
                time.sleep(0.01)
            time.sleep(0.1 * (times > 1))
    return real(self, batch, batch_idx)
MSRNModule.training_step = step
worker.main()
''')
execute.WORKER = (sys.executable, *sys.argv[1:5])
del sys.argv[1:5]
import msrn.cli.main as cli
cli.main()
"""
COMPARISON_STOPS = {  # signal, how often, to whom, exit code, steps that are saved
    "Ctrl-C once": (signal.SIGINT, 1, "all", 130, STEPS + 2),
    "Ctrl-C twice": (signal.SIGINT, 2, "all", 130, STEPS),
    "SIGTERM once": (signal.SIGTERM, 1, "comparison", 143, STEPS + 2),
    "SIGTERM twice": (signal.SIGTERM, 2, "comparison", 143, STEPS),
    "SIGKILL": (signal.SIGKILL, 1, "comparison", -signal.SIGKILL, STEPS),
}


@pytest.mark.slow
@pytest.mark.fault("Ctrl-C, SIGTERM while heads are compared: once, and twice")
@pytest.mark.parametrize("what", COMPARISON_STOPS)
def test_signals_while_comparing(capsys: Any, photos: Path, once: Any, lost: Lost, what: str) -> None:
    """A terminal tells the run too, which does not take that for twice; others tell the comparison alone."""
    number, times, whom, code, num_steps = COMPARISON_STOPS[what]
    table = photos / "labels.csv"
    table.write_text(table.read_text().replace("cat|dog,val", "cat|dog,test"))
    arguments = ["compare", "scenes", f"data.root={photos}", *RECIPE, "data.test=test", "data.num_workers=1"]
    arguments += ["trainer.max_epochs=2"]
    arguments += ["--heads", "avg_pool", "--reference", "avg_pool", "--seeds", "1", "--keep", "--out"]

    def result_of(out: Path) -> tuple[bytes, str]:
        record = json.loads((out / "runs" / "avg_pool-seed0.json").read_text())
        return weights_of(out / "training" / "avg_pool-seed0" / "run"), json.dumps(
            [record["test"], record["val_mAP_by_epoch"]]
        )

    if "comparison" not in once:
        assert run(capsys, *arguments, photos.parent / "once")[0] == 0
        once["comparison"] = result_of(photos.parent / "once")
    out = photos.parent / "comparison"
    stopped = [
        sys.executable,
        "-c",
        COMPARED,
        str(photos.parent / "worker.py"),
        str(int(number)),
        str(times),
        whom,
        *arguments,
    ]
    done = subprocess.run([*stopped, str(out)], capture_output=True, text=True, check=False, start_new_session=True)
    assert done.returncode == code, done.stderr
    speaks = code > 0
    assert ("each run finishes its step and saves it first" in done.stderr) == speaks
    assert ("stopped by" in done.stderr) == speaks
    assert "Traceback" not in done.stderr
    assert not (out / "runs").exists()
    saved = out / "training" / "avg_pool-seed0" / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == num_steps
    check_whole(out)
    assert run(capsys, *arguments, out)[0] == 0
    assert json.loads((out / "runs" / "avg_pool-seed0.json").read_text())["was_resumed"]
    lost([once["comparison"]], [result_of(out)], "runs")


@pytest.mark.slow
@pytest.mark.fault("a clock that is wrong, and files of another time")
def test_clock(capsys: Any, photos: Path, once: Any, lost: Lost) -> None:
    """Nothing is decided by the time of day: files of 1970 and of 2100 lie beside each other, and time.time goes backwards."""
    more = ("trainer.checkpoint_steps=1",)
    weights = expected(capsys, photos, once, *more)
    out = photos.parent / "run"
    backwards = (
        "import itertools, time\n"
        "now, back = time.time(), itertools.count()\n"
        "time.time = lambda: now - 3600 * next(back)\n"
        "import msrn.cli.main as cli\n"
        "cli.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", backwards, *command(photos, out, *more)[3:]], stderr=subprocess.PIPE
    )
    wait_for(process, (out / "checkpoints" / "last.ckpt").exists)
    process.kill()
    process.communicate()
    for index, path in enumerate(sorted([*out.rglob("*"), *photos.iterdir()])):
        os.utime(path, (4_102_444_800 if index % 2 else 0,) * 2)
    assert train(capsys, photos, out, *more, resume=True)[0] == 0
    lost([weights], [weights_of(out)], "runs")


# Kills at random moments


class Training:
    """A run that saves a checkpoint after each step."""

    more = ("trainer.max_epochs=60", "trainer.checkpoint_steps=1", "trainer.ema_decay=0.9")

    def __init__(self, photos: Path, out: Path) -> None:
        self.photos, self.out, self.last = photos, out, out / "checkpoints" / "last.ckpt"

    def command(self, rng: random.Random, *, goes_on: bool) -> list[str]:
        workers = f"data.num_workers={rng.randrange(2)}"
        return command(self.photos, self.out, *self.more, workers, resume=goes_on)

    def sign(self) -> Any:
        """Changes when more of the work is on the disk."""
        return (self.last.stat().st_ino, self.last.stat().st_mtime_ns) if self.last.exists() else None

    def num_done(self) -> int:
        """Steps that a resume goes on behind."""
        return int(torch.load(self.last, weights_only=True)["global_step"]) if self.last.exists() else 0

    def is_done(self) -> bool:
        return (self.out / "bundle").exists()

    def check(self) -> None:
        check_whole(self.out)

    def end(self) -> bytes:
        """What came out, which is taken away."""
        weights = weights_of(self.out)
        shutil.rmtree(self.out)
        return weights


class Tagging:
    """Tables of each format in turn, which take the place of earlier files."""

    def __init__(self, bundle: Path, images: Path, folder: Path) -> None:
        self.bundle, self.images = bundle, images
        self.tables = itertools.cycle(folder / f"tags.{kind}" for kind in ("jsonl", "csv", "parquet"))
        self._begin_next()

    def _begin_next(self) -> None:
        self.out = next(self.tables)
        self.out.write_bytes(b"earlier")

    def command(self, rng: random.Random, *, goes_on: bool) -> list[str]:
        return [*tag_command(self.bundle, self.images, self.out, workers=rng.randrange(2)), "--overwrite"]

    def sign(self) -> Any:
        return len(list(parts_of(self.out).glob("*.jsonl")))

    def num_done(self) -> int:
        """Rows that the same command goes on behind; each part has a line more, its head."""
        return sum(len(part.read_text().splitlines()) - 1 for part in parts_of(self.out).glob("*.jsonl"))

    def is_done(self) -> bool:
        return self.out.read_bytes() != b"earlier"

    def check(self) -> None:
        if self.is_done():
            assert sorted(self._names()) == sorted(map(str, self.images.iterdir()))

    def end(self) -> tuple[str, ...]:
        names = tuple(sorted(self._names()))
        shutil.rmtree(parts_of(self.out), ignore_errors=True)  # of a kill while they were removed
        self._begin_next()
        return names

    def _names(self) -> list[str]:
        if self.out.suffix == ".parquet":
            return [str(name) for name in parquet.read_table(self.out).column("path").to_pylist()]
        if self.out.suffix == ".csv":
            return [row["path"] for row in csv.DictReader(self.out.read_text().splitlines())]
        return [json.loads(line)["path"] for line in self.out.read_text().splitlines()]


def kill_and_resume(work: Training | Tagging, num_kills: int, rng: random.Random) -> tuple[list[Any], int, int]:
    """Do the work over and over, killed so often in its midst, always after it has got on; what came out, kills and resumes."""
    errors = work.out.with_name(f"errors of {type(work).__name__}")
    outcomes: list[Any] = []
    kills = resumes = 0
    is_begun = False
    while is_begun or kills < num_kills:
        before, sign = work.num_done(), work.sign()
        assert (before > 0) == is_begun
        resumes += is_begun
        process = start_command(work.command(rng, goes_on=is_begun)[3:], errors)
        if kills < num_kills:
            while process.is_alive() and work.sign() == sign:
                time.sleep(0.005)
            process.join(rng.uniform(0, 2))
            with suppress(ProcessLookupError):  # it has ended before its kill
                os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), errors.read_text()
        work.check()
        is_begun = process.exitcode != 0 and not work.is_done()
        if is_begun:
            kills += 1
            assert work.num_done() >= max(before, 1)
        else:
            outcomes.append(work.end())
    return outcomes, kills, resumes


@pytest.mark.slow
@pytest.mark.fault("200 kills by SIGKILL at random moments of training and tagging")
def test_two_hundred_kills(capsys: Any, photos: Path, many: Path, bundle_dir: Path, once: Any, lost: Lost) -> None:
    """After each, every file that is there is whole, and the work goes on; what comes out is what was never killed.

    `MSRN_KILLS` gives another number.
    """
    num_kills = int(os.environ.get("MSRN_KILLS", "200"))
    seed = random.randrange(2**32)
    weights = expected(capsys, photos, once, *Training.more)
    names = tuple(sorted(map(str, many.iterdir())))
    shares = (num_kills // 2, num_kills - num_kills // 2)
    works = (Training(photos, photos.parent / "run"), Tagging(bundle_dir, many, photos.parent))
    with ThreadPoolExecutor() as pool:
        rngs = [random.Random(f"{seed} {number}") for number in range(2)]
        (runs, *of_runs), (tables, *of_tables) = pool.map(kill_and_resume, works, shares, rngs)
    assert [of_runs, of_tables] == [[share, share] for share in shares], seed
    said = "after {} kills of begun work and {} resumes"
    lost([weights] * len(runs), runs, f"runs, {said.format(*of_runs)} (seed {seed})")
    lost([names] * len(tables), tables, f"tables of {len(names)} rows, {said.format(*of_tables)}")
