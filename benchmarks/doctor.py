"""How long `msrn data check` takes on a million images, and how much memory.

Writes a million small JPEG files, each unlike the others, and a CSV with 200 labels of falling frequency; then runs the
command as a user would, in a process of its own, and deletes the files.

    python benchmarks/doctor.py --out benchmarks/results/doctor.json
    python benchmarks/doctor.py --images 20000 --decode all
"""

import argparse
import csv
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msrn.machine import machine

IMAGES_A_FOLDER = 1000
FAULTS = {"missing file": 101, "unreadable image": 103, "duplicate across splits": 107}


def write_data(folder: Path, num_images: int, num_labels: int) -> Path:
    """The files and their table, with a few faults in known number."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    share = np.minimum(0.3, 2.0 / np.arange(1, num_labels + 1))
    with (folder / "photos.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "labels", "split"))
        for first in range(0, num_images, IMAGES_A_FOLDER):
            inner = folder / f"{first // IMAGES_A_FOLDER:04}"
            inner.mkdir()
            present = rng.random((IMAGES_A_FOLDER, num_labels)) < share
            for number in range(first, min(first + IMAGES_A_FOLDER, num_images)):
                content = io.BytesIO()
                # The comment makes the file unlike the others, at a tenth of the time that other pixels take.
                photo.save(content, "JPEG", comment=f"{number:08}".encode())
                path = inner / f"{number:07}.jpg"
                path.write_bytes(content.getvalue())
                labels = "|".join(f"label {label}" for label in np.flatnonzero(present[number - first])) or "[]"
                writer.writerow((path.relative_to(folder), labels, "train" if number % 10 < 8 else "val"))
    missing, unreadable, copied = FAULTS.values()
    paths = [
        folder / f"{n // IMAGES_A_FOLDER:04}" / f"{n:07}.jpg" for n in range(10, 10 * (sum(FAULTS.values()) + 1), 10)
    ]
    for path in paths[:missing]:
        path.unlink()
    for path in paths[missing : missing + unreadable]:
        path.write_bytes(path.read_bytes()[:-200])
    for path in paths[missing + unreadable : missing + unreadable + copied]:  # in train; their neighbours are in val
        shutil.copy(path, path.with_stem(f"{int(path.stem) + 9:07}"))
    return folder / "photos.csv"


def run_check(table: Path, decode: str) -> dict[str, Any]:
    """Seconds, memory and findings of the command."""
    report_path = table.parent / "report.json"
    command = [sys.executable, "-m", "msrn.cli.main", "data", "check", str(table)]
    start = time.perf_counter()
    result = subprocess.run(
        [*command, "--decode", decode, "--json", str(report_path)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if result.returncode != 1:
        raise SystemExit(f"expected exit code 1 for planted faults, got {result.returncode}: {result.stderr}")
    report = json.loads(report_path.read_text(encoding="utf-8"))
    found = {entry["kind"]: entry["count"] for entry in report["problem_counts"]}
    return {
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(split["num_images"] for split in report["splits"].values()) / seconds),
        # Linux counts in KiB; the greatest of all children, of which the command is the only one.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6),
        "decode": report["images"]["decode"],
        "planted": FAULTS,
        "found": found,
        "all_found": all(found.get(kind) == count for kind, count in FAULTS.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="at least 10,000")
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--decode", choices=("auto", "all", "none"), default="auto")
    parser.add_argument(
        "--dir", type=Path, help="where the files are written and deleted; by default a temporary folder"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="doctor-") as folder:
        start = time.perf_counter()
        table = write_data(Path(folder), arguments.images, arguments.labels)
        num_bytes = sum(entry.stat().st_size for entry in os.scandir(table.parent / "0005"))
        print(f"{arguments.images:,} files written in {time.perf_counter() - start:.0f} s", flush=True)
        result = {
            "num_images": arguments.images,
            "num_labels": arguments.labels,
            "bytes_an_image": round(num_bytes / IMAGES_A_FOLDER),
            "table_mb": round(table.stat().st_size / 1e6, 1),
            "cores": os.cpu_count(),
            "load_average_at_start": os.getloadavg()[0],
            **run_check(table, arguments.decode),
            "machine": machine(),
        }
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
