"""Labelled images in tables: one row an image, in CSV, TSV, JSON Lines or Parquet."""

import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from msrn.data.cells import BYTE_OF_CELL, LabelCells, is_plain, shown
from msrn.data.packed import PackedImage, TarMember
from msrn.data.records import SUFFIXES, read_records
from msrn.data.source import (
    SPLIT_OF_NAME,
    SPLITS,
    LabelledImages,
    Problem,
    Source,
    check_target_room,
    folders_of_splits,
    is_outside,
    some,
)
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError

PATH_COLUMNS = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path", "sourcefile")
LABEL_COLUMNS = ("labels", "label", "tags", "keywords")
SPLIT_COLUMNS = ("split", "split_name", "subset")

_NUM_SHOWN = 5


def find_tables(path: Path) -> dict[str | None, Path]:
    """The tables at `path`: one by split, or one under None that tells its splits itself; empty if there is none.

    In a folder, tables named after splits come first, then `labels` and `metadata`, then a single table of any name, and
    last the `metadata` or `labels` of folders that are named after splits.

    Raises:
        DataError: Two tables are named after the same split, such as val.csv and valid.csv.
    """
    if path.is_file():
        return {None: path} if path.suffix.lower() in SUFFIXES else {}
    if not path.is_dir():
        return {}
    files = _tables_in(path)
    by_split = _by_split(path, [(file.stem, file) for file in files])
    if by_split:
        return by_split
    named = _named(files)
    if named is not None or files:
        table = named or (files[0] if len(files) == 1 else None)
        return {None: table} if table else {}
    of_folder = [(folder.name, _named(_tables_in(folder))) for folder in folders_of_splits(path)]
    return _by_split(path, [(name, table) for name, table in of_folder if table])


def _tables_in(folder: Path) -> list[Path]:
    # Hidden files include the "._name.csv" that macOS leaves on foreign disks.
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _named(files: Sequence[Path]) -> Path | None:
    """The one table called `labels`, or the one that Hugging Face calls `metadata`."""
    for name in ("labels", "metadata"):
        named = [file for file in files if file.stem.lower() == name]
        if len(named) == 1:
            return named[0]
    return None


def _by_split(folder: Path, named: Sequence[tuple[str, Path]]) -> dict[str | None, Path]:
    by_split: dict[str | None, Path] = {}
    for name, file in named:
        split = SPLIT_OF_NAME.get(name.lower())
        if split in by_split:
            first, second = (table.relative_to(folder) for table in (by_split[split], file))
            raise DataError(
                f"{folder} holds two tables of split '{split}': {first} and {second}. Keep one, or join them."
            )
        if split is not None:
            by_split[split] = file
    return by_split


@dataclass
class _Rows:
    """What one split's rows say; labels stay as text, or as the bytes of an int8, until the split is read."""

    table: Path
    paths: list[str] = field(default_factory=list)
    lines: "array[int]" = field(default_factory=lambda: array("L"))
    label_cells: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    target: bytearray = field(default_factory=bytearray)
    room_bytes: int = 0
    """How large `target` may become before it is asked again whether there is room."""


