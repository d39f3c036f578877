"""Half a million inputs for every reader, guided by the code that they reach (atheris): `make fuzz`.

    python tests/fuzz/long_run.py [--runs N] [--only NAME] [--json FILE]

Each reader has a process of its own. What is no error of ours is listed, with the input, and the exit code is then 1. A FILE that
is there is gone on with: readers that have had all their inputs are left out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


def fuzz(name: str, runs: int, result: Path) -> None:
    """Give one reader so many inputs; does not return."""
    import atheris

    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["msrn"], enable_loader_override=False):
        from fuzz_targets import TARGETS, try_reading
    target = TARGETS[name]
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.inputs()):
        (corpus / str(number)).write_bytes(seed)
    path = folder / target.name
    count, start = 0, time.monotonic()
    faults: dict[str, str] = {}

    def one(data: bytes) -> None:
        nonlocal count
        count += 1
        error = try_reading(target, path, data)
        if error is not None:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
            faults.setdefault(where.split(": ")[0], f"{where} <- {data[:300]!r}")
        if count >= runs:
            found = {"inputs": count, "seconds": round(time.monotonic() - start, 1), "faults": list(faults.values())}
            result.write_text(json.dumps(found))
            subprocess.run(["rm", "-rf", folder], check=False)
            os._exit(0)

    options = ["-max_len=8192", "-timeout=60", "-rss_limit_mb=6000", "-verbosity=0", "-print_final_stats=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, help="inputs of each reader; by default 500,000, and 100,000 images")
    parser.add_argument("--only", action="append", help="name of a reader")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, runs, result = arguments.one
        fuzz(name, int(runs), Path(result))
    # In the processes that fuzz these have to be imported otherwise.
    from fuzz_targets import TARGETS

    from msrn.files import write_json
    from msrn.machine import machine

    found: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text())["readers"]
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only or TARGETS:
            result = Path(folder) / "result.json"
            result.unlink(missing_ok=True)
            runs = arguments.runs or TARGETS[name].runs
            if found.get(name, {}).get("inputs", 0) >= runs:
                continue
            done = subprocess.run(
                [sys.executable, __file__, "--one", name, str(runs), result],
                capture_output=True,
                text=True,
                check=False,
            )
            if result.exists():
                found[name] = json.loads(result.read_text())
            else:
                found[name] = {
                    "inputs": 0,
                    "seconds": 0,
                    "faults": [f"ended by {done.returncode}: {done.stderr[-1500:]}"],
                }
            row = found[name]
            print(
                f"{name:<28} {row['inputs']:>9,} inputs  {row['seconds']:>7} s  {len(row['faults'])} faults", flush=True
            )
            for fault in row["faults"]:
                print(f"    {fault}", flush=True)
            if arguments.json:
                write_json(arguments.json, {"machine": machine(), "readers": found})
    sys.exit(any(row["faults"] for row in found.values()))


if __name__ == "__main__":
    main()
