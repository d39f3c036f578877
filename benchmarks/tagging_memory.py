"""What `msrn predict --out` holds in memory, behind how many images: it should not grow with them.

    python benchmarks/tagging_memory.py BUNDLE FOLDER_OF_PHOTOS --work FOLDER --json benchmarks/results/tagging-memory.json

Every second, what the job and its workers hold of their own (anonymous and shared pages; files that are mapped can be dropped at
any time and are left out). A batch that is under way holds what the network needs for it, so the samples swing between two values:
their least, median and most are told for each fifth of the images.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tagging import make_files, memory_of

from msrn.files import write_json
from msrn.machine import machine

NUM_PARTS = 5
OWN = ("Pss_Anon:", "Pss_Shmem:")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=25_000)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    make_files(args.photos, args.work, args.count)
    out = args.work / "tags.csv"
    command = [sys.executable, "-m", "msrn.cli.main", "predict", args.bundle, args.work / "files", "--out", out]
    job = subprocess.Popen(command, start_new_session=True)
    samples: list[tuple[int, int]] = []
    done = 0
    while job.poll() is None:
        time.sleep(1.0)
        last = max((args.work / "tags.csv.parts").glob("*.jsonl"), default=None)
        with contextlib.suppress(OSError, ValueError):
            done = done if last is None else int(json.loads(last.open().readline())["images"])
        if done:  # starting is left out
            samples.append((done, memory_of(job.pid, OWN)))
    rows: list[dict[str, Any]] = []
    for number in range(NUM_PARTS):
        first, behind = (args.count * edge // NUM_PARTS for edge in (number, number + 1))
        held = [own for images, own in samples if first <= images < behind and own]
        rows.append(
            {
                "images": behind,
                "least": min(held),
                "median": statistics.median(held),
                "most": max(held),
                "samples": len(held),
            }
        )
    write_json(args.json, {"machine": machine(), "count": args.count, "rows": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
