"""The images a recipe trains on, chooses by and is tested on."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from msrn.data import LabelledImages, check_disjoint, check_files, hold_out, open_source, split_hash
from msrn.errors import DataError
from msrn.recipes.schema import Recipe

# Splits are drawn once for a data set, not once a run: runs with different seeds share them.
HOLD_OUT_SEED = 0


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: Images to learn from.
        val: Images that choose the epoch.
        test: Images read once, at the end, or None.
        val_origin: Where `val` comes from, in words.
        is_held_out: Whether `val` is a part of the training split, drawn by us.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    val_origin: str
    is_held_out: bool = False

    def named(self) -> dict[str, LabelledImages]:
        """The splits that exist, by their use."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in parts.items() if images is not None}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The hash of each split that exists, by its use."""
        return {name: split_hash(images) for name, images in self.named().items()}

    def record(self) -> dict[str, dict[str, Any]]:
        """What a run writes down about its splits: name in the source, number of images and hash."""
        return {
            name: {"split": images.split, "images": len(images), "sha256": self.hashes[name]}
            for name, images in self.named().items()
        }


def scenes_dir() -> Path:
    """Where the generated data set is kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "msrn" / "scenes"


def read_splits(recipe: Recipe, console: Console | None = None) -> Splits:
    """Read the splits a recipe names; hold a part of train out where there is no validation split.

    Raises:
        DataError: The data cannot be read, a split is empty, or splits share an image.
    """
    data = recipe.data
    root = Path(data.root).expanduser()
    if data.root == "scenes":
        from msrn.data.scenes import write_scenes

        root = scenes_dir()
        if console is not None and not root.exists():
            console.print(f"drawing scenes into {root}", highlight=False)
        write_scenes(root)
    source = open_source(root, **data.source_options())
    parts = [source.read(split) for split in data.train]
    train = parts[0] if len(parts) == 1 else LabelledImages.join(parts, split="train")
    has_own_val = "val" in source.splits and "val" not in (*data.train, data.test)
    if not (train.target == 1).any():
        raise DataError(
            f"no image of {' + '.join(data.train)} in {root} has a label. Label some, or choose another split."
        )
    val_split = ("val" if has_own_val else "held_out") if data.val == "auto" else data.val
    if val_split != "held_out":
        val, val_origin = source.read(val_split), f"split {val_split}"
    else:
        train, val = hold_out(train, fraction=data.val_fraction, seed=HOLD_OUT_SEED)
        val_origin = f"{len(val)} images held out of {' + '.join(data.train)}"
    has_own_test = "test" in source.splits and "test" not in (*data.train, data.val)
    test_split = ("test" if has_own_test else None) if data.test == "auto" else data.test
    test = source.read(test_split) if test_split is not None else None
    if not (val.target == 1).any():
        raise DataError(
            f"no validation image ({val_origin}) has a label, so no epoch can be chosen. Add images with labels."
        )
    if console is not None:
        for note in source.notes:
            console.print(note, highlight=False, markup=False)
    splits = Splits(train, val, test, val_origin, is_held_out=val_split == "held_out")
    check_disjoint(*splits.named().values())
    check_files(*splits.named().values())
    return splits
