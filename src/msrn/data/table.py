"""Labelled images in CSV or TSV tables: one row an image."""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np

from msrn.data.source import SPLIT_OF_NAME, SPLITS, LabelledImages, Problem, Source
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError

PATH_COLUMNS = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path")
LABEL_COLUMNS = ("labels", "label", "tags")
SPLIT_COLUMNS = ("split", "split_name", "subset")
LABEL_SEPARATORS = ("|", ";", ",")
SUFFIXES = (".csv", ".tsv")

# In a label column, a cell that says: looked at, and nothing is present. A blank cell says that nobody looked.
NOTHING_PRESENT = "[]"

_UNKNOWN_CELLS = frozenset({"", "nan", "?", "-1", "-1.0"})
_PRESENT_CELLS = frozenset({"1", "1.0", "true", "yes"})
_ABSENT_CELLS = frozenset({"0", "0.0", "false", "no"})
# As the bytes of an int8, in which -1 is 255.
_BYTE_OF_CELL = {
    **dict.fromkeys(_UNKNOWN_CELLS, 255),
    **dict.fromkeys(_PRESENT_CELLS, 1),
    **dict.fromkeys(_ABSENT_CELLS, 0),
}
_NUM_SHOWN = 5


def find_tables(path: Path) -> dict[str | None, Path]:
    """The tables at `path`: one by split, or one under None that tells its splits itself; empty if there is none.

    In a folder, tables named after splits come first, then `labels.csv`, then a single table of any name.

    Raises:
        DataError: Two tables are named after the same split, such as val.csv and valid.csv.
    """
    if path.is_file():
        return {None: path} if path.suffix.lower() in SUFFIXES else {}
    if not path.is_dir():
        return {}
    # Hidden files include the "._name.csv" that macOS leaves on foreign disks.
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    by_split: dict[str | None, Path] = {}
    for file in files:
        split = SPLIT_OF_NAME.get(file.stem.lower())
        if split in by_split:
            raise DataError(
                f"{path} holds two tables of split '{split}': {by_split[split].name} and {file.name}. "
                "Keep one, or join them."
            )
        if split is not None:
            by_split[split] = file
    if by_split:
        return by_split
    named = [file for file in files if file.stem.lower() == "labels"]
    if len(named) == 1:
        return {None: named[0]}
    return {None: files[0]} if len(files) == 1 else {}


@dataclass
class _Rows:
    """What one split's rows say; labels stay as text, or as the bytes of an int8, until the split is read."""

    paths: list[str] = field(default_factory=list)
    label_cells: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    target: bytearray = field(default_factory=bytearray)


