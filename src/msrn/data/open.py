"""Finds the reader for a path."""

from pathlib import Path
from typing import Any

from msrn.data.source import Source
from msrn.data.table import TableSource, find_tables
from msrn.data.voc import VOCSource, find_voc_root
from msrn.errors import DataError, SourceNotFoundError


def open_source(path: str | Path, **table_options: Any) -> Source:
    """Open a data set by its layout: PASCAL VOC, or a table of paths and labels.

    Args:
        path: A folder of PASCAL VOC, a CSV or TSV file, or a folder with `train.csv`, `val.csv`, `test.csv`, with
            `labels.csv`, or with a single table.
        table_options: Arguments of `TableSource`, such as `label_separator`.

    Raises:
        SourceNotFoundError: No such path, or a layout that no reader knows.
        DataError: The data set cannot be read, or table options come with another layout.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise SourceNotFoundError(f"{path} does not exist. Check the path; relative ones start at {Path.cwd()}.")
    if find_voc_root(path) is not None:
        if table_options:
            raise DataError(
                f"{path} is PASCAL VOC, which has no options, got {', '.join(table_options)}. Leave these out."
            )
        return VOCSource(path)
    if find_tables(path):
        return TableSource(path, **table_options)
    raise SourceNotFoundError(
        f"{path} has no layout that msrn knows: looked for PASCAL VOC (ImageSets/Main), for train.csv, val.csv and "
        "test.csv, for labels.csv and for a single .csv or .tsv file. "
        "Pass the table itself, or write one with the columns path and labels."
    )
