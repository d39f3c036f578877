"""`msrn predict --out` killed by SIGKILL again and again: as many rows as images, none twice, the same as without a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

NUM_IMAGES = 400


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
