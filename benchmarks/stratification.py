"""How evenly splits share labels out, beside random splits and other libraries, and what splitting a million images takes.

    python benchmarks/stratification.py --voc /data/VOCdevkit --json benchmarks/results/stratification.json

"largest_share" is the largest |share of a label's positives in a part - the part's share of the images|, among labels with
enough positives for one in every part; "largest_count" is the largest |positives in a part - the part's share of all
positives| among all labels, where below 1 is as near as whole images come; "mean_share" and "mean_count" are their means.
Every figure is the worst of some seeds, those of random splits the mean over splits of the same sizes. "images_off" is
how far the sizes of the parts are from those asked. "first_step" is iterative stratification alone, without the exchanges
that follow it. Other libraries are measured on VOC where they are installed: iterative-stratification (iterstrat) and
scikit-multilearn (skmultilearn).

The long tail is drawn: label k comes up with a chance like 1 / k, three labels an image on average, at least one. A
million rows are split in a process of their own with one thread; its peak memory (VmHWM, Linux only) holds the dense
target of 1 GB and that of the parts, 1 GB more. "cpu_seconds" leave out what other programs took of the machine.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from msrn.data import LabelledImages, hold_out, open_source, split_images
from msrn.data.split import SplitPlan, plan_split
from msrn.data.stratify import Positives, _serve_labels, stratify
from msrn.files import write_json
from msrn.machine import machine

FRACTIONS = {
    "0.9, 0.1": {"train": 0.9, "val": 0.1},
    "0.8, 0.1, 0.1": {"train": 0.8, "val": 0.1, "test": 0.1},
}
SEEDS = range(5)
NUM_RANDOM = 20
NUM_ROWS, NUM_LABELS = 1_000_000, 1_000
ROWS_A_GROUP = 8


def draw_long_tail(num_images: int, num_labels: int, *, seed: int = 0) -> LabelledImages:
    rng = np.random.default_rng(seed)
    chances = 1 / np.arange(1, num_labels + 1)
    target = np.zeros((num_images, num_labels), dtype=np.int8)
    rows = np.repeat(np.arange(num_images), 1 + rng.poisson(2.2, num_images))  # repeats make three of these 3.2
    target[rows, rng.choice(num_labels, len(rows), p=chances / chances.sum())] = 1
    paths = tuple(Path(f"photos/{i:07d}.jpg") for i in range(num_images))
    return LabelledImages(paths, target, tuple(f"label {i:04d}" for i in range(num_labels)), "train")


def read_voc(root: Path) -> LabelledImages:
    source = open_source(root)
    train, val = (source.read(split) for split in ("train", "val"))
    target = np.concatenate([train.target, val.target])
    return LabelledImages(train.paths + val.paths, target, source.label_names, "train")


def over_seeds(measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """The worst of each figure over the seeds, and the median time."""
    runs = [measure(seed) for seed in SEEDS]
    worst = {name: max(run[name] for run in runs) for name in runs[0] if name != "cpu_seconds"}
    return {**worst, "cpu_seconds": float(np.median([run["cpu_seconds"] for run in runs]))}


def compare(images: LabelledImages, fractions: dict[str, float], *, has_others: bool) -> dict[str, Any]:
    """Deviations of our splits, of chance and of other libraries if asked, the worst of some seeds each."""
    plan = plan_split(images, fractions, seed=0)
    sizes = np.bincount(plan.part).tolist()

    def deviations(part: np.ndarray) -> dict[str, Any]:
        whole = SplitPlan(images.label_names, plan.names, part, plan.units, part)
        return asdict(whole.deviations()["all"])

    def timed(split: Callable[[int], np.ndarray], seed: int) -> dict[str, Any]:
        start = time.process_time()
        part = split(seed)
        seconds = time.process_time() - start
        images_off = int(np.abs(np.bincount(part, minlength=len(sizes)) - sizes).max())
        return {**deviations(part.astype(np.int8)), "images_off": images_off, "cpu_seconds": seconds}

    splitters = {
        "msrn": lambda seed: stratify(Positives.of_images(images.target), sizes, seed=seed),
        "first_step": lambda seed: _serve_labels(
            Positives.of_images(images.target), sizes, np.random.default_rng(seed)
        ),
        **(other_libraries(images, list(fractions.values())) if has_others else {}),
    }
    found = {}
    for name, split in splitters.items():
        found[name] = over_seeds(lambda seed, split=split: timed(split, seed))
        print(name, found[name], flush=True)
    found["random"] = asdict(plan.random_deviations(seed=0, num_splits=NUM_RANDOM)["all"])
    print("random", found["random"], flush=True)
    counts = plan.units.count(np.zeros(len(images), np.int8), 1)[0]
    return {
        "images": len(images),
        "labels": len(images.label_names),
        "positives_a_label": {
            "least": int(counts.min()),
            "median": float(np.median(counts)),
            "most": int(counts.max()),
        },
        "sizes": sizes,
        "worst_of_seeds": len(SEEDS),
        "deviations": found,
    }


def other_libraries(images: LabelledImages, fractions: list[float]) -> dict[str, Callable[[int], np.ndarray]]:
    """Splitters of other libraries; those of two parts only where there are two."""
    is_positive = (images.target == 1).astype(int)
    rows = np.arange(len(images))
    found: dict[str, Callable[[int], np.ndarray]] = {}
    if len(fractions) == 2:
        try:
            from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

            def iterstrat(seed: int) -> np.ndarray:
                splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=fractions[1], random_state=seed)
                _, val = next(splitter.split(rows[:, None], is_positive))
                return np.isin(rows, val).astype(int)

            found[f"iterative-stratification {version('iterative-stratification')}"] = iterstrat
        except (ImportError, PackageNotFoundError):
            pass
    try:
        from skmultilearn.model_selection import IterativeStratification

        for order in (1, 2):

            def skmultilearn(seed: int, order: int = order) -> np.ndarray:
                # It draws from numpy's global generator, and takes the images in their order.
                np.random.seed(seed)
                shuffled = np.random.default_rng(seed).permutation(rows)
                splitter = IterativeStratification(
                    n_splits=len(fractions), order=order, sample_distribution_per_fold=fractions
                )
                part = np.empty(len(rows), dtype=int)
                for number, (_, fold) in enumerate(splitter.split(rows[:, None], is_positive[shuffled])):
                    part[shuffled[fold]] = number
                return part

            found[f"scikit-multilearn {version('scikit-multilearn')}, order {order}"] = skmultilearn
    except (ImportError, PackageNotFoundError):
        pass
    return found


def measure_million(what: str) -> dict[str, Any]:
    """Seconds, peak memory and deviations of one way to split a million rows; runs in a process of its own."""
    images = draw_long_tail(NUM_ROWS, NUM_LABELS)
    fractions = FRACTIONS["0.8, 0.1, 0.1"]
    groups = None
    if what == "split_images, grouped":
        numbers = np.random.default_rng(1).integers(0, NUM_ROWS // ROWS_A_GROUP, NUM_ROWS)
        groups = [str(number) for number in numbers.tolist()]
    before = peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    if what == "hold_out":
        parts = hold_out(images, fraction=0.1, seed=0)
    else:
        parts = tuple(split_images(images, fractions, seed=0, groups=groups).values())
    result = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start,
        "peak_GB": peak_memory() / 1e9,
        "peak_before_GB": before / 1e9,
        "sizes": [len(part) for part in parts],
    }
    del parts
    if what != "hold_out":
        plan = plan_split(images, fractions, seed=0, groups=groups)
        result["units"] = len(plan.part_of_unit)
        result["deviations"] = asdict(plan.deviations()["all"])
        result["random_deviations"] = asdict(plan.random_deviations(seed=0, num_splits=NUM_RANDOM)["all"])
    return result


def measure_command() -> dict[str, Any]:
    """`msrn data split` on a CSV of a million rows, reading and writing included; runs in a process of its own."""
    from msrn.data.split_table import write_split

    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "photos.csv"
        images = draw_long_tail(NUM_ROWS, NUM_LABELS)
        paths = tuple(Path(folder) / path for path in images.paths)
        write_split(table, [LabelledImages(paths, images.target, images.label_names, "train")])
        del images, paths
        script = (
            "import sys; from msrn.cli.main import main\n"
            "try: main()\n"
            "finally: print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')), file=sys.stderr)"
        )
        command = [sys.executable, "-c", script, "data", "split", str(table), "--out", str(Path(folder) / "split.csv")]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(done.stderr)
        peak = next(line for line in done.stderr.splitlines() if line.startswith("VmHWM"))
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_GB": int(peak.split()[1]) * 1024 / 1e9,
        }


def peak_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def in_process(what: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--million", what]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    print(what, done.stdout, flush=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, help="VOCdevkit; left out without it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--million", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.million:
        result = measure_command() if args.million == "command" else measure_million(args.million)
        print(json.dumps(result))
        return
    result: dict[str, Any] = {"machine": machine(), "compared": {}, "million": {}}
    sets = {"long tail, 10,000 images": draw_long_tail(10_000, NUM_LABELS)}
    if args.voc is not None:
        sets = {"VOC 2007 train + val": read_voc(args.voc), **sets}
    for name, images in sets.items():
        for text, fractions in FRACTIONS.items():
            print(f"--- {name}, {text}", flush=True)
            result["compared"][f"{name}; {text}"] = compare(images, fractions, has_others="VOC" in name)
    for what in ("hold_out", "split_images", "split_images, grouped", "command"):
        result["million"][what] = in_process(what)
    if args.json is not None:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
