"""Records of runs that nobody trained."""

from typing import Any

from msrn.recipes import load_recipe
from msrn.recipes.load import without_paths

MACHINE = {"processor": "some", "threads": 1, "gpu": None, "python": "3.11", "versions": {"torch": "2.13"}}
SPLITS = {name: {"split": name, "images": 8, "sha256": "ab" * 32} for name in ("train", "val", "test")}


def make_record(
    variant: str, seed: int, mAP: float | None, *, lr: float = 0.3, is_search: bool = False, diverged: bool = False
) -> dict[str, Any]:
    """What a run writes down; of a try without its test split, of one that diverged the reason alone."""
    record = {"variant": variant, "seed": seed, "is_search": is_search, "lr": lr, "overrides": []}
    record["recipe"] = without_paths(load_recipe("scenes"))
    if mAP is None:
        return {**record, "failed": "the loss became nan", "diverged": diverged}
    test = {
        **{"mAP": mAP, "CF1": mAP - 0.1, "OF1": mAP - 0.05, "labels": {"cat": mAP - 0.1, "dog": mAP + 0.1}},
        **{"num_images": 8, "num_unknown": 0, "threshold": 0.5, "labels_without_positives": [], **SPLITS["test"]},
        "protocol": {"unknown": "unknown labels enter no metric", "pretraining": "none"},
    }
    splits = {name: dict(split) for name, split in SPLITS.items() if name != "test" or not is_search}
    return {
        **record,
        "val_mAP": mAP if is_search else mAP + 0.05,
        "best_epoch": 1,
        "val_mAP_by_epoch": [0.1, mAP],
        "test": None if is_search else test,
        "parameters": 1000,
        "flops": 2000,
        "train_seconds": 20.0,
        "images_per_s": 10.0,
        "process_seconds": 30.0,
        "peak_memory_bytes": 10**9,
        "chosen_by": "validation mAP on split val",
        "splits": splits,
        "machine": MACHINE,
    }
