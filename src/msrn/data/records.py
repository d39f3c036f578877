"""Rows of CSV, TSV, JSON Lines and Parquet tables, one at a time, as text."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

import numpy as np

from msrn.data.cells import MAX_CELL_LETTERS, cell_text, no_cell
from msrn.data.parquet_footer import Column, RowGroup, read_row_groups
from msrn.errors import DataError, MissingDependencyError
from msrn.machine import lack_of_room

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")

_ROWS_AT_ONCE = 256  # of Parquet, as Python's values, whose texts may be long
# Encodings of Parquet: PLAIN, PLAIN_DICTIONARY, RLE, BIT_PACKED, RLE_DICTIONARY.
_LEFT_AS_NUMBERS = frozenset({0, 2, 3, 4, 8})

Report = Callable[[str, str, int], None]
"""Takes the kind, the message and the line of a row that cannot be read, and raises or notes it."""


def read_records(table: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every row, the header first; see `cell_text` for values that are no text.

    Lines of Parquet are rows, counted from 1. The header of JSON Lines holds the keys of all rows, in the order in which
    they appear, and a key that a row lacks is blank in it: the file is read twice.

    Args:
        table: The file, whose suffix tells the format.
        report: Called for rows that cannot be read.

    Raises:
        DataError: The file cannot be read as a table.
        MissingDependencyError: Parquet needs pyarrow.
    """
    if table.exists() and not table.is_file():  # a pipe would never answer, and a device never end
        raise DataError(
            f"{table}: expected a file with rows, got a folder, a pipe or a device. Save the table as a file."
        )
    read = {".parquet": _read_parquet, ".jsonl": _read_json_lines, ".ndjson": _read_json_lines}
    try:
        yield from read.get(table.suffix.lower(), _read_csv)(table, report)
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8. Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{table}: {error.strerror or error}. Check the file and its permissions.") from error


