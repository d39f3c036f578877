"""PASCAL VOC 2007 and 2012 as published: one list of images per label and split."""

from dataclasses import dataclass, field
from pathlib import Path

from msrn.data.published_counts import compare_with_published
from msrn.data.source import SPLITS, LabelledImages, Problem, Source, new_target, some
from msrn.errors import DataError, SourceNotFoundError

# As LABEL_SETS["voc2007"]; `msrn.labels` imports torch, which readers do without.
VOC_LABELS = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# What the lists say -> our target. 0 marks labels of which VOC holds only objects it calls difficult.
_TARGET_OF_LISTED = {"1": 1, "-1": 0, "0": -1}
_FOLDERS = ("VOC2007", "VOC2012")
# By the folder's name: images of each split.
_PUBLISHED = {
    "VOC2007": {"train": 2501, "val": 2510, "test": 4952},
    "VOC2012": {"train": 5717, "val": 5823},
}


def find_voc_roots(path: Path) -> list[Path]:
    """The folders that hold `ImageSets/Main`: `path` itself, or its years, `VOC2007` or `VOCdevkit/VOC2012`."""
    if (path / "ImageSets" / "Main").is_dir():
        return [path]
    years = [parent / folder for parent in (path, path / "VOCdevkit") for folder in _FOLDERS]
    return [folder for folder in years if (folder / "ImageSets" / "Main").is_dir()]


