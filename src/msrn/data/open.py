"""Finds the reader for a path."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from msrn.data.huggingface import HUB_PREFIX, HuggingFaceSource
from msrn.data.source import Problem, Source
from msrn.errors import DataError, SourceNotFoundError

# Asked in this order: a layout of many parts before a single table, a table before a bare folder of images.
_READERS = (
    ("msrn.data.voc", "VOCSource"),
    ("msrn.data.coco", "COCOSource"),
    ("msrn.data.nuswide", "NUSWIDESource"),
    ("msrn.data.label_studio", "LabelStudioSource"),
    ("msrn.data.huggingface", "HuggingFaceSource"),
    ("msrn.data.table", "TableSource"),
    ("msrn.data.apparel", "ApparelSource"),
    ("msrn.data.folder", "FolderSource"),
    ("msrn.data.webdataset", "WebDatasetSource"),
)

_REGISTERED: list[type[Source]] = []


def register_source(reader: type[Source]) -> type[Source]:
    """Let `open_source`, and all that opens data by its path, ask a reader of yours first, in this process.

    Its initialiser takes the path, and `problems` by name.

    Example:
        >>> @register_source
        ... class Sketches(Source):
        ...     layout = "sketches"
        ...     def __init__(self, path, *, problems=None): ...
        ...     @classmethod
        ...     def recognises(cls, path):
        ...         return path.suffix == ".sketches"
        >>> _REGISTERED.remove(Sketches)
    """
    _REGISTERED.append(reader)
    return reader


def open_source(
    path: str | Path, *, problems: list[Problem] | None = None, allow_outside: bool = False, **options: Any
) -> Source:
    """Open a data set, whose layout is recognised from the path; docs/data.md lists the layouts.

    Args:
        path: A folder or file, or `hf:owner/name` for a data set on the Hugging Face hub.
        problems: Gathers what is wrong in the data set; by default the first problem raises.
        allow_outside: Let tables and lists name images outside of the data set's folder, which is the table's own.
        options: Arguments of the layout's reader, such as `label_separator` of `TableSource`.

    Raises:
        SourceNotFoundError: No such path, or a layout that no reader knows.
        DataError: The data set cannot be read, or its reader has no such option.
    """
    if str(path).startswith(HUB_PREFIX):
        _check_options(HuggingFaceSource, path, options)
        hub = HuggingFaceSource(path, problems=problems, **options)
        hub.allow_outside = allow_outside
        return hub
    path = Path(path).expanduser()
    if not path.exists():
        raise SourceNotFoundError(f"{path} does not exist. Check the path; relative ones start at {Path.cwd()}.")
    for reader in _readers():
        if reader.recognises(path):
            _check_options(reader, path, options)
            source = reader(path, problems=problems, **options)  # type: ignore[call-arg]
            source.allow_outside = allow_outside
            return source
    looked_for = "; ".join(f"{reader.layout} ({reader.recognised_by})" for reader in _readers())
    raise SourceNotFoundError(
        f"{path} has no layout that msrn knows: looked for {looked_for}. "
        "Pass the table itself, or write one with the columns path and labels."
    )


def _readers() -> Iterator[type[Source]]:
    """Each imported only when it is asked."""
    yield from _REGISTERED
    for module, name in _READERS:
        yield getattr(import_module(module), name)


def _check_options(reader: type[Source], path: str | Path, options: dict[str, Any]) -> None:
    known = inspect.signature(reader).parameters.keys() - {"path", "problems"}
    unknown = [name for name in options if name not in known]
    if unknown:
        has = f"has only the options {', '.join(sorted(known))}" if known else "has no options"
        raise DataError(f"{path} is {reader.layout}, which {has}, got {', '.join(unknown)}. Leave these out.")
