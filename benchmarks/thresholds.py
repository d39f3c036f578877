"""What fitted thresholds and calibration buy on images that did not fit them.

python benchmarks/thresholds.py BUNDLE DATA SPLIT --fit 250 --title ... --json benchmarks/results/thresholds-voc.json
python benchmarks/thresholds.py long-tail --fit 1000 --title ... --json benchmarks/results/thresholds-long-tail.json
python benchmarks/thresholds.py heavy-tail --fit 1000 --title ... --json benchmarks/results/thresholds-heavy-tail.json

The split's images are drawn 20 times into a part to fit on and a part to measure on. Macro F1 (mean of the labels' F1) at 0.5, at
each label's own best threshold on the part to fit (naive), at one best threshold for all, and at `fit_thresholds`, on the plain
probabilities and on Platt's; precision at a target of 0.9, of all decisions and label by label, with 95 % intervals; calibration
error before and after each method. `long-tail` draws 60 labels of 300 to 4 positives in 1,000 images, too sure of themselves,
with normal scores, `heavy-tail` the same with heavy-tailed and skewed ones.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msrn.files import write_json
from msrn.machine import machine
from msrn.metrics import calibration_error, fit_calibration, fit_thresholds
from msrn.metrics.calibration import METHODS
from msrn.predict import load, read_labelled

NUM_RESAMPLES = 20
TARGET = 0.9


def macro_f1(preds: Tensor, target: Tensor, thresholds: Tensor | float) -> float:
    predicted = (preds >= thresholds) & (target != -1)
    correct = (predicted & (target == 1)).sum(0)
    positives = (target == 1).sum(0)
    f1 = 2 * correct / (predicted.sum(0) + positives).clamp(min=1)
    return float(f1[positives > 0].mean())


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` decisions."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def measure(logits: Tensor, target: Tensor, num_fit: int, seed: int) -> dict[str, Any]:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(logits)))
    fit, rest = order[:num_fit], order[num_fit:]
    preds = logits.sigmoid()
    naive = fit_thresholds(preds[fit], target[fit], min_positives=1, shrinkage=0).tensor()
    ours = fit_thresholds(preds[fit], target[fit])
    precise = fit_thresholds(preds[fit], target[fit], f"precision={TARGET}")
    predicted = (preds[rest] >= precise.tensor()) & (target[rest] != -1)
    num_predicted = int(predicted.sum())
    by_label = zip((predicted & (target[rest] == 1)).sum(0).tolist(), predicted.sum(0).tolist(), strict=True)
    reaches = [wilson(correct / count, count)[1] >= TARGET for correct, count in by_label if count]
    platt = fit_calibration(logits[fit], target[fit], "platt")
    calibrated = fit_thresholds(preds[fit], target[fit], calibration="platt")
    precision = float((predicted & (target[rest] == 1)).sum() / max(num_predicted, 1))
    low, high = wilson(precision, max(num_predicted, 1))
    probs = {"none": preds[rest], **{m: fit_calibration(logits[fit], target[fit], m)(logits[rest]) for m in METHODS}}
    return {
        "macro_F1": {
            "at 0.5": macro_f1(preds[rest], target[rest], 0.5),
            "one threshold for all": macro_f1(preds[rest], target[rest], ours.shared),
            "every label's best (naive)": macro_f1(preds[rest], target[rest], naive),
            "fitted": macro_f1(preds[rest], target[rest], ours.tensor()),
            "fitted, calibrated by Platt": macro_f1(platt(logits[rest]), target[rest], calibrated.tensor()),
        },
        "labels_sharing": sum(ours.is_shared),
        "precision": {
            "precision": precision,
            "interval": [float(low), float(high)],
            "recall": float((predicted & (target[rest] == 1)).sum() / (target[rest] == 1).sum()),
            "crossfit": precise.crossfit,
            "labels_predicted": len(reaches),
            "labels_met": int(sum(reaches)),
            "labels_out_of_reach": int(sum(precise.is_out_of_reach)),
            "is_met": bool(high >= TARGET),
        },
        "calibration": {method: calibration_error(values, target[rest]) for method, values in probs.items()},
    }


def long_tail(num_images: int, *, is_heavy: bool) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    prevalence, separation = np.geomspace(0.3, 0.004, 60), rng.uniform(1.5, 3.5, 60)
    present = rng.random((num_images, 60)) < prevalence
    if not is_heavy:
        noise = 1.2 * rng.normal(size=present.shape)
    else:  # neither normal nor symmetric, so that no scaling of the logits is exact
        noise = 0.55 * rng.standard_t(4, size=present.shape) + 0.5 * (rng.exponential(size=present.shape) - 1)
    logits = 1.7 * (0.8 * np.log(prevalence / (1 - prevalence)) + present * separation + noise)
    return torch.from_numpy(logits), torch.from_numpy(present.astype(np.int64))


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", help="a bundle folder, long-tail or heavy-tail")
    parser.add_argument("data", nargs="?")
    parser.add_argument("split", nargs="?")
    parser.add_argument("--fit", type=int, required=True, help="images to fit on")
    parser.add_argument("--title", required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    if args.bundle in ("long-tail", "heavy-tail"):
        logits, target = long_tail(21_000, is_heavy=args.bundle == "heavy-tail")
    else:
        predictor = load(args.bundle)
        images = read_labelled(args.data, args.split, predictor.label_names)
        batches = list(predictor.logits_of_split(images))
        logits, target = torch.cat([batch for batch, _ in batches]), torch.cat([batch for _, batch in batches])
    runs = [measure(logits, target, args.fit, seed) for seed in range(NUM_RESAMPLES)]
    f1 = {name: spread([run["macro_F1"][name] for run in runs]) for name in runs[0]["macro_F1"]}
    found = {
        "machine": machine(),
        "title": args.title,
        "images": len(logits),
        "fitted_on": args.fit,
        "resamples": NUM_RESAMPLES,
        "positives_fitted_on": sorted(
            round(float(n) * args.fit / len(logits), 1) for n in (target == 1).sum(0).tolist()
        ),
        "macro_F1": f1,
        "gain_over_fixed": spread([r["macro_F1"]["fitted"] - r["macro_F1"]["at 0.5"] for r in runs]),
        "gain_over_naive": spread(
            [r["macro_F1"]["fitted"] - r["macro_F1"]["every label's best (naive)"] for r in runs]
        ),
        "precision_target": TARGET,
        "precision": {
            name: spread([r["precision"][name] for r in runs])
            for name in ("precision", "recall", "labels_predicted", "labels_met", "labels_out_of_reach")
        },
        "precision_met": int(sum(r["precision"]["is_met"] for r in runs)),
        "calibration": {
            method: {name: spread([r["calibration"][method][name] for r in runs]) for name in ("ECE", "ECE_by_label")}
            for method in runs[0]["calibration"]
        },
        "runs": runs,
    }
    write_json(args.json, found)
    for name, value in f1.items():
        print(f"{name:28} macro F1 {100 * value['mean']:.2f} ± {100 * value['std']:.2f}")
    print("gain over naive", found["gain_over_naive"], "precision", found["precision"], "met", found["precision_met"])
    for method, values in found["calibration"].items():
        print(f"{method:12} ECE {100 * values['ECE']['mean']:.2f} ± {100 * values['ECE']['std']:.2f}")


if __name__ == "__main__":
    main()
