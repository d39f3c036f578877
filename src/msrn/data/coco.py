"""MS-COCO as published: instances in JSON, one file a split, and folders of images."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from msrn.data.packed import is_file
from msrn.data.published_counts import compare_with_published
from msrn.data.source import SPLIT_OF_NAME, SPLITS, LabelledImages, Problem, Source, new_target, some
from msrn.errors import DataError, SourceNotFoundError

_INSTANCES_NAME = re.compile(r"instances_(?P<split>[a-zA-Z]+)(?P<year>\d{4})?\.json")
# By year: images of each split, and those of them with annotations.
_PUBLISHED = {
    "2014": {"train": (82783, 82081), "val": (40504, 40137)},
    "2017": {"train": (118287, 117266), "val": (5000, 4952)},
}
# All that is kept of a file; the outlines of objects, most of its hundreds of megabytes, never pile up.
_KEPT_KEYS = frozenset(
    {"images", "annotations", "categories", "id", "name", "file_name", "image_id", "category_id"},
)
_NUM_SHOWN = 5
_NUM_LOOKED_FOR = 50


def find_instances(path: Path) -> dict[str, dict[str, Path]]:
    """The instances files by year ("" where their names have none) and split.

    Looked for in the folder's `annotations` and in the folder itself. A file stands for those of its year beside it.

    Raises:
        DataError: Two files are of the same split, such as instances_val.json and instances_valid.json.
    """
    if path.is_file():
        year_and_split = _year_and_split(path)
        return {year_and_split[0]: _instances_in(path.parent)[year_and_split[0]]} if year_and_split else {}
    return _instances_in(path / "annotations") or _instances_in(path)


def _instances_in(folder: Path) -> dict[str, dict[str, Path]]:
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        year_and_split = _year_and_split(file)
        if year_and_split is not None and file.is_file():
            year, split = year_and_split
            of_year = found.setdefault(year, {})
            if split in of_year:
                raise DataError(
                    f"{folder} holds two files of split '{split}': {of_year[split].name} and {file.name}. Keep one."
                )
            of_year[split] = file
    return found


def _year_and_split(file: Path) -> tuple[str, str] | None:
    match = _INSTANCES_NAME.fullmatch(file.name)
    split = SPLIT_OF_NAME.get(match["split"].lower()) if match else None
    return (match["year"] or "", split) if match and split else None


class COCOSource(Source):
    """MS-COCO 2014 and 2017, and sets in its format: an image's labels are the categories of its annotated objects.

    80 labels, sorted by name, as in LABEL_SETS["coco2014"]. 2014 has train 82,783 and val 40,504 images, of which 82,081
    and 40,137 have annotations; 2017 has train 118,287 (117,266) and val 5,000 (4,952). Read from `annotations`
    (`instances_train2014.json`); own files are named `instances_train.json`, `instances_val.json` and
    `instances_test.json`. Crowds (`iscrowd`) count as present, like single objects. Images are looked for in
    `train2014`, `images/train2014`, `images` and the root; whether each exists is not checked here.

    All files of the year are read when the source is opened, which takes seconds and, for a while, about twice the largest
    file's size in memory.

    Args:
        path: The folder with `annotations` in it, or one instances file, which stands for all of its year beside it.
        keep_unannotated: Whether images without annotations are kept, with every label absent. By default they are left
            out, as in published results; `notes` says how many.

    Raises:
        SourceNotFoundError: No instances files there.
        DataError: Files of more than one year, of different categories, or that cannot be read.

    Source: https://cocodataset.org/#download (annotations_trainval2014.zip, annotations_trainval2017.zip).
    """

    layout = "MS-COCO"
    recognised_by = "annotations/instances_*.json"

    def __init__(
        self, path: str | Path, *, keep_unannotated: bool = False, problems: list[Problem] | None = None
    ) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        years = find_instances(path) if path.exists() else {}
        if not years:
            raise SourceNotFoundError(
                f"{path} holds no MS-COCO: expected files such as annotations/instances_train2014.json or "
                "annotations/instances_train.json. Pass the folder that holds annotations and the images."
            )
        if len(years) > 1:
            files = [next(iter(of_year.values())) for _, of_year in sorted(years.items())]
            raise DataError(
                f"{path} holds {len(years)} sets of MS-COCO: expected one. "
                f"Pass one of its files, which stands for all of its year: {' or '.join(map(str, files))}."
            )
        ((self._year, self._files),) = years.items()
        folder = next(iter(self._files.values())).parent
        self.root = folder.parent if folder.name == "annotations" else folder
        self.splits = tuple(split for split in SPLITS if split in self._files)
        self.label_names: tuple[str, ...] = ()
        self._keep_unannotated = keep_unannotated
        self._read_files: dict[str, tuple[list[str], np.ndarray]] = {}
        for split in self.splits:
            try:
                self._read_files[split] = self._read_file(split, self._files[split])
            except RecursionError as error:  # a message would show hundreds of lists within each other
                raise DataError(
                    f"{self._files[split]} holds values too deep within each other for MS-COCO. Write the file again."
                ) from error

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is an instances file, or a folder with some in it or in its `annotations`."""
        return bool(find_instances(path))

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The split's instances file."""
        return self._files[split], None

    def _read(self, split: str) -> LabelledImages:
        names, target = self._read_files[split]
        folder = self._find_images(self._files[split], names)
        return LabelledImages(tuple(folder / name for name in names), target, self.label_names, split)

    def _find_images(self, file: Path, names: list[str]) -> Path:
        name = file.stem.removeprefix("instances_")
        folders = [self.root / name, self.root / "images" / name, self.root / "images", self.root]
        looked_for = names[:_NUM_LOOKED_FOR]
        for folder in folders:
            if any(is_file(folder / name) for name in looked_for):
                return folder
        if not names:
            return folders[0]  # `read` has the words for a split without images
        raise DataError(
            f"none of the first {len(looked_for)} images of {file} is in {', '.join(map(str, folders))}: "
            f"looked for {', '.join(names[:_NUM_SHOWN])}. Unpack the images into one of these folders."
        )

    def _read_file(self, split: str, file: Path) -> tuple[list[str], np.ndarray]:
        """File names, and target, of the images of a split."""
        content = _load(file)
        label_of_category = self._read_categories(content["categories"], file)
        names, row_of_image = self._read_images(content["images"], file)
        target = new_target(len(names), len(self.label_names))
        is_annotated = np.zeros(len(names), dtype=bool)
        column_of_label = {label: column for column, label in enumerate(self.label_names)}
        column_of_category = {category: column_of_label[label] for category, label in label_of_category.items()}
        for annotation in content["annotations"]:
            match annotation:
                case {"image_id": int() | str() as image, "category_id": int() | str() as category}:
                    pass
                case _:
                    self._report_in(file, "bad row", f"expected image_id and category_id, got {annotation}")
                    continue
            if image not in row_of_image:
                self._report_in(
                    file, "unknown image id", f"an annotation names image {image}, which is not in 'images'"
                )
                continue
            row = row_of_image[image]
            if category not in column_of_category:
                self._report_in(
                    file, "unknown category id", f"image {image} has category {category}, which is not in 'categories'"
                )
            elif row is not None:
                target[row, column_of_category[category]] = 1
                is_annotated[row] = True
        self._note_counts(split, len(names), int(is_annotated.sum()))
        if self._keep_unannotated:
            return names, target
        return [name for name, is_kept in zip(names, is_annotated, strict=True) if is_kept], target[is_annotated]

    def _read_categories(self, categories: list[Any], file: Path) -> dict[int | str, str]:
        """Label by id. The first file decides on the labels; the others must have the same."""
        label_of_category: dict[int | str, str] = {}
        for category in categories:
            match category:
                case {"id": int() | str() as number, "name": str() as name} if name.strip():
                    label_of_category[number] = name.strip()
                case _:
                    raise DataError(f"{file}: expected categories with id and name, got {category}. Correct the file.")
        repeated = [name for name, count in Counter(label_of_category.values()).items() if count > 1]
        if not label_of_category or repeated or len(label_of_category) != len(categories):
            what = f"the name '{repeated[0]}' twice" if repeated else "an id twice" if categories else "none"
            raise DataError(f"{file}: expected categories of distinct ids and names, got {what}. Correct the file.")
        names = tuple(sorted(label_of_category.values()))
        if self.label_names and names != self.label_names:
            others = sorted(set(names) ^ set(self.label_names))
            raise DataError(
                f"{file} and {self._files[self.splits[0]].name} have different categories, {len(others)} are in one "
                f"only: {some(others)}. Give all files the same categories, or pass a folder with one of them."
            )
        self.label_names = names
        return label_of_category

    def _read_images(self, images: list[Any], file: Path) -> tuple[list[str], dict[int | str, int | None]]:
        """File names, and row by id; None for an image that was reported, whose annotations are passed over."""
        row_of_image: dict[int | str, int | None] = {}
        image_of_name: dict[str, int | str] = {}
        for entry in images:
            match entry:
                case {"id": int() | str() as image, "file_name": str() as name} if name:
                    pass
                case _:
                    self._report_in(file, "bad row", f"expected id and file_name, got {entry}")
                    continue
            if image in row_of_image:
                self._report_in(file, "repeated id", f"image {image} is listed a second time")
            elif name in image_of_name:
                row_of_image[image] = None
                self._report_in(
                    file, "repeated path", f"images {image_of_name[name]} and {image} have the same file, {name}"
                )
            else:
                row_of_image[image] = len(image_of_name)
                image_of_name[name] = image
        return list(image_of_name), row_of_image

    def _report_in(self, file: Path, kind: str, what: str) -> None:
        self._report(kind, f"{file}: {what}. Correct the file.", file=file)

    def _note_counts(self, split: str, num_images: int, num_annotated: int) -> None:
        parts = []
        if split in _PUBLISHED.get(self._year, {}):
            all_published, annotated_published = _PUBLISHED[self._year][split]
            parts.append(compare_with_published("images", num_images, all_published))
            parts.append(compare_with_published("with annotations", num_annotated, annotated_published))
        if num_annotated < num_images:
            done = "kept, with every label absent" if self._keep_unannotated else "left out"
            parts.append(f"{num_images - num_annotated:,} without annotations {done}")
        if parts:
            self._note(f"split {split}: {'; '.join(parts)}.")


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            content = json.load(stream, object_pairs_hook=_keep_needed)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: no JSON ({error.msg}). Unpack or write the file again.") from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, or a number of thousands of digits
        raise DataError(f"{file} cannot be read ({error}). Unpack or write the file again.") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise DataError(f"{file}: expected lists of images, annotations and categories. Pass COCO's instances files.")
    return content


def _keep_needed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key in _KEPT_KEYS}