class TableSource(Source):
    """Images listed in a table with a header: a column of paths, the labels, and perhaps a column of splits.

    Labels stand in one of two forms:

    - **a label column** (`labels`, `label` or `tags`), such as `cat|dog` or `['cat', 'dog']`; in JSON Lines and Parquet
      also a list. A blank cell, NaN, ? or -1 means that nothing is known about the image; `[]` means that it was looked
      at and has none of the labels. Labels are sorted by name, whole numbers by value.
    - **one column a label**: 1, true or yes; 0, false or no; blank, NaN, ? or -1 for unknown. Labels keep the order of
      the columns; all columns but the path and the split are labels, unless `label_names` says which ones are. Columns
      without a name are ignored.

    Splits come from a column (`split`, `split_name` or `subset`) or from one table a split; a table with neither is all
    train. Paths are relative to the table's folder; `shards/a.tar/0001.jpg` is a member of a tar archive. Whether the
    images exist is not checked here. A key that a row of JSON Lines lacks is unknown in it.

    Args:
        path: A .csv, .tsv, .jsonl, .ndjson (UTF-8) or .parquet file, or a folder with `train.csv`, `val.csv` and
            `test.csv`, with `labels.csv` or `metadata.csv`, or with a single table, in any of these formats.
        path_column: Column of the paths; by default `path`, `filepath`, `file_path`, `file`, `filename`, `file_name`,
            `image` or `image_path`, the first that exists.
        label_column: Column of the labels, if it has another name.
        label_separator: What stands between two labels of a cell; by default the first of `|`, `;` and `,` that occurs
            anywhere in the column. Lists need none.
        split_column: Column of the splits, if it has another name.
        label_names: The labels to read, in this order. Labels that a label column holds besides are an error; other
            columns are ignored.
        group_column: Column that says which images belong together, such as a scene or a patient; see `groups`. It is no
            label.

    Raises:
        SourceNotFoundError: No such path, or no table there.
        DataError: A table that cannot be read; the message names file and line.
        MissingDependencyError: Parquet without pyarrow.
    """

    layout = "a table"
    recognised_by = "train.csv, labels.csv or a single file of .csv, .tsv, .jsonl or .parquet"

    def __init__(
        self,
        path: str | Path,
        *,
        path_column: str | None = None,
        label_column: str | None = None,
        label_separator: str | None = None,
        split_column: str | None = None,
        label_names: Sequence[str] | None = None,
        group_column: str | None = None,
        problems: list[Problem] | None = None,
    ) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        tables = find_tables(path)
        if not tables:
            raise SourceNotFoundError(
                f"{path} is no table: expected a .csv or .tsv file, .jsonl or .parquet, or a folder with train.csv, "
                "labels.csv or a single table. Pass the table itself."
            )
        if label_names is not None and (not label_names or len(set(label_names)) != len(label_names)):
            raise DataError(f"label_names must be distinct names, got {list(label_names)}. Name every label once.")
        if label_separator == "":
            raise DataError("label_separator must not be empty. Pass one such as '|', or leave it out to find it.")
        self.root = path if path.is_dir() else path.parent
        self._path = path
        self._rows: dict[str, _Rows] = {}
        self._first_of_path: dict[str, int] = {}
        self._duplicates: list[str] = []
        self._num_duplicates = 0
        self._has_groups = group_column is not None

        find_layout = partial(
            _find_layout,
            path_column=path_column,
            label_column=label_column,
            split_column=split_column,
            label_names=label_names,
            group_column=group_column,
        )
        layouts = {
            tables[split]: self._read_table(tables[split], split, find_layout)
            for split in (None, *SPLITS)
            if split in tables
        }
        if self._duplicates:
            raise DataError(
                f"{self._num_duplicates} rows repeat the path of an earlier row: {some(self._duplicates)}. "
                "Keep one row an image; an image in two splits would be tested on what it was trained on."
            )
        del self._first_of_path
        self.splits = tuple(split for split in SPLITS if split in self._rows)
        self.names_every_label = _all_have_label_column(layouts)
        if self.names_every_label:
            self._cells = LabelCells(
                (cell for rows in self._rows.values() for cell in rows.label_cells), label_separator
            )
            self._report_bad_cells()
            self.label_names = self._names_in_label_column(label_names)
        else:
            self.label_names = next(iter(layouts.values())).label_names

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is a table or a folder of tables."""
        return bool(find_tables(path))

    def _read_table(self, table: Path, table_split: str | None, find_layout: "Callable[..., _Layout]") -> "_Layout":
        def report(kind: str, message: str, line: int) -> None:
            self._report(kind, message, file=table, line=line)

        records = read_records(table, report)
        _, header = next(records, (0, []))
        layout = find_layout(table, header)
        if table_split is not None or layout.split is None:
            self._rows.setdefault(table_split or "train", _Rows(table))
        folder = str(table.parent)
        num_columns = len(header)
        for line, row in records:
            if len(row) != num_columns:
                message = (
                    f"{table}:{line}: expected {num_columns} fields as in the header, got {len(row)}. "
                    "Put quotes around fields that hold the delimiter."
                )
                report("wrong number of fields", message, line)
                continue
            cell = row[layout.path].strip()
            if not cell:
                if any(row):  # spreadsheets write such rows at the end
                    message = f"{table}:{line}: the column '{header[layout.path]}' is blank. Give the image's path."
                    report("blank path", message, line)
                continue
            if not is_plain(cell):
                message = f"{table}:{line}: expected a path in column '{header[layout.path]}', got {shown(cell)}."
                report("bad value", f"{message} Give one path, or name another column as path_column.", line)
                continue
            if cell.startswith(("http://", "https://")):
                message = f"{table}:{line}: {shown(cell)} is on the web. Download the image, and give the file's path."
                report("remote image", message, line)
                continue
            split = table_split or "train"
            if layout.split is not None:
                named = SPLIT_OF_NAME.get(row[layout.split].strip().lower())
                if named is None or table_split not in (None, named):
                    expected = f"'{table_split}', as the table's name says" if table_split else "train, val or test"
                    message = (
                        f"{table}:{line}: expected the split to be {expected}, got '{shown(row[layout.split])}'. "
                        "Correct the cell."
                    )
                    report("unknown split", message, line)
                    continue
                split = named
            path = os.path.normpath(os.path.join(folder, cell))  # noqa: PTH118  (five times faster than Path)
            if self._repeats(path, cell, table, line, split):
                continue
            rows = self._rows.get(split) or self._rows.setdefault(split, _Rows(table))
            rows.paths.append(path)
            rows.lines.append(line)
            if layout.group is not None:
                rows.groups.append(sys.intern(row[layout.group].strip()))
            if layout.label_column is not None:
                rows.label_cells.append(sys.intern(row[layout.label_column]))
            else:
                cells = layout.label_cells(row)
                try:
                    rows.target += bytes(map(BYTE_OF_CELL.__getitem__, cells))
                except KeyError:
                    rows.target += self._parse_target_cells(cells, layout.label_names, table, line)
                if len(rows.target) > rows.room_bytes:
                    # As much again, into which it grows, or which the copy takes that is read of it.
                    check_target_room(len(rows.paths), len(layout.label_names))
                    rows.room_bytes = 2 * len(rows.target)
        return layout

    def _repeats(self, path: str, cell: str, table: Path, line: int, split: str) -> bool:
        """Whether an earlier row has the path; notes it."""
        # One number a path: a million tuples would take more memory than the table.
        here = line * len(SPLITS) + SPLITS.index(split)
        first_line, first_split_number = divmod(self._first_of_path.setdefault(path, here), len(SPLITS))
        first_split = SPLITS[first_split_number]
        first_table = self._rows[first_split].table if first_split in self._rows else table
        if (first_table, first_line) == (table, line):
            return False
        splits = "" if split == first_split else f" ({split} and {first_split})"
        earlier = f"line {first_line}" if table == first_table else f"{first_table.name}:{first_line}"
        duplicate = f"{table.name}:{line} repeats {earlier}: {cell}{splits}"
        if self.problems is None:
            self._num_duplicates += 1  # raised once the table was read, with their number and the first few
            if len(self._duplicates) <= _NUM_SHOWN:
                self._duplicates.append(duplicate)
        else:
            self._report("repeated path", f"{duplicate}. Keep one row an image.", file=table, line=line)
        return True

    def _parse_target_cells(self, cells: Sequence[str], label_names: tuple[str, ...], table: Path, line: int) -> bytes:
        """Cells that are not written exactly as in `BYTE_OF_CELL`: other case, spaces around, or an error."""
        values = bytearray()
        for cell, name in zip(cells, label_names, strict=True):
            value = BYTE_OF_CELL.get(cell.strip().lower())
            if value is None:
                message = (
                    f"{table}:{line}: column '{name}': expected 1 or 0 (true, false, yes, no), or blank, NaN, ? or -1 for "
                    f"unknown, got '{shown(cell)}'. Correct the cell; if '{name}' is no label, pass label_names (--label-names)."
                )
                self._report("bad value", message, file=table, line=line)
            values.append(255 if value is None else value)
        return bytes(values)

    @property
    def shown(self) -> Path:
        """The path the table was opened by."""
        return self._path

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The table and the line that an image of a split stands in; in Parquet the row, counted from 1."""
        rows = self._rows[split]
        return rows.table, rows.lines[index]

    def groups(self, split: str) -> tuple[str, ...] | None:
        """What `group_column` says of each image of a split, blank where its cell is blank; None without that option."""
        return tuple(self._rows[split].groups) if self._has_groups else None

    def _report_bad_cells(self) -> None:
        if not self._cells.bad_cells:
            return
        for rows in self._rows.values():
            for cell, line in zip(rows.label_cells, rows.lines, strict=True):
                if cell in self._cells.bad_cells:
                    message = (
                        f"{rows.table}:{line}: expected labels such as cat|dog, or a list such as ['cat', 'dog'], got "
                        f"{shown(cell)}. Correct the cell."
                    )
                    self._report("bad value", message, file=rows.table, line=line)

    def _names_in_label_column(self, label_names: Sequence[str] | None) -> tuple[str, ...]:
        found = self._cells.label_names
        if label_names is None:
            if not any(rows.paths for rows in self._rows.values()):
                raise EmptySplitError(f"{self._path} has a header and no rows. Add a row for each image.")
            if not found:
                raise DataError(
                    f"the label column of {self._path} names no label: all its cells are blank. "
                    "Fill it, or pass label_names if nothing is present in any image."
                )
            return found
        others = sorted(set(found).difference(label_names))
        if others and self.problems is None:
            raise DataError(
                f"the label column of {self._path} holds {len(others)} labels that are not in label_names: "
                f"{some(others)}. Add them, or check label_separator."
            )
        if others:
            self._report_unknown_labels(set(others))
        return tuple(label_names)

    def _report_unknown_labels(self, unknown: set[str]) -> None:
        for rows in self._rows.values():
            for cell, line in zip(rows.label_cells, rows.lines, strict=True):
                for label in self._cells.labels_of_cell[cell] or ():
                    if label in unknown:
                        message = f"{rows.table}:{line}: label '{label}' is not in label_names. Correct it, or add it."
                        self._report("unknown label", message, file=rows.table, line=line)

    def _read(self, split: str) -> LabelledImages:
        rows = self._rows[split]
        if self.names_every_label:
            target = self._cells.target(rows.label_cells, self.label_names)
        else:
            shape = (len(rows.paths), len(self.label_names))
            check_target_room(*shape)
            target = np.frombuffer(rows.target, dtype=np.int8).reshape(shape).copy()
        return LabelledImages(tuple(map(self._image_at, rows.paths)), target, self.label_names, split)

    def _image_at(self, path: str) -> Path | PackedImage:
        """The file at a path, or what it names in a tar archive or in a Hugging Face data set."""
        archive, suffix, member = path.partition(f".tar{os.sep}")
        if member and not os.path.isdir(archive + suffix):  # noqa: PTH112
            return TarMember(Path(f"{archive}.tar"), member)
        # A file of images has a suffix, the row of a data set has none. One that lies outside is refused unopened.
        if path[-1].isdecimal() and (self.allow_outside or not is_outside(Path(path), self.root)):
            from msrn.data.huggingface import find_image

            return find_image(path, allow_outside=self.allow_outside) or Path(path)
        return Path(path)


