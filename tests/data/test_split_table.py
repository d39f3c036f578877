import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msrn.data.cells import sorted_labels
from msrn.data.open import open_source
from msrn.data.packed import PackedImage, TarMember
from msrn.data.source import LabelledImages
from msrn.data.split import split_hash
from msrn.data.split_table import sidecar_path, verify_split, write_split
from msrn.errors import DataError, MissingDependencyError

SUFFIXES = ("csv", "tsv", "parquet")


def make_part(folder: Path, target: list[list[int]], *, labels: tuple[str, ...] = ("cat", "dog"), split: str = "train"):
    paths = tuple(folder / "images" / f"{split} {i}.jpg" for i in range(len(target)))
    return LabelledImages(paths, np.array(target, dtype=np.int8).reshape(len(target), len(labels)), labels, split)


def check_same(found: LabelledImages, written: LabelledImages) -> None:
    assert found.paths == written.paths
    assert set(found.label_names) == set(written.label_names)
    columns = [written.label_names.index(name) for name in found.label_names]
    np.testing.assert_array_equal(found.target, written.target[:, columns])


names = st.one_of(
    st.sampled_from(
        [
            "cat",
            "cat|dog",
            "a, b",
            "semi;colon",
            "[]",
            "[x",
            "y]",
            "nan",
            "?",
            "-1",
            "1",
            "10",
            "9",
            '"q"',
            "two\nlines",
        ]
    ),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=8).filter(
        lambda name: name == name.strip()
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), labels=st.lists(names, min_size=1, max_size=4, unique=True), suffix=st.sampled_from(SUFFIXES))
def test_what_was_written_is_read_back(tmp_path: Path, data: st.DataObject, labels: list[str], suffix: str) -> None:
    rows = st.lists(st.sampled_from([1, 0, -1]), min_size=len(labels), max_size=len(labels))
    all_known = st.lists(st.sampled_from([1, 0]), min_size=len(labels), max_size=len(labels))
    row = all_known | st.just([-1] * len(labels)) if data.draw(st.booleans()) else rows
    splits = [
        make_part(tmp_path, data.draw(st.lists(row, min_size=1, max_size=5)), labels=tuple(labels), split=split)
        for split in data.draw(st.lists(st.sampled_from(["test", "train", "val"]), min_size=1, max_size=3, unique=True))
    ]
    table = tmp_path / f"{suffix}.{suffix}"
    refusal = ""
    try:
        write_split(table, splits, overwrite=True)
    except DataError as error:
        refusal = str(error)
    if refusal:
        assert any(
            words in refusal for words in ("cannot head a column", "cannot stand in a table", "Write a .tsv instead")
        )
        return
    source = open_source(table)
    assert source.splits == tuple(name for name in ("train", "val", "test") if name in {part.split for part in splits})
    for part in splits:
        check_same(source.read(part.split), part)
    verify_split(table)


def test_a_label_column_where_nothing_is_half_known(tmp_path):
    write_split(tmp_path / "split.csv", [make_part(tmp_path, [[1, 1], [0, 0], [-1, -1], [0, 1]])])
    expected = [
        "path,labels,split",
        "images/train 0.jpg,cat|dog,train",
        "images/train 1.jpg,[],train",
        "images/train 2.jpg,,train",
        "images/train 3.jpg,dog,train",
    ]
    assert (tmp_path / "split.csv").read_bytes() == ("\n".join(expected) + "\n").encode()


@pytest.mark.parametrize("target", [[[1, 1], [0, -1]], [[1, 0], [0, 0]]], ids=["half known", "label in no image"])
def test_a_column_a_label_elsewhere(tmp_path, target):
    write_split(tmp_path / "split.csv", [make_part(tmp_path, target)])
    cells = [",".join("" if value == -1 else str(value) for value in row) for row in target]
    rows = [f"images/train {i}.jpg,train,{row}" for i, row in enumerate(cells)]
    assert (tmp_path / "split.csv").read_text().splitlines() == ["path,split,cat,dog", *rows]


