"""What each part of a trained MSRN does to its predictions: the part is taken out, nothing is trained again.

    python benchmarks/parts.py /data/VOCdevkit val runs/voc-160/training/msrn-seed*/run/bundle --json parts.json

For each part, on average over the bundles: the mean and greatest change of a probability, the images whose first label changes,
and the mAP without it. It tells whether a trained network uses a part, not what the part is worth: for that one is trained without
it (`msrn compare --ablations`).
"""

import argparse
from collections.abc import Callable, Sequence
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
from msrn.models import MSRN
from msrn.models.label_group import LabelGroups
from msrn.models.msrn import join_paths
from msrn.predict.evaluate import read_labelled

Head = Callable[[Sequence[Tensor]], Tensor]


def heads_without(model: MSRN) -> dict[str, Head]:
    """The head as it is, and without each of its parts."""
    whole = model.embed()
    labels, groups, assignment = whole
    identity = torch.eye(len(labels), dtype=labels.dtype, device=labels.device)
    kept = model.label_group.adjacency.clone()
    model.label_group.adjacency.copy_(identity)
    without_graph = model.label_group()
    model.label_group.adjacency.copy_(kept)

    def head(label_groups: LabelGroups, *, stage: int | None = None, residual: bool = True) -> Head:
        def compute(feature_maps: Sequence[Tensor]) -> Tensor:
            own, shared = model.attention(feature_maps, label_groups)
            if stage is not None:
                columns = slice(stage * labels.shape[1], (stage + 1) * labels.shape[1])
                own, shared = own.clone(), shared.clone()
                own[..., columns], shared[..., columns] = 0, 0
            paths = [model.classifier(own, shared, label_groups.assignment)]
            if residual and model.residual is not None:
                paths.append(model.residual(feature_maps[-1]))
            return join_paths(paths, model.supervision)

        return compute

    found = {
        "nothing": head(whole),
        "label graph (no edges)": head(without_graph),
        "local semantics (label embeddings zero: average pooling)": head(LabelGroups(0 * labels, groups, assignment)),
        "global semantics (no groups)": head(LabelGroups(labels, groups, 0 * assignment)),
        "guided attention (all embeddings zero)": head(LabelGroups(0 * labels, 0 * groups, assignment)),
    }
    strides = model.backbone.strides
    found |= {f"stage of stride {stride}": head(whole, stage=index) for index, stride in enumerate(strides)}
    if model.residual is not None:
        found["residual"] = head(whole, residual=False)
        found["attended stages (residual alone)"] = lambda feature_maps: model.residual(feature_maps[-1])
    return found


@torch.no_grad()
def measure(bundle_path: str, data: str, split: str, batch_size: int) -> dict[str, Any]:
    predictor = msrn.load(bundle_path)
    model = predictor.bundle.model
    assert isinstance(model, MSRN), "parts of an MSRN are measured, this bundle holds another head"
    images = read_labelled(data, split, predictor.label_names)
    heads = heads_without(model.eval())
    probs: dict[str, list[Tensor]] = {name: [] for name in heads}
    for batch in build_loader(images, predictor.bundle.preprocessing, batch_size=batch_size, num_workers=1):
        feature_maps = model.backbone(batch["images"].to(predictor.device))
        for name, head in heads.items():
            probs[name].append(head(feature_maps).double().sigmoid().cpu())
    target = torch.from_numpy(images.target).long()
    whole = torch.cat(probs["nothing"])
    rows = {}
    for name, parts in probs.items():
        without = torch.cat(parts)
        difference = (without - whole).abs()
        rows[name] = {
            "mAP": float(mean_average_precision(without, target)),
            "mean_change": float(difference.mean()),
            "greatest_change": float(difference.max()),
            "first_label_changes": float((without.argmax(dim=1) != whole.argmax(dim=1)).double().mean()),
        }
    return {"images": len(images), "split": split, "without": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("split")
    parser.add_argument("bundles", nargs="+", help="one a seed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    found = [measure(bundle, args.data, args.split, args.batch_size) for bundle in args.bundles]
    rows = [own.pop("without") for own in found]
    without = {
        name: {key: mean_and_std([row[name][key] for row in rows]) for key in value} for name, value in rows[0].items()
    }
    write_json(args.json, {"machine": machine(), **found[0], "bundles": len(found), "without": without})
    for name, row in without.items():
        print(
            f"{name:58} mAP {100 * row['mAP']['mean']:6.2f}  probabilities move by {row['mean_change']['mean']:.4f} on average, "
            f"{row['greatest_change']['mean']:.3f} at most, first label changes on "
            f"{100 * row['first_label_changes']['mean']:.1f} %"
        )


if __name__ == "__main__":
    main()
