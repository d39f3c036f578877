"""In place of a run's process: leaves a record at once, or does what the file `behaviour.json` beside the runs says of its name.

python stand_in_worker.py JOB.json
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

MACHINE = {"processor": "some", "threads": 1, "gpu": None, "python": "3", "versions": {"torch": "2"}}


def end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def be_stopped(number: signal.Signals, how_often: str) -> None:
    """Have the comparison told to stop, and end once it has passed that on; told "twice", it has to kill this process."""
    if how_often != "alone":
        told: list[int] = []
        signal.signal(number, lambda number, frame: told.append(number))
        os.kill(os.getppid(), number)
        end_s = time.monotonic() + 60
        while not told and time.monotonic() < end_s:
            time.sleep(0.01)
        print("told" if told else "not told", flush=True)
        if how_often == "twice":
            os.kill(os.getppid(), number)
            time.sleep(60)
    sys.exit(128 + number)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["record_file"])
    behaviour_file = out.parents[2] / "behaviour.json"
    behaviour = json.loads(behaviour_file.read_text()) if behaviour_file.exists() else {}
    does = behaviour.get(out.stem, "trains")
    started_file = out.parents[2] / "started.txt"
    with started_file.open("a") as started:
        started.write(f"{out.stem} {os.getpid()}\n")
    if does == "crashes":
        os.kill(os.getpid(), signal.SIGKILL)
    if does == "hangs":
        threading.Thread(target=end_with_parent, daemon=True).start()
        time.sleep(60)
    if does.startswith("SIG"):
        while "hangs" in behaviour.values() and len(started_file.read_text().splitlines()) < 2:
            time.sleep(0.01)
        name, how_often = does.split()
        be_stopped(signal.Signals[name], how_often)
    record = job["record"]
    if does in ("fails", "diverges"):
        record |= {"failed": "the disk is full", "diverged": does == "diverges"}
    else:
        score = 0.5 + 0.1 * record["lr"] + 0.01 * record["seed"]
        splits = {name: {"split": name, "images": 8, "sha256": "ab" * 32} for name in ("train", "val")}
        splits |= {} if record["is_search"] else {"test": {"split": "test", "images": 8, "sha256": "ab" * 32}}
        record |= {
            "val_mAP": score,
            "best_epoch": 0,
            "val_mAP_by_epoch": [score],
            "train_seconds": 60.0,
            "images_per_s": 1.0,
        }
        record |= {
            "test": None
            if record["is_search"]
            else {"mAP": score, "CF1": score, "OF1": score, "labels": {"cat": score}}
        }
        record |= {"parameters": 10, "flops": 20, "peak_memory_bytes": None, "process_seconds": 60.0, "splits": splits}
        record |= {"chosen_by": "validation mAP", "machine": MACHINE}
    temporary = out.with_suffix(".partial")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(record))
    temporary.replace(out)
    sys.exit("failed" in record)


if __name__ == "__main__":
    main()