class TableSource(Source):
    """Images listed in a table with a header: a column of paths, the labels, and perhaps a column of splits.

    Labels stand in one of two forms:

    - **a label column** (`labels`, `label` or `tags`), such as `cat|dog`. A blank cell, NaN, ? or -1 means that nothing
      is known about the image; `[]` means that it was looked at and has none of the labels. Labels are sorted by name.
    - **one column a label**: 1, true or yes; 0, false or no; blank, NaN, ? or -1 for unknown. Labels keep the order of
      the columns; all columns but the path and the split are labels, unless `label_names` says which ones are. Columns
      without a name are ignored.

    Splits come from a column (`split`, `split_name` or `subset`) or from one table a split; a table with neither is all
    train. Paths are relative to the table's folder. Whether the images exist is not checked here.

    Args:
        path: A .csv or .tsv file (UTF-8), or a folder with `train.csv`, `val.csv` and `test.csv`, with `labels.csv`, or
            with a single table.
        path_column: Column of the paths; by default `path`, `filepath`, `file_path`, `file`, `filename`, `file_name`,
            `image` or `image_path`, the first that exists.
        label_column: Column of the labels, if it has another name.
        label_separator: What stands between two labels of a cell; by default the first of `|`, `;` and `,` that occurs
            anywhere in the column.
        split_column: Column of the splits, if it has another name.
        label_names: The labels to read, in this order. Labels that a label column holds besides are an error; other
            columns are ignored.
        group_column: Column that says which images belong together, such as a scene or a patient; see `groups`. It is no
            label.

    Raises:
        SourceNotFoundError: No such path, or no table there.
        DataError: A table that cannot be read; the message names file and line.
    """

    layout = "a table"

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
                f"{path} is no table: expected a .csv or .tsv file, or a folder with train.csv, labels.csv or a single "
                "table. Pass the table itself."
            )
        if label_names is not None and (not label_names or len(set(label_names)) != len(label_names)):
            raise DataError(f"label_names must be distinct names, got {list(label_names)}. Name every label once.")
        if label_separator == "":
            raise DataError("label_separator must not be empty. Pass one such as '|', or leave it out to find it.")
        self.root = path if path.is_dir() else path.parent
        self._rows: dict[str, _Rows] = {}
        self._line_of_path: dict[str, tuple[Path, int, str]] = {}
        self._duplicates: list[str] = []
        self._has_groups = group_column is not None

        layouts: dict[Path, _Layout] = {}
        for split in (None, *SPLITS):
            if split in tables:
                table = tables[split]
                layouts[table] = self._read_table(
                    table, split, path_column, label_column, split_column, label_names, group_column
                )
        if self._duplicates:
            more = ", ..." if len(self._duplicates) > _NUM_SHOWN else ""
            raise DataError(
                f"{len(self._duplicates)} rows repeat the path of an earlier row: "
                f"{', '.join(self._duplicates[:_NUM_SHOWN])}{more}. "
                "Keep one row an image; an image in two splits would be tested on what it was trained on."
            )
        del self._line_of_path
        self.splits = tuple(split for split in SPLITS if split in self._rows)
        self._has_label_column = _all_have_label_column(layouts)
        self.names_every_label = self._has_label_column
        if self._has_label_column:
            self._labels_of_cell = self._parse_label_cells(label_separator)
            self.label_names = self._names_in_label_column(label_names)
        else:
            self.label_names = next(iter(layouts.values())).label_names

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is a table or a folder of tables."""
        return bool(find_tables(path))

    def _read_table(
        self,
        table: Path,
        table_split: str | None,
        path_column: str | None,
        label_column: str | None,
        split_column: str | None,
        label_names: Sequence[str] | None,
        group_column: str | None,
    ) -> "_Layout":
        records = _read_records(table)
        _, header = next(records, (0, []))
        layout = _find_layout(table, header, path_column, label_column, split_column, label_names, group_column)
        if table_split is not None or layout.split is None:
            self._rows.setdefault(table_split or "train", _Rows())
        folder = str(table.parent)
        num_columns = len(header)
        for line, row in records:
            if len(row) != num_columns:
                raise DataError(
                    f"{table}:{line}: expected {num_columns} fields as in the header, got {len(row)}. "
                    "Put quotes around fields that hold the delimiter."
                )
            cell = row[layout.path].strip()
            if not cell:
                if not any(row):
                    continue  # spreadsheets write such rows at the end
                raise DataError(f"{table}:{line}: the column '{header[layout.path]}' is blank. Give the image's path.")
            split = table_split or "train"
            if layout.split is not None:
                named = SPLIT_OF_NAME.get(row[layout.split].strip().lower())
                if named is None or table_split not in (None, named):
                    expected = f"'{table_split}', as the table's name says" if table_split else "train, val or test"
                    raise DataError(
                        f"{table}:{line}: expected the split to be {expected}, got '{row[layout.split]}'. "
                        "Correct the cell."
                    )
                split = named
            path = os.path.normpath(os.path.join(folder, cell))  # noqa: PTH118  (five times faster than Path)
            self._note_duplicate(path, cell, table, line, split)
            rows = self._rows.get(split) or self._rows.setdefault(split, _Rows())
            rows.paths.append(path)
            if layout.group is not None:
                rows.groups.append(row[layout.group].strip())
            if layout.label_column is not None:
                rows.label_cells.append(row[layout.label_column])
            else:
                cells = layout.label_cells(row)
                try:
                    rows.target += bytes(map(_BYTE_OF_CELL.__getitem__, cells))
                except KeyError:
                    rows.target += _parse_target_cells(cells, layout.label_names, table, line)
        return layout

    def _note_duplicate(self, path: str, cell: str, table: Path, line: int, split: str) -> None:
        first_table, first_line, first_split = self._line_of_path.setdefault(path, (table, line, split))
        if (first_table, first_line) != (table, line):
            splits = "" if split == first_split else f" ({split} and {first_split})"
            earlier = f"line {first_line}" if table == first_table else f"{first_table.name}:{first_line}"
            self._duplicates.append(f"{table.name}:{line} repeats {earlier}: {cell}{splits}")

    def groups(self, split: str) -> tuple[str, ...] | None:
        """What `group_column` says of each image of a split, blank where its cell is blank; None without that option."""
        return tuple(self._rows[split].groups) if self._has_groups else None

    def _parse_label_cells(self, separator: str | None) -> dict[str, tuple[str, ...] | None]:
        """The labels that each distinct cell names; None for a cell that knows nothing."""
        cells = {cell for rows in self._rows.values() for cell in rows.label_cells}
        if separator is None:
            separator = next((s for s in LABEL_SEPARATORS if any(s in cell for cell in cells)), None)
        labels_of_cell: dict[str, tuple[str, ...] | None] = {}
        for cell in cells:
            text = cell.strip()
            if text == NOTHING_PRESENT:
                labels_of_cell[cell] = ()
            else:
                parts = () if text.lower() in _UNKNOWN_CELLS else text.split(separator) if separator else (text,)
                labels_of_cell[cell] = tuple(part.strip() for part in parts if part.strip()) or None
        return labels_of_cell

    def _names_in_label_column(self, label_names: Sequence[str] | None) -> tuple[str, ...]:
        found = {label for labels in self._labels_of_cell.values() for label in labels or ()}
        if label_names is None:
            if not any(rows.paths for rows in self._rows.values()):
                raise EmptySplitError(f"the table of {self.root} has a header and no rows. Add a row for each image.")
            if not found:
                raise DataError(
                    f"the label column of {self.root} names no label: all its cells are blank. "
                    "Fill it, or pass label_names if nothing is present in any image."
                )
            return tuple(sorted(found))
        others = sorted(found.difference(label_names))
        if others:
            more = ", ..." if len(others) > _NUM_SHOWN else ""
            raise DataError(
                f"the label column of {self.root} holds {len(others)} labels that are not in label_names: "
                f"{', '.join(others[:_NUM_SHOWN])}{more}. Add them, or check label_separator."
            )
        return tuple(label_names)

    def _read(self, split: str) -> LabelledImages:
        rows = self._rows[split]
        shape = (len(rows.paths), len(self.label_names))
        if self._has_label_column:
            target = np.zeros(shape, dtype=np.int8)
            column_of_label = {label: column for column, label in enumerate(self.label_names)}
            columns_of_cell = {
                cell: None if labels is None else [column_of_label[label] for label in labels]
                for cell, labels in self._labels_of_cell.items()
            }
            columns = [columns_of_cell[cell] for cell in rows.label_cells]
            target[[row for row, of_row in enumerate(columns) if of_row is None]] = -1
            present_rows = np.repeat(np.arange(len(columns)), [len(of_row or ()) for of_row in columns])
            target[present_rows, [column for of_row in columns for column in of_row or ()]] = 1
        else:
            target = np.frombuffer(rows.target, dtype=np.int8).reshape(shape).copy()
        return LabelledImages(tuple(map(Path, rows.paths)), target, self.label_names, split)


@dataclass(frozen=True)
class _Layout:
    """Which columns of a table hold what. Either `label_column` is set, or one column a label."""

    path: int
    split: int | None
    label_column: int | None
    label_names: tuple[str, ...] = ()
    label_cells: Callable[[list[str]], Sequence[str]] = tuple
    group: int | None = None


def _read_records(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row that is not empty, the header first."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            # Spreadsheets write semicolons in countries where the comma is a decimal sign: the header tells.
            header = file.readline()
            delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
            file.seek(0)
            # strict: a quote that is never closed would swallow the rest of the file.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                raise DataError(f"{table}:{reader.line_num}: {error}. Check the quotes of this row.") from error
            except UnicodeDecodeError as error:
                raise DataError(f"{table}: not UTF-8 after line {reader.line_num}. Save it as UTF-8.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{table}: {error.strerror}. Check the file and its permissions.") from error


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
    repeated = sorted({name for name in names if name and names.count(name) > 1})
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


def _parse_target_cells(cells: Sequence[str], label_names: tuple[str, ...], table: Path, line: int) -> bytes:
    """Cells that are not written exactly as in `_BYTE_OF_CELL`: other case, spaces around, or an error."""
    values = bytearray()
    for cell, name in zip(cells, label_names, strict=True):
        value = _BYTE_OF_CELL.get(cell.strip().lower())
        if value is None:
            raise DataError(
                f"{table}:{line}: column '{name}': expected 1 or 0 (true, false, yes, no), or blank, NaN, ? or -1 for "
                f"unknown, got '{cell}'. Correct the cell; if '{name}' is no label, pass label_names."
            )
        values.append(value)
    return bytes(values)
