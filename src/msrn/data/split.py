"""Splits: hold out a validation part, fingerprint a split, check that splits share no image."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from msrn.data.source import LabelledImages
from msrn.errors import DataError, EmptySplitError

_NUM_SHOWN = 5


def hold_out(images: LabelledImages, *, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split a training part into train and val such that both hold about the same share of every label.

    Iterative stratification: labels are served from the rarest to the most frequent, and each of their images goes to
    the part that still lacks most images of the label. The sizes of the parts are exact; the most frequent labels take
    up the slack. Unknown entries count as not positive. The same images, fraction and seed give the same parts.

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
    order = np.random.default_rng(seed).permutation(len(images))
    in_val = np.empty(len(images), dtype=np.bool_)
    in_val[order] = _stratify(images.target[order] == 1, num_val)
    train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
    return images.take(train, split="train"), images.take(val, split="val")


def _stratify(is_positive: Bool[np.ndarray, "N L"], num_val: int) -> Bool[np.ndarray, " N"]:
    """Which images go to val, exactly `num_val` of them."""
    num_images, num_labels = is_positive.shape
    shares = np.array([num_images - num_val, num_val]) / num_images  # train, val
    room = [num_images - num_val, num_val]  # images that each part still takes
    num_left = is_positive.sum(axis=0)  # (L,) images of each label that are in no part yet
    lacking = shares[:, None] * num_left  # (2, L) images of each label that each part still lacks
    part = np.full(num_images, -1)
    labels_of_image = _columns_by_row(is_positive)
    images_of_label = _columns_by_row(is_positive.T)

    def assign(image: int, wanted: int) -> None:
        wanted = wanted if room[wanted] else 1 - wanted
        labels = labels_of_image[image]
        part[image] = wanted
        room[wanted] -= 1
        num_left[labels] -= 1
        lacking[wanted, labels] -= 1

    served = np.zeros(num_labels, dtype=np.bool_)
    for _ in range(num_labels):
        label = int(np.where(served | (num_left == 0), num_images + 1, num_left).argmin())
        served[label] = True
        for image in images_of_label[label]:
            if part[image] < 0:
                train, val = lacking[:, label]
                # Between equals, the part that has more room for its size.
                is_val = val > train or (val == train and room[1] * shares[0] > room[0] * shares[1])
                assign(int(image), int(is_val))
    for image in np.flatnonzero(part < 0):  # nothing is present in these
        assign(int(image), int(room[1] > 0))
    in_val: Bool[np.ndarray, " N"] = part == 1
    return in_val


def _columns_by_row(mask: Bool[np.ndarray, "R C"]) -> list[Int[np.ndarray, " K"]]:
    """For every row, the columns where the mask is set."""
    rows, columns = np.nonzero(mask)
    return np.split(columns, np.cumsum(np.bincount(rows, minlength=len(mask)))[:-1])


def check_files(*splits: LabelledImages) -> None:
    """Refuse splits that name images which are not there, before any of them is needed.

    Raises:
        DataError: Files are missing; the message names the first few and says how many.
    """
    missing = [path for images in splits for path in images.paths if not path.is_file()]
    if missing:
        shown = ", ".join(str(path) for path in missing[:_NUM_SHOWN])
        more = ", ..." if len(missing) > _NUM_SHOWN else ""
        raise DataError(f"{len(missing)} images are missing: {shown}{more}. Put them there, or take their rows out.")


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
    paths = [os.path.abspath(path) for path in images.paths]  # noqa: PTH100  (no look at the disk, many paths)
    folder = os.path.abspath(root) if root else os.path.commonpath([os.path.dirname(path) for path in paths] or ["/"])  # noqa: PTH100, PTH120
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    digest = hashlib.sha256(json.dumps([images.label_names, names]).encode())
    digest.update(np.ascontiguousarray(images.target, dtype=np.int8).tobytes())
    return digest.hexdigest()


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
        more = ", ..." if len(shared) > _NUM_SHOWN else ""
        raise DataError(
            f"splits must not share images, {len(shared)} are in two: {', '.join(shared[:_NUM_SHOWN])}{more}. "
            "Keep each in one split: an image that was trained on cannot test."
        )
