"""The memory that `msrn train --dry-run` expects, and what a process takes.

    python benchmarks/memory.py --json benchmarks/results/memory.json

Every network trains three steps in a process of its own, with one thread, on random images; measured is how far the process's peak
(VmHWM, Linux only) rose over what it held before. "returning" is the same under an allocator that gives freed blocks back at once.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from msrn.files import write_json
from msrn.labels import LabelGraph
from msrn.machine import machine
from msrn.models import PUBLISHED, build_msrn, use_channels_last
from msrn.training import (
    MemoryEstimate,
    MSRNModule,
    OptimizerSettings,
    TrainerSettings,
    build_optimizer,
    estimate_training_memory,
)

RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc maps, and unmaps, every block from 64 KiB on


def make_case(size: int, batch_size: int, *, num_labels: int = 20, **model: Any) -> dict[str, Any]:
    case = {"size": [size, size], "batch_size": batch_size, "num_labels": num_labels, "num_steps": 3}
    return {**case, "model": model, "precision": "32-true", "optimizer": "sgd"}


CASES = {
    "mobilenetv2_100, 160 px, batch 32": make_case(160, 32, backbone="mobilenetv2_100"),
    "resnet18, 224 px, batch 8": make_case(224, 8, backbone="resnet18"),
    "resnet18, 224 px, batch 32": make_case(224, 32, backbone="resnet18"),
    "resnet18, 224 px, batch 32, bf16-mixed": {
        **make_case(224, 32, backbone="resnet18"),
        "precision": "bf16-mixed",
    },
    "resnet18, 224 px, batch 8, published": make_case(224, 8, backbone="resnet18", **PUBLISHED),
    "resnet18, 224 px, batch 8, published, AdamW": {
        **make_case(224, 8, backbone="resnet18", **PUBLISHED),
        "optimizer": "adamw",
    },
    "resnet50, 448 px, batch 2": make_case(448, 2, backbone="resnet50"),
}


def build(case: dict[str, Any]) -> MSRNModule:
    torch.manual_seed(0)
    target = (torch.rand(100, case["num_labels"]) < 0.3).int()
    graph = LabelGraph.from_target(target, [f"label {number}" for number in range(case["num_labels"])])
    model = build_msrn(graph, **case["model"])
    use_channels_last(model)
    return MSRNModule(model, graph.label_names, optimizer=OptimizerSettings(case["optimizer"], lr=1e-6))


def estimate(case: dict[str, Any]) -> MemoryEstimate:
    settings = TrainerSettings(precision=case["precision"], accelerator="cpu")
    return estimate_training_memory(build(case), settings, size=tuple(case["size"]), batch_size=case["batch_size"])


def measure(case: dict[str, Any], **environment: str) -> int:
    """Bytes by which a process grows that trains a few steps."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return int(done.stdout.splitlines()[-1])


def train(case: dict[str, Any]) -> None:
    """A few steps as `fit` does them."""
    module = build(case)
    optimizer = build_optimizer(module.model, module.optimizer_settings)
    for _ in range(case["num_steps"]):
        target = (torch.rand(case["batch_size"], case["num_labels"]) < 0.3).long()
        images = torch.randn(case["batch_size"], 3, *case["size"])
        batch = {"images": images, "target": target, "index": torch.arange(len(images))}
        with torch.autocast("cpu", enabled=case["precision"] != "32-true"):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        del images, loss, batch


def grow(case: dict[str, Any]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tiny = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8, "classifier_dim": 8}
    # What PyTorch loads when it is first used.
    train({**case, "model": {**case["model"], **tiny}, "size": [32, 32], "batch_size": 4})
    gc.collect()
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    train(case)
    return status("VmHWM") - held


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(grow(json.loads(args.case)))
        return
    cases = {}
    for name, case in CASES.items():
        own = estimate(case)
        cases[name] = {
            "peak_bytes": own.peak_bytes,
            "expected_bytes": own.expected_bytes,
            "measured_bytes": measure(case),
            "measured_returning_bytes": measure(case, **RETURNING),
        }
        print(name, cases[name], flush=True)
    if args.json:
        write_json(args.json, {"machine": machine(), "cases": cases})


if __name__ == "__main__":
    main()
