import sys
from pathlib import Path

import pytest
from deep_folders import nested
from hypothesis import given
from hypothesis import strategies as st

from msrn.data.folder import FolderSource
from msrn.data.open import open_source
from msrn.data.source import LabelledImages, Problem
from msrn.errors import DataError, SourceNotFoundError
from msrn.files import walk


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def present(images: LabelledImages) -> dict[str, list[str]]:
    return {
        path.name: [label for label, value in zip(images.label_names, row, strict=True) if value]
        for path, row in zip(images.paths, images.target.tolist(), strict=True)
    }


def test_folders_on_the_way_are_labels(tmp_path: Path) -> None:
    make(tmp_path, "outdoor/beach/1.jpg", "outdoor/2.PNG", "indoor/kitchen/3.webp", "indoor/kitchen/notes.txt")
    source = open_source(tmp_path)
    assert isinstance(source, FolderSource)
    assert (source.splits, source.label_names) == (("train",), ("beach", "indoor", "kitchen", "outdoor"))
    assert source.names_every_label
    images = source.read("train")
    assert present(images) == {
        "3.webp": ["indoor", "kitchen"],
        "2.PNG": ["outdoor"],
        "1.jpg": ["beach", "outdoor"],
    }
    assert set(images.target.flatten().tolist()) == {0, 1}
    assert all(path.is_file() for path in images.paths)


def test_one_folder_may_hold_several_labels(tmp_path: Path) -> None:
    make(tmp_path, "cat+dog/1.jpg", "cat/2.jpg", "owl + cat/3.jpg")
    assert FolderSource(tmp_path).label_names == ("cat", "cat+dog", "owl + cat")
    source = open_source(tmp_path, label_separator="+")
    assert source.label_names == ("cat", "dog", "owl")
    assert present(source.read("train")) == {"1.jpg": ["cat", "dog"], "2.jpg": ["cat"], "3.jpg": ["cat", "owl"]}
    with pytest.raises(DataError, match="label_separator must not be empty"):
        FolderSource(tmp_path, label_separator="")


def test_folders_all_named_after_splits_are_splits(tmp_path: Path) -> None:
    make(tmp_path, "train/cat/1.jpg", "Validation/dog/2.jpg", "valid/cat/3.jpg", "test/cat/dog/4.jpg")
    source = FolderSource(tmp_path)
    assert (source.splits, source.label_names) == (("train", "val", "test"), ("cat", "dog"))
    assert present(source.read("val")) == {"2.jpg": ["dog"], "3.jpg": ["cat"]}
    assert present(source.read("test")) == {"4.jpg": ["cat", "dog"]}


def test_a_label_may_be_called_train(tmp_path: Path) -> None:
    source = FolderSource(make(tmp_path, "train/1.jpg", "car/2.jpg"))
    assert (source.splits, source.label_names) == (("train",), ("car", "train"))


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg", "cat/._1.jpg", "dog/.cache/2.jpg", "dog/3.jpg", ".trash/4.jpg", "__MACOSX/cat/5.jpg")
    source = FolderSource(tmp_path)
    assert source.label_names == ("cat", "dog")
    assert [path.name for path in source.read("train").paths] == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize(
    ("folder", "name"), [("all", "stray.jpg"), ("train", "train/stray.jpg"), ("train", "stray.jpg")]
)
def test_image_in_no_folder(tmp_path: Path, folder: str, name: str) -> None:
    make(tmp_path, f"{folder}/cat/1.jpg", f"{folder}/dog/2.jpg", name)
    with pytest.raises(
        DataError, match=r"stray\.jpg: expected it in a folder named after its label, such as .*cat/stray"
    ):
        FolderSource(tmp_path)
    problems: list[Problem] = []
    images = FolderSource(tmp_path, problems=problems).read("train")
    assert [path.name for path in images.paths] == ["1.jpg", "2.jpg"]
    assert [(problem.kind, problem.file) for problem in problems] == [("image in no folder", tmp_path / name)]


def test_no_folder_and_no_labels(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="is no folder"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected folders named after two labels or more, got none"):
        FolderSource(tmp_path)
    with pytest.raises(DataError, match=r"got 'images' alone\. Sort the images .* or write a table"):
        open_source(make(tmp_path, "images/1.jpg"))


@pytest.mark.parametrize("name", ["1.jpg", "cat/notes.txt", "a.csv", "via.json", ".hidden/1.jpg"])
def test_what_is_no_tree(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, *(["cat/1.jpg", "b.csv"] if name in ("a.csv", "via.json") else []))
    assert not FolderSource.recognises(tmp_path)
    assert not FolderSource.recognises(tmp_path / "nowhere")


def test_recognising_looks_at_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"deep/{number}/{file}.txt" for number in range(120) for file in range(10)))
    visited = []

    def counted(*arguments):
        for entry in walk(*arguments):
            visited.append(entry[0])
            yield entry

    monkeypatch.setattr("msrn.data.folder.walk", counted)
    assert not FolderSource.recognises(tmp_path)
    assert len(visited) <= 102


@pytest.mark.skipif(sys.platform != "linux", reason="how long a path may be")
def test_folders_that_lie_a_thousand_deep(tmp_path: Path) -> None:
    make(tmp_path, "cat/1.jpg")
    with nested(tmp_path / "dog", depth=1200, file=("2.jpg", b"")):
        images = open_source(tmp_path).read("train")
        assert present(images) == {"1.jpg": ["cat"], "2.jpg": ["d", "dog"]}
    with nested(tmp_path / "dog", depth=2500, file=("2.jpg", b"")):  # a path that the system does not take
        make(tmp_path, "dog/3.jpg")
        with pytest.raises(
            DataError, match=r"the folder cannot be listed \(File name too long\), so its images are missing"
        ):
            open_source(tmp_path)
        problems: list[Problem] = []
        assert present(open_source(tmp_path, problems=problems).read("train")) == {"1.jpg": ["cat"], "3.jpg": ["dog"]}
        assert [problem.kind for problem in problems] == ["unreadable folder"]


@given(st.dictionaries(st.integers(0, 99), st.lists(st.sampled_from("abc"), min_size=1, max_size=3), min_size=1))
def test_labels_are_the_parts_of_the_path(tmp_path_factory, folders: dict[int, list[str]]) -> None:
    root = make(
        tmp_path_factory.mktemp("tree"),
        "x/first.jpg",
        "y/second.jpg",
        *("/".join([*parts, f"{number}.jpg"]) for number, parts in folders.items()),
    )
    images = FolderSource(root).read("train")
    assert len(images) == len(folders) + 2
    for path, row in zip(images.paths, images.target, strict=True):
        labels = {label for label, value in zip(images.label_names, row, strict=True) if value == 1}
        assert labels == set(path.relative_to(root).parent.parts)
