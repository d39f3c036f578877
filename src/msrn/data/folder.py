"""A tree of folders that are named after labels."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from msrn.data.images import IMAGE_SUFFIXES
from msrn.data.source import SPLIT_OF_NAME, SPLITS, LabelledImages, Problem, Source, new_target
from msrn.errors import DataError, SourceNotFoundError
from msrn.files import walk

# Where a folder holds one of these, the labels are probably told there, and its folders are not named after them.
_TELLS_LABELS = frozenset({".csv", ".json", ".jsonl", ".parquet", ".tar", ".tsv", ".xlsx"})
_NUM_LOOKED_AT = 1000


def has_split_folders(root: Path) -> bool:
    """Whether all folders in `root` are named after splits."""
    folders = subfolders(root)
    return bool(folders) and all(folder.name.lower() in SPLIT_OF_NAME for folder in folders)


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder` by name, without hidden ones and the `__MACOSX` that archives from there hold."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_shown(path.name))


class FolderSource(Source):
    """Images in folders named after labels: an image has the names of all folders on its way from the root.

    So `outdoor/beach/1.jpg` has the labels outdoor and beach, and every other label is absent. Labels are sorted by name.
    Where all folders in the root are named after splits (train, val or validation, test), they are the splits;
    otherwise all is train. Hidden files and folders are passed over, links to folders are not followed.

    Args:
        path: The root.
        label_separator: What stands between two labels in the name of one folder, such as + in `cat+dog`.

    Raises:
        SourceNotFoundError: No such folder.
        DataError: An image lies directly in the root or in the folder of a split; the folders name fewer than two labels.
    """

    layout = "a folder tree"
    recognised_by = "images in folders named after labels, no table or JSON beside the folders"
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
        self._walk(has_split_folders(path), label_separator)
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
            _is_image(name)
            for folder in subfolders(path)
            for name in islice((name for _, names in _folders_below(folder) for name in names), _NUM_LOOKED_AT)
        )

    def _walk(self, has_splits: bool, separator: str | None) -> None:
        start = len(self.root.parts)
        for parent, names in _folders_below(self.root, self._report_closed):
            images = sorted(name for name in names if _is_image(name))
            parts = parent.parts[start:]
            split = "train"
            if has_splits and parts:
                split, parts = SPLIT_OF_NAME[parts[0].lower()], parts[1:]
            labels = frozenset(_labels_in(parts, separator))
            if labels and images:
                self._images.setdefault(split, []).extend(parent / name for name in images)
                self._labels.setdefault(split, []).extend([labels] * len(images))
                continue
            for name in images:
                self._report(
                    "image in no folder",
                    f"{parent / name}: expected it in a folder named after its label, such as {parent / 'cat' / name}. "
                    "Move it into one, or out of the data set.",
                    file=parent / name,
                )

    def _report_closed(self, error: OSError) -> None:
        folder = Path(error.filename)
        reason = error.strerror or error
        message = f"{folder}: the folder cannot be listed ({reason}), so its images are missing. Change its permissions or move it."
        self._report("unreadable folder", message, file=folder)

    def _read(self, split: str) -> LabelledImages:
        column_of_label = {label: column for column, label in enumerate(self.label_names)}
        labels = self._labels[split]
        target = new_target(len(labels), len(self.label_names))
        for row, of_image in enumerate(labels):
            target[row, [column_of_label[label] for label in of_image]] = 1
        return LabelledImages(tuple(self._images[split]), target, self.label_names, split)


def _labels_in(parts: tuple[str, ...], separator: str | None) -> list[str]:
    names = parts if separator is None else [label for part in parts for label in part.split(separator)]
    return [name.strip() for name in names if name.strip()]


def _folders_below(root: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """The root and every folder below it that is not hidden, with the names of its files; sorted from the top down."""
    for parent, folders, names in walk(root, on_error):
        folders[:] = sorted(filter(_is_shown, folders))
        yield Path(parent), names


def _is_image(name: str) -> bool:
    return _is_shown(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
