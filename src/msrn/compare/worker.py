"""One run of a comparison in a process of its own, so that its memory and its crash are its own.

    python -m msrn.compare.worker JOB.json

What it found is written to the job's file; a run that was stopped or killed leaves none, and goes on from its last checkpoint.
"""

import csv
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from msrn.compare.plan import differences
from msrn.errors import MSRNError, NonFiniteLossError
from msrn.files import replace_file, write_json
from msrn.machine import machine
from msrn.recipes import load_recipe
from msrn.recipes.load import save_recipe
from msrn.recipes.run import METRICS_FILE, RECIPE_FILE, RunResult, train_recipe
from msrn.recipes.schema import Recipe, validate_recipe
from msrn.recipes.splits import read_splits
from msrn.training.stopping import StopWhenAsked


def carry_out(job: dict[str, Any]) -> dict[str, Any]:
    """Train by a job's recipe and measure what it took.

    Returns:
        The job's record with what was found.
    """
    start_s = time.perf_counter()
    recipe, run_dir = validate_recipe(job["recipe"]), Path(job["run_dir"])
    is_begun = (run_dir / RECIPE_FILE).is_file()
    if not is_begun:
        shutil.rmtree(run_dir, ignore_errors=True)  # killed before it had written its recipe
    elif not differences(load_recipe(run_dir / RECIPE_FILE).model_dump(mode="json"), recipe):
        save_recipe(
            recipe, run_dir / RECIPE_FILE
        )  # begun by an earlier version, with other defaults of what its head ignores
    result = train_recipe(recipe, run_dir, resume=is_begun, console=Console(width=120))
    if job["predictions"] is not None and result.test is not None:
        _keep_predictions(recipe, result, Path(job["predictions"]))
    training = result.training
    return {
        **job["record"],
        "val_mAP": result.best_mAP,
        "best_epoch": result.best_epoch,
        "val_mAP_by_epoch": _val_mAP(run_dir / METRICS_FILE),
        "test": result.test,
        "parameters": training["parameters"],
        "flops": _flops(recipe, result),
        "train_seconds": training["train_seconds"],
        "images_per_s": training["images_per_s"],
        "process_seconds": round(time.perf_counter() - start_s, 1),
        "was_resumed": is_begun,
        "peak_memory_bytes": training["peak_memory_bytes"],
        "chosen_by": training["chosen_by"],
        "splits": training["splits"],
        "label_graph": training["label_graph"],
        "machine": machine(),
    }


def _flops(recipe: Recipe, result: RunResult) -> int:
    from msrn.bundle import load_bundle
    from msrn.models import count_flops

    return count_flops(load_bundle(result.bundle_dir).model, recipe.data.size)


def _keep_predictions(recipe: Recipe, result: RunResult, path: Path) -> None:
    """Write the test split's probabilities (N, L), its target and its labels, by which runs can be compared image by image."""
    from msrn.predict import load

    images = read_splits(recipe).test
    if images is None:
        raise AssertionError("a run with test metrics has a test split")
    parts = load(result.bundle_dir).probs_of_split(images, batch_size=recipe.data.batch_size)
    probs = np.concatenate([probs.numpy() for probs, _ in parts]).astype(np.float32)
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, probs=probs, target=images.target, label_names=np.array(images.label_names))


def _val_mAP(path: Path) -> list[float]:
    with path.open(newline="", encoding="utf-8") as file:
        return [float(row["val/mAP"]) for row in csv.DictReader(file)]


def without_folders(text: str) -> str:
    """A message for others to read: of every absolute path its last name; the log has it whole.

    Example:
        >>> without_folders("batch 15 (images /data/VOC/001.jpg, /data/VOC/002.jpg): see https://a.org/b/c or and/or")
        'batch 15 (images 001.jpg, 002.jpg): see https://a.org/b/c or and/or'
    """
    return re.sub(r"(?<![\w/:.])/(?:[^\s/:,;()'\"]+/)+", "", text)


def _end_with_parent() -> None:
    """End when the comparison does, however it ended: its end of our standard input closes with it."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Carry out the job of the file named on the command line; exit with 1 where it fails, as `msrn train` does after a signal."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _end_with_parent()
    StopWhenAsked.ends_at_second = False
    try:
        record = carry_out(job)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        traceback.print_exc()
        text = without_folders(" ".join(str(error).split()))
        what = text if isinstance(error, MSRNError) else f"{type(error).__name__}: {text}"
        record = {**job["record"], "failed": what, "diverged": isinstance(error, NonFiniteLossError)}
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:  # of several processes one writes
        write_json(job["record_file"], record)
    sys.exit("failed" in record)


if __name__ == "__main__":
    main()
