"""Compare MSRN with pooled heads under one recipe: the same data, trainer, budget and learning-rate search for each.

    python benchmarks/heads.py scenes --heads msrn avg_pool --lrs 0.002 0.005 --json benchmarks/results/scenes.json
    python benchmarks/heads.py voc2007-mobilenet --json benchmarks/results/voc2007-mobilenet.json \
        data.root=/data/VOCdevkit model.weights=mobilenetv2_100.safetensors
    python benchmarks/heads.py voc2007-mobilenet --heads msrn --json benchmarks/results/bounds/voc2007-mobilenet-plain.json \
        data.root=/data/VOCdevkit model.weights=mobilenetv2_100.safetensors model.bound=null model.normalize=false

With --lrs, every head first tries each rate once (seed 0), reading validation only, and the best goes on. Then every seed is
trained and its test split read once. Each finished run is written to the JSON file at once; started again, the script goes on where
it stopped.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from msrn.files import write_json
from msrn.machine import machine
from msrn.recipes import load_recipe
from msrn.recipes.run import train_recipe

METRICS = ("mAP", "CF1", "OF1", "CF1_top3", "OF1_top3")


def train_once(args: argparse.Namespace, head: str, seed: int, lr: float | None, *, is_search: bool) -> dict[str, Any]:
    overrides = [*args.overrides, f"model.head={head}", f"trainer.seed={seed}"]
    overrides += [f"optimizer.lr={lr}"] if lr is not None else []
    overrides += ["data.test=null"] if is_search else []
    recipe = load_recipe(args.recipe, overrides)
    print(f"--- {head}, seed {seed}, lr {recipe.optimizer.lr}{', search' if is_search else ''}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        result = train_recipe(recipe, Path(folder) / "run", console=Console(width=120))
    run = {
        "head": head,
        "seed": seed,
        "lr": recipe.optimizer.lr,
        "best_epoch": result.best_epoch,
        "val_mAP": result.best_mAP,
        "train_seconds": result.training["train_seconds"],
        "parameters": result.training["parameters"],
        "splits": result.training["splits"],
    }
    if result.test is not None:
        run |= {"test": {name: result.test[name] for name in METRICS}, "labels": result.test["labels"]}
    return run


def summarise(runs: list[dict[str, Any]], heads: list[str]) -> dict[str, Any]:
    summary = {}
    for head in heads:
        done = [run for run in runs if run["head"] == head]
        if done:
            values = {name: [run["test"][name] for run in done] for name in METRICS}
            summary[head] = {
                name: {"mean": statistics.fmean(value), "std": statistics.stdev(value) if len(value) > 1 else None}
                for name, value in values.items()
            } | {
                "seeds": [run["seed"] for run in done],
                "parameters": done[0]["parameters"],
                "train_seconds": statistics.median(run["train_seconds"] for run in done),
            }
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--heads", nargs="+", default=["msrn", "avg_pool", "max_pool"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--lrs", nargs="+", type=float, default=[])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_intermixed_args()
    state: dict[str, Any] = {"search": [], "runs": []}
    if args.json.exists():
        state = json.loads(args.json.read_text())

    def save() -> None:
        heads = sorted({run["head"] for run in state["runs"]})
        shown = [text for text in args.overrides if not text.startswith(("data.root", "model.weights"))]
        protocol = {"recipe": args.recipe, "overrides": shown, "machine": machine()}
        write_json(
            args.json,
            {**protocol, "summary": summarise(state["runs"], heads), **{k: state[k] for k in ("search", "runs")}},
        )

    for head in args.heads:
        for lr in args.lrs:
            if not any(run["head"] == head and run["lr"] == lr for run in state["search"]):
                state["search"].append(train_once(args, head, 0, lr, is_search=True))
                save()
        tried = [run for run in state["search"] if run["head"] == head]
        lr = max(tried, key=lambda run: run["val_mAP"])["lr"] if tried else None
        for seed in args.seeds:
            if not any(run["head"] == head and run["seed"] == seed for run in state["runs"]):
                state["runs"].append(train_once(args, head, seed, lr, is_search=False))
                save()
    print(json.dumps(json.loads(args.json.read_text())["summary"], indent=2))


if __name__ == "__main__":
    main()
