"""A tree of folders that are named after labels."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from msrn.data.images import IMAGE_SUFFIXES
from msrn.data.source import SPLIT_OF_NAME, SPLITS, LabelledImages, Problem, Source
from msrn.errors import DataError, SourceNotFoundError

# Where a folder holds one of these, the labels are probably told there, and its folders are not named after them.
_TELLS_LABELS = frozenset({".csv", ".json", ".jsonl", ".parquet", ".tar", ".tsv", ".xlsx"})
_NUM_LOOKED_AT = 1000


def split_folders(root: Path) -> dict[str, list[Path]]:
    """The folders of each split: those that are named after splits, if all in `root` are; else `root` is all train."""
    folders = subfolders(root)
    splits = [SPLIT_OF_NAME.get(folder.name.lower()) for folder in folders]
    if not folders or None in splits:
        return {"train": [root]}
    return {
        split: [folder for folder, of_folder in zip(folders, splits, strict=True) if of_folder == split]
        for split in SPLITS
        if split in splits
    }


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder` by name, without hidden ones and the `__MACOSX` that archives from there hold."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_shown(path.name))


def walk_images(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every image below `folder`, and the names of the folders on its way from there; in the order of the paths."""
    start = len(folder.parts)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_shown(name))
        parts = Path(parent).parts[start:]
        for name in sorted(names):
            if _is_shown(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                yield Path(parent, name), parts


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


class FolderSource(Source):
    """Images in folders named after labels: an image has the names of all folders on its way from the root.

    So `outdoor/beach/1.jpg` has the labels outdoor and beach, and every other label is absent. Labels are sorted by name.
    Where all folders in the root are named after splits (train, val or validation, test), they are the splits;
    otherwise all is train. Hidden files and folders are passed over.

    Args:
        path: The root.
        label_separator: What stands between two labels in the name of one folder, such as + in `cat+dog`.

    Raises:
        SourceNotFoundError: No such folder.
        DataError: An image lies directly in the root or in the folder of a split; the folders name fewer than two labels.
    """

    layout = "a folder tree"
    recognised_by = "images in folders named after labels"
    names_every_label = True

    def __init__(
        self, path: str | Path, *, label_separator: str | None = None, problems: list[Problem] | None = None
    ) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        if not path.is_dir():
            raise SourceNotFoundError(f"{path} is no folder. Pass the folder that holds the folders of labels.")
        if label_separator == "":
            raise DataError("label_separator must not be empty. Pass one such as '+', or leave it out.")
        self.root = path
        self._images: dict[str, list[Path]] = {}
        self._labels: dict[str, list[frozenset[str]]] = {}
        for split, folders in split_folders(path).items():
            self._images[split], self._labels[split] = [], []
            for folder in folders:
                self._walk(folder, split, label_separator)
        self.splits = tuple(split for split in SPLITS if split in self._images)
        self.label_names = tuple(sorted(set().union(*(labels for of in self._labels.values() for labels in of))))
        if len(self.label_names) < 2:
            got = f"'{self.label_names[0]}' alone" if self.label_names else "none"
            raise DataError(
                f"{path} is read as a folder tree: expected folders named after two labels or more, got {got}. "
                "Sort the images into such folders, or write a table with the columns path and labels."
            )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder holds folders with images in them, and no file that would tell labels, such as a table."""
        if not path.is_dir() or any(file.suffix.lower() in _TELLS_LABELS for file in path.iterdir()):
            return False
        # Not every file of a tree that is no data set at all: a home folder, or a whole disk.
        return any(
            os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
            for folder in subfolders(path)
            for name in islice(_names_below(folder), _NUM_LOOKED_AT)
        )

    def _walk(self, folder: Path, split: str, separator: str | None) -> None:
        labels_of_parts: dict[tuple[str, ...], frozenset[str]] = {}
        for image, parts in walk_images(folder):
            if parts not in labels_of_parts:
                labels_of_parts[parts] = frozenset(_labels_in(parts, separator))
            if labels_of_parts[parts]:
                self._images[split].append(image)
                self._labels[split].append(labels_of_parts[parts])
            else:
                self._report(
                    "image in no folder",
                    f"{image}: expected it in a folder named after its label, such as {folder / 'cat' / image.name}. "
                    "Move it into one, or out of the data set.",
                    file=image,
                )

    def _read(self, split: str) -> LabelledImages:
        column_of_label = {label: column for column, label in enumerate(self.label_names)}
        labels = self._labels[split]
        target = np.zeros((len(labels), len(self.label_names)), dtype=np.int8)
        for row, of_image in enumerate(labels):
            target[row, [column_of_label[label] for label in of_image]] = 1
        return LabelledImages(tuple(self._images[split]), target, self.label_names, split)


def _labels_in(parts: tuple[str, ...], separator: str | None) -> list[str]:
    names = parts if separator is None else [label for part in parts for label in part.split(separator)]
    return [name.strip() for name in names if name.strip()]


def _names_below(folder: Path) -> Iterator[str]:
    for _, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_shown(name))
        yield from (name for name in names if _is_shown(name))
