"""NUS-WIDE as its authors distribute it: a list of images a split, and a list of 0 and 1 for each concept."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from msrn.data.packed import is_file
from msrn.data.published_counts import compare_with_published
from msrn.data.source import LabelledImages, Problem, Source, new_target
from msrn.errors import DataError, SourceNotFoundError

_NAME_OF_SPLIT = {"train": "Train", "test": "Test"}
_PUBLISHED = {"train": 161789, "test": 107859}
# As the bytes of an int8, in which -1 is 255.
_BYTE_OF_LINE = {"0": 0, "1": 1}
_BYTE_OF_FAULT = 255
_NUM_SHOWN = 5
_NUM_LOOKED_FOR = 50


class NUSWIDESource(Source):
    r"""NUS-WIDE: 81 labels; train 161,789 and test 107,859 images.

    Read from `ImageList/TrainImagelist.txt`, one image a line (`actor\0001_2124494179.jpg`), and
    `Groundtruth/TrainTestLabels/Labels_{concept}_Train.txt`, 0 or 1 in the same line; Test likewise. Labels are in the
    order of `Concepts81.txt`. All images are kept, also those with none of the labels. Images lie in `Flickr`, `images`
    or the root, in their folders or, as some copies have it, all in one; whether each exists is not checked here.

    Args:
        path: The folder that holds `Groundtruth`, `ImageList` and `Concepts81.txt` (or `ConceptsList/Concepts81.txt`).

    Raises:
        SourceNotFoundError: No such folder, or one of these is not in it.
        DataError: `Concepts81.txt` names no label, or one twice.

    Source: https://lms.comp.nus.edu.sg/wp-content/uploads/2019/research/nuswide/NUS-WIDE.html (Groundtruth, ImageList,
    ConceptsList; the images on request).
    """

    layout = "NUS-WIDE"
    recognised_by = "Groundtruth/TrainTestLabels and ImageList"

    def __init__(self, path: str | Path, *, problems: list[Problem] | None = None) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        self.root = path
        self.splits = tuple(split for split in _NAME_OF_SPLIT if self._list_path(split).is_file())
        if not self.recognises(path) or not self.splits:
            raise SourceNotFoundError(
                f"{path} holds no NUS-WIDE: expected Groundtruth/TrainTestLabels and ImageList/TrainImagelist.txt in it. "
                "Pass the folder that the archives Groundtruth and ImageList were unpacked into."
            )
        self.label_names = self._read_concepts()
        self._lines: dict[str, list[int]] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder holds `Groundtruth/TrainTestLabels` and `ImageList`."""
        return (path / "Groundtruth" / "TrainTestLabels").is_dir() and (path / "ImageList").is_dir()

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The list of images, and the image's line there."""
        return self._list_path(split), self._lines[split][index]

    def _list_path(self, split: str) -> Path:
        return self.root / "ImageList" / f"{_NAME_OF_SPLIT[split]}Imagelist.txt"

    def _label_path(self, label: str, split: str) -> Path:
        return self.root / "Groundtruth" / "TrainTestLabels" / f"Labels_{label}_{_NAME_OF_SPLIT[split]}.txt"

    def _read_concepts(self) -> tuple[str, ...]:
        paths = [self.root / "Concepts81.txt", self.root / "ConceptsList" / "Concepts81.txt"]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise SourceNotFoundError(
                f"{self.root} lacks Concepts81.txt: expected it there or in ConceptsList. "
                "Unpack the archive ConceptsList there."
            )
        names = [line for line in _read_lines(path) if line]
        if not names or len(set(names)) != len(names):
            raise DataError(
                f"{path}: expected the names of the labels, each on a line, got {len(names)} lines with "
                f"{len(set(names))} names. Unpack the archive ConceptsList again."
            )
        return tuple(names)

    def _read(self, split: str) -> LabelledImages:
        names = _read_lines(self._list_path(split))
        is_good = self._check_names(names, split)
        target = new_target(len(names), len(self.label_names), -1)
        for column, label in enumerate(self.label_names):
            values = self._read_label(label, split, len(names))
            if values is not None:
                target[:, column] = values
                is_good &= values >= 0
        if names and not (target >= 0).any():
            raise DataError(
                f"none of the lists of split '{split}' in {self._label_path('', split).parent} has the "
                f"{len(names)} lines of {self._list_path(split)}. Unpack the archives Groundtruth and ImageList again."
            )
        rows = np.flatnonzero(is_good).tolist()
        target = target[rows]
        paths = self._find_images([names[row].replace("\\", "/") for row in rows], split)
        self._lines[split] = [row + 1 for row in rows]
        num_without = int((target != 1).all(axis=1).sum())
        self._note(
            f"split {split}: {compare_with_published('images', len(rows), _PUBLISHED[split])}; "
            f"{num_without:,} with none of the {len(self.label_names)} labels, kept."
        )
        return LabelledImages(tuple(paths), target, self.label_names, split)

    def _check_names(self, names: list[str], split: str) -> np.ndarray:
        """Which lines name an image, and for the first time."""
        path = self._list_path(split)
        first_line: dict[str, int] = {}
        is_good = np.ones(len(names), dtype=bool)
        for number, name in enumerate(names, start=1):
            if not name:
                is_good[number - 1] = False
                self._report(
                    "blank path",
                    f"{path}:{number}: expected an image, such as 'actor\\0001_2124494179.jpg', got a blank line. "
                    "Unpack the archive ImageList again.",
                    file=path,
                    line=number,
                )
            elif first_line.setdefault(name, number) != number:
                is_good[number - 1] = False
                self._report(
                    "repeated path",
                    f"{path}:{number}: image {name} is listed a second time, first on line {first_line[name]}. "
                    "Unpack the archive ImageList again.",
                    file=path,
                    line=number,
                )
        return is_good

    def _read_label(self, label: str, split: str, num_images: int) -> Int8[np.ndarray, "N"] | None:
        """1, 0, and -1 for a line that says something else; None where the list as a whole cannot be used."""
        path = self._label_path(label, split)
        if not path.is_file():
            self._report(
                "missing list", f"{path} does not exist. Unpack the archive Groundtruth again.", file=path.parent
            )
            return None
        lines = _read_lines(path)
        if len(lines) != num_images:
            self._report(
                "lists disagree",
                f"{path} has {len(lines)} lines, {self._list_path(split)} has {num_images}: expected one for each image. "
                "Unpack the archives Groundtruth and ImageList again.",
                file=path,
            )
            return None
        values = np.frombuffer(bytes([_BYTE_OF_LINE.get(line, _BYTE_OF_FAULT) for line in lines]), dtype=np.int8)
        for row in np.flatnonzero(values < 0).tolist():
            self._report(
                "bad value",
                f"{path}:{row + 1}: expected 0 or 1, got '{lines[row]}'. Correct the line.",
                file=path,
                line=row + 1,
            )
        return values

    def _find_images(self, names: Sequence[str], split: str) -> list[Path]:
        looked_for = names[:_NUM_LOOKED_FOR]
        folders = [self.root / "Flickr", self.root / "images", self.root]
        for folder in folders:
            if any(is_file(folder / name) for name in looked_for):
                return [folder / name for name in names]
            if any(is_file(folder / name.rpartition("/")[2]) for name in looked_for):
                return [folder / name.rpartition("/")[2] for name in names]
        if not names:
            return []
        raise DataError(
            f"none of the first {len(looked_for)} images of {self._list_path(split)} is in "
            f"{', '.join(map(str, folders))}: looked for {', '.join(names[:_NUM_SHOWN])}. "
            "Unpack the images into one of these folders."
        )


def _read_lines(path: Path) -> list[str]:
    """Stripped, without blank lines at the end; names of files keep bytes that are not UTF-8."""
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