def test_labels_with_separators_stand_in_lists(tmp_path):
    part = make_part(tmp_path, [[1, 1], [1, 0], [0, 1]], labels=("cat, wild", "dog"))
    write_split(tmp_path / "split.tsv", [part])
    cells = [line.split("\t")[1] for line in (tmp_path / "split.tsv").read_text().splitlines()[1:]]
    assert [cell.strip('"').replace('""', '"') for cell in cells] == ['["cat, wild", "dog"]', '["cat, wild"]', "dog"]


def test_labels_are_told_in_the_order_of_reading(tmp_path):
    part = make_part(tmp_path, [[1, 0, 1], [0, 1, 0]], labels=("zebra", "ant", "bee"))
    sidecar = write_split(tmp_path / "split.csv", [part])
    found = open_source(tmp_path / "split.csv").read("train")
    assert sidecar["label_names"] == list(found.label_names) == list(sorted_labels(part.label_names))
    assert sidecar["splits"]["train"]["sha256"] == split_hash(found, root=tmp_path)


def test_splits_stand_in_their_order_with_paths_from_the_table(tmp_path):
    parts = [make_part(tmp_path, [[1, 1]], split=split) for split in ("test", "val", "train")]
    table = tmp_path / "lists" / "deep" / "split.csv"
    write_split(table, parts, about={"seed": 3})
    assert [line.split(",")[0] for line in table.read_text().splitlines()[1:]] == [
        f"../../images/{split} 0.jpg" for split in ("train", "val", "test")
    ]
    said = json.loads((table.parent / "split.split.json").read_text())
    assert said == verify_split(table, allow_outside=True)
    assert (said["seed"], said["table"], list(said["splits"])) == (3, "split.csv", ["train", "val", "test"])
    assert said["splits"]["val"]["images"] == 1


def test_members_of_tar_archives_come_back(tmp_path):
    archive = tmp_path / "shards" / "a.tar"
    archive.parent.mkdir()
    (tmp_path / "x.jpg").write_bytes(b"x")
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "x.jpg", "photos/x.jpg")
    images = LabelledImages((TarMember(archive, "photos/x.jpg"),), np.ones((1, 1), np.int8), ("cat",), "train")
    write_split(tmp_path / "split.csv", [images])
    assert (tmp_path / "split.csv").read_text().splitlines()[1] == "shards/a.tar/photos/x.jpg,cat,train"
    (found,) = open_source(tmp_path / "split.csv").read("train").paths
    assert isinstance(found, TarMember)
    assert found.read_bytes() == b"x"


class _Row(PackedImage):
    def __fspath__(self) -> str:
        return "/data/rows.parquet/3"

    def read_bytes(self) -> bytes:
        return b""

    def is_file(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"paths": (_Row(),)}, "/data/rows.parquet/3 is packed in a file that a table of paths cannot point into"),
        ({"paths": (Path("a.jpg "),)}, "blanks around it"),
        ({"paths": (Path(os.fsdecode(b"\xff.jpg")),)}, "not UTF-8"),
        ({"label_names": (" cat",)}, "the label ' cat' cannot stand in a table"),
        ({"label_names": ("tags",), "target": np.zeros((1, 1), np.int8)}, "'tags' cannot head a column"),
        ({"label_names": ("a;b;c;d",), "target": np.zeros((1, 1), np.int8)}, r"Write a \.tsv instead"),
    ],
    ids=["packed", "blank", "bytes", "label", "reserved", "delimiter"],
)
def test_what_no_table_can_hold(tmp_path, change, words):
    values = {"paths": (Path("a.jpg"),), "target": np.ones((1, 1), np.int8), "label_names": ("cat",), "split": "train"}
    with pytest.raises(DataError, match=words):
        write_split(tmp_path / "split.csv", [LabelledImages(**{**values, **change})])
    assert list(tmp_path.iterdir()) == []


