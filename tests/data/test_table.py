import time
from pathlib import Path

import pytest

from msrn.data.table import TableSource, find_tables
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "photos.csv"


def names(images) -> list[str]:
    return [path.name for path in images.paths]


# A label column


def test_label_column(table: Path) -> None:
    source = TableSource(write(table, "path,labels,split", "b.jpg,dog|cat,train", "a.jpg,cat,train", "c.jpg,owl,test"))
    assert source.label_names == ("cat", "dog", "owl")
    assert source.splits == ("train", "test")
    train = source.read("train")
    assert train.paths == (table.parent / "b.jpg", table.parent / "a.jpg")
    assert train.target.tolist() == [[1, 1, 0], [1, 0, 0]]
    assert source.read("test").target.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("blank", ["", "  ", "NaN", "nan", "?", "-1"])
def test_blank_label_cell_is_unknown_and_brackets_are_none_present(table: Path, blank: str) -> None:
    source = TableSource(write(table, "path,labels", f"a.jpg,{blank}", "b.jpg,[]", "c.jpg,cat|dog"))
    assert source.read("train").target.tolist() == [[-1, -1], [0, 0], [1, 1]]


@pytest.mark.parametrize(("cell", "labels"), [("a|b;c|d", "a b;c d"), ("a;b", "a b"), ('"a,b"', "a b"), ("a b", "a_b")])
def test_separator_is_found(table: Path, cell: str, labels: str) -> None:
    source = TableSource(write(table, "path,tags", f"x.jpg,{cell}"))
    assert source.label_names == tuple(label.replace("_", " ") for label in labels.split(" "))


def test_one_separator_for_the_whole_table(table: Path) -> None:
    source = TableSource(write(table, "path,labels", 'a.jpg,"New York, city"', "b.jpg,park|tree"))
    assert source.label_names == ("New York, city", "park", "tree")


def test_space_separates_only_when_asked(table: Path) -> None:
    write(table, "path,labels", "a.jpg,red car", "b.jpg, car ")
    assert TableSource(table).label_names == ("car", "red car")
    assert TableSource(table, label_separator=" ").label_names == ("car", "red")
    with pytest.raises(DataError, match="label_separator must not be empty"):
        TableSource(table, label_separator="")


def test_label_names_fix_the_order_and_refuse_others(table: Path) -> None:
    write(table, "path,labels", "a.jpg,dog|cat")
    source = TableSource(table, label_names=["dog", "owl", "cat"])
    assert source.label_names == ("dog", "owl", "cat")
    assert source.read("train").target.tolist() == [[1, 0, 1]]
    with pytest.raises(DataError, match="1 labels that are not in label_names: cat"):
        TableSource(table, label_names=["dog"])
    with pytest.raises(DataError, match="distinct names"):
        TableSource(table, label_names=["dog", "dog", "cat"])


def test_no_label_at_all(table: Path) -> None:
    write(table, "path,labels", "a.jpg,", "b.jpg,[]")
    with pytest.raises(DataError, match="names no label: all its cells are blank"):
        TableSource(table)
    assert TableSource(table, label_names=["cat"]).read("train").target.tolist() == [[-1], [0]]


# One column a label


def test_one_column_a_label_keeps_the_order_of_columns(table: Path) -> None:
    source = TableSource(write(table, "dog,filename,cat", "1,a.jpg,0", ",b.jpg,?", "NaN,c.jpg,-1", "0.0,d.jpg,1.0"))
    assert source.label_names == ("dog", "cat")
    target = source.read("train").target
    assert target.tolist() == [[1, 0], [-1, -1], [-1, -1], [0, 1]]
    target[0, 0] = 0  # a copy: it may be written to, and torch.from_numpy does not warn


def test_words_of_either_case_and_spaces(table: Path) -> None:
    source = TableSource(write(table, "path,a,b,c,d", "x.jpg,True,FALSE, yes ,No"))
    assert source.read("train").target.tolist() == [[1, 0, 1, 0]]


def test_other_values_are_named_by_file_line_and_column(table: Path) -> None:
    write(table, "path,cat,width", "a.jpg,1,640")
    with pytest.raises(DataError, match=r"photos.csv:2: column 'width': expected 1 or 0 .* got '640'\. .*label_names"):
        TableSource(table)
    assert TableSource(table, label_names=["cat"]).read("train").target.tolist() == [[1]]
    with pytest.raises(DataError, match="no column for 1 of label_names: dog"):
        TableSource(table, label_names=["cat", "dog"])


def test_index_column_of_pandas_is_ignored(table: Path) -> None:
    assert TableSource(write(table, ",path,cat", "0,a.jpg,1", "17,b.jpg,0")).label_names == ("cat",)


