import csv
import io
import json
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.data.cells import is_unknown
from msrn.data.open import open_source
from msrn.data.packed import TarMember
from msrn.data.source import Problem
from msrn.data.table import TableSource, find_tables
from msrn.errors import DataError, EmptySplitError, MissingDependencyError, SourceNotFoundError


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
    source = TableSource(write(table, "path,labels", f"a.jpg,{blank}", "b.jpg,[ ]", "c.jpg,cat|dog"))
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
        (["path"], r"expected a label column \(labels, label, tags, keywords\) or one column a label, got only path"),
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
    source = open_source(write(table, "path,label", "/data/a.jpg,cat"), allow_outside=True)
    assert source.read("train").paths == (Path("/data/a.jpg"),)


@pytest.mark.parametrize(
    "outside", ["/etc/hosts", "../a.jpg", "x/../../a.jpg", "x/../.././a.jpg", "../{folder}-2/a.jpg"]
)
def test_paths_that_lead_out_of_the_folder(table: Path, outside: str) -> None:
    outside = outside.format(folder=table.parent.name)
    write(table, "path,label", "a.jpg,cat", f"{outside},cat", f"{table.parent / 'b.jpg'},cat", "x/../c.jpg,cat")
    with pytest.raises(DataError, match=r"1 images of .* lie outside of .*allow it by --allow-outside") as error:
        open_source(table).read("train")
    assert os.path.normpath(table.parent / outside) in str(error.value)
    assert len(open_source(table, allow_outside=True).read("train")) == 4
    problems: list[Problem] = []
    open_source(table, problems=problems).read("train")
    assert [(problem.kind, problem.file, problem.line) for problem in problems] == [("outside", table, 3)]


def test_semicolons_between_columns(table: Path) -> None:
    assert TableSource(write(table, "path;cat;dog", "a.jpg;1;0")).read("train").target.tolist() == [[1, 0]]


def test_many_rows(tmp_path: Path) -> None:
    num_rows = 30_000
    wide = write(tmp_path / "wide.csv", "path,a,b,c", *(f"images/{i}.jpg,1,0," for i in range(num_rows)))
    tall = write(tmp_path / "tall.csv", "path,labels", *(f"images/{i}.jpg,a|l{i % 100}" for i in range(num_rows)))
    assert len(TableSource(wide).read("train")) == len(TableSource(tall).read("train")) == num_rows


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
    write(
        table,
        f"path,scene,{labels},split",
        f"a.jpg, park,{value},train",
        f"b.jpg,,{value},train",
        f"c.jpg,7,{value},val",
    )
    source = TableSource(table, group_column="scene")
    assert source.label_names == ("cat",)
    assert source.groups("train") == ("park", "")
    assert source.groups("val") == ("7",)
    with pytest.raises(DataError, match="no group column 'patient', only: path, scene"):
        TableSource(table, group_column="patient")
    assert labels == "cat" or TableSource(table).groups("train") is None


