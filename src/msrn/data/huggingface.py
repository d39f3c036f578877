"""Data sets of the Hugging Face library `datasets`: saved folders, Parquet files that hold images, names on the hub."""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8

from msrn.data.cells import BYTE_OF_CELL, LabelCells, cell_text, shown
from msrn.data.packed import MAX_IMAGE_BYTES, PackedImage, check_image_size, open_regular
from msrn.data.records import import_parquet, values_of
from msrn.data.source import (
    ALLOW_OUTSIDE,
    SPLIT_OF_NAME,
    SPLITS,
    LabelledImages,
    Problem,
    Source,
    folders_of_splits,
    is_outside,
    split_of_shard,
)
from msrn.data.table import LABEL_COLUMNS
from msrn.errors import DataError, MissingDependencyError, MSRNError, SourceNotFoundError, UnreadableImageError
from msrn.files import read_bounded

HUB_PREFIX = "hf:"
"""Before the name of a data set on the hub, where a path is expected."""

_LABEL_COLUMNS = (*LABEL_COLUMNS, "objects")
_LABELS_OF_OBJECTS = ("category", "categories", *LABEL_COLUMNS)
_NUM_SHOWN = 5
_MAX_JSON_BYTES = 64_000_000


def find_parquet(path: Path) -> list[Path]:
    """The Parquet files at `path` if they hold images.

    That is the file itself, or those in the folder, in its folder `data`, or in its folders named after splits.

    Raises:
        DataError: A file is no Parquet.
    """
    if path.is_file():
        files = [path] if path.suffix.lower() == ".parquet" else []
    else:
        of_folders = sorted(file for folder in folders_of_splits(path) for file in folder.glob("*.parquet"))
        files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")) or of_folders
        files = [file for file in files if file.is_file()]
    return files if files and _holds_images(files[0]) else []


def _holds_images(file: Path) -> bool:
    try:
        pyarrow, parquet = import_parquet(file)
    except MissingDependencyError:
        return False  # left to the reader of tables, which says so
    try:
        return any(_is_image_struct(pyarrow, field.type) for field in parquet.read_schema(file))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise DataError(f"{file}: no whole Parquet file ({error}). Write or copy it again.") from error


def _is_image_struct(pyarrow: Any, kind: Any) -> bool:
    return pyarrow.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


class DatasetImage(PackedImage):
    """An image in a row of a `datasets.Dataset`, whose file is mapped into memory and read when the image is.

    Args:
        root: Where the data set was found, or its name on the hub.
        split: The split's name, for the path.
        dataset: The split's column of images, undecoded.
        row: Row of the image, from 0.
        allow_outside: Whether a row that holds only a path may name a file outside of the data set's folder.
    """

    __slots__ = ("allow_outside", "dataset", "root", "row", "split")

    def __init__(self, root: str, split: str, dataset: Any, row: int, *, allow_outside: bool = False) -> None:
        self.allow_outside = allow_outside
        self.root = root
        self.split = split
        self.dataset = dataset
        self.row = row

    def __fspath__(self) -> str:
        return f"{self.root}/{self.split}/{self.row}"

    @property
    def place(self) -> Path | None:
        """The data set; None for one of the hub."""
        return None if self.root.startswith(HUB_PREFIX) else Path(self.root)

    def read_bytes(self) -> bytes:
        """The image file's content.

        Raises:
            OSError: The row holds no image, or names a file that cannot be read.
            UnreadableImageError: The row names a file outside of the data set's folder, or it has more than `MAX_IMAGE_BYTES`.
        """
        try:
            (image,) = self.dataset[self.row].values()
        except ValueError as error:  # a path that is not UTF-8
            raise OSError(f"row {self.row + 1} cannot be read ({error})") from error
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise OSError(f"row {self.row + 1} holds no image")
        if image["bytes"] is not None:
            content: bytes = image["bytes"]
            check_image_size(self, len(content))
            return content
        folder = self._folder()
        path = Path(folder, image["path"])
        if "\0" in str(path):
            raise OSError(f"row {self.row + 1} names {image['path']!r}, and no file can have that name")
        if not self.allow_outside and is_outside(path, folder):
            raise UnreadableImageError(f"{self}: the row names {path}, which lies outside of {folder}. {ALLOW_OUTSIDE}")
        with open_regular(path) as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
        check_image_size(self, len(content))
        return content

    def _folder(self) -> Path:
        """Where the files of rows that hold only a path lie."""
        if self.root.startswith(HUB_PREFIX):
            import datasets

            return Path(datasets.config.HF_CACHE_HOME)
        root = Path(self.root)
        return root if root.is_dir() else root.parent

    def is_file(self) -> bool:
        """Whether the data set is there, and has that row."""
        return self.row < len(self.dataset) and (self.root.startswith(HUB_PREFIX) or Path(self.root).exists())


