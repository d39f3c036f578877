"""The time of explaining all labels of an image beside plain prediction.

    python benchmarks/explain_time.py BUNDLE IMAGE ... --json benchmarks/results/explain-time.json

Each round takes one image after the other through `predict`, `explain` of all labels without related labels, the same with JSON,
`explain` of the three most probable with related labels and JSON (what the command does), and `explain` of all labels with related
labels. Reading and preprocessing are part of all. A ratio is taken within its round; the median and the range over rounds are kept.
`--untrained 80 1000` measures the second way also for as many labels, with untrained networks of the same architecture.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from msrn.bundle import Bundle
from msrn.files import write_json
from msrn.labels import LabelGraph
from msrn.machine import machine
from msrn.models import build_model
from msrn.predict import Predictor, load

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--untrained", type=int, nargs="*", default=[], metavar="LABELS")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    predictor = load(args.bundle, device="cpu")
    names = predictor.label_names
    ways: dict[str, Callable[[Path], Any]] = {
        "predict": lambda image: predictor.predict(image),
        "explain all labels": lambda image: predictor.explain(image, names, with_related=False),
        "explain all labels, and the JSON": lambda image: predictor.explain(image, names, with_related=False).to_dict(),
        "explain three labels and what related labels do, and the JSON": lambda image: predictor.explain(
            image
        ).to_dict(),
        "explain all labels and what related labels do": lambda image: predictor.explain(image, names),
    }
    found: dict[str, Any] = {
        "machine": machine(),
        "bundle": predictor.bundle.architecture.get("backbone"),
        "size": list(predictor.bundle.preprocessing.size),
        "labels": len(names),
        "edges": int((predictor.bundle.label_graph.adjacency > 0).sum()) - len(names),
        "images": len(args.images),
        "rounds": args.rounds,
    }
    found |= _measure(ways, args.images, args.rounds)
    found["untrained"] = {}
    for num_labels in args.untrained:
        print(f"{num_labels} labels, untrained")
        wide = _untrained(predictor.bundle, num_labels)
        names = wide.label_names
        ways = {
            "predict": wide.predict,
            "explain all labels": lambda image, wide=wide, names=names: wide.explain(image, names, with_related=False),
        }
        found["untrained"][str(num_labels)] = _measure(ways, args.images, args.rounds)
    write_json(args.json, found)


def _measure(ways: dict[str, Callable[[Path], Any]], images: list[Path], num_rounds: int) -> dict[str, Any]:
    """Seconds of each way for one image, and how many times those of the first."""
    rounds: list[dict[str, float]] = []
    for _ in range(WARM_UP + num_rounds):
        taken = {}
        for way, call in ways.items():
            start = time.perf_counter()
            for image in images:
                call(image)
            taken[way] = (time.perf_counter() - start) / len(images)
        rounds.append(taken)
    del rounds[:WARM_UP]
    found = {}
    for way in ways:
        ratios = [taken[way] / taken["predict"] for taken in rounds]
        found[way] = {
            "seconds": statistics.median(taken[way] for taken in rounds),
            "times_prediction": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        }
        print(f"{way}: {1000 * found[way]['seconds']:.1f} ms, {statistics.median(ratios):.2f} times prediction")
    return found


def _untrained(bundle: Bundle, num_labels: int) -> Predictor:
    """The same architecture for other labels, three of which are on each of 2,000 images drawn."""
    drawn = torch.Generator().manual_seed(0)
    on_image = (torch.rand(2000, num_labels, generator=drawn) < 3 / num_labels).long()
    names = tuple(f"label {index}" for index in range(num_labels))
    label_graph = LabelGraph(names, on_image.T @ on_image, on_image.sum(dim=0))
    model = build_model({**bundle.architecture, "pretrained": False, "weights": None}, label_graph, None).eval()
    return Predictor(Bundle(model, label_graph, bundle.architecture, bundle.preprocessing), device="cpu")


if __name__ == "__main__":
    main()
