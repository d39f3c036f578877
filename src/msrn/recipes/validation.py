"""The validation images of a bundle that still lies in the folder of its run."""

import json
from pathlib import Path

from msrn.bundle import Bundle
from msrn.data import LabelledImages
from msrn.errors import DataError
from msrn.predict import align_labels
from msrn.recipes.load import load_recipe
from msrn.recipes.run import RECIPE_FILE, SPLITS_FILE
from msrn.recipes.splits import read_splits


def validation_images(bundle: Bundle, bundle_dir: str | Path) -> LabelledImages:
    """The images that chose the epoch of a run, also where they were held out of its training split.

    Args:
        bundle: The model.
        bundle_dir: Its folder, `bundle` in the run's folder.

    Raises:
        DataError: There is no run around the bundle, its data is gone, or has changed since.
    """
    run_dir = Path(bundle_dir).resolve().parent
    if not (run_dir / RECIPE_FILE).is_file():
        raise DataError(
            f"{bundle_dir} does not lie in the folder of its run (no {RECIPE_FILE} beside it), so its validation images are not "
            "known. Give labelled images by --data and --split."
        )
    splits = read_splits(load_recipe(run_dir / RECIPE_FILE))
    try:
        expected = json.loads((run_dir / SPLITS_FILE).read_text(encoding="utf-8"))["val"]["sha256"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{run_dir / SPLITS_FILE} cannot be read: {error}. Give labelled images by --data.") from None
    if splits.hashes["val"] != expected:
        raise DataError(
            f"the validation images of {run_dir} have changed since it was trained. Bring back the data it was trained with, or "
            "give labelled images by --data and --split."
        )
    return align_labels(splits.val, bundle.label_names)
