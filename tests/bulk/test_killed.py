"""`msrn predict --out` killed by SIGKILL again and again: as many rows as images, none twice, the same as without a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gone import Gone
from PIL import Image

import msrn.bulk.reader as reader
from msrn.data.transforms import Preprocessing
from msrn.errors import MSRNError

NUM_IMAGES = 400


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_three_times(bundle_dir: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(NUM_IMAGES):
        path = photos / f"{number % 7}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number % 11, 40), (number % 256, number // 2, 90)).save(path)
    command = [sys.executable, "-m", "msrn.cli.main", "predict", bundle_dir, photos]
    command += ["--batch-size", "4", "--part-size", "8", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    whole = tmp_path / "whole.csv"
    subprocess.run([*command, "--out", whole], check=True, env=environment, capture_output=True)

    out = tmp_path / "killed.csv"
    parts = tmp_path / "killed.csv.parts"
    counts: list[int] = []
    for _ in range(3):
        before = len(list(parts.glob("*.jsonl")))
        # A session of its own, so that the workers go too, as on a machine that loses power.
        job = subprocess.Popen(
            [*command, "--out", out], env=environment, start_new_session=True, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(list(parts.glob("*.jsonl"))) < before + 2 and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(job.pid, signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL  # it was at work
        assert not out.exists()
        counts.append(len(list(parts.glob("*.jsonl"))))
    assert counts == sorted(set(counts))  # each start went on

    ended = subprocess.run([*command, "--out", out], check=True, env=environment, capture_output=True, text=True)
    assert f"{NUM_IMAGES} images tagged" in ended.stdout
    assert "went on behind" in ended.stdout
    assert out.read_text() == whole.read_text()
    paths = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
    assert len(paths) == len(set(paths)) == NUM_IMAGES
    assert not parts.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_standard_input_killed_while_it_waits(bundle_dir: Path, tmp_path: Path) -> None:
    """The process's own standard input, one name of which is not UTF-8; the second time it is given all names from the start."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        Image.new("RGB", (30 + number, 40), (number * 20, 0, 90)).save(photos / f"{number:02d}.png")
    shutil.copy(photos / "03.png", photos / os.fsdecode(b"03-caf\xe9.png"))
    names = sorted(os.fsencode(path) for path in photos.iterdir())
    lines = [name + b"\n" for name in names]
    command = [sys.executable, "-m", "msrn.cli.main", "predict", bundle_dir, "-"]
    command += ["--batch-size", "2", "--part-size", "2", "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out: Path) -> str:
        done = subprocess.run(
            [*command, "--out", out], input=b"".join(lines), check=True, env=environment, capture_output=True
        )
        return done.stdout.decode()

    whole = tmp_path / "whole.jsonl"
    assert "13 images tagged" in run(whole)
    assert [os.fsencode(json.loads(line)["path"]) for line in whole.read_text().splitlines()] == names

    out = tmp_path / "killed.jsonl"
    with subprocess.Popen(
        [*command, "--out", out], env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as job:
        assert job.stdin is not None
        job.stdin.write(b"".join(lines[:8]))
        job.stdin.flush()
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed.jsonl.parts").glob("*.jsonl"))) < 3 and job.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        job.kill()
    assert job.returncode == -signal.SIGKILL  # it was at work
    assert not out.exists()
    assert "went on behind" in run(out)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="needs processes that share what is patched here")
def test_a_worker_killed_while_a_batch_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 40)).save(tmp_path / "0.png")
    monkeypatch.setattr(reader, "_keep", lambda batch: Gone())
    batches = reader.read_batches([tmp_path / "0.png"], Preprocessing((24, 24)), batch_size=1, num_workers=1)
    with pytest.raises(MSRNError, match=r"was killed, as systems do where memory runs out\. Lower --workers"):
        list(batches)
