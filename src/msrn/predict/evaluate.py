"""Measure a model on a labelled split."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msrn.data import LabelledImages, open_source
from msrn.errors import LabelMismatchError
from msrn.predict.predictor import Predictor


def align_labels(images: LabelledImages, label_names: Sequence[str], *, missing: int = -1) -> LabelledImages:
    """Bring the target's columns into the model's order.

    Args:
        images: A labelled split.
        label_names: The model's labels.
        missing: Target of labels that the data does not have: -1 unknown, or 0 absent; unknown in any case for images of
            which nothing is known.

    Raises:
        LabelMismatchError: The data has a label that the model does not know, or none that it knows.
    """
    unknown = [name for name in images.label_names if name not in set(label_names)]
    if unknown:
        close = difflib.get_close_matches(unknown[0], label_names, n=1)
        hint = f" ('{unknown[0]}' may be '{close[0]}')" if close else ""
        raise LabelMismatchError(
            f"the model knows {len(label_names)} labels, but not {_shown(unknown)} of this data{hint}. "
            "Rename or remove these in the data, or train a model with them."
        )
    column = {name: index for index, name in enumerate(images.label_names)}
    target = np.full((len(images), len(label_names)), missing, dtype=np.int8)
    for index, name in enumerate(label_names):
        if name in column:
            target[:, index] = images.target[:, column[name]]
    target[(images.target == -1).all(axis=1)] = -1  # nobody looked at these, whatever the label
    return LabelledImages(images.paths, target, tuple(label_names), images.split)


def read_labelled(path: str | Path, split: str, label_names: Sequence[str], **table_options: Any) -> LabelledImages:
    """Read one split of a source with the target's columns in the model's order.

    A label that the source never names is absent where the source names every label of an image, as a table's label column
    does, and unknown elsewhere; it is unknown for images of which nothing is known.

    Raises:
        DataError: The source or the split cannot be read.
        LabelMismatchError: The data has a label that the model does not know.
    """
    source = open_source(path, **table_options)
    missing = 0 if source.names_every_label else -1
    return align_labels(source.read(split), label_names, missing=missing)


def evaluate(
    predictor: Predictor,
    images: LabelledImages,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """All metrics of a model on a labelled split whose columns are the model's (`align_labels`).

    Args:
        predictor: The model.
        images: The split.
        batch_size: Images a pass.
        num_workers: Processes that read images.
        progress: Called with the number of images after each batch.

    Returns:
        What `msrn.metrics.evaluate_predictions` returns; with thresholds fitted, CP to OF1 at these under `CP_fitted` and so on.

    Raises:
        UnreadableImageError: An image of the split cannot be read.
    """
    from msrn.metrics import MultilabelMetrics  # torchmetrics is slow to import, and prediction needs none

    # The first of several processes that have trained evaluates alone: it must not ask the others.
    bundle = predictor.bundle
    fitted = None if bundle.thresholds is None else bundle.label_thresholds
    metrics = MultilabelMetrics(predictor.label_names, fitted=fitted, sync_on_compute=False)
    for probs, target in predictor.probs_of_split(images, batch_size=batch_size, num_workers=num_workers):
        metrics.update(probs, target)
        if progress is not None:
            progress(len(probs))
    report: dict[str, Any] = metrics.compute()
    return report


def _shown(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
