"""Average pooling given the attention of MSRN's residual after training: what is left are labels, groups and stages.

    python benchmarks/attend_afterwards.py /data/VOCdevkit val runs/160/training/avg_pool-seed*/run/bundle --json out.json

Nothing is trained and nothing is chosen: the weight is MSRN's default.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import msrn
from msrn.compare.summary import mean_and_std
from msrn.data.loader import build_loader
from msrn.files import write_json
from msrn.machine import machine
from msrn.metrics.functional import mean_average_precision
from msrn.models import Classifier
from msrn.models.baselines import PooledHead
from msrn.models.residual import AttendedHead
from msrn.predict.evaluate import read_labelled


@torch.no_grad()
def measure(bundle: str, data: str, split: str) -> dict[str, float]:
    """The mAP of a trained pooled head, as it is and with attention."""
    predictor = msrn.load(bundle)
    model = predictor.bundle.model.eval()
    assert isinstance(model, Classifier), "a pooled head is measured, this bundle holds another"
    assert isinstance(model.head, PooledHead), "a pooled head is measured, this bundle holds another"
    assert model.head.pooling == "avg", "attention is added to average pooling, this bundle pools by max"
    linear = model.head.linear
    attended = AttendedHead(linear.in_features, linear.out_features).to(predictor.device).eval()
    attended.load_state_dict(model.head.state_dict())
    images = read_labelled(data, split, predictor.label_names)
    logits: dict[str, list[Tensor]] = {"as trained": [], "attending": []}
    for batch in build_loader(images, predictor.bundle.preprocessing, batch_size=64, num_workers=1):
        stage = model.backbone(batch["images"].to(predictor.device))[-1]
        logits["as trained"].append(model.head(stage))
        logits["attending"].append(attended(stage))
    target = torch.from_numpy(images.target).long()
    return {
        name: float(mean_average_precision(torch.cat(parts).double().sigmoid().cpu(), target))
        for name, parts in logits.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("split")
    parser.add_argument("bundles", nargs="+", help="one a seed")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    runs = [measure(bundle, args.data, args.split) for bundle in args.bundles]
    summary: dict[str, Any] = {name: mean_and_std([run[name] for run in runs]) for name in runs[0]}
    write_json(args.json, {"machine": machine(), "split": args.split, "runs": runs, "summary": summary})
    for name, own in summary.items():
        print(f"{name}: mAP {100 * own['mean']:.2f}, of each {[round(100 * run[name], 2) for run in runs]}")


if __name__ == "__main__":
    main()
