"""Splits: hold out a validation part, fingerprint a split, check that splits share no image."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int8

from msrn.data.packed import is_file
from msrn.data.source import LabelledImages, some
from msrn.data.stratify import Deviations, Positives, stratify
from msrn.errors import DataError, EmptySplitError


def hold_out(images: LabelledImages, *, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split a training part into train and val such that both hold about the same share of every label.

    As `split_images` does, with two parts.

    Args:
        images: The training part.
        fraction: Share of the images to hold out, between 0 and 1; at least one image goes to each part.
        seed: Orders the images among equals.

    Returns:
        The train and the val part, each in the order of `images`.

    Raises:
        ValueError: The fraction is not between 0 and 1.
        EmptySplitError: Fewer than two images.

    Example:
        >>> target = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.int8)
        >>> images = LabelledImages(tuple(map(Path, "abcd")), target, ("cat", "dog"), "train")
        >>> train, val = hold_out(images, fraction=0.5, seed=0)
        >>> train.target.sum(0).tolist(), val.target.sum(0).tolist()
        ([1, 1], [1, 1])

    Source: Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}. Pass 0.1 to hold out a tenth.")
    if len(images) < 2:
        raise EmptySplitError(
            f"split '{images.split}' holds {len(images)} image, expected at least 2 to hold some out. Add images to it."
        )
    num_val = min(max(round(fraction * len(images)), 1), len(images) - 1)
    in_part = stratify(Positives.of_images(images.target), [len(images) - num_val, num_val], seed=seed)
    train, val = np.flatnonzero(in_part == 0), np.flatnonzero(in_part == 1)
    return images.take(train, split="train"), images.take(val, split="val")


@dataclass(frozen=True)
class SplitPlan:
    """Which image goes to which part.

    Attributes:
        label_names: The labels.
        names: The parts.
        part: The part of each image, a position in `names`.
        units: The positives of what stays together: images, or groups of them.
        part_of_unit: The part of each unit.
    """

    label_names: tuple[str, ...]
    names: tuple[str, ...]
    part: Int8[np.ndarray, " N"]
    units: Positives
    part_of_unit: Int8[np.ndarray, " U"]

    def take(self, images: LabelledImages) -> dict[str, LabelledImages]:
        """The parts by name, each in the order of `images`."""
        return {name: images.take(np.flatnonzero(self.part == i), split=name) for i, name in enumerate(self.names)}

    def deviations(self) -> dict[str, Deviations]:
        """How evenly labels are shared out, by part and, under "all", over all parts."""
        return self._deviations(self.part_of_unit)

    def random_deviations(self, *, seed: int, num_splits: int = 10) -> dict[str, Deviations]:
        """The same where chance says which unit goes where, as a mean over some splits."""
        rng = np.random.default_rng(seed)
        of_split = [self._deviations(rng.permutation(self.part_of_unit)) for _ in range(num_splits)]
        return {name: Deviations.mean([one[name] for one in of_split]) for name in of_split[0]}

    def missing_labels(self) -> dict[str, dict[str, int]]:
        """By part, the labels that none of its images has though others have, with their positives in all."""
        counts = self.units.count(self.part_of_unit, len(self.names))
        total = counts.sum(axis=0)
        return {
            name: {
                self.label_names[label]: int(total[label]) for label in np.flatnonzero((total > 0) & (counts[i] == 0))
            }
            for i, name in enumerate(self.names)
        }

    def _deviations(self, part: Int8[np.ndarray, " U"]) -> dict[str, Deviations]:
        counts = self.units.count(part, len(self.names))
        sizes = np.bincount(part, weights=self.units.sizes, minlength=len(self.names)).astype(np.int64)
        by_name = {name: Deviations.of(counts, sizes, i) for i, name in enumerate(self.names)}
        return {**by_name, "all": Deviations.of(counts, sizes)}


def plan_split(
    images: LabelledImages, fractions: Mapping[str, float], *, seed: int, groups: Sequence[str] | None = None
) -> SplitPlan:
    """Say which image goes to which part; see `split_images`."""
    names = tuple(fractions)
    shares = np.array([fractions[name] for name in names], dtype=np.float64)
    if not len(names) or not (shares > 0).all() or not np.isclose(shares.sum(), 1, rtol=0, atol=1e-6):
        raise ValueError(
            f"fractions must be above 0 and add up to 1, got {dict(fractions)}. "
            "Pass such as {'train': 0.8, 'val': 0.1, 'test': 0.1}."
        )
    units = Positives.of_images(images.target)
    unit_of_image = np.arange(len(images))
    if groups is not None:
        if len(groups) != len(images):
            raise ValueError(f"groups must name one group an image, got {len(groups)} for {len(images)} images.")
        unit_of_image = _number_groups(groups)
        units = units.group(unit_of_image)
    if len(units.sizes) < len(names):
        what = "images" if groups is None else "groups of images"
        raise EmptySplitError(
            f"split '{images.split}' holds {len(units.sizes)} {what}, expected at least one for each of "
            f"{', '.join(names)}. Add images to it, or ask for fewer parts."
        )
    part_of_unit = stratify(units, _exact_sizes(len(images), shares), seed=seed)
    return SplitPlan(images.label_names, names, part_of_unit[unit_of_image], units, part_of_unit)


def split_images(
    images: LabelledImages, fractions: Mapping[str, float], *, seed: int, groups: Sequence[str] | None = None
) -> dict[str, LabelledImages]:
    """Split images into parts such that each holds about its share of every label.

    Iterative stratification, then exchanges between parts while labels come nearer to their shares; unknown entries count
    as not positive. The same images, fractions, groups and seed give the same parts.

    Args:
        images: What to split.
        fractions: Share of the images by name of the part, above 0 and 1 in sum. The sizes are exact: what rounding
            leaves goes to the largest remainders, and every part gets an image.
        seed: Orders the images among equals.
        groups: What each image belongs to, such as a scene or a patient. A group is never cut, and sizes are as near as
            groups allow. A blank is an image of its own.

    Returns:
        The parts by name, each in the order of `images`.

    Raises:
        ValueError: Fractions that are not above 0 or do not add up to 1; not one group an image.
        EmptySplitError: Fewer images, or groups, than parts.

    Example:
        >>> target = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.int8)
        >>> images = LabelledImages(tuple(map(Path, "abcd")), target, ("cat", "dog"), "train")
        >>> parts = split_images(images, {"train": 0.5, "test": 0.5}, seed=0, groups=("1", "2", "1", "2"))
        >>> sorted(map(str, parts["train"].paths)) in (["a", "c"], ["b", "d"])
        True

    Source: Sechidis, Tsoumakas, Vlahavas, On the Stratification of Multi-Label Data, ECML PKDD 2011.
    """
    return plan_split(images, fractions, seed=seed, groups=groups).take(images)


def _number_groups(groups: Sequence[str]) -> Int[np.ndarray, " N"]:
    """Groups as numbers, in the order in which they appear; every blank is another one."""
    numbers: dict[str | int, int] = {}
    return np.array([numbers.setdefault(group or row, len(numbers)) for row, group in enumerate(groups)], np.int64)


def _exact_sizes(num_images: int, shares: Float[np.ndarray, " P"]) -> list[int]:
    """Whole numbers of images: the largest remainders are rounded up, no part is empty."""
    wanted = shares / shares.sum() * num_images
    sizes = np.floor(wanted + 1e-9).astype(np.int64)
    # By remainder, equals in the order of the parts.
    order = np.argsort(-(wanted - sizes).round(9), kind="stable")
    sizes[order[: num_images - int(sizes.sum())]] += 1
    for empty in np.flatnonzero(sizes == 0):
        sizes[sizes.argmax()] -= 1
        sizes[empty] = 1
    return [int(size) for size in sizes]


def check_files(*splits: LabelledImages) -> None:
    """Refuse splits that name images which are not there, before any of them is needed.

    Raises:
        DataError: Files are missing; the message names the first few and says how many.
    """
    missing = [path for images in splits for path in images.paths if not is_file(path)]
    if missing:
        are = "image is" if len(missing) == 1 else "images are"
        raise DataError(f"{len(missing)} {are} missing: {some(missing)}. Put them there, or take their rows out.")


def split_hash(images: LabelledImages, *, root: Path | None = None) -> str:
    """Fingerprint of a split: its label names, its paths in their order, and its targets.

    Paths enter relative to `root`, so a data set that was moved keeps its hash.

    Args:
        images: The split.
        root: Folder that the paths are taken relative to; by default the deepest folder that holds all of them.

    Returns:
        SHA-256 in hexadecimal.

    Example:
        >>> target = np.array([[1]], dtype=np.int8)
        >>> here = LabelledImages((Path("/here/a.jpg"),), target, ("cat",), "train")
        >>> there = LabelledImages((Path("/there/a.jpg"),), target, ("cat",), "train")
        >>> split_hash(here) == split_hash(there)
        True
    """
    digest = hashlib.sha256(json.dumps([images.label_names, relative_names(images, root)]).encode())
    digest.update(np.ascontiguousarray(images.target, dtype=np.int8))  # type: ignore[arg-type]  # a buffer
    return digest.hexdigest()


def relative_names(images: LabelledImages, root: Path | None = None) -> list[str]:
    """Paths with forward slashes, relative to `root` or by default to the deepest folder that holds all of them."""
    paths = [os.path.abspath(path) for path in images.paths]  # noqa: PTH100  (no look at the disk, many paths)
    folder = os.path.abspath(root) if root else os.path.commonpath([os.path.dirname(path) for path in paths] or ["/"])  # noqa: PTH100, PTH120
    inside = folder.rstrip(os.sep) + os.sep
    return [
        (path[len(inside) :] if path.startswith(inside) else os.path.relpath(path, folder)).replace(os.sep, "/")
        for path in paths
    ]


def check_disjoint(*images: LabelledImages) -> None:
    """Check that no file is in two splits.

    Raises:
        DataError: Some are; the message names them.

    Example:
        >>> target = np.array([[1]], dtype=np.int8)
        >>> train = LabelledImages((Path("a.jpg"),), target, ("cat",), "train")
        >>> check_disjoint(train, LabelledImages((Path("b.jpg"),), target, ("cat",), "test"))
    """
    first_in: dict[str, int] = {}
    shared: list[str] = []
    for number, part in enumerate(images):
        for path in part.paths:
            first = first_in.setdefault(os.path.abspath(path), number)  # noqa: PTH100
            if first != number:
                shared.append(f"{path} ({images[first].split} and {part.split})")
    if shared:
        raise DataError(
            f"splits must not share images, {len(shared)} are in two: {some(shared)}. "
            "Keep each in one split: an image that was trained on cannot test."
        )


def check_groups_apart(groups: Mapping[str, Iterable[str]]) -> None:
    """Check that no group is in two splits; a blank is no group.

    Args:
        groups: The groups of each split's images, by the split's name.

    Raises:
        DataError: Some are; the message names them.

    Example:
        >>> check_groups_apart({"train": ["scene 1", "scene 1"], "test": ["scene 2"]})
    """
    first_in: dict[str, str] = {}
    shared: list[str] = []
    for split, of_images in groups.items():
        for group in sorted(set(of_images) - {""}):
            first = first_in.setdefault(group, split)
            if first != split:
                shared.append(f"{group} ({first} and {split})")
    if shared:
        raise DataError(
            f"splits must not share groups, {len(shared)} are in two: {some(shared)}. "
            "Split all images anew (leave out --keep), or correct the column of groups."
        )