# Columns and splits


@pytest.mark.parametrize("column", ["path", "filepath", "file", "filename", "image", "image_path", "Image"])
def test_path_column_is_recognised(table: Path, column: str) -> None:
    assert names(TableSource(write(table, f"label,{column}", "cat,a.jpg")).read("train")) == ["a.jpg"]


def test_named_columns(table: Path) -> None:
    write(table, "where,what,when,labels", "a.jpg,cat,dev,x", "b.jpg,dog,training,y")
    source = TableSource(table, path_column="where", label_column="what", split_column="when")
    assert source.label_names == ("cat", "dog")
    assert names(source.read("val")) == ["a.jpg"]
    with pytest.raises(DataError, match=r"photos.csv:1: no path column 'who', only: where, what, when, labels"):
        TableSource(table, path_column="who")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[(name, "train") for name in ("train", "Training")],
        *[(name, "val") for name in ("val", "valid", "validation", "dev")],
        *[(name, "test") for name in ("test", " testing ")],
    ],
)
def test_names_of_splits(table: Path, name: str, split: str) -> None:
    assert TableSource(write(table, "path,label,subset", f"a.jpg,cat,{name}")).splits == (split,)


def test_unknown_split(table: Path) -> None:
    with pytest.raises(DataError, match=r"photos.csv:3: expected the split to be train, val or test, got 'holdout'"):
        TableSource(write(table, "path,label,split", "a.jpg,cat,train", "b.jpg,cat,holdout"))


def test_a_table_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "path,labels", "a.jpg,dog")
    write(tmp_path / "valid.csv", "path,labels", "b.jpg,cat")
    write(tmp_path / "test.tsv", "path\tlabels", "c.jpg\tdog,owl")
    source = TableSource(tmp_path)
    assert source.splits == ("train", "val", "test")
    assert source.label_names == ("cat", "dog", "owl")
    assert source.read("test").target.tolist() == [[0, 1, 1]]


def test_a_table_a_split_must_have_the_same_label_columns(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "path,dog,cat", "a.jpg,1,0")
    write(tmp_path / "val.csv", "path,cat,dogs", "b.jpg,1,0")
    with pytest.raises(DataError, match=r"val.csv and train.csv have different label columns: dog, dogs\."):
        TableSource(tmp_path)
    write(tmp_path / "val.csv", "path,cat,dog", "b.jpg,1,0")
    with pytest.raises(DataError, match="only their order"):
        TableSource(tmp_path)
    source = TableSource(tmp_path, label_names=["cat", "dog"])
    assert (source.read("train").target.tolist(), source.read("val").target.tolist()) == ([[0, 1]], [[1, 0]])
    write(tmp_path / "val.csv", "path,labels", "b.jpg,dog")
    with pytest.raises(DataError, match="differ: one has a label column"):
        TableSource(tmp_path)


def test_split_column_may_not_contradict_the_table(tmp_path: Path) -> None:
    write(tmp_path / "val.csv", "path,label,split", "a.jpg,cat,valid", "b.jpg,cat,train")
    with pytest.raises(
        DataError, match=r"val.csv:3: expected the split to be 'val', as the table's name says, got 'train'"
    ):
        TableSource(tmp_path)


def test_two_tables_of_one_split(tmp_path: Path) -> None:
    for name in ("val.csv", "valid.csv"):
        write(tmp_path / name, "path,label", "a.jpg,cat")
    with pytest.raises(DataError, match=r"two tables of split 'val': val.csv and valid.csv"):
        TableSource(tmp_path)


def test_which_tables_a_folder_holds(tmp_path: Path) -> None:
    assert find_tables(tmp_path) == find_tables(tmp_path / "missing") == {}
    single = write(tmp_path / "any.csv", "path,label", "a.jpg,cat")
    assert find_tables(tmp_path) == find_tables(single) == {None: single}
    write(tmp_path / "._any.csv", "macOS leaves these")
    other = write(tmp_path / "labels.csv", "path,label", "a.jpg,cat")
    assert find_tables(tmp_path) == {None: other}
    train = write(tmp_path / "train.csv", "path,label", "a.jpg,cat")
    assert find_tables(tmp_path) == {"train": train}
    with pytest.raises(SourceNotFoundError, match=r"is no table: expected a \.csv or \.tsv file"):
        TableSource(tmp_path / "missing")


