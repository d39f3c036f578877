import pytest
from hypothesis import given
from hypothesis import strategies as st

from msrn.data.cells import LabelCells, cell_text, is_plain, is_unknown, list_text, shown, sorted_labels

LABELS = st.text(min_size=1, max_size=8).filter(
    lambda text: text.strip() == text and not set(text) & {"\x01", "\x02"} and not is_unknown(text)
)


@given(st.lists(st.lists(LABELS, max_size=4), max_size=4))
def test_lists_keep_their_labels_whatever_these_hold(lists: list[list[str]]) -> None:
    cells = [list_text(labels) for labels in lists]
    parsed = LabelCells(cells)
    assert [parsed.labels_of_cell[cell] for cell in cells] == [tuple(labels) for labels in lists]


@given(st.lists(LABELS.filter(lambda text: "|" not in text and "[" not in text), min_size=2, max_size=4))
def test_python_and_json_lists_are_separated_cells_without_a_separator(labels: list[str]) -> None:
    cells = [repr(labels), list_text(labels), "|".join(labels)]
    assert LabelCells(cells).labels_of_cell == dict.fromkeys(cells, tuple(labels))


@pytest.mark.parametrize("value", [{"a": 1}, [["a"]], [{"a": 1}]])
def test_what_is_no_cell(value: object) -> None:
    cell = cell_text(value)
    assert not is_plain(cell)
    assert shown(cell) == str(value)
    assert LabelCells([cell]).bad_cells == {cell}


def test_long_cells_are_shown_in_part() -> None:
    assert shown("x" * 100) == "x" * 77 + "..."


def test_pathological_cells_take_no_time() -> None:
    cells = ["[" + "a " * 10_000 + "]", "['" + "\\'" * 10_000 + "]", "[" + "," * 10_000 + "]", "[" * 5000 + "]" * 5000]
    cells += ["['a'" + " " * 50_000 + "x]", "[" + " " * 50_000 + "'x]"]
    assert LabelCells(cells).bad_cells == set(cells)


@pytest.mark.parametrize("cell", ["['?']", '["-1", "nan"]', "?|-1"])
def test_a_list_of_nothing_but_unknown_is_unknown(cell):
    assert LabelCells([cell, "cat|dog"]).labels_of_cell[cell] is None


@pytest.mark.parametrize("cell", ["cat|?", "['cat', 'nan']", list_text(["cat", "-1"])])
def test_unknown_beside_a_label_is_no_cell(cell):
    cells = LabelCells([cell, "cat|dog"])
    assert cells.bad_cells == {cell}
    assert cells.label_names == ("cat", "dog")


def test_numbers_of_any_length_are_sorted_by_value():
    long = "1" * 5000
    assert sorted_labels([long, "٣", "2", "10", "02", f"0{long}", "0"]) == ("0", "02", "2", "٣", "10", f"0{long}", long)


@pytest.mark.parametrize("depth", [2, 400, 990])
def test_lists_and_objects_deep_within_each_other_are_no_cells(depth: int) -> None:
    for inner in (lambda value: [value], lambda value: {"a": value}):
        value: object = "cat"
        for _ in range(depth):
            value = inner(value)
        cell = cell_text(value)
        assert not is_plain(cell)
        assert LabelCells([cell]).bad_cells == {cell}
    assert cell_text([[]]) == list_text(["[]"])