def _read_csv(table: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        # Spreadsheets write semicolons in countries where the comma is a decimal sign: the header tells.
        header = file.readline()
        delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
        file.seek(0)
        # strict: a quote that is never closed would swallow the rest of the file.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            try:
                for row in reader:
                    if row:
                        yield reader.line_num, row
            except csv.Error as error:
                line = reader.line_num
                report("bad row", f"{table}:{line}: {error}. Check the quotes of this row.", line)
            except UnicodeDecodeError as error:
                raise DataError(f"{table}: not UTF-8 after line {reader.line_num}. Save it as UTF-8.") from error
            else:
                return


def _read_json_lines(table: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    header: dict[str, None] = {}
    # The second pass meets the same faulty lines.
    for _, row in _parse_json_lines(table, lambda *_: None):
        header.update(dict.fromkeys(row))
    yield 1, list(header)
    for line, row in _parse_json_lines(table, report):
        yield line, [cell_text(row.get(key)) for key in header]


def _parse_json_lines(table: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    with table.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                report("bad row", f"{table}:{line}: no JSON ({error}). Write one object a line.", line)
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                message = f'{table}:{line}: expected a JSON object such as {{"path": ...}}, got {text.strip()[:40]}'
                report("bad row", f"{message}. Write one object a line.", line)


def _read_parquet(table: Path, report: Report) -> Iterator[tuple[int, list[str]]]:
    pyarrow, parquet = import_parquet(table)
    try:
        with parquet.ParquetFile(table) as file:
            schema = file.schema_arrow
        if repeated := [name for name, count in Counter(schema.names).items() if count > 1]:
            raise DataError(f"{table}: the header repeats {', '.join(repeated)}. Give every column its own name.")
        yield 0, list(schema.names)
        readable = [field.name for field in schema if _is_cell(pyarrow, field.type)]
        groups = read_row_groups(table)
        _check_room(table, groups, readable)
        texts = [field.name for field in schema if field.name in readable and _is_text(pyarrow, field.type)]
        with parquet.ParquetFile(table, read_dictionary=_repeating(groups, texts)) as file:
            line = 1
            # Each batch brings along the texts of those before it: few batches, of some million values.
            num_rows = min(1 << 16, max(1 << 12, (1 << 22) // max(1, len(readable))))
            # Row groups may hold a whole table. One after another: Arrow joins no lists of theirs that are left as numbers.
            for number in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=num_rows, row_groups=[number], columns=readable):
                    columns: dict[str, Iterable[str]] = {
                        field.name: repeat(no_cell(field.type), batch.num_rows) for field in schema
                    }
                    for name in readable:
                        columns[name] = _cells(pyarrow, batch.column(name), schema.field(name).type)
                    for row in zip(*columns.values(), strict=True):
                        yield line, list(row)
                        line += 1
    except (OSError, ValueError, ArithmeticError, LookupError, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(f"{table}: no whole Parquet file ({error}). Write or copy it again.") from error


def _check_room(table: Path, groups: Iterable[RowGroup], names: Collection[str]) -> None:
    """Refuse a table whose largest row group takes more memory than is free, by what the file says of it."""
    most = 0
    for group in groups:
        columns = [column for column in group.columns if _is_within(column, names)]
        # Pages and what is made of them; the places of the items of lists, which may repeat in a few bytes.
        items = sum(column.num_values - group.num_rows for column in columns)
        most = max(most, 4 * sum(column.num_bytes for column in columns) + 16 * items)
    if lack := lack_of_room(most):
        raise DataError(
            f"{table}: rows that are read at once take {lack}. Check that the table is one of paths and labels, or write it in "
            "smaller row groups."
        )


def _repeating(groups: Iterable[RowGroup], names: Collection[str]) -> list[str]:
    """The columns that hold each text once and then its number, as far as Arrow can leave them so."""
    can: set[str] = set()
    cannot: set[str] = set()
    for column in (column for group in groups for column in group.columns):
        if column.has_dictionary and _is_within(column, names):
            (can if _LEFT_AS_NUMBERS.issuperset(column.encodings) else cannot).add(".".join(column.path))
    return sorted(can - cannot)


def _is_within(column: Column, names: Collection[str]) -> bool:
    return any(name in names for name in accumulate(column.path, "{}.{}".format))


def _cells(pyarrow: Any, column: Any, kind: Any) -> Iterator[str]:
    """A column's texts, as the type that it has in the file; values that are too long for a cell are not made Python's."""
    sizes = _text_bytes(pyarrow, column)
    too_long = sizes > 4 * MAX_CELL_LETTERS
    for start in range(0, len(column), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        part = column[rows]
        if not too_long[rows].any():
            yield from map(cell_text, values_of(pyarrow, part.cast(kind)))
            continue
        others = iter(values_of(pyarrow, part.filter(pyarrow.array(~too_long[rows])).cast(kind)))
        for size, is_long in zip(sizes[rows], too_long[rows], strict=True):
            yield no_cell(f"a value of {size:,} bytes") if is_long else cell_text(next(others))


def _text_bytes(pyarrow: Any, column: Any) -> np.ndarray:
    """The bytes of the text in each value, and one for each item of a list; 0 for values that are no texts."""
    types, kind = pyarrow.types, column.type
    if types.is_dictionary(kind):
        of_text = np.append(_text_bytes(pyarrow, column.dictionary), 0)
        return np.take(of_text, np.asarray(column.indices.fill_null(len(of_text) - 1)))
    if types.is_list(kind) or types.is_large_list(kind):
        ends = np.append(0, np.cumsum(_text_bytes(pyarrow, column.values) + 1))
        return np.diff(ends[np.asarray(column.offsets)])
    if _is_text(pyarrow, kind):
        from pyarrow import compute

        return np.asarray(compute.binary_length(column).fill_null(0), dtype=np.int64)
    return np.zeros(len(column), dtype=np.int64)


def _is_text(pyarrow: Any, kind: Any) -> bool:
    """Whether a column's values are texts, or lists of them."""
    types = pyarrow.types
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_text(pyarrow, kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind))


def import_parquet(table: Path) -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(f"{table}: Parquet needs pyarrow: pip install 'msrn[data]'.") from error
    return pyarrow, parquet


def values_of(pyarrow: Any, column: Any) -> list[Any]:
    """A column as Python's values; dates and times as text, for Arrow has years and zones that Python lacks."""
    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if pyarrow.types.is_temporal(kind):
        try:
            column = column.cast(pyarrow.string())
        except pyarrow.ArrowInvalid:  # a time zone that is not known here
            column = column.cast(pyarrow.timestamp(kind.unit, "UTC")).cast(pyarrow.string())
    values: list[Any] = column.to_pylist()
    return values


def _is_cell(pyarrow: Any, kind: Any) -> bool:
    """Whether a column's values are texts, numbers, dates, or lists; embeddings and images stay unread."""
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_cell(pyarrow, kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        item = kind.value_type.value_type if types.is_dictionary(kind.value_type) else kind.value_type
        return types.is_null(item) or not (
            types.is_floating(item) or types.is_temporal(item) or types.is_nested(item) or not _is_cell(pyarrow, item)
        )
    return not (
        types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind) or types.is_duration(kind)
    )