def find_image(path: str, *, allow_outside: bool = False) -> DatasetImage | None:
    """The image of a data set on disk that a path names as `DatasetImage` does, such as `set/train/3`; None for other paths.

    Raises:
        DataError: The data set cannot be loaded.
        MissingDependencyError: The library `datasets` is not installed.
    """
    root, _, rest = path.rpartition(f"{os.sep}")
    root, _, split = root.rpartition(f"{os.sep}")
    if not rest.isdecimal() or split not in SPLITS or split not in (images := _images_in(root)):
        return None
    return DatasetImage(root, split, images[split], int(rest), allow_outside=allow_outside)


@cache
def _images_in(root: str) -> dict[str, Any]:
    """The undecoded images by split of the data set at a path; empty where there is none."""
    if not os.path.exists(root) or not HuggingFaceSource.recognises(Path(root)):  # noqa: PTH110
        return {}
    found = {}
    for name, dataset in _load(root).items():
        columns = [column for column, feature in dataset.features.items() if _is_image(feature)]
        if name.lower() in SPLIT_OF_NAME and columns:
            found[SPLIT_OF_NAME[name.lower()]] = _undecoded(root, dataset, columns[0])
    return found


class HuggingFaceSource(Source):
    """A data set of the library `datasets` with a column of images.

    Labels stand in a column (`labels`, `label`, `tags`, or the categories of `objects`) of names, numbers or class labels,
    one or a list of them, or in one column a label: those of bool, and those of numbers that are all 1, 0 or -1. A null is
    unknown, an empty list says that nothing is present. Splits are those of the data set; "validation" is val. Images are
    neither decoded nor loaded when it is opened. Code that comes with a data set is never run.

    Args:
        path: A folder of `save_to_disk`; a Parquet file with images, or a folder of them (`data/train-00000-of-00001.parquet`),
            which `datasets` copies to its cache; or `hf:owner/name` for a data set on the hub.
        path_column: Column of the images, if there are several.
        label_column: Column of the labels, if it has another name.
        label_separator: What stands between two labels of a text; lists need none.
        label_names: The labels to read, in this order: of one column a label these columns; other labels of a label column
            are an error.
        group_column: Column that says which images belong together; see `groups`.

    Raises:
        SourceNotFoundError: No such data set.
        DataError: A data set without images or labels, or one that cannot be read.
        MissingDependencyError: `datasets` is not installed.
    """

    layout = "a Hugging Face data set"
    recognised_by = "a folder of save_to_disk, or .parquet with a column of images"

    def __init__(
        self,
        path: str | Path,
        *,
        path_column: str | None = None,
        label_column: str | None = None,
        label_separator: str | None = None,
        label_names: Sequence[str] | None = None,
        group_column: str | None = None,
        problems: list[Problem] | None = None,
    ) -> None:
        self.problems = problems
        self.root = Path(path).expanduser()
        by_split = self._name_splits(_load(str(path)))
        self.splits = tuple(split for split in SPLITS if split in by_split)
        if not self.splits:
            raise SourceNotFoundError(f"{path} has none of the splits train, val and test. Rename its splits.")
        features = by_split[self.splits[0]].features
        different = [split for split in self.splits if by_split[split].features != features]
        if different:
            raise DataError(
                f"{path}: split '{different[0]}' has other columns or class labels than '{self.splits[0]}'. Cast all splits "
                "to the same features."
            )
        missing = [name for name in (path_column, label_column, group_column) if name and name not in features]
        if missing:
            raise DataError(f"{path}: no column '{missing[0]}', only: {', '.join(features)}. Choose one of these.")

        image_column = self._find_image_column(features, path_column)
        self._images = {split: _undecoded(self.root, dataset, image_column) for split, dataset in by_split.items()}
        label_column = label_column or next((name for name in _LABEL_COLUMNS if name in features), None)
        self.names_every_label = label_column is not None
        candidates = [label_column] if label_column else _columns_of_labels(self.root, features, label_names)
        columns = {split: _values(self.root, dataset, candidates) for split, dataset in by_split.items()}
        if label_column:
            self._read_label_cells(columns, features, label_separator, label_names)
        else:
            self._read_label_columns(columns, features, label_names, group_column)
        self._groups = {
            split: tuple(map(cell_text, _values(self.root, dataset, [group_column])[group_column]))
            for split, dataset in by_split.items()
            if group_column
        }

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is a folder of `save_to_disk`, or Parquet with a column of images."""
        return _is_saved(path) or bool(find_parquet(path))

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The data set, and the image's row in its split, counted from 1."""
        return self.root, index + 1

    def groups(self, split: str) -> tuple[str, ...] | None:
        """What `group_column` says of each image of a split, blank where it is null; None without that option."""
        return self._groups.get(split)

    def _name_splits(self, loaded: dict[str, Any]) -> dict[str, Any]:
        by_split: dict[str, Any] = {}
        for name, dataset in loaded.items():
            split = SPLIT_OF_NAME.get(name.lower())
            if split is None or split in by_split:
                expected = "one split each of train, val and test"
                message = f"{self.root}: expected {expected}, got '{name}'. Rename it, or leave it out."
                self._report("unknown split", message, file=self.root)
            else:
                by_split[split] = dataset
        return by_split

    def _find_image_column(self, features: Any, asked: str | None) -> str:
        names = [name for name, feature in features.items() if _is_image(feature)]
        if not names or (asked is not None and asked not in names):
            raise DataError(
                f"{self.root}: expected a column of images, got {asked or ', '.join(features)}. Cast it to datasets.Image, "
                "or export a table of paths and labels instead."
            )
        if len(names) > 1 and asked is None:
            self.notes += (f"Images are those of the column '{names[0]}'; {', '.join(names[1:])} were passed over.",)
        return asked or names[0]

    def _read_label_columns(
        self,
        columns: dict[str, dict[str, list[Any]]],
        features: Any,
        label_names: Sequence[str] | None,
        group_column: str | None,
    ) -> None:
        """One column a label: those whose values all are known, unless `label_names` says which ones are labels."""
        known = {
            split: {name: [BYTE_OF_CELL.get(cell_text(value)) for value in values] for name, values in of_split.items()}
            for split, of_split in columns.items()
        }
        names = list(label_names or ())
        for split in known if names else ():
            for name in names:
                for row in [row for row, byte in enumerate(known[split][name]) if byte is None]:
                    message = (
                        f"{self.root}: split '{split}', row {row + 1}, column '{name}': expected 1, 0, or null for unknown, "
                        f"got '{shown(cell_text(columns[split][name][row]))}'. Correct the value."
                    )
                    self._report("bad value", message, file=self.root, line=row + 1)
        if not names:
            candidates = (name for name in columns[self.splits[0]] if name != group_column)
            names = [name for name in candidates if all(None not in of_split[name] for of_split in known.values())]
        if not names:
            raise DataError(
                f"{self.root}: expected a column of labels ({', '.join(_LABEL_COLUMNS)}), or one column a label with 1, 0 "
                f"or null, got {', '.join(features)}. Pass label_column."
            )
        passed_over = [
            name for name in features if name not in (*names, group_column) and not _is_image(features[name])
        ]
        if passed_over:
            self.notes += (f"Columns that were not taken for labels: {', '.join(passed_over)}.",)
        self.label_names = tuple(names)
        self._target = {split: _stack([of_split[name] for name in names]) for split, of_split in known.items()}

    def _read_label_cells(
        self,
        columns: dict[str, dict[str, list[Any]]],
        features: Any,
        separator: str | None,
        label_names: Sequence[str] | None,
    ) -> None:
        """One column of labels."""
        ((column, _),) = columns[self.splits[0]].items()
        feature = features[column]
        cells = {
            split: [cell_text(_labels_in(value, feature)) for value in of_split[column]]
            for split, of_split in columns.items()
        }
        parsed = LabelCells((cell for of_split in cells.values() for cell in of_split), separator)
        self.label_names = tuple(label_names or _class_names(feature) or parsed.label_names)
        if not self.label_names:
            raise DataError(
                f"{self.root}: the column '{column}' names no label. Fill it, or pass another label_column."
            )
        unknown = set(parsed.label_names).difference(self.label_names)
        for split, of_split in cells.items():
            for row, cell in enumerate(of_split if unknown or parsed.bad_cells else (), start=1):
                at = f"{self.root}: split '{split}', row {row}"
                if cell in parsed.bad_cells:
                    message = (
                        f"{at}: expected labels in column '{column}', got {shown(cell)}. Pass another label_column."
                    )
                    self._report("bad value", message, file=self.root, line=row)
                for label in sorted(unknown.intersection(parsed.labels_of_cell[cell] or ())):
                    message = f"{at}: label '{label}' is not in label_names. Correct it, or add it."
                    self._report("unknown label", message, file=self.root, line=row)
        self._target = {split: parsed.target(of_split, self.label_names) for split, of_split in cells.items()}

    def _read(self, split: str) -> LabelledImages:
        dataset = self._images[split]
        root, allow = str(self.root), self.allow_outside
        images = tuple(DatasetImage(root, split, dataset, row, allow_outside=allow) for row in range(len(dataset)))
        return LabelledImages(images, self._target[split].copy(), self.label_names, split)


