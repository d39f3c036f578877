"""What every reader of labelled images offers: named labels, named splits, paths and targets."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int8

from msrn.data.packed import PackedImage
from msrn.errors import DataError, EmptySplitError
from msrn.files import is_utf8
from msrn.machine import lack_of_room

SPLITS = ("train", "val", "test")
SPLIT_OF_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What people call the splits, in lower case."""


def folders_of_splits(path: Path) -> list[Path]:
    """The folders in a folder that are named after splits, sorted by name; none where there is no such folder."""
    if not path.is_dir():
        return []
    return sorted(folder for folder in path.iterdir() if folder.name.lower() in SPLIT_OF_NAME and folder.is_dir())


def split_of_shard(file: Path, root: Path) -> str:
    """The split that one of several files tells by its folder below `root` or its name; train where neither does.

    Example:
        >>> split_of_shard(Path("set/validation-00000-of-00002.parquet"), Path("set"))
        'val'
        >>> split_of_shard(Path("set/test/0001.tar"), Path("set")), split_of_shard(Path("set/0001.tar"), Path("set"))
        ('test', 'train')
    """
    first_word = re.split(r"[^a-z]", file.name.lower(), maxsplit=1)[0]
    folders = [part.lower() for part in file.relative_to(root).parts[:-1]]
    return next((SPLIT_OF_NAME[name] for name in (*folders, first_word) if name in SPLIT_OF_NAME), "train")


def some(names: Sequence[object], most: int = 5) -> str:
    """The first few names, for a message that tells their number.

    Example:
        >>> some("abcdef"), some(["a", "b"])
        ('a, b, c, d, e, ...', 'a, b')
    """
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")


ALLOW_OUTSIDE = "If these are the images you mean, allow it by --allow-outside (in a recipe data.allow_outside=true)."