# Bad tables


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], r"photos.csv:1: expected a column of paths \(path, .*\), got: no header"),
        (["a.jpg,cat"], r"expected a column of paths .* got: a.jpg, cat\. Name one so"),
        (["path"], r"expected a label column \(labels, label, tags\) or one column a label, got only path"),
        (["path,cat,cat"], "the header repeats cat"),
        (["path,label", "a.jpg"], r"photos.csv:2: expected 2 fields as in the header, got 1"),
        (["path,label", "a.jpg,cat,dog"], r"photos.csv:2: expected 2 fields as in the header, got 3"),
        (["path,label", " ,cat"], r"photos.csv:2: the column 'path' is blank"),
        (["path,label", 'a.jpg,"cat'], r"photos.csv:\d+: unexpected end of data\. Check the quotes"),
        (["path,label", 'a.jpg,"cat" x'], r"photos.csv:2: .* expected after '\"'\. Check the quotes"),
    ],
)
def test_bad_rows_are_named(table: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TableSource(write(table, *lines))


def test_not_utf8(table: Path) -> None:
    table.write_bytes("path,label\nä.jpg,cat\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"photos.csv: not UTF-8.* Save it as UTF-8"):
        TableSource(table)


def test_header_without_rows(table: Path) -> None:
    source = TableSource(write(table, "path,cat"))
    with pytest.raises(EmptySplitError, match=r"'train' .* holds no images"):
        source.read("train")


def test_duplicates_are_named_with_their_lines(table: Path) -> None:
    write(table, "path,label,split", "a.jpg,cat,train", "x/../a.jpg,dog,train", "./a.jpg,cat,test")
    message = (
        r"2 rows repeat .*: photos.csv:3 repeats line 2: x/../a.jpg, photos.csv:4 repeats line 2: ./a.jpg \(test and"
    )
    with pytest.raises(DataError, match=message):
        TableSource(table)


def test_duplicates_across_tables(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "path,label", "a.jpg,cat")
    write(tmp_path / "test.csv", "path,label", "b.jpg,cat", "a.jpg,cat")
    with pytest.raises(DataError, match=r"test.csv:3 repeats train.csv:2: a.jpg \(test and train\)"):
        TableSource(tmp_path)


# What people's files look like


def test_unicode_spaces_byte_order_mark_blank_lines_and_crlf(table: Path) -> None:
    table.write_bytes("﻿path,labels\r\n\r\nmein foto/Größe 日本.jpg,Kätzchen|犬\r\n,\r\n".encode())
    source = TableSource(table)
    assert source.label_names == ("Kätzchen", "犬")
    assert source.read("train").paths == (table.parent / "mein foto" / "Größe 日本.jpg",)


def test_absolute_paths_stay(table: Path) -> None:
    assert TableSource(write(table, "path,label", "/data/a.jpg,cat")).read("train").paths == (Path("/data/a.jpg"),)


def test_semicolons_between_columns(table: Path) -> None:
    assert TableSource(write(table, "path;cat;dog", "a.jpg;1;0")).read("train").target.tolist() == [[1, 0]]


def test_many_rows_in_bounded_time(tmp_path: Path) -> None:
    num_rows = 30_000
    wide = write(tmp_path / "wide.csv", "path,a,b,c", *(f"images/{i}.jpg,1,0," for i in range(num_rows)))
    tall = write(tmp_path / "tall.csv", "path,labels", *(f"images/{i}.jpg,a|l{i % 100}" for i in range(num_rows)))
    start = time.perf_counter()
    assert len(TableSource(wide).read("train")) == len(TableSource(tall).read("train")) == num_rows
    assert time.perf_counter() - start < 10  # about 0.5 s; a numpy call a row takes longer


def test_spaces_around_paths_are_no_part_of_them(tmp_path):
    (tmp_path / "t.csv").write_text("path, labels, split\na.png, cat, train\n b.png , cat, train\n")
    images = TableSource(tmp_path / "t.csv").read("train")
    assert [path.name for path in images.paths] == ["a.png", "b.png"]


def test_a_table_without_rows_says_so(tmp_path):
    (tmp_path / "t.csv").write_text("path,labels\n")
    with pytest.raises(EmptySplitError, match="has a header and no rows"):
        TableSource(tmp_path / "t.csv")


@pytest.mark.parametrize("labels", ["labels", "cat"])
def test_group_column_is_no_label(table: Path, labels: str) -> None:
    value = {"labels": "cat", "cat": "1"}[labels]
    write(table, f"path,scene,{labels},split", f"a.jpg, park,{value},train", f"b.jpg,,{value},train", f"c.jpg,7,{value},val")
    source = TableSource(table, group_column="scene")
    assert source.label_names == ("cat",)
    assert source.groups("train") == ("park", "")
    assert source.groups("val") == ("7",)
    with pytest.raises(DataError, match="no group column 'patient', only: path, scene"):
        TableSource(table, group_column="patient")
    assert labels == "cat" or TableSource(table).groups("train") is None
