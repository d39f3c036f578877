"""The time of explaining all labels of an image beside plain prediction.

    python benchmarks/explain_time.py BUNDLE IMAGE ... --json benchmarks/results/explain-time.json

Each round takes one image after the other through `predict`, `explain` of all labels without related labels, the same with JSON,
`explain` of the three most probable with related labels and JSON (what the command does), and `explain` of all labels with related
labels. Reading and preprocessing are part of all. A ratio is taken within its round; the median and the range over rounds are kept.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from msrn.files import write_json
from msrn.machine import machine
from msrn.predict import load

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    predictor = load(args.bundle, device="cpu")
    names = predictor.label_names
    ways = {
        "predict": lambda image: predictor.predict(image),
        "explain all labels": lambda image: predictor.explain(image, names, with_related=False),
        "explain all labels, and the JSON": lambda image: predictor.explain(image, names, with_related=False).to_dict(),
        "explain three labels and what related labels do, and the JSON": lambda image: predictor.explain(
            image
        ).to_dict(),
        "explain all labels and what related labels do": lambda image: predictor.explain(image, names),
    }
    rounds: list[dict[str, float]] = []
    for _ in range(WARM_UP + args.rounds):
        taken = {}
        for way, call in ways.items():
            start = time.perf_counter()
            for image in args.images:
                call(image)
            taken[way] = (time.perf_counter() - start) / len(args.images)
        rounds.append(taken)
    del rounds[:WARM_UP]
    found: dict[str, Any] = {
        "machine": machine(),
        "bundle": predictor.bundle.architecture.get("backbone"),
        "size": list(predictor.bundle.preprocessing.size),
        "labels": len(names),
        "edges": int((predictor.bundle.label_graph.adjacency > 0).sum()) - len(names),
        "images": len(args.images),
        "rounds": args.rounds,
    }
    for way in ways:
        ratios = [taken[way] / taken["predict"] for taken in rounds]
        found[way] = {
            "seconds": statistics.median(taken[way] for taken in rounds),
            "times_prediction": {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)},
        }
        print(f"{way}: {1000 * found[way]['seconds']:.1f} ms, {statistics.median(ratios):.2f} times prediction")
    write_json(args.json, found)


if __name__ == "__main__":
    main()
