"""Splits on disk: a table that is a data set itself, and a file beside it that says how it was made."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8

from msrn.data.cells import can_be_listed, labels_cell, looks_computed, path_cell, sorted_labels
from msrn.data.huggingface import HUB_PREFIX, DatasetImage
from msrn.data.open import open_source
from msrn.data.packed import PackedImage, TarMember
from msrn.data.source import SPLITS, LabelledImages
from msrn.data.split import check_disjoint, relative_names, split_hash
from msrn.data.table import LABEL_COLUMNS
from msrn.errors import DataError, MissingDependencyError
from msrn.files import is_utf8, read_bounded, replace_file, write_json

SUFFIXES = (".csv", ".tsv", ".parquet")
_ROWS_AT_ONCE = 65536
_MAX_SIDECAR_BYTES = 256 << 20  # it has the names of all labels, some of them twice
_CELL_OF_VALUE = {1: "1", 0: "0", -1: ""}


def sidecar_path(table: str | Path) -> Path:
    """Where `write_split` says how a table was made: `photos.split.json` beside `photos.csv`."""
    return Path(table).with_suffix(".split.json")


def write_split(
    table: str | Path,
    splits: Sequence[LabelledImages],
    *,
    extra_column: tuple[str, Mapping[str, Sequence[str]]] | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write splits as a table that `open_source` reads back, and a JSON file beside it; see `sidecar_path`.

    The table has the columns path, labels and split, a row's labels joined by "|" (as a list where they hold a separator, or begin
    as a spreadsheet's formulas do; such a path has "./" before it),
    `[]` where none is present and a blank where none is known. Labels that are unknown for some images only, or present in
    none, take one column a label instead: 1, 0 or blank. Paths are relative to the table's folder.

    Args:
        table: The .csv, .tsv or .parquet file.
        splits: Each named train, val or test, with the same labels.
        extra_column: Name of one more column, such as that of groups, and its cells by split. Only a table with a column of
            labels has room for it.
        about: What the JSON file tells besides: how the split was made.
        overwrite: Whether files that exist are replaced, if they are of this table.

    Returns:
        What the JSON file holds: `about`, then `table` (its name), its `columns` and `sha256` (of its bytes), `label_names` in
        the order in which the table is read, and for each of `splits` its `images` and the `sha256` of `split_hash`.

    Raises:
        ValueError: No splits, names other than train, val and test, or labels that differ.
        DataError: The table exists, or a JSON file that is not of it, its suffix is none of these, or paths or labels that no
            table can hold; the message names them.
        MissingDependencyError: Parquet needs pyarrow.
    """
    table = Path(table).expanduser()
    if not splits or len({part.label_names for part in splits}) != 1:
        raise ValueError("splits must be one or more with the same label_names.")
    names = [part.split for part in splits]
    if len(set(names)) != len(names) or not set(names) <= set(SPLITS):
        raise ValueError(f"splits must be named train, val and test, each once, got {names}.")
    check_is_free(table, overwrite=overwrite)
    check_disjoint(*splits)
    ordered = sorted(splits, key=lambda part: SPLITS.index(part.split))
    if _fits_label_column(ordered):
        ordered = [_sort_labels(part) for part in ordered]
        header, rows = ["path", "labels", "split"], _label_column_rows
        if extra_column is not None and extra_column[0].lower() not in (*header, *LABEL_COLUMNS):
            name, cells_of_split = extra_column
            _check_groups(table, [name, *chain.from_iterable(cells_of_split.values())])
            header, rows = [*header, name], partial(_rows_with_extra, cells_of_split)
    else:
        _check_columns(table, ordered[0].label_names)
        header, rows = ["path", "split", *ordered[0].label_names], _column_a_label_rows
    cells = (row for part in ordered for row in rows(part, _path_cells(part, table.parent)))
    with replace_file(table) as temporary:
        if table.suffix.lower() == ".parquet":
            _write_parquet(temporary, header, cells)
        else:
            delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
            with temporary.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
                writer.writerow(header)
                writer.writerows(cells)
        sidecar = {
            **(about or {}),
            "table": table.name,
            "columns": header,
            "sha256": _file_hash(temporary),
            "label_names": list(ordered[0].label_names),
            "splits": {
                part.split: {"images": len(part), "sha256": split_hash(part, root=table.parent)} for part in ordered
            },
        }
        # Ahead of the table: one without it would be taken for somebody's own, which nothing replaces. An earlier table that
        # a stop leaves beside the new file does not agree with it, which `verify_split` says.
        write_json(sidecar_path(table), sidecar)
    return sidecar