def test_groups_that_no_table_can_hold(tmp_path):
    part = make_part(tmp_path, [[1, 1]])
    for name, cell in [("scene", "\udce9"), ("\udce9", "a")]:
        with pytest.raises(DataError, match=r"the group '.udce9' is not UTF-8 and cannot stand in a table"):
            write_split(tmp_path / "split.csv", [part], extra_column=(name, {"train": [cell]}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a stop between a table of splits and the file that tells of it")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_stop_between_table_and_json_stands_in_nobodys_way(tmp_path, monkeypatch, suffix, lost):
    """The JSON is there first, so that what was begun can be replaced; an earlier table beside it is said not to be its."""
    part, table = make_part(tmp_path, [[1, 1]]), tmp_path / f"split.{suffix}"

    def stop_at(stopped: Path, part: LabelledImages) -> None:
        def put_in_place(temporary: Path, path: Path) -> None:
            if path == stopped:
                raise KeyboardInterrupt
            temporary.replace(path)

        with monkeypatch.context() as patch:
            patch.setattr("msrn.files.put_in_place", put_in_place)
            with pytest.raises(KeyboardInterrupt):
                write_split(table, [part], overwrite=True)

    stop_at(table, part)
    assert [path.name for path in tmp_path.iterdir()] == ["split.split.json"]
    write_split(table, [part], overwrite=True)
    before = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    other = make_part(tmp_path, [[1, 0], [0, 1]])
    stop_at(sidecar_path(table), other)
    verify_split(table)
    lost(before, [(path.name, path.read_bytes()) for path in tmp_path.iterdir()], "files")
    stop_at(table, other)
    assert (table.name, table.read_bytes()) in before
    with pytest.raises(
        DataError, match=rf"its SHA-256 is not the one of split\.{suffix} in split\.split\.json\. .*--force"
    ):
        verify_split(table)
    write_split(table, [other], overwrite=True)
    assert verify_split(table)["splits"]["train"]["images"] == 2


@pytest.mark.parametrize("has_table", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        '{"mine": "hand made folds"}',
        '{"table": "split.csv"}',
        '["table", "columns", "sha256", "label_names", "splits"]',
        '{"table": 1, "columns": [], "sha256": "", "label_names": [], "splits": {}}',
        "[" * 100_000,
        "not JSON",
        "9" * 5000,
        "\x00\xff",
        "",
    ],
    ids=["folds", "notes", "list", "number", "deep", "text", "long number", "bytes", "empty"],
)
def test_a_json_of_others_stays(tmp_path, text, overwrite, has_table):
    sidecar = tmp_path / "split.split.json"
    sidecar.write_text(text, encoding="latin-1")
    if has_table:
        (tmp_path / "split.csv").write_text("path,labels\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=r"split\.split\.json was not written by msrn data split; it is left alone"):
        write_split(tmp_path / "split.csv", [make_part(tmp_path, [[1, 1]])], overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(DataError, match=r"split\.split\.json (is not what msrn data split writes|was)|split\.csv"):
        verify_split(tmp_path / "split.csv")


def test_a_json_that_is_no_small_file_stays(tmp_path, monkeypatch):
    table, part = tmp_path / "split.csv", make_part(tmp_path, [[1, 1]])
    write_split(table, [part])
    before = sidecar_path(table).read_bytes()
    monkeypatch.setattr("msrn.data.split_table._MAX_SIDECAR_BYTES", 10)
    with pytest.raises(DataError, match="was not written by msrn data split"):
        write_split(table, [part], overwrite=True)
    with pytest.raises(DataError, match="it has more than 10 bytes"):
        verify_split(table)
    assert sidecar_path(table).read_bytes() == before
    sidecar_path(table).unlink()
    os.mkfifo(sidecar_path(table))
    with pytest.raises(DataError, match="was not written by msrn data split"):
        write_split(table, [part], overwrite=True)
    with pytest.raises(DataError, match="it is no regular file"):
        verify_split(table)


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_json_of_another_table_stays(tmp_path, overwrite):
    """All endings share one name of it."""
    part = make_part(tmp_path, [[1, 1]])
    write_split(tmp_path / "split.csv", [part])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("split.tsv", "split.parquet"):
        with pytest.raises(DataError, match=r"split\.split\.json tells of split\.csv, which would be lost"):
            write_split(tmp_path / name, [part], about={"seed": 5}, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    verify_split(tmp_path / "split.csv")


def test_images_outside_of_the_tables_folder_are_opened_only_where_it_is_allowed(tmp_path):
    table = tmp_path / "lists" / "split.csv"
    write_split(table, [make_part(tmp_path, [[1, 1]])])
    with pytest.raises(DataError, match=r"1 images of .* lie outside of .*lists: .*--allow-outside"):
        verify_split(table)
    assert verify_split(table, allow_outside=True)["splits"]["train"]["images"] == 1


def test_files_that_exist_stay(tmp_path):
    part = make_part(tmp_path, [[1, 1]])
    write_split(tmp_path / "split.csv", [part])
    before = (tmp_path / "split.csv").read_bytes()
    with pytest.raises(DataError, match=r"split\.csv exists\. Choose another name, or replace it by --force"):
        write_split(tmp_path / "split.csv", [part.take([0], split="test")])
    assert (tmp_path / "split.csv").read_bytes() == before
    (tmp_path / "split.csv").unlink()
    with pytest.raises(DataError, match=r"split\.split\.json exists"):
        write_split(tmp_path / "split.csv", [part])
    write_split(tmp_path / "split.csv", [part], overwrite=True)
    verify_split(tmp_path / "split.csv")


def test_misuse(tmp_path):
    part = make_part(tmp_path, [[1, 1]])
    with pytest.raises(DataError, match=r"ends in \.csv, \.tsv, \.parquet"):
        write_split(tmp_path / "split.json", [part])
    with pytest.raises(ValueError, match="named train, val and test, each once, got"):
        write_split(tmp_path / "split.csv", [part, part])
    with pytest.raises(ValueError, match="the same label_names"):
        write_split(tmp_path / "split.csv", [part, make_part(tmp_path, [[1]], labels=("cat",), split="val")])
    with pytest.raises(DataError, match="1 are in two"):
        write_split(tmp_path / "split.csv", [part, part.take([0], split="val")])


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"needs pyarrow: pip install 'msrn\[data\]'"):
        write_split(tmp_path / "split.parquet", [make_part(tmp_path, [[1, 1]])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_rows_are_written_in_blocks(tmp_path, monkeypatch, suffix):
    target = np.random.default_rng(0).integers(0, 2, (50, 2)).tolist()
    write_split(tmp_path / f"whole.{suffix}", [make_part(tmp_path, target)])
    monkeypatch.setattr("msrn.data.split_table._ROWS_AT_ONCE", 7)
    write_split(tmp_path / f"blocks.{suffix}", [make_part(tmp_path, target)])
    whole, blocks = (open_source(tmp_path / f"{name}.{suffix}").read("train") for name in ("whole", "blocks"))
    check_same(blocks, whole)
    assert whole.target.tolist() == target


def test_changed_tables_are_noticed(tmp_path):
    table = tmp_path / "split.csv"
    with pytest.raises(DataError, match=r"No such file or directory\. It is written beside the table"):
        verify_split(table)
    write_split(table, [make_part(tmp_path, [[1, 0], [0, 1]])])
    written = table.read_text()
    table.write_text(written.replace("cat", "dog"))
    with pytest.raises(
        DataError,
        match=r"was changed after it was split, .*: its SHA-256 is not the one of split\.csv in split\.split\.json",
    ):
        verify_split(table)
    table.unlink()
    with pytest.raises(DataError, match="does not exist"):
        verify_split(table)
    table.write_text(written)
    said = json.loads(sidecar_path(table).read_text())
    said["splits"]["train"]["images"] = 3
    sidecar_path(table).write_text(json.dumps(said))
    with pytest.raises(DataError, match="is read otherwise than it was written, in train"):
        verify_split(table)
    sidecar_path(table).write_text("[]")
    with pytest.raises(DataError, match="is not what msrn data split writes"):
        verify_split(table)
