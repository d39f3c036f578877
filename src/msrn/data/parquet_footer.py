"""What a Parquet file says of its columns, read from its footer.

Not by pyarrow: its `RowGroupMetaData.column` ends the process at a footer that is damaged.

Source: https://parquet.apache.org/docs/file-format/metadata, and Thrift's compact protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_END = b"PAR1"
_MAX_DEPTH = 64
# Kinds of values in Thrift's compact protocol.
_BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _MAP, _STRUCT = 3, (4, 5, 6), 7, 8, (9, 10), 11, 12
# Fields of the structs FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_ROW_GROUPS, _COLUMNS, _NUM_ROWS, _METADATA = 4, 1, 3, 3
_ENCODINGS, _PATH, _NUM_VALUES, _SIZE, _DICTIONARY = 2, 3, 5, 6, 11


@dataclass
class Column:
    """A column of a row group, or the items of its lists.

    Attributes:
        path: Its name, and for lists what lies within, as in ("labels", "list", "element").
        encodings: How its pages are written, by their numbers in the format.
        num_values: Values, those of lists and nulls counted.
        num_bytes: Of its pages before they are compressed.
        has_dictionary: Whether a page holds each value once, and the others its number.
    """

    path: tuple[str, ...] = ()
    encodings: frozenset[int] = frozenset()
    num_values: int = 0
    num_bytes: int = 0
    has_dictionary: bool = False


@dataclass
class RowGroup:
    """Rows that are written together, with their columns."""

    num_rows: int
    columns: list[Column]


def read_row_groups(path: Path) -> list[RowGroup]:
    """The row groups of a Parquet file.

    Raises:
        OSError: It cannot be read.
        ValueError: Its footer is damaged.
    """
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(max(0, length - 8))
        end = file.read(8)
        size = int.from_bytes(end[:4], "little")
        if end[4:] != _END or size > length - 8:
            raise ValueError("its footer is damaged")
        file.seek(length - 8 - size)
        footer = _Thrift(file.read(size))
    try:
        groups = []
        for field, kind in footer.fields():
            if field == _ROW_GROUPS and kind in _LISTS:
                groups = [_read_row_group(footer) for _ in footer.items(_STRUCT)]
            else:
                footer.skip(kind)
        return groups
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("its footer is damaged") from error


def _read_row_group(footer: "_Thrift") -> RowGroup:
    group = RowGroup(0, [])
    for field, kind in footer.fields():
        if field == _COLUMNS and kind in _LISTS:
            group.columns = [_read_chunk(footer) for _ in footer.items(_STRUCT)]
        elif field == _NUM_ROWS and kind in _INTEGERS:
            group.num_rows = footer.integer()
        else:
            footer.skip(kind)
    return group


def _read_chunk(footer: "_Thrift") -> Column:
    column = Column()
    for field, kind in footer.fields():
        if field == _METADATA and kind == _STRUCT:
            column = _read_column(footer)
        else:
            footer.skip(kind)
    return column


def _read_column(footer: "_Thrift") -> Column:
    column = Column()
    for field, kind in footer.fields():
        if field == _ENCODINGS and kind in _LISTS:
            column.encodings = frozenset(footer.integer() for _ in footer.items(*_INTEGERS))
        elif field == _PATH and kind in _LISTS:
            column.path = tuple(footer.binary().decode() for _ in footer.items(_BINARY))
        elif field == _NUM_VALUES and kind in _INTEGERS:
            column.num_values = footer.integer()
        elif field == _SIZE and kind in _INTEGERS:
            column.num_bytes = footer.integer()
        else:
            column.has_dictionary = column.has_dictionary or field == _DICTIONARY
            footer.skip(kind)
    return column


class _Thrift:
    """Reads values one after another; an IndexError where the data end before them, a ValueError where they are none."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and kind of each field of a struct; its value has to be read, or skipped, before the next."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            yield number, head & 15

    def items(self, *kinds: int) -> Iterator[None]:
        """Once for each item of a list of these kinds, which has to be read."""
        count, kind = self._list()
        if count and kind not in kinds:
            raise ValueError("its footer is damaged")
        for _ in range(count):
            yield

    def integer(self) -> int:
        """A whole number."""
        number = self._length()
        return (number >> 1) ^ -(number & 1)

    def binary(self) -> bytes:
        """Bytes, or a text."""
        size = self._length()
        if size > len(self.data) - self.at:
            raise IndexError
        self.at += size
        return self.data[self.at - size : self.at]

    def skip(self, kind: int, *, is_item: bool = False, depth: int = 0) -> None:
        """Go on behind a value; truths are in the head of a field, and of a byte as items."""
        if depth > _MAX_DEPTH:
            raise ValueError("its footer is damaged")
        if kind in (1, 2, _BYTE):
            self.at += is_item or kind == _BYTE
        elif kind in _INTEGERS:
            self._length()
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            self.binary()
        elif kind in _LISTS:
            count, own = self._list()
            self._skip_items(count, (own,), depth)
        elif kind == _MAP:
            count = self._length()
            kinds = self._byte() if count else 0
            self._skip_items(count, (kinds >> 4, kinds & 15), depth)
        elif kind == _STRUCT:
            for _, own in self.fields():
                self.skip(own, depth=depth + 1)
        else:
            raise ValueError("its footer is damaged")

    def _skip_items(self, count: int, kinds: tuple[int, ...], depth: int) -> None:
        for _ in range(count):
            for kind in kinds:
                self.skip(kind, is_item=True, depth=depth + 1)
            if self.at > len(self.data):
                raise IndexError

    def _list(self) -> tuple[int, int]:
        """How many items a list has, and of what kind."""
        head = self._byte()
        return (self._length() if head >> 4 == 15 else head >> 4), head & 15

    def _length(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number
            if shift > 63:
                raise ValueError("its footer is damaged")

    def _byte(self) -> int:
        byte = self.data[self.at]
        self.at += 1
        return byte