def is_outside(path: Path | PackedImage, folder: Path) -> bool:
    """Whether a path, or the archive or data set that an image is packed in, leads out of a folder.

    By its name alone: links that lie in the folder are followed, since many keep their photos so.

    Example:
        >>> is_outside(Path("photos/../photos/a.jpg"), Path("photos")), is_outside(Path("photos/../a.jpg"), Path("photos"))
        (False, True)
    """
    place = path.place if isinstance(path, PackedImage) else path
    if place is None or (place is not path and place == folder):  # a data set is its own folder
        return False
    text, prefix = str(place), os.path.join(folder, "")  # noqa: PTH118  (five times faster than Path)
    if text.startswith(prefix) and ".." not in text:
        return False
    inside = os.path.join(os.path.abspath(folder), "")  # noqa: PTH100, PTH118
    return not os.path.abspath(text).startswith(inside)  # noqa: PTH100


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or looks wrong, in a data set.

    Attributes:
        kind: What it is, in a few words that programs may compare, such as "missing file".
        message: What was expected, what came and what to do.
        file: The file that says so or that is wrong, where there is one.
        line: Line of `file`, counted from 1, where it has lines.
        is_error: Whether it would break training; otherwise it only deserves a look.
    """

    kind: str
    message: str
    file: Path | None = None
    line: int | None = None
    is_error: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        file = None if self.file is None else str(self.file)
        severity = "error" if self.is_error else "warning"
        return {"kind": self.kind, "severity": severity, "file": file, "line": self.line, "message": self.message}


@dataclass(frozen=True)
class LabelledImages:
    """The images of one split and what is known of their labels.

    Attributes:
        paths: Image files, absolute or relative to the working directory, or images packed in archives.
        target: 1 present, 0 absent, -1 unknown, one row an image.
        label_names: The columns of `target`.
        split: Name of the split ("train", "val", "test").
    """

    paths: tuple[Path | PackedImage, ...]
    target: Int8[np.ndarray, "N L"]
    label_names: tuple[str, ...]
    split: str

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def join(cls, parts: "Sequence[LabelledImages]", *, split: str) -> "LabelledImages":
        """All images of parts with the same labels, in their order, under the name `split`."""
        if len(parts) == 1:  # not a copy of what may take gigabytes
            return cls(parts[0].paths, parts[0].target, parts[0].label_names, split)
        paths = tuple(path for part in parts for path in part.paths)
        return cls(paths, np.concatenate([part.target for part in parts]), parts[0].label_names, split)

    def take(self, indices: "np.ndarray | list[int]", *, split: str | None = None) -> "LabelledImages":
        """The images at `indices`, in that order, under the name `split` if given."""
        rows = np.asarray(indices, dtype=np.int64)
        paths = tuple(self.paths[i] for i in rows)
        return LabelledImages(paths, self.target[rows], self.label_names, split or self.split)


def new_target(num_images: int, num_labels: int, value: int = 0) -> Int8[np.ndarray, "N L"]:
    """A target that holds `value` everywhere.

    Raises:
        DataError: It takes more memory than is free, as where a column of captions was read for one of labels.
    """
    check_target_room(num_images, num_labels)
    return np.full((num_images, num_labels), value, dtype=np.int8)


def check_target_room(num_images: int, num_labels: int) -> None:
    """Refuse a target before it is made.

    Raises:
        DataError: It takes more memory than is free.
    """
    if lack := lack_of_room(num_images * num_labels):
        raise DataError(
            f"{num_labels:,} labels of {num_images:,} images take {lack}. Check that the column of labels is one, or name the "
            "labels to read (--label-names, data.label_names)."
        )


class Source(ABC):
    """A data set as it lies on disk. Readers recognise their layout and read one split at a time.

    A reader is strict: the first thing that is wrong raises. Given a list as `problems`, it appends to that instead and goes
    on without the row at fault, as the doctor (`msrn.data.check`) wants it; what leaves nothing to read raises even then.

    Attributes:
        layout: What people call the layout, as in "PASCAL VOC".
        recognised_by: What a path of this layout holds, as in "ImageSets/Main".
        root: Where the data set was found.
        label_names: All labels, in the order of the target's columns.
        splits: The splits that exist, in the order train, val, test.
        notes: What the reader decided and what it noticed, in sentences for people: images left out, counts beside the
            published ones. What concerns a split is there once the split has been read.
        problems: Where problems are gathered; None raises at the first.
        allow_outside: Whether paths in tables and lists may lead out of `root`.
    """

    layout: ClassVar[str]
    recognised_by: ClassVar[str] = ""
    root: Path
    label_names: tuple[str, ...]
    splits: tuple[str, ...]
    names_every_label: bool = False
    """Whether a label that the source never names is absent from its images, rather than unknown."""
    notes: tuple[str, ...] = ()
    problems: list[Problem] | None = None
    allow_outside: bool = False

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether this reader knows the layout at an existing path. Cheap: looks at names, never through a data set."""

    def read(self, split: str) -> LabelledImages:
        """Read one split.

        Raises:
            EmptySplitError: The split does not exist or holds no images.
            DataError: A list or table of the split cannot be read, or names images outside of the data set's folder.
        """
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise EmptySplitError(
                f"{self.shown} has no split '{split}'; it has: {known}. Choose one of these: commands by "
                "--split, recipes by data.train, data.val and data.test (null for none)."
            )
        bad = [name for name in self.label_names if not is_utf8(name)]
        if bad:
            raise DataError(f"{self.root} names a label that is not UTF-8: {bad[0]!r}. Rename it.")
        images = self._read(split)
        if not self.allow_outside:
            self._check_inside(images)
        if len(images) == 0:
            raise EmptySplitError(
                f"split '{split}' of {self.shown} holds no images. Choose another split or add images to it."
            )
        return images

    @property
    def shown(self) -> Path:
        """What messages call the data set: the path it was opened by, where that is a file."""
        return self.root

    def __repr__(self) -> str:
        splits = ", ".join(self.splits)
        return f"{type(self).__name__}({str(self.shown)!r}: {len(self.label_names)} labels; splits {splits})"

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The file and line that tell of image `index` of a split that was read, as far as the layout has them."""
        return None, None

    def groups(self, split: str) -> tuple[str, ...] | None:
        """The group of each image of a split, such as its scene or its patient; None where the source tells of none."""
        return None

    @abstractmethod
    def _read(self, split: str) -> LabelledImages: ...

    def _check_inside(self, images: LabelledImages) -> None:
        """Report the images that lie outside of the data set's folder: a table may be somebody else's."""
        outside = [row for row, path in enumerate(images.paths) if is_outside(path, self.root)]
        if not outside:
            return
        if self.problems is not None:
            for row in outside:
                file, line = self.where(images.split, row)
                self._report(
                    "outside", f"{images.paths[row]} lies outside of {self.root}. {ALLOW_OUTSIDE}", file=file, line=line
                )
            return
        raise DataError(
            f"{len(outside)} images of {self.shown} lie outside of {self.root}: {some([images.paths[row] for row in outside])}. "
            f"{ALLOW_OUTSIDE}"
        )

    def _note(self, sentence: str) -> None:
        """Add to the notes, once however often a split is read."""
        if sentence not in self.notes:
            self.notes = (*self.notes, sentence)

    def _report(self, kind: str, message: str, *, file: Path | None = None, line: int | None = None) -> None:
        """Note a problem where they are gathered, raise it elsewhere.

        Raises:
            DataError: The message, in a reader that is strict.
        """
        if self.problems is None:
            raise DataError(message)
        self.problems.append(Problem(kind, message, file, line))