class VOCSource(Source):
    """PASCAL VOC: 20 labels. 2007 has train 2,501, val 2,510 and test 4,952 images; 2012 has train 5,717 and val 5,823.

    Read from `ImageSets/Main/{label}_{split}.txt` and `JPEGImages`: a listed 1 is present, -1 absent, and 0, an object
    that VOC calls difficult, unknown. The splits are those of train, val and test that have lists. The year is that of
    the folder's name; counts are compared with the published ones where it is `VOC2007` or `VOC2012`.

    Args:
        path: The folder `VOC2007` or `VOC2012` (or of any name, with `ImageSets/Main` in it), `VOCdevkit` or its parent.

    Raises:
        SourceNotFoundError: No such folder, or no lists in it.
        DataError: Both years are there, or a folder twice.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/ (VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar,
    VOCtrainval_11-May-2012.tar).
    """

    layout = "PASCAL VOC"
    recognised_by = "ImageSets/Main"

    def __init__(self, path: str | Path, *, problems: list[Problem] | None = None) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        roots = find_voc_roots(path)
        if not roots:
            raise SourceNotFoundError(
                f"{path} holds no PASCAL VOC: expected ImageSets/Main in it, in VOC2007 or in VOCdevkit/VOC2007. "
                "Pass the folder that the VOC archives were unpacked into."
            )
        if len(roots) > 1:
            raise DataError(
                f"{path} holds {len(roots)} folders of PASCAL VOC: expected one year. "
                f"Pass the one to read: {' or '.join(map(str, roots))}."
            )
        self.root = roots[0]
        self.label_names = VOC_LABELS
        self.splits = tuple(
            split for split in SPLITS if any(self._list_path(label, split).is_file() for label in VOC_LABELS)
        )
        if not self.splits:
            raise SourceNotFoundError(
                f"{self._list_dir} holds none of VOC's lists: expected files such as aeroplane_train.txt. "
                "Unpack the VOC archives there, such as VOCtrainval_06-Nov-2007.tar or VOCtrainval_11-May-2012.tar."
            )
        self._where: dict[str, tuple[Path, list[int]]] = {}
        self._num_images: dict[str, int] = {}

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a folder holds `ImageSets/Main`, or is the parent of one that does."""
        return bool(find_voc_roots(path))

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The first label's list, and the image's line there."""
        path, lines = self._where[split]
        return path, lines[index]

    @property
    def _list_dir(self) -> Path:
        return self.root / "ImageSets" / "Main"

    def _list_path(self, label: str, split: str) -> Path:
        return self._list_dir / f"{label}_{split}.txt"

    def _read(self, split: str) -> LabelledImages:
        lists = self._read_lists(split)
        first = next(iter(lists.values()))
        images = self._images_in_all_lists(list(lists.values()))
        images = self._images_with_files(images, first, split)
        target = new_target(len(images), len(self.label_names), -1)
        for column, label in enumerate(self.label_names):
            if label in lists:
                target[:, column] = [lists[label].target[image] for image in images]
        self._where[split] = first.path, [first.line[image] for image in images]
        self._note_counts(split, len(images))
        paths = tuple(self.root / "JPEGImages" / f"{image}.jpg" for image in images)
        return LabelledImages(paths, target, self.label_names, split)

    def _read_lists(self, split: str) -> dict[str, "_List"]:
        """By label, those that are there."""
        missing = [label for label in self.label_names if not self._list_path(label, split).is_file()]
        if missing:
            self._report(
                "missing list",
                f"{self._list_dir} lacks {len(missing)} of {len(self.label_names)} lists of split '{split}': "
                f"{some([self._list_path(label, split).name for label in missing])}. Unpack the VOC archive again.",
                file=self._list_dir,
            )
        return {
            label: self._read_list(self._list_path(label, split)) for label in self.label_names if label not in missing
        }

    def _read_list(self, path: Path) -> "_List":
        listed = _List(path)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 2 or fields[1] not in _TARGET_OF_LISTED:
                self._report(
                    "bad row",
                    f"{path}:{number}: expected an image and 1, -1 or 0, such as '000012 -1', got '{line.strip()}'. "
                    "Correct the line.",
                    file=path,
                    line=number,
                )
                listed.faulty.add(fields[0])
            elif fields[0] in listed.target:
                self._report(
                    "repeated path",
                    f"{path}:{number}: image {fields[0]} is listed a second time. Delete one of its lines.",
                    file=path,
                    line=number,
                )
            else:
                listed.target[fields[0]] = _TARGET_OF_LISTED[fields[1]]
                listed.line[fields[0]] = number
        return listed

    def _images_in_all_lists(self, lists: list["_List"]) -> list[str]:
        """In the order of the first list; an image whose line is faulty in one list is left out without a second word."""
        first = lists[0]
        faulty = set().union(*(listed.faulty for listed in lists))
        left_out = set(faulty)
        for listed in lists[1:]:
            different = (listed.target.keys() ^ first.target.keys()) - faulty
            if different:
                self._report(
                    "lists disagree",
                    f"{listed.path} and {first.path.name} list different images, {len(different)} are in one only: "
                    f"{some(sorted(different))}. Unpack the VOC archive again.",
                    file=listed.path,
                )
                left_out |= different
        return [image for image in first.target if image not in left_out]

    def _images_with_files(self, images: list[str], listed: "_List", split: str) -> list[str]:
        image_dir = self.root / "JPEGImages"
        present = {path.name for path in image_dir.iterdir()} if image_dir.is_dir() else set()
        missing = [image for image in images if f"{image}.jpg" not in present]
        if missing and (self.problems is None or len(missing) == len(images)):
            raise DataError(
                f"{len(missing)} of {len(images)} images of split '{split}' are not in {image_dir}: "
                f"{some([f'{image}.jpg' for image in missing])}. "
                "Unpack the VOC archive again, or delete their lines from all lists."
            )
        for image in missing:
            line = listed.line[image]
            self._report(
                "missing file",
                f"{listed.path}:{line}: {image_dir / image}.jpg does not exist. "
                "Unpack the VOC archive again, or delete the image's line from all lists.",
                file=listed.path,
                line=line,
            )
        return [image for image in images if f"{image}.jpg" in present]

    def _note_counts(self, split: str, num_images: int) -> None:
        published = _PUBLISHED.get(self.root.absolute().name, {})
        self._num_images[split] = num_images
        if split in published:
            self._note(f"split {split}: {compare_with_published('images', num_images, published[split])}.")
        if published and {"train", "val"} <= self._num_images.keys():
            found, expected = (numbers["train"] + numbers["val"] for numbers in (self._num_images, published))
            self._note(f"train and val together: {compare_with_published('images', found, expected)}.")


@dataclass
class _List:
    """One label's list of a split: target and line by image, and the images whose line cannot be read."""

    path: Path
    target: dict[str, int] = field(default_factory=dict)
    line: dict[str, int] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)