# JSON Lines, Parquet, and lists


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write the same rows in the format that the suffix tells."""
    if path.suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        is_list = {key: any(isinstance(value, list) for value in values) for key, values in columns.items()}
        arrays = {
            key: pa.array(values, pa.list_(pa.string())) if is_list[key] else pa.array(values)
            for key, values in columns.items()
        }
        pq.write_table(pa.table(arrays), path, row_group_size=2)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LABELS = st.text("abc |;,'\"\\[]äé1?", min_size=1, max_size=6).filter(lambda text: not is_unknown(text))


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.none() | st.lists(LABELS, max_size=3), min_size=1, max_size=6).filter(any),
    splits=st.lists(st.sampled_from(["train", "valid", "TEST"]), min_size=6, max_size=6),
)
def test_lists_of_labels_read_the_same_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, labels: list[list[str] | None], splits: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    rows = [
        {"path": f"{i}.jpg", "labels": of_image, "split": splits[i], "scene": f"s{i}"}
        for i, of_image in enumerate(labels)
    ]
    expected_names = tuple(sorted({label.strip() for of_image in labels for label in of_image or ()}))
    if all(name.isdecimal() for name in expected_names):
        expected_names = tuple(sorted(expected_names, key=int))
    for suffix in FORMATS:
        source = TableSource(write_rows(folder / f"t{suffix}", rows), group_column="scene")
        assert source.label_names == expected_names
        for split in source.splits:
            images = source.read(split)
            groups = source.groups(split)
            assert groups is not None
            for index, (row, group) in enumerate(zip(images.target.tolist(), groups, strict=True)):
                of_image = labels[int(group[1:])]
                present = {label.strip() for label in of_image or ()}
                assert row == [-1 if of_image is None else int(name in present) for name in expected_names]
                assert source.where(split, index)[0] == folder / f"t{suffix}"


@settings(max_examples=30, deadline=None)
@given(target=st.lists(st.lists(st.sampled_from([1, 0, None]), min_size=3, max_size=3), min_size=1, max_size=6))
@pytest.mark.parametrize("kind", [int, bool, float])
def test_one_column_a_label_reads_the_same_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, kind: type, target: list[list[int | None]]
) -> None:
    folder = tmp_path_factory.mktemp("table")
    rows = [
        {"path": f"{i}.jpg", **{name: None if v is None else kind(v) for name, v in zip("cab", values, strict=True)}}
        for i, values in enumerate(target)
    ]
    expected = [[-1 if value is None else value for value in values] for values in target]
    for suffix in FORMATS:
        source = TableSource(write_rows(folder / f"t{suffix}", rows))
        assert source.label_names == ("c", "a", "b")
        assert source.read("train").target.tolist() == expected


@pytest.mark.parametrize("suffix", FORMATS)
def test_not_a_number_is_unknown(tmp_path: Path, suffix: str) -> None:
    rows = [{"path": "a.jpg", "cat": float("nan")}, {"path": "b.jpg", "cat": 1.0}, {"path": "c.jpg", "cat": -1.0}]
    assert TableSource(write_rows(tmp_path / f"t{suffix}", rows)).read("train").target.tolist() == [[-1], [1], [-1]]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_numbers_and_texts_as_labels(tmp_path: Path, suffix: str) -> None:
    source = TableSource(write_rows(tmp_path / f"numbers{suffix}", [{"path": f"{i}.jpg", "label": i} for i in (10, 9)]))
    assert source.label_names == ("9", "10")
    assert source.read("train").target.tolist() == [[0, 1], [1, 0]]
    rows = [{"path": "a.jpg", "label": "cat|dog"}, {"path": "b.jpg", "label": "?"}]
    assert TableSource(write_rows(tmp_path / f"texts{suffix}", rows)).read("train").target.tolist() == [
        [1, 1],
        [-1, -1],
    ]


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['sky', 'clouds']", ["clouds", "sky"]),
        ('["sky, blue", "sea"]', ["sea", "sky, blue"]),
        ("['it''s']", None),
        ("['sky' 'sea']", None),  # numpy's way of printing
        ("[sky, sea]", None),
        ("['sky', ['sea']]", None),
        ("[__import__('os').getcwd()]", None),
        ("[3, 12]", ["3", "12"]),
        ("['sky',]", ["sky"]),
        (r"""['it\'s', "x'y"]""", ["it's", "x'y"]),
    ],
)
def test_lists_written_out_in_a_cell(tmp_path: Path, cell: str, labels: list[str] | None) -> None:
    # The published NUS-WIDE table of recent papers: filepath, label, split_name.
    table = write_rows(tmp_path / "nus.csv", [{"filepath": "a.jpg", "label": cell, "split_name": "train"}])
    if labels is None:
        with pytest.raises(
            DataError, match=r"nus\.csv:2: expected labels such as cat\|dog, or a list .* Correct the cell"
        ):
            TableSource(table)
    else:
        source = TableSource(table)
        assert list(source.label_names) == labels
        assert source.read("train").target.tolist() == [[1] * len(labels)]


def test_keys_of_json_lines_may_come_late_or_never(tmp_path: Path) -> None:
    rows = [{"path": "a.jpg", "cat": 1}, {"path": "b.jpg"}, {"dog": True, "path": "c.jpg"}]
    source = TableSource(write_rows(tmp_path / "t.jsonl", rows))
    assert source.label_names == ("cat", "dog")
    assert source.read("train").target.tolist() == [[1, -1], [-1, -1], [-1, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"t\.jsonl:3: no JSON \(.*\)\. Write one object a line"),
        ("[1]", r"t\.jsonl:3: expected a JSON object such as .*, got \[1\]"),
        ('{"path": "b.jpg", "labels": {"cat": 1}}', r"t\.jsonl:3: expected labels such as .* got \{'cat': 1\}\."),
        ('{"path": ["b.jpg"], "labels": "cat"}', r"t\.jsonl:3: expected a path in column 'path', got \['b\.jpg'\]"),
        ('{"labels": "cat"}', r"t\.jsonl:3: the column 'path' is blank"),
        ("[" * 100_000, r"t\.jsonl:3: no JSON"),
        (f'{{"path": "b.jpg", "labels": {"[" * 300}1{"]" * 300}}}', r"t\.jsonl:3: expected labels such as .* got \[\["),
        (f'{{"path": "b.jpg", "labels": {"[" * 900}1{"]" * 900}}}', r"t\.jsonl:3: (expected labels such as|no JSON)"),
        (f'{{"path": "b.jpg", "labels": {"[" * 1200}1{"]" * 1200}}}', r"t\.jsonl:3: (expected labels such as|no JSON)"),
    ],
)
def test_bad_lines_of_json(tmp_path: Path, line: str, message: str) -> None:
    table = write(tmp_path / "t.jsonl", '{"path": "a.jpg", "labels": "cat"}', "", line)
    with pytest.raises(DataError, match=message):
        TableSource(table)
    problems: list[Problem] = []
    assert len(TableSource(table, problems=problems).read("train")) in (1, 2)
    assert [(problem.file, problem.line) for problem in problems] == [(table, 3)]


def test_columns_of_parquet_that_are_no_cells_are_passed_over(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {
        "path": ["a.jpg", "b.jpg"],
        "labels": pa.array(["cat", "dog"]).dictionary_encode(),
        "embedding": [[0.5, 1.5], None],
        "box": [{"x": 1}, {"x": 2}],
        "thumb": [b"\xff", b""],
    }
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    source = TableSource(tmp_path / "t.parquet")
    assert source.label_names == ("cat", "dog")
    assert source.where("train", 1) == (tmp_path / "t.parquet", 2)
    with pytest.raises(DataError, match=r"t\.parquet:1: expected labels such as .*, got struct<x: int64>\."):
        TableSource(tmp_path / "t.parquet", label_column="box")
    with pytest.raises(DataError, match=r"t\.parquet:1: expected a path in column 'thumb', got binary\."):
        TableSource(tmp_path / "t.parquet", path_column="thumb")
    content = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(content.replace(b"box", b"b\xffx"))
    with pytest.raises(DataError, match=r"t\.parquet: no whole Parquet file \(.*utf-8.*\)"):
        TableSource(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(content[:-10])
    with pytest.raises(DataError, match=r"t\.parquet: no whole Parquet file \(.*\)\. Write or copy it again"):
        TableSource(tmp_path / "t.parquet")


DATES = [
    "date32",
    "time32[ms]",
    "date64[ms]",
    "time64[us]",
    "time64[ns]",
    *(f"duration[{unit}]" for unit in ("ms", "us", "ns")),
]
ZONES = [None, "UTC", "+02:00", "Europe/Berlin", "Mars/Base", "+99:99", "", "\0"]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(DATES) | st.tuples(st.sampled_from(["ms", "us", "ns"]), st.sampled_from(ZONES)),
    shape=st.sampled_from(["plain", "dictionary", "list", "list of a dictionary"]),
    values=st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**6), 10**6) | st.none(), min_size=1, max_size=4
    ),
)
def test_dates_of_any_kind_beside_the_labels(
    tmp_path_factory: pytest.TempPathFactory, kind: str | tuple[str, str | None], shape: str, values: list[int | None]
) -> None:
    """Years that Python does not have, zones that nobody knows."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    of = pa.timestamp(*kind) if isinstance(kind, tuple) else pa.type_for_alias(kind)
    is_short = of.bit_width == 32
    short = [None if value is None else value % 2**32 - 2**31 for value in values]
    column = pa.array(short if is_short else values, pa.int32() if is_short else pa.int64()).view(of)
    if "dictionary" in shape:
        column = column.dictionary_encode()
    if "list" in shape:
        column = pa.ListArray.from_arrays([*range(len(column) + 1)], column)
    table = tmp_path_factory.mktemp("dates") / "t.parquet"
    count = len(values)
    columns = {"path": [f"{i}.jpg" for i in range(count)], "date": column, "label": ["cat"] * count}
    try:
        pq.write_table(pa.table(columns), table)
    except pa.ArrowException:  # not every one can be written
        return
    assert TableSource(table).read("train").target.tolist() == [[1]] * count


