"""How well likely annotation errors are ranked, beside random order and cleanlab.

pip install cleanlab
python benchmarks/annotation_errors.py BUNDLE DATA SPLIT --title ... --json benchmarks/results/annotation-errors-voc.json

5 % of the known entries of the target are flipped, five times. Every ranking sees the flipped target and the model's
probabilities, as they are and after Platt scaling on the flipped target by cross-fitting; its average precision tells how early the
flipped entries come.
"""

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
from sklearn.metrics import average_precision_score
from torch import Tensor

from msrn.files import write_json
from msrn.machine import machine
from msrn.metrics import fit_calibration, likely_annotation_errors
from msrn.predict import load, read_labelled

SHARE = 0.05
NUM_FLIPS = 5


def our_scores(preds: Tensor, target: Tensor) -> np.ndarray:
    found = likely_annotation_errors(preds, target, most=target.numel())
    scores = np.full(target.shape, np.nan)
    scores[found.images, found.labels] = found.probs
    return scores


def cleanlab_scores(preds: Tensor, target: Tensor, method: str) -> np.ndarray:
    """One minus cleanlab's label quality; it takes no unknown labels, so these count as absent, and are not ranked."""
    labels = [[int(label) for label in (row == 1).nonzero().flatten()] for row in target]
    kwargs = {"method": method, "adjust_pred_probs": False}
    quality = get_label_quality_scores_per_class(labels, preds.numpy(), **kwargs)
    return 1 - quality


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("data")
    parser.add_argument("split")
    parser.add_argument("--title", required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    predictor = load(args.bundle)
    images = read_labelled(args.data, args.split, predictor.label_names)
    batches = list(predictor.logits_of_split(images))
    logits, target = torch.cat([batch for batch, _ in batches]), torch.cat([batch for _, batch in batches])
    known = (target != -1).numpy()
    found: dict[str, list[float]] = {}
    for seed in range(NUM_FLIPS):
        rng = np.random.default_rng(seed)
        flipped = (rng.random(target.shape) < SHARE) & known
        seen = torch.where(torch.from_numpy(flipped), 1 - target, target)
        calibrated = logits.sigmoid()
        fold = torch.from_numpy(rng.permutation(len(logits)) % 5)
        for part in range(5):
            calibrated[fold == part] = fit_calibration(logits[fold != part], seen[fold != part], "platt")(
                logits[fold == part]
            )
        rankings = {"random order": rng.random(target.shape)}
        for how, preds in (("", logits.sigmoid()), (", calibrated", calibrated)):
            rankings[f"msrn{how}"] = our_scores(preds, seen)
            for method in ("self_confidence", "normalized_margin"):
                rankings[f"cleanlab, {method.replace('_', ' ')}{how}"] = cleanlab_scores(preds, seen, method)
        for name, scores in rankings.items():
            found.setdefault(name, []).append(float(average_precision_score(flipped[known], scores[known])))
    write_json(
        args.json,
        {
            "machine": machine(),
            "cleanlab": version("cleanlab"),
            "title": args.title,
            "images": len(images),
            "entries": int(known.sum()),
            "share_flipped": SHARE,
            "average_precision": {
                name: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}
                for name, values in found.items()
            },
        },
    )
    for name, values in found.items():
        print(f"{name:40} {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")


if __name__ == "__main__":
    main()
