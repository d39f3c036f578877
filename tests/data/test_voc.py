from pathlib import Path

import pytest
from PIL import Image

from msrn.data.voc import VOC_LABELS, VOCSource
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError

REAL_VOC = Path(__file__).parents[2].parent / "shared" / "voc2007"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A parent of VOCdevkit with two splits: train holds 000001 and 000002, test 000003."""
    root = tmp_path / "VOCdevkit" / "VOC2007"
    lists, images = root / "ImageSets" / "Main", root / "JPEGImages"
    lists.mkdir(parents=True)
    images.mkdir()
    for name in ("000001", "000002", "000003"):
        Image.new("RGB", (8, 8)).save(images / f"{name}.jpg")
    for label in VOC_LABELS:
        # As published: two spaces before a positive number.
        value = {"cat": " 1", "dog": " 0"}.get(label, "-1")
        (lists / f"{label}_train.txt").write_text(f"000001 {value}\n000002 -1\n")
        (lists / f"{label}_test.txt").write_text("000003 -1\n")
        (lists / f"{label}_trainval.txt").write_text("000001 -1\n")
    return tmp_path


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_found_from_the_folder_its_parent_and_its_grandparent(voc: Path, below: str) -> None:
    source = VOCSource(voc / below)
    assert source.root == voc / "VOCdevkit" / "VOC2007"
    assert source.splits == ("train", "test")


def test_difficult_is_unknown(voc: Path) -> None:
    images = VOCSource(str(voc)).read("train")
    assert [path.name for path in images.paths] == ["000001.jpg", "000002.jpg"]
    assert all(path.is_file() for path in images.paths)
    by_label = dict(zip(images.label_names, images.target[0].tolist(), strict=True))
    assert (by_label["cat"], by_label["dog"], by_label["bird"]) == (1, -1, 0)
    assert images.target[1].tolist() == [0] * 20
    assert str(images.target.dtype) == "int8"


def test_labels_are_the_20_in_alphabetical_order() -> None:
    assert len(VOC_LABELS) == 20
    assert list(VOC_LABELS) == sorted(VOC_LABELS)


def test_split_that_does_not_exist(voc: Path) -> None:
    with pytest.raises(EmptySplitError, match="no split 'val'; it has: train, test"):
        VOCSource(voc).read("val")


def test_missing_lists_are_named(voc: Path) -> None:
    for label in ("cat", "dog"):
        (voc / "VOCdevkit/VOC2007/ImageSets/Main" / f"{label}_train.txt").unlink()
    with pytest.raises(DataError, match=r"lacks 2 of 20 lists of split 'train': cat_train.txt, dog_train.txt\. Unpack"):
        VOCSource(voc).read("train")


@pytest.mark.parametrize("line", ["000002", "000002 2", "000002 1 1", "000002 x"])
def test_malformed_line_is_named(voc: Path, line: str) -> None:
    path = voc / "VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt"
    path.write_text(f"000001 -1\n\n{line}\n")
    with pytest.raises(DataError, match=rf"cat_train.txt:3: expected an image and 1, -1 or 0, .* got '{line}'"):
        VOCSource(voc).read("train")


def test_image_listed_twice(voc: Path) -> None:
    (voc / "VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt").write_text("000001 -1\n000001 1\n")
    with pytest.raises(DataError, match=r"cat_train.txt:2: image 000001 is listed a second time"):
        VOCSource(voc).read("train")


def test_lists_that_disagree(voc: Path) -> None:
    (voc / "VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt").write_text("000001 -1\n000009 1\n")
    with pytest.raises(
        DataError, match=r"cat_train.txt and aeroplane_train.txt list different images, 2 .*000002, 000009"
    ):
        VOCSource(voc).read("train")


def test_lists_in_another_order_agree(voc: Path) -> None:
    (voc / "VOCdevkit/VOC2007/ImageSets/Main/cat_train.txt").write_text("000002 -1\n000001 1\n")
    images = VOCSource(voc).read("train")
    assert images.target[:, VOC_LABELS.index("cat")].tolist() == [1, 0]


def test_missing_images_are_counted_and_named(voc: Path) -> None:
    (voc / "VOCdevkit/VOC2007/JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images of split 'train' are not in .*JPEGImages: 000002\.jpg\."):
        VOCSource(voc).read("train")


def test_empty_split(voc: Path) -> None:
    for label in VOC_LABELS:
        (voc / "VOCdevkit/VOC2007/ImageSets/Main" / f"{label}_test.txt").write_text("")
    with pytest.raises(EmptySplitError, match=r"'test' .* holds no images"):
        VOCSource(voc).read("test")


def test_folder_without_voc_or_without_lists(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="expected ImageSets/Main in it"):
        VOCSource(tmp_path)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    with pytest.raises(SourceNotFoundError, match=r"expected files such as aeroplane_train\.txt"):
        VOCSource(tmp_path)


@pytest.mark.skipif(not REAL_VOC.exists(), reason="needs the shared VOC 2007 photos")
def test_real_voc() -> None:
    source = VOCSource(REAL_VOC)
    assert source.splits == ("train", "val")
    train, val = source.read("train"), source.read("val")
    assert (len(train), len(val)) == (2500, 1230)
    assert set(train.target.flatten().tolist()) == {-1, 0, 1}
    assert train.target[2].tolist().count(1) >= 1