@pytest.mark.fault("dates, times and zones in a Parquet table that Python does not know")
def test_odd_dates(tmp_path: Path, lost: Any) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "path": ["a.jpg", "b.jpg"],
        "label": pa.array([0, 20_000], pa.int32()).cast(pa.date32()),
        "taken": pa.array([0, 10**15], pa.int64()).cast(pa.timestamp("us", "Mars/Base")),
        "took": pa.array([0, 2**62], pa.int64()).cast(pa.duration("ms")),
        "far": pa.array([2**31 - 1, -(2**31)], pa.int32()).cast(pa.date32()),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = TableSource(tmp_path / "t.parquet", group_column="taken")
    assert source.label_names == ("1970-01-01", "2024-10-04")
    assert source.groups("train") == ("1970-01-01 00:00:00.000000Z", "2001-09-09 01:46:40.000000Z")
    lost(columns["path"], names(source.read("train")), "images")
    with pytest.raises(DataError, match=r"t\.parquet:1: expected labels such as .*, got duration\[ms\]\."):
        TableSource(tmp_path / "t.parquet", label_column="took")


def test_a_header_of_parquet_that_repeats_a_name(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = [pa.array([text]) for text in ("a.jpg", "cat", "x", "y")]
    pq.write_table(pa.table(columns, names=["path", "label", "x", "x"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet: the header repeats x\. Give every column its own name"):
        TableSource(tmp_path / "t.parquet")


@pytest.mark.parametrize("suffix", FORMATS)
def test_cells_that_are_too_long(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"path": "a.jpg", "labels": "cat"}, {"path": "b.jpg", "labels": "é" * 131_073}]
    table = write_rows(tmp_path / f"t{suffix}", rows)
    with pytest.raises(
        DataError, match=r"field larger than field limit \(131072\)|got a text of 131,073 letters\. Correct"
    ):
        TableSource(table)
    problems: list[Problem] = []
    assert names(TableSource(table, problems=problems).read("train"))[0] == "a.jpg"
    assert len(problems) == 1
    rows[1]["labels"] = "é" * 131_072
    assert TableSource(write_rows(table, rows)).label_names == ("cat", rows[1]["labels"])


def test_long_texts_beside_the_labels_are_in_nobodys_way(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "path": [f"{i}.jpg" for i in range(600)],
        "labels": [[f"{i}", "cat"] if i % 3 else None for i in range(600)],
        "image": ["A" * 600_000 if i in (1, 300) else None for i in range(600)],
        "pixels": [[7] * 200_000 if i == 2 else [] for i in range(600)],
    }
    for use_dictionary in (True, False):
        table = pa.table(columns)
        pq.write_table(table, tmp_path / "t.parquet", use_dictionary=use_dictionary, row_group_size=400)
        images = TableSource(tmp_path / "t.parquet", group_column="image").read("train")
        assert names(images) == columns["path"]
        assert [row.sum() for row in images.target] == [2 if i % 3 else -401 for i in range(600)]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_parquet_whose_texts_are_encoded_as_differences(tmp_path: Path, encoding: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"path": ["a.jpg", "b.jpg"], "label": ["cat", None]})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=["label"], column_encoding={"path": encoding})
    assert names(TableSource(tmp_path / "t.parquet").read("train")) == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_column_a_label_that_would_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """It is asked while the rows are read, few times, and before they are copied."""
    table = write_rows(tmp_path / f"t{suffix}", [{"path": f"{i}.jpg", "cat": 1, "dog": 0} for i in range(1000)])
    asked: list[int] = []
    most = 10**9

    def lack_of_room(num_bytes: int) -> str | None:
        asked.append(num_bytes)
        return "9.9 GB of memory, and 0.1 GB are free" if num_bytes > most else None

    monkeypatch.setattr("msrn.data.source.lack_of_room", lack_of_room)
    source = TableSource(table)
    assert 5 < len(asked) < 15
    assert source.read("train").target.sum() == 1000
    assert asked[-1] == 2000
    most = 1999
    with pytest.raises(
        DataError, match=r"^2 labels of 1,000 images take 9\.9 GB of memory, and 0\.1 GB are free\. Check"
    ):
        source.read("train")
    most = 100
    with pytest.raises(
        DataError, match=r"^2 labels of \d\d\d? images take 9\.9 GB of memory, and 0\.1 GB are free\. Check"
    ):
        TableSource(table)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_rows(tmp_path / "t.parquet", [{"path": "a.jpg", "labels": ["cat"]}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"t\.parquet: Parquet needs pyarrow: pip install 'msrn\[data\]'"):
        TableSource(table)


def test_metadata_of_image_folders(tmp_path: Path) -> None:
    rows = [{"file_name": "a.jpg", "labels": ["cat"]}]
    for split in ("train", "validation"):
        (tmp_path / "splits" / split).mkdir(parents=True)
        write_rows(tmp_path / "splits" / split / "metadata.jsonl", rows)
    source = TableSource(tmp_path / "splits")
    assert source.read("val").paths == (tmp_path / "splits" / "validation" / "a.jpg",)
    assert source.splits == ("train", "val")
    (tmp_path / "one").mkdir()
    other = write(tmp_path / "one" / "other.csv", "a,b")
    metadata = write_rows(tmp_path / "one" / "metadata.csv", [{"file_name": "a.jpg", "labels": "cat"}])
    assert find_tables(tmp_path / "one") == {None: metadata}
    metadata.rename(tmp_path / "one" / "labels.csv")
    other.rename(tmp_path / "one" / "metadata.csv")
    assert find_tables(tmp_path / "one") == {None: tmp_path / "one" / "labels.csv"}


# Where rows stand, and rows at fault


def test_every_image_knows_its_line(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.csv", "path,labels,split", "", '"a.jpg","cat', 'dog",train', "b.jpg,cat,val", "c.jpg,cat,train"
    )
    source = TableSource(table)
    assert [source.where("train", index) for index in range(2)] == [(table, 4), (table, 6)]
    assert source.where("val", 0) == (table, 5)
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.csv", "path,cat", "a.jpg,1")
    write(tmp_path / "set" / "val.csv", "path,cat", "", "b.jpg,1")
    assert TableSource(tmp_path / "set").where("val", 0) == (tmp_path / "set" / "val.csv", 3)


def test_rows_at_fault_are_gathered(table: Path) -> None:
    write(
        table,
        "path,labels,split",
        *("a.jpg,cat,train", "b.jpg,cat", " ,cat,train", "c.jpg,cat,holdout", "x/../a.jpg,dog,test"),
        *(
            'd.jpg,"[cat",train',
            "e.jpg,\"['cat' 'dog']\",train",
            "f.jpg,cat|dgo|owl,train",
            'g.jpg,"cat" x,train',
            ",,",
        ),
    )
    problems: list[Problem] = []
    source = TableSource(table, label_names=["cat", "dog"], problems=problems)
    assert names(source.read("train")) == ["a.jpg", "d.jpg", "e.jpg", "f.jpg"]
    assert source.read("train").target.tolist() == [[1, 0], [0, 0], [-1, -1], [1, 0]]
    assert source.splits == ("train",)
    assert [(problem.kind, problem.line) for problem in problems] == [
        *(
            ("wrong number of fields", 3),
            ("blank path", 4),
            ("unknown split", 5),
            ("repeated path", 6),
            ("bad row", 10),
        ),
        *(("bad value", 8), ("unknown label", 7), ("unknown label", 9), ("unknown label", 9)),
    ]
    assert {problem.file for problem in problems} == {table}
    assert problems[3].message.startswith("photos.csv:6 repeats line 2: x/../a.jpg (test and train). Keep one row")
    assert "photos.csv:9: label 'dgo' is not in label_names" in problems[7].message


def test_values_at_fault_are_unknown(table: Path) -> None:
    problems: list[Problem] = []
    source = TableSource(write(table, "path,cat,dog", "a.jpg,2,1", "b.jpg, TRUE,x"), problems=problems)
    assert source.read("train").target.tolist() == [[-1, 1], [1, -1]]
    assert [(problem.kind, problem.line) for problem in problems] == [("bad value", 2), ("bad value", 3)]


def test_headers_at_fault_raise_even_then(table: Path) -> None:
    with pytest.raises(DataError, match="expected a column of paths"):
        TableSource(write(table, "a.jpg,cat"), problems=[])


def test_a_path_through_an_archive_is_a_member_of_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("x/0.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    (tmp_path / "folder.tar").mkdir()
    write(tmp_path / "t.csv", "path,labels", "a.tar/x/0.jpg,cat", "folder.tar/0.jpg,cat", "../a.tar,cat")
    member, below, outside = open_source(tmp_path / "t.csv", allow_outside=True).read("train").paths
    assert isinstance(member, TarMember)
    assert member.read_bytes() == b"abc"
    assert below == tmp_path / "folder.tar" / "0.jpg"
    assert outside == tmp_path.parent / "a.tar"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_million_rows(tmp_path: Path, suffix: str) -> None:
    labels = [[f"label {i}", f"label {(7 * i) % 80}"] for i in range(80)]
    rows = [{"path": f"images/{i:07d}.jpg", "labels": labels[i % 80]} for i in range(1_000_000)]
    table = write_rows(tmp_path / f"t{suffix}", rows)
    start = time.perf_counter()
    images = TableSource(table).read("train")
    assert time.perf_counter() - start < 60
    assert np.array_equal(images.target[::80].sum(axis=1), np.full(12_500, 1))