def _columns_of_labels(root: Path, features: Any, label_names: Sequence[str] | None) -> list[str]:
    """The columns that may be one label each."""
    missing = [name for name in label_names or () if name not in features]
    if missing:
        raise DataError(
            f"{root}: no column for {len(missing)} of label_names: {', '.join(missing[:_NUM_SHOWN])}; the columns are "
            f"{', '.join(features)}. Correct the names, or pass label_column."
        )
    if label_names is not None:
        return list(label_names)
    of_numbers = ("bool", "int", "uint", "float")
    return [name for name, feature in features.items() if str(getattr(feature, "dtype", "")).startswith(of_numbers)]


def _values(path: str | Path, dataset: Any, names: list[str]) -> dict[str, list[Any]]:
    """Whole columns as Python's values; images are not touched."""
    import pyarrow

    with _naming(path):
        return {name: values_of(pyarrow, dataset.data.table[name]) for name in names}


def _stack(columns: list[list[int | None]]) -> Int8[np.ndarray, "N L"]:
    """The target whose columns are given as bytes; None is unknown."""
    values = np.array([[255 if byte is None else byte for byte in column] for column in columns], dtype=np.uint8)
    return np.ascontiguousarray(values.T).view(np.int8)


def _is_saved(path: Path) -> bool:
    is_dataset = (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    return is_dataset or (path / "dataset_dict.json").is_file()


def _check_saved(folder: Path) -> None:
    """Refuse a saved folder that names files elsewhere, what would be waited for, and damaged tables.

    `datasets` opens all that is named, and takes tables as they are.

    Raises:
        OSError: A file is no regular one, too large, or cannot be read.
        ValueError: One of the JSON files is none, or names something that does not lie beside it.
        pyarrow.ArrowException: A table is damaged.
    """
    is_single = (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    parts = [folder] if is_single else [folder / name for name in _names_in(folder / "dataset_dict.json", "splits")]
    for part in parts:
        read_bounded(part / "dataset_info.json", _MAX_JSON_BYTES)
        for name in _names_in(part / "state.json", "_data_files", "filename"):
            if not stat.S_ISREG((part / name).stat().st_mode):
                raise OSError(f"{name} is no regular file")
            _check_table(part / name)


def _check_table(file: Path) -> None:
    """Look through a file of Arrow's, whose offsets are followed into memory wherever they lead; images themselves are not read."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as content, pyarrow.ipc.open_stream(content) as batches:
        for batch in batches:
            batch.validate(full=True)


def _names_in(file: Path, key: str, inner: str | None = None) -> list[str]:
    """The names in a list of a JSON file, or in objects of such a list."""
    try:
        content = json.loads(read_bounded(file, _MAX_JSON_BYTES))
        names = [entry if inner is None else entry[inner] for entry in content[key]]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise ValueError(f"{file.name} is damaged: {type(error).__name__}") from error
    # Neither a path nor what `datasets` takes for an address.
    odd = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"(?!\.\.?$)[^/\\:\0]+", name)]
    if odd:
        raise ValueError(f"{file.name} names {str(odd[0])[:80]!r}, which is no name of a file beside it")
    return names


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Make ours of what the library raises on a data set: its own errors, the hub's, those of Arrow and of the network."""
    try:
        yield
    except MSRNError:
        raise
    except Exception as error:
        # Of an error while Parquet is copied the library says no more than that there was one.
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        reason = str(cause).strip().split("\n")[0] or type(cause).__name__
        if str(path).startswith(HUB_PREFIX):
            raise DataError(
                f"{path} cannot be loaded from the Hugging Face hub ({reason}). Where there is a network, save it with "
                "datasets.load_dataset(...).save_to_disk(folder), and pass that folder, or pass its Parquet files."
            ) from error
        raise DataError(f"{path} cannot be loaded ({reason}). Save or download it again.") from error


def _load(path: str) -> dict[str, Any]:
    """The data set's splits by the names they have."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} is {HuggingFaceSource.layout}, which needs datasets: pip install 'msrn[data]'."
        ) from error
    # Its bars and messages would stand between what a command prints.
    shows_progress, verbosity = datasets.is_progress_bar_enabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with _naming(path):
            loaded = _open(path)
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shows_progress:
            datasets.enable_progress_bars()
    return dict(loaded) if isinstance(loaded, dict) else {SPLIT_OF_NAME.get(str(loaded.split), "train"): loaded}


def _open(path: str) -> Any:
    import datasets

    folder = Path(path).expanduser()
    if path.startswith(HUB_PREFIX):
        return datasets.load_dataset(path.removeprefix(HUB_PREFIX))
    if _is_saved(folder):
        _check_saved(folder)
        return datasets.load_from_disk(str(folder))
    files: dict[str, list[str]] = {}
    for file in find_parquet(folder):
        split = split_of_shard(file, folder if folder.is_dir() else folder.parent)
        files.setdefault(split, []).append(str(file))
    if not files:
        raise SourceNotFoundError(
            f"{path} is no Hugging Face data set: expected a folder of save_to_disk, or Parquet files with a column of images. "
            "Pass one of these, or hf:owner/name."
        )
    return datasets.load_dataset("parquet", data_files=files)


def _is_image(feature: Any) -> bool:
    """Whether a feature is `datasets.Image`, or what Parquet stores of one."""
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"})


def _undecoded(path: str | Path, dataset: Any, column: str) -> Any:
    import datasets

    features = datasets.Features({column: datasets.Image(decode=False)})
    with _naming(path):
        # Without a format that was saved with the data set, which would turn images into tensors.
        table = dataset.data.select([column]).cast(features.arrow_schema)
        return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint="images")


def _labels_in(value: Any, feature: Any) -> Any:
    """A value of a label column with class numbers as lists of their name, and objects as the list of their categories."""
    if value is None:
        return None
    if isinstance(feature, dict):
        key = next((key for key in _LABELS_OF_OBJECTS if key in feature), None)
        return value if key is None else _labels_in(value[key], feature[key])
    if hasattr(feature, "feature"):
        labels = [_labels_in(item, feature.feature) for item in value]
        return [label for of_item in labels for label in (of_item if isinstance(of_item, list) else [of_item])]
    if hasattr(feature, "int2str"):
        if value >= feature.num_classes:
            return {"class": value}  # no label: reported with its row
        return [feature.int2str(value)] if value >= 0 else None
    return value


def _class_names(feature: Any) -> tuple[str, ...]:
    """All names of a class label, whatever it lies in; empty for other features."""
    if isinstance(feature, dict):
        return next((_class_names(feature[key]) for key in _LABELS_OF_OBJECTS if key in feature), ())
    return (
        _class_names(feature.feature)
        if hasattr(feature, "feature")
        else tuple(map(str, getattr(feature, "names", None) or ()))
    )
