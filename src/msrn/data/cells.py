"""What a cell says of labels: the same words in every table, column and label file.

Values come as text. A list is marked as one, so that a label in it may hold a separator; what can be no cell, such as a
dictionary, is marked too, so that it is refused where a label is expected and ignored elsewhere.
"""

import ast
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int8

from msrn.data.source import new_target

LABEL_SEPARATORS = ("|", ";", ",")

# In a label column, a cell that says: looked at, and nothing is present. A blank cell says that nobody looked.
NOTHING_PRESENT = "[]"

MAX_CELL_LETTERS = 131_072  # where Python's reader of CSV stops, too

_UNKNOWN_CELLS = frozenset({"", "nan", "?", "-1", "-1.0"})
_PRESENT_CELLS = frozenset({"1", "1.0", "true", "yes"})
_ABSENT_CELLS = frozenset({"0", "0.0", "false", "no"})

# As the bytes of an int8, in which -1 is 255.
BYTE_OF_CELL = {
    **dict.fromkeys(_UNKNOWN_CELLS, 255),
    **dict.fromkeys(_PRESENT_CELLS, 1),
    **dict.fromkeys(_ABSENT_CELLS, 0),
}

# Control characters that no label holds. (str.strip takes the usual ones, \x1c to \x1f, for blanks.)
_NO_CELL = "\x01"
_LIST = "\x02"

# Guards ast.literal_eval, which would read numpy's "['sky' 'sea']" as one label.
# Possessive (*+), so that no cell takes time.
_ITEM = r"""\s*+(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|[\w.+-]++)\s*+"""
_LIST_LITERAL = re.compile(rf"\[(?:{_ITEM}(?:,{_ITEM})*,?)?\s*\]", re.DOTALL)


# What a spreadsheet takes for the beginning of a formula, and may run. A number with a sign is none.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_SIGNED_NUMBER = re.compile(r"[+-][0-9]+([.,][0-9]+)?")


def cell_text(value: Any) -> str:
    """A value of Parquet or JSON as the text that a CSV would hold: null and NaN are blank, what is too long is no cell.

    Example:
        >>> cell_text(None), cell_text(True), cell_text(3.0), cell_text([])
        ('', '1', '3', '[]')
    """
    if isinstance(value, str):
        return value if len(value) <= MAX_CELL_LETTERS else no_cell(f"a text of {len(value):,} letters")
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list):
        if any(isinstance(item, dict) or (isinstance(item, list) and item) for item in value):
            return no_cell(value)
        items = list(map(cell_text, value))
        if any(item.startswith((_NO_CELL, _LIST)) for item in items):
            return no_cell(value)
        text = list_text(items)
        return text if len(text) <= MAX_CELL_LETTERS else no_cell(f"a list of {len(text):,} letters")
    if isinstance(value, dict):
        return no_cell(value)
    return str(value)


def list_text(labels: Iterable[str]) -> str:
    """A list of labels as text, whatever characters they hold."""
    return "".join(_LIST + label for label in labels) or NOTHING_PRESENT


def no_cell(value: object) -> str:
    """The text of a value that is nothing a cell can hold."""
    try:
        return f"{_NO_CELL}{value}"
    except RecursionError:  # of values within each other, hundreds deep
        return f"{_NO_CELL}a {type(value).__name__} of values too deep to show"


def is_unknown(cell: str) -> bool:
    """Whether a cell says that nothing is known."""
    return cell.strip().lower() in _UNKNOWN_CELLS


def is_plain(cell: str) -> bool:
    """Whether a cell is a single text, neither a list nor what no cell can hold."""
    return not cell.startswith((_NO_CELL, _LIST))


def shown(cell: str) -> str:
    """A cell for an error's text."""
    text = str(cell.split(_LIST)[1:]) if cell.startswith(_LIST) else cell.lstrip(_NO_CELL)
    return text if len(text) <= 80 else f"{text[:77]}..."


def looks_computed(cell: str) -> bool:
    """Whether a spreadsheet would compute a cell in place of showing it.

    Example:
        >>> looks_computed("=1+1"), looks_computed("-1"), looks_computed("1-1")
        (True, False, False)
    """
    return cell.startswith(_FORMULA) and not _SIGNED_NUMBER.fullmatch(cell)