def verify_split(table: str | Path, *, allow_outside: bool = False) -> dict[str, Any]:
    """Check that a table is still what `write_split` wrote: its bytes, its splits as they are read, no image in two.

    Args:
        table: The table.
        allow_outside: Whether its paths may lead out of its folder.

    Returns:
        What the JSON file beside the table holds.

    Raises:
        DataError: There is no such table or no JSON file beside it, or they differ, or images lie outside of its folder;
            the message says in what.
    """
    table = Path(table).expanduser()
    sidecar = sidecar_path(table)
    try:
        said = _read_sidecar(sidecar)
        expected = {name: (part["images"], part["sha256"]) for name, part in said["splits"].items()}
        table_hash = said["sha256"]
    except OSError as error:
        raise DataError(
            f"{sidecar}: {error.strerror or error}. It is written beside the table by msrn data split; bring it along, or split "
            "again."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{sidecar} is not what msrn data split writes ({error}). Split again.") from error
    if not table.is_file():
        raise DataError(f"{table} does not exist. Pass the table that {sidecar.name} belongs to.")
    if _file_hash(table) != table_hash:
        raise DataError(
            f"{table} was changed after it was split, or another split was stopped before it took its place: its SHA-256 is not "
            f"the one of {said.get('table')} in {sidecar.name}. Bring the table back, or split again, with --force."
        )
    source = open_source(table, allow_outside=allow_outside)
    splits = [source.read(name) for name in source.splits]
    check_disjoint(*splits)
    found = {part.split: (len(part), split_hash(part, root=table.parent)) for part in splits}
    different = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if different:
        raise DataError(
            f"{table} is read otherwise than it was written, in {', '.join(different)}: images or labels differ from "
            f"{sidecar.name}. Split again."
        )
    return dict(said)


def check_is_free(table: Path, *, overwrite: bool) -> None:
    """Refuse a table that cannot be written, before any work is done for it.

    Raises:
        DataError: An unknown suffix, a file that exists and is not to be replaced, or one that `write_split` did not write for
            a table of this name.
    """
    if table.suffix.lower() not in SUFFIXES:
        raise DataError(f"{table}: expected a name that ends in {', '.join(SUFFIXES)}. Choose one of these formats.")
    sidecar = sidecar_path(table)
    if sidecar.exists():
        told = _told_table(sidecar)
        if told is None:
            raise DataError(
                f"{sidecar} was not written by msrn data split; it is left alone. Choose another name, or delete it."
            )
        if told != table.name:
            raise DataError(
                f"{sidecar} tells of {told}, which would be lost; it is left alone. Choose another name than {table.stem}."
            )
    elif overwrite and table.exists():
        raise DataError(
            f"{table} was not written by msrn data split; it is left alone. Choose another name, or delete it."
        )
    for path in (table, sidecar):
        if path.exists() and not overwrite:
            raise DataError(f"{path} exists. Choose another name, or replace it by --force (overwrite=True).")


def _read_sidecar(sidecar: Path) -> Any:
    """The JSON beside a table, whatever it holds.

    Raises:
        OSError: It cannot be read.
        ValueError, RecursionError: It is no JSON.
    """
    return json.loads(read_bounded(sidecar, _MAX_SIDECAR_BYTES))


def _told_table(sidecar: Path) -> str | None:
    """The name of the table that a JSON file tells of, or None if `write_split` did not write it."""
    try:
        said = _read_sidecar(sidecar)
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(said, dict) and {"table", "columns", "sha256", "label_names", "splits"} <= said.keys()
    return said["table"] if is_ours and isinstance(said["table"], str) else None


def _fits_label_column(splits: Sequence[LabelledImages]) -> bool:
    """Whether a cell can hold each label, every image is all known or all unknown, and every label is in some image."""
    if not all(map(can_be_listed, splits[0].label_names)):
        return False
    is_present = np.zeros(len(splits[0].label_names), dtype=np.bool_)
    for part in splits:
        for target in _blocks(part.target):
            is_unknown = target == -1
            if (is_unknown.any(axis=1) != is_unknown.all(axis=1)).any():
                return False
            is_present |= (target == 1).any(axis=0)
    return bool(is_present.all())


def _sort_labels(part: LabelledImages) -> LabelledImages:
    """With labels in the order in which a label column is read."""
    names = sorted_labels(part.label_names)
    if names == part.label_names:
        return part
    column = {name: i for i, name in enumerate(part.label_names)}
    return LabelledImages(part.paths, part.target[:, [column[name] for name in names]], names, part.split)


def _label_column_rows(part: LabelledImages, paths: list[str]) -> Iterator[list[str]]:
    path = iter(paths)
    for target in _blocks(part.target):
        rows, columns = np.nonzero(target == 1)
        ends = np.cumsum(np.bincount(rows, minlength=len(target))).tolist()
        present = columns.tolist()
        start = 0
        # The first entry tells, as a row is all known or all unknown.
        for end, first in zip(ends, target[:, 0].tolist(), strict=True):
            labels = [part.label_names[column] for column in present[start:end]]
            cell = "" if first == -1 else labels_cell(labels)
            yield [next(path), cell, part.split]
            start = end


def _rows_with_extra(
    cells_of_split: Mapping[str, Sequence[str]], part: LabelledImages, paths: list[str]
) -> Iterator[list[str]]:
    for row, cell in zip(_label_column_rows(part, paths), cells_of_split[part.split], strict=True):
        yield [*row, cell]


def _column_a_label_rows(part: LabelledImages, paths: list[str]) -> Iterator[list[str]]:
    path = iter(paths)
    for target in _blocks(part.target):
        for values in target.tolist():
            yield [next(path), part.split, *map(_CELL_OF_VALUE.__getitem__, values)]


def _check_columns(table: Path, label_names: Sequence[str]) -> None:
    """Refuse labels that would be read as something else when they head a column."""
    taken = {"path", "split", *LABEL_COLUMNS}
    blank = next((name for name in label_names if name != name.strip() or not name or "\r" in name), None)
    if blank is not None:
        raise DataError(
            f"{table}: the label {blank!r} cannot stand in a table. Rename it: no blanks around it, no carriage return in it."
        )
    bad = [name for name in label_names if name.lower() in taken]
    if bad:
        raise DataError(
            f"{table}: labels {', '.join(map(repr, bad))} cannot head a column, which they need here. "
            "Rename them: none of " + ", ".join(sorted(taken)) + "."
        )
    _check_not_computed(table, "label", label_names)
    header = ",".join(["path", "split", *label_names]).splitlines()[0]
    if table.suffix.lower() == ".csv" and max(",;\t", key=header.count) != ",":
        raise DataError(
            f"{table}: labels hold so many ; that they would be read as the delimiter. Write a .tsv instead."
        )


def _check_groups(table: Path, texts: Sequence[str]) -> None:
    """Refuse what a column of groups cannot hold."""
    bad = next((text for text in texts if not is_utf8(text)), None)
    if bad is not None:
        raise DataError(f"{table}: the group {bad!r} is not UTF-8 and cannot stand in a table. Rename it.")
    _check_not_computed(table, "group", texts)


def _check_not_computed(table: Path, what: str, texts: Iterable[str]) -> None:
    """Refuse what can only stand as it is, and would be a formula to a spreadsheet."""
    if table.suffix.lower() == ".parquet":
        return
    bad = next((text for text in texts if looks_computed(text)), None)
    if bad is not None:
        raise DataError(
            f"{table}: the {what} {bad!r} cannot head a column or be a cell, since a spreadsheet would run it as a formula. "
            "Rename it, or write a .parquet instead."
        )


def _can_be_named(image: PackedImage) -> bool:
    """Whether `TableSource` finds a packed image by its path."""
    return isinstance(image, TarMember) or (isinstance(image, DatasetImage) and not image.root.startswith(HUB_PREFIX))


def _path_cells(part: LabelledImages, folder: Path) -> list[str]:
    packed = next((p for p in part.paths if isinstance(p, PackedImage) and not _can_be_named(p)), None)
    if packed is not None:
        raise DataError(
            f"{packed} is packed in a file that a table of paths cannot point into. Split sources of image files, of tar "
            "archives or of data sets on disk, or write these images out as files first."
        )
    names = relative_names(part, folder)
    bad = next((name for name in names if name != name.strip() or "\r" in name or not is_utf8(name)), None)
    if bad is not None:
        raise DataError(
            f"the path {bad!r} cannot stand in a table: blanks around it, a carriage return in it, or a name that is not "
            "UTF-8. Rename the file."
        )
    return list(map(path_cell, names))


def _write_parquet(path: Path, header: list[str], rows: Iterator[list[str]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError("writing Parquet needs pyarrow: pip install 'msrn[data]'.") from error
    schema = pa.schema([(name, pa.string()) for name in header])
    with pq.ParquetWriter(path, schema) as writer:
        for block in _batched(rows, _ROWS_AT_ONCE):
            columns = [list(column) for column in zip(*block, strict=True)]
            writer.write_table(pa.table(dict(zip(header, columns, strict=True)), schema=schema))


def _batched(rows: Iterator[list[str]], size: int) -> Iterator[list[list[str]]]:
    while block := list(islice(rows, size)):
        yield block


def _blocks(target: Int8[np.ndarray, "N L"]) -> Iterator[Int8[np.ndarray, "n L"]]:
    return (target[start : start + _ROWS_AT_ONCE] for start in range(0, len(target), _ROWS_AT_ONCE))


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
