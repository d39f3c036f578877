"""PASCAL VOC as published: one list of images per label and split."""

from pathlib import Path

import numpy as np

from msrn.data.source import SPLITS, LabelledImages, Problem, Source
from msrn.errors import DataError, SourceNotFoundError

# As LABEL_SETS["voc2007"]; `msrn.labels` imports torch, which readers do without.
VOC_LABELS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# What the lists say -> our target. 0 marks labels of which VOC holds only objects it calls difficult.
_TARGET_OF_LISTED = {"1": 1, "-1": 0, "0": -1}
_NUM_SHOWN = 5


def find_voc_root(path: Path) -> Path | None:
    """The folder that holds `ImageSets/Main`: `path`, its `VOC2007` or its `VOCdevkit/VOC2007`; None if none does."""
    candidates = (path, path / "VOC2007", path / "VOCdevkit" / "VOC2007")
    return next((folder for folder in candidates if (folder / "ImageSets" / "Main").is_dir()), None)


class VOCSource(Source):
    """PASCAL VOC 2007: 20 labels; train 2,501, val 2,510 and test 4,952 images.

    Read from `ImageSets/Main/{label}_{split}.txt` and `JPEGImages`: a listed 1 is present, -1 absent, and 0, an object
    that VOC calls difficult, unknown. The splits are those of train, val and test that have lists.

    Args:
        path: The folder `VOC2007`, `VOCdevkit` or its parent.

    Raises:
        SourceNotFoundError: No such folder, or no lists in it.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2007/ (VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar).
    """

    layout = "PASCAL VOC"

    def __init__(self, path: str | Path, *, problems: list[Problem] | None = None) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        root = find_voc_root(path)
        if root is None:
            raise SourceNotFoundError(
                f"{path} holds no PASCAL VOC: expected ImageSets/Main in it, in VOC2007 or in VOCdevkit/VOC2007. "
                "Pass the folder that the VOC archives were unpacked into."
            )
        self.root = root
        self.label_names = VOC_LABELS
        self.splits = tuple(
            split for split in SPLITS if any(self._list_path(label, split).is_file() for label in VOC_LABELS)
        )
        if not self.splits:
            raise SourceNotFoundError(
                f"{root / 'ImageSets' / 'Main'} holds none of VOC's lists: expected files such as aeroplane_train.txt. "
                "Unpack VOCtrainval_06-Nov-2007.tar or VOCtest_06-Nov-2007.tar there."
            )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder holds `ImageSets/Main`, or is the parent of one that does."""
        return find_voc_root(path) is not None

    def _list_path(self, label: str, split: str) -> Path:
        return self.root / "ImageSets" / "Main" / f"{label}_{split}.txt"

    def _read(self, split: str) -> LabelledImages:
        list_paths = [self._list_path(label, split) for label in self.label_names]
        missing = [path.name for path in list_paths if not path.is_file()]
        if missing:
            raise DataError(
                f"{list_paths[0].parent} lacks {len(missing)} of {len(list_paths)} lists of split '{split}': "
                f"{_some(missing)}. Unpack the VOC archive again."
            )
        lists = [_read_list(path) for path in list_paths]
        images = list(lists[0])
        for path, listed in zip(list_paths, lists, strict=True):
            if listed.keys() != lists[0].keys():
                different = sorted(listed.keys() ^ lists[0].keys())
                raise DataError(
                    f"{path} and {list_paths[0].name} list different images, {len(different)} are in one only: "
                    f"{_some(different)}. Unpack the VOC archive again."
                )
        image_dir = self.root / "JPEGImages"
        present = {path.name for path in image_dir.iterdir()} if image_dir.is_dir() else set()
        missing = [f"{image}.jpg" for image in images if f"{image}.jpg" not in present]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(images)} images of split '{split}' are not in {image_dir}: {_some(missing)}. "
                "Unpack the VOC archive again, or delete their lines from all lists."
            )
        target = np.array([[listed[image] for listed in lists] for image in images], dtype=np.int8)
        paths = tuple(image_dir / f"{image}.jpg" for image in images)
        return LabelledImages(paths, target.reshape(len(images), len(lists)), self.label_names, split)


def _read_list(path: Path) -> dict[str, int]:
    """Target by image, in the order of the list."""
    listed: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or fields[1] not in _TARGET_OF_LISTED:
            raise DataError(
                f"{path}:{number}: expected an image and 1, -1 or 0, such as '000012 -1', got '{line.strip()}'. "
                "Correct the line."
            )
        if fields[0] in listed:
            raise DataError(f"{path}:{number}: image {fields[0]} is listed a second time. Delete one of its lines.")
        listed[fields[0]] = _TARGET_OF_LISTED[fields[1]]
    return listed


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NUM_SHOWN]) + (", ..." if len(names) > _NUM_SHOWN else "")