def path_cell(path: str) -> str:
    """A path as a table's cell: in another way of writing it where it would begin as formulas do."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def labels_cell(labels: Sequence[str]) -> str:
    """Labels of an image as the cell of a label column, which `LabelCells` takes for these and no others.

    Joined by "|", or a list where a label would be read as something else or begins as formulas do.

    Example:
        >>> labels_cell(["cat", "dog"]), labels_cell(["a, b"]), labels_cell([])
        ('cat|dog', '["a, b"]', '[]')
    """
    if not labels:
        return NOTHING_PRESENT
    if all(map(_stands_alone, labels)):
        return LABEL_SEPARATORS[0].join(labels)
    return json.dumps(list(labels), ensure_ascii=False)


def can_be_listed(label: str) -> bool:
    """Whether a list may hold a label: not blanks around it, a carriage return, or what means unknown there, such as ?."""
    return "\r" not in label and LabelCells([json.dumps([label], ensure_ascii=False)]).label_names == (label,)


@lru_cache(maxsize=1 << 16)
def _stands_alone(label: str) -> bool:
    """Whether a label may stand in a cell as it is; otherwise in a list."""
    has_other_meaning = label.startswith(("[", *_FORMULA)) or any(sign in label for sign in LABEL_SEPARATORS)
    return not has_other_meaning and LabelCells([label]).label_names == (label,)


class LabelCells:
    """What the distinct cells of a label column name.

    Args:
        cells: The cells.
        separator: What stands between two labels; by default the first of `|`, `;` and `,` that occurs in any cell that
            is no list.

    Attributes:
        labels_of_cell: The labels that each cell names; None where it knows nothing.
        bad_cells: Cells that name no labels at all: dictionaries, lists that cannot be parsed, and labels beside an item
            that means unknown. They know nothing.

    Example:
        >>> LabelCells(["cat|dog", "['cat, wild']", "[]", "?"]).labels_of_cell
        {'cat|dog': ('cat', 'dog'), "['cat, wild']": ('cat, wild',), '[]': (), '?': None}
    """

    def __init__(self, cells: Iterable[str], separator: str | None = None) -> None:
        self.labels_of_cell: dict[str, tuple[str, ...] | None] = {}
        self.bad_cells: set[str] = set()
        separated: list[str] = []
        for cell in dict.fromkeys(cells):
            text = cell.strip()
            if is_unknown(text):
                self.labels_of_cell[cell] = None
            elif text == NOTHING_PRESENT:
                self.labels_of_cell[cell] = ()
            elif text.startswith(_LIST):
                self._note_labels(cell, text.split(_LIST))
            elif text.startswith(_NO_CELL):
                self._note_bad(cell)
            elif text.startswith("[") and text.endswith("]"):
                labels = _parse_list(text)
                if labels is None:
                    self._note_bad(cell)
                else:
                    self.labels_of_cell[cell] = ()
                    if labels:
                        self._note_labels(cell, labels)
            else:
                self.labels_of_cell[cell] = None  # keeps the order of cells
                separated.append(cell)
        if separator is None:
            separator = next((s for s in LABEL_SEPARATORS if any(s in cell for cell in separated)), None)
        for cell in separated:
            self._note_labels(cell, cell.split(separator) if separator else (cell,))

    def _note_labels(self, cell: str, labels: Iterable[str]) -> None:
        """The labels of a cell. One that says "unknown" beside a label is no cell: which labels would be unknown?"""
        found = [label.strip() for label in labels if label.strip()]
        unknown = sum(map(is_unknown, found))
        if 0 < unknown < len(found):
            self._note_bad(cell)
        else:
            self.labels_of_cell[cell] = None if unknown or not found else tuple(found)

    def _note_bad(self, cell: str) -> None:
        self.bad_cells.add(cell)
        self.labels_of_cell[cell] = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """All labels, sorted by name; whole numbers by value."""
        return sorted_labels({label for labels in self.labels_of_cell.values() for label in labels or ()})

    def target(self, cells: Sequence[str], label_names: Sequence[str]) -> Int8[np.ndarray, "N L"]:
        """One row a cell: 1 for the labels it names, 0 for the others, -1 where nothing is known.

        Labels that are not in `label_names` are left out.
        """
        target = new_target(len(cells), len(label_names))
        column_of_label = {label: column for column, label in enumerate(label_names)}
        columns_of_cell = {
            cell: None if labels is None else [column_of_label[label] for label in labels if label in column_of_label]
            for cell, labels in self.labels_of_cell.items()
        }
        columns = [columns_of_cell[cell] for cell in cells]
        target[[row for row, of_row in enumerate(columns) if of_row is None]] = -1
        present_rows = np.repeat(np.arange(len(columns)), [len(of_row or ()) for of_row in columns])
        target[present_rows, [column for of_row in columns for column in of_row or ()]] = 1
        return target


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels by name; by value where all are whole numbers.

    Example:
        >>> sorted_labels({"10", "9"}), sorted_labels({"10", "9", "cat"})
        (('9', '10'), ('10', '9', 'cat'))
    """
    found = list(labels)
    if all(label.isdecimal() for label in found):
        return tuple(sorted(found, key=_value))
    return tuple(sorted(found))


def _value(label: str) -> tuple[int, str, str]:
    """What orders whole numbers, however many digits they have: Python reads no more than 4,300 of them at once."""
    digits = "".join(str(unicodedata.decimal(sign)) for sign in label).lstrip("0")
    return len(digits), digits, label


def _parse_list(text: str) -> list[str] | None:
    """The items of a Python or JSON list of strings or numbers; None for what is none."""
    if not _LIST_LITERAL.fullmatch(text):
        return None
    for parse in (json.loads, ast.literal_eval):
        try:
            return list(map(cell_text, parse(text)))
        except (ValueError, SyntaxError):
            continue
    return None
