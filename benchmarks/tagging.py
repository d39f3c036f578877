"""Tagging many files: the rate beside the bare network, memory, and kills.

    python benchmarks/tagging.py BUNDLE FOLDER_OF_PHOTOS --count 100000 --work FOLDER --json benchmarks/results/tagging.json

The folder --work gets --count photos of distinct names (hard links to a copy of each). The job is `msrn predict --out` in a process
of its own, killed by SIGKILL with its workers at three random moments and started again. The bare network runs on tensors that are
already in memory, with as many threads as there are processors, before every start and after the last; a start's share is its rate
by the mean of the two beside it. Memory is the sum of the resident sets (shared pages divided among those that share them) of the
job and its workers, every second; of each start its first and its last third are told apart.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from msrn.data.images import list_images, read_image
from msrn.files import write_json
from msrn.machine import machine
from msrn.predict import load

NUM_KILLS = 3
BARE_SECONDS = 25.0


def make_files(photos: Path, folder: Path, count: int) -> None:
    """Hard links, a thousand a folder."""
    copies = []
    (folder / "copies").mkdir(parents=True)
    for path in list_images(photos)[:2000]:
        copies.append(Path(shutil.copy(path, folder / "copies" / path.name)))
    for number in range(count):
        place = folder / "files" / f"{number // 1000:04d}"
        if number % 1000 == 0:
            place.mkdir(parents=True)
        source = copies[number % len(copies)]
        os.link(source, place / f"{number:06d}{source.suffix}")


def bare_rate(bundle: str, photos: Path, batch_size: int) -> float:
    """Images a second of the network alone."""
    torch.set_num_threads(os.cpu_count() or 1)
    predictor = load(bundle, device="cpu")
    images = torch.stack(
        [predictor.bundle.preprocessing(read_image(path)) for path in list_images(photos)[:batch_size]]
    )
    images = images.contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        predictor.probs(images)
    rates = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < BARE_SECONDS:
        start = time.perf_counter()
        predictor.probs(images)
        rates.append(batch_size / (time.perf_counter() - start))
    return len(rates) / sum(1 / rate for rate in rates)


def memory_of(group: int, kinds: tuple[str, ...] = ("Pss:",)) -> int:
    """Bytes that the processes of a group hold, by the lines of the kernel's sums that begin so."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(kinds))
        except (OSError, ProcessLookupError):
            continue
    return total


def thirds(samples: list[int]) -> dict[str, float]:
    """The medians of the first and the last third of a start, whose first ten seconds are left out."""
    samples = [own for own in samples[10:] if own]
    third = len(samples) // 3
    return {"first_third": statistics.median(samples[:third]), "last_third": statistics.median(samples[-third:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    if not (args.work / "files").exists():
        make_files(args.photos, args.work, args.count)
    out = args.work / "tags.csv"
    parts = args.work / "tags.csv.parts"
    command = [sys.executable, "-m", "msrn.cli.main", "predict", args.bundle, args.work / "files", "--out", out]
    command += ["--batch-size", str(args.batch_size), "--json", args.work / "summary.json"]
    command += [] if args.workers is None else ["--workers", str(args.workers)]
    rng = random.Random(0)
    kills: list[dict[str, float]] = []
    bare: list[float] = []
    rates: list[float] = []
    memory: list[list[int]] = []

    def num_done() -> int:
        last = max(parts.glob("*.jsonl"), default=None)
        try:
            return 0 if last is None else int(json.loads(last.open().readline())["images"])
        except (OSError, ValueError):
            return 0

    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    seconds = 0.0
    for attempt in range(NUM_KILLS + 1):
        bare.append(bare_rate(args.bundle, args.photos, args.batch_size))
        print(f"bare network: {bare[-1]:.1f} images a second", flush=True)
        begin = time.monotonic()
        goal = args.count * (attempt + rng.uniform(0.4, 0.9)) / (NUM_KILLS + 1)
        job = subprocess.Popen(command, env=environment, start_new_session=True)
        marks: list[tuple[float, int]] = []
        memory.append([])
        while job.poll() is None:
            time.sleep(1.0)
            done = num_done()
            memory[-1].append(memory_of(job.pid))
            if not marks or done > marks[-1][1]:
                marks.append((time.monotonic(), done))
            if attempt < NUM_KILLS and done >= goal:
                time.sleep(rng.uniform(0, 10))
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
                kills.append({"after_seconds": time.monotonic() - begin, "images_in_parts": num_done()})
                break
        seconds += time.monotonic() - begin
        # From part to part: starting, and what a kill cost, are left out.
        rates.append((marks[-1][1] - marks[1][1]) / (marks[-1][0] - marks[1][0]))
    bare.append(bare_rate(args.bundle, args.photos, args.batch_size))
    shares = [2 * rate / sum(beside) for rate, beside in zip(rates, pairwise(bare), strict=True)]
    lines = out.read_text().splitlines()[1:]
    paths = {line.split(",")[0] for line in lines}
    found: dict[str, Any] = {
        "machine": {**machine(), "processors": os.cpu_count()},
        "count": args.count,
        "rows": len(lines),
        "distinct_rows": len(paths),
        "kills": kills,
        "seconds": seconds,
        "bare_rate": bare,
        "job_rate": rates,
        "share_of_bare": {"median": statistics.median(shares), "least": min(shares), "most": max(shares)},
        "memory": {"peak": max(max(own) for own in memory), "of_starts": [thirds(own) for own in memory]},
        "backbone": load(args.bundle, device="cpu").bundle.architecture.get("backbone"),
        "size": list(load(args.bundle, device="cpu").bundle.preprocessing.size),
        "batch_size": args.batch_size,
    }
    write_json(args.json, found)
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))


if __name__ == "__main__":
    main()
