from pathlib import Path

import pytest

from msrn.data.apparel import ApparelSource
from msrn.data.folder import FolderSource
from msrn.data.open import open_source
from msrn.data.source import Problem
from msrn.errors import DataError, SourceNotFoundError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_folder_names_a_colour_and_an_item(tmp_path: Path) -> None:
    make(
        tmp_path,
        "black_dress/1.jpg",
        "blue_shirt/2.jpg",
        "blue_dress/3.png",
        "white_shoes/4.jpg",
        "blue_shirt/list.txt",
    )
    source = open_source(tmp_path)
    assert isinstance(source, ApparelSource)
    assert source.splits == ("train",)
    assert source.label_names == ("black", "blue", "white", "dress", "shirt", "shoes")
    images = source.read("train")
    assert [path.name for path in images.paths] == ["1.jpg", "3.png", "2.jpg", "4.jpg"]
    assert images.label_names == source.label_names
    assert images.target.tolist() == [
        [1, 0, 0, 1, 0, 0],
        [0, 1, 0, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]


def test_splits_are_folders_above(tmp_path: Path) -> None:
    make(tmp_path, "train/black_dress/1.jpg", "train/red_pants/2.jpg", "val/red_dress/3.jpg")
    source = open_source(tmp_path)
    assert isinstance(source, ApparelSource)
    assert source.splits == ("train", "val")
    assert source.read("val").target.tolist() == [[0, 1, 1, 0]]


@pytest.mark.parametrize(
    "folders",
    [
        ("black_dress",),
        ("black_dress", "shirts"),
        ("black_dress", "striped_shirt"),
        ("black_dress", "blue_denim_shirt"),
        ("black_dress", "blue_"),
        ("red-dress", "blue-dress"),
        ("train/black_dress", "val/black_dress"),
    ],
)
def test_other_folders_are_a_tree(tmp_path: Path, folders: tuple[str, ...]) -> None:
    make(tmp_path, *(f"{folder}/1.jpg" for folder in folders))
    assert not ApparelSource.recognises(tmp_path)
    assert FolderSource.recognises(tmp_path)
    with pytest.raises(SourceNotFoundError, match="expected two folders or more, all named after a colour and an item"):
        ApparelSource(tmp_path)


def test_image_beside_the_folders(tmp_path: Path) -> None:
    make(tmp_path, "black_dress/1.jpg", "blue_shirt/2.jpg", "3.jpg")
    with pytest.raises(DataError, match=r"3\.jpg: expected it in a folder"):
        ApparelSource(tmp_path)
    problems: list[Problem] = []
    assert len(ApparelSource(tmp_path, problems=problems).read("train")) == 2
    assert [problem.kind for problem in problems] == ["image in no folder"]


def test_no_file_and_no_folder_is_apparel(tmp_path: Path) -> None:
    assert not ApparelSource.recognises(make(tmp_path, "1.jpg") / "1.jpg")
    assert not ApparelSource.recognises(tmp_path / "nowhere")