@dataclass(frozen=True)
class _Layout:
    """Which columns of a table hold what. Either `label_column` is set, or one column a label."""

    path: int
    split: int | None
    label_column: int | None
    label_names: tuple[str, ...] = ()
    label_cells: Callable[[list[str]], Sequence[str]] = tuple
    group: int | None = None


def _find_layout(
    table: Path,
    header: list[str],
    path_column: str | None,
    label_column: str | None,
    split_column: str | None,
    label_names: Sequence[str] | None,
    group_column: str | None,
) -> _Layout:
    names = [name.strip() for name in header]
    repeated = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if repeated:
        raise DataError(f"{table}:1: the header repeats {', '.join(repeated)}. Give every column its own name.")

    def find(asked: str | None, known: tuple[str, ...], what: str) -> int | None:
        if asked is None:
            lowered = [name.lower() for name in names]
            return next((lowered.index(name) for name in known if name in lowered), None)
        if asked not in names:
            raise DataError(f"{table}:1: no {what} '{asked}', only: {', '.join(names)}. Choose one of these.")
        return names.index(asked)

    path = find(path_column, PATH_COLUMNS, "path column")
    if path is None:
        raise DataError(
            f"{table}:1: expected a column of paths ({', '.join(PATH_COLUMNS)}), got: "
            f"{', '.join(names) or 'no header'}. Name one so, or pass path_column."
        )
    split = find(split_column, SPLIT_COLUMNS, "split column")
    group = find(group_column, (), "group column")
    found = find(label_column, LABEL_COLUMNS, "label column")
    if found is not None:
        return _Layout(path, split, found, group=group)

    columns = [i for i, name in enumerate(names) if name and i not in (path, split, group)]
    if label_names is not None:
        missing = [name for name in label_names if name not in names]
        if missing:
            raise DataError(
                f"{table}:1: no column for {len(missing)} of label_names: {', '.join(missing[:_NUM_SHOWN])}; the "
                f"columns are {', '.join(names)}. Correct the names, or add columns (blank cells are unknown)."
            )
        columns = [names.index(name) for name in label_names]
    if not columns:
        raise DataError(
            f"{table}:1: expected a label column ({', '.join(LABEL_COLUMNS)}) or one column a label, got only "
            f"{', '.join(names)}. Name the label column so, or pass label_column."
        )
    only = columns[0]
    label_cells = itemgetter(*columns) if len(columns) > 1 else lambda row: (row[only],)
    return _Layout(path, split, None, tuple(names[i] for i in columns), label_cells, group)


def _all_have_label_column(layouts: dict[Path, _Layout]) -> bool:
    """Whether all tables have a label column; otherwise they must have the same columns, one a label."""
    (first_table, first), *others = layouts.items()
    for table, layout in others:
        if (layout.label_column is None) != (first.label_column is None):
            raise DataError(
                f"{table} and {first_table.name} differ: one has a label column, the other one column a label. "
                "Use the same form in all tables."
            )
        if layout.label_names != first.label_names:
            different = sorted(set(layout.label_names) ^ set(first.label_names)) or ["only their order"]
            raise DataError(
                f"{table} and {first_table.name} have different label columns: {', '.join(different[:_NUM_SHOWN])}. "
                "Use the same columns in the same order (blank cells are unknown), or pass label_names."
            )
    return first.label_column is not None
