"""Under which rules a table of metrics was made: the same head moves 1 to 3 points of mAP by these alone."""

from typing import Any

from msrn.bundle import Bundle
from msrn.data import LabelledImages, split_hash

UNKNOWN_POLICY = "unknown labels (-1, blank, VOC 'difficult') enter no metric and no loss"
NOT_RECORDED = "not recorded in this bundle"


def evaluation_protocol(
    bundle: Bundle, images: LabelledImages, *, threshold: float | None = None, reading: str | None = None
) -> dict[str, Any]:
    """The protocol of an evaluation, as plain values that JSON can hold.

    Args:
        bundle: The model that was measured; what it does not record of its training is said to be not recorded.
        images: The split it was measured on.
        threshold: Least probability of a predicted label; the bundle's own by default.
        reading: When and how often the split was read, in words, where that is known.

    Returns:
        `split`, `images`, `sha256` of the split, `read` (if given), `resize`, `unknown`, `threshold`, `fitted` thresholds and
        `calibration` (if there are), and of the training
        `pretraining`, `train_splits`, `seed`, `epoch` and `epoch_chosen_by`.
    """
    threshold = bundle.threshold if threshold is None else threshold
    height, width = bundle.preprocessing.size
    return {
        "split": images.split,
        "images": len(images),
        "sha256": split_hash(images),
        **({} if reading is None else {"read": reading}),
        "resize": f"whole image to {height} x {width}, {bundle.preprocessing.interpolation}, one view",
        "unknown": UNKNOWN_POLICY,
        "threshold": f"{threshold:g} for every label, fixed and not fitted; top 3 beside it",
        **_fitted(bundle),
        **_training(bundle.training),
    }


def protocol_lines(protocol: dict[str, Any]) -> list[str]:
    """The protocol for people, a few words a line.

    Example:
        >>> protocol_lines({"split": "val", "images": 10, "sha256": "ab" * 32, "seed": 0, "epoch": 2, "epoch_chosen_by": "mAP"})
        ['split       val, 10 images, sha256 abababababab', 'seed        0', 'epoch       2, chosen by mAP']
    """
    split = f"{protocol['split']}, {protocol['images']} images, sha256 {protocol['sha256'][:12]}"
    values = {"split": f"{split}, {protocol['read']}" if "read" in protocol else split}
    values |= {
        name: str(protocol[name])
        for name in ("resize", "unknown", "threshold", "fitted", "calibration", "pretraining")
        if name in protocol
    }
    if "train_splits" in protocol:
        values["trained on"] = str(protocol["train_splits"])
    if "seed" in protocol:
        values["seed"] = str(protocol["seed"])
    if "epoch_chosen_by" in protocol:
        by = protocol["epoch_chosen_by"]
        values["epoch"] = by if protocol["epoch"] is None else f"{protocol['epoch']}, chosen by {by}"
    return [f"{name:11} {value}" for name, value in values.items()]


def _fitted(bundle: Bundle) -> dict[str, Any]:
    """Thresholds and calibration in words, where the bundle has them."""
    thresholds, calibration = bundle.thresholds, bundle.calibration
    if thresholds is None:
        return {} if calibration is None else {"calibration": calibration.method}
    on = thresholds.fitted_on
    where = f"{on.get('images')} images of split '{on.get('split')}', sha256 {str(on.get('sha256'))[:12]}"
    num_shared = sum(thresholds.is_shared)
    return {
        "fitted": f"a threshold a label for {thresholds.objective} on {where}; {num_shared} of {len(thresholds.values)} labels "
        f"share {thresholds.shared:.3f}"
        + (f", {num_never} are never predicted" if (num_never := sum(thresholds.is_out_of_reach)) else ""),
        "calibration": "none" if calibration is None else f"{calibration.method}, fitted on the same images",
    }


def _training(training: dict[str, Any]) -> dict[str, Any]:
    """What the bundle says of its training; strangers may have written anything there."""
    recipe = _dict(training.get("recipe"))
    splits = _dict(training.get("splits"))
    used = {name: _dict(splits.get(name)) for name in ("train", "val")}
    epoch = training.get("best_epoch")
    return {
        "pretraining": _pretraining(training, _dict(recipe.get("model"))) if recipe else _origin(training),
        "train_splits": "; ".join(
            f"{name} {split.get('images')} images, sha256 {str(split.get('sha256'))[:12]}"
            for name, split in used.items()
            if split
        )
        or NOT_RECORDED,
        "seed": _dict(recipe.get("trainer")).get("seed", NOT_RECORDED),
        "epoch": epoch + 1 if isinstance(epoch, int) else None,  # people count epochs from 1
        "epoch_chosen_by": training.get("chosen_by", NOT_RECORDED),
    }


def _pretraining(training: dict[str, Any], model: dict[str, Any]) -> str:
    """What the weights were before training."""
    if model.get("init_from"):
        start = _dict(training.get("init_from"))
        return f"bundle {start.get('bundle', model['init_from'])}, sha256 {str(start.get('sha256'))[:12]}"
    backbone = model.get("backbone")
    if model.get("weights"):
        return f"{backbone} from {model['weights']}"
    return f"{backbone}, weights of timm" if model.get("pretrained") else "none"


def _origin(training: dict[str, Any]) -> str:
    origin = training.get("origin")
    return NOT_RECORDED if origin is None else f"{NOT_RECORDED}: {origin}"


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
