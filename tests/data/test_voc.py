from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from msrn.data.source import Problem
from msrn.data.voc import VOC_LABELS, VOCSource
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError
from msrn.labels import count_co_occurrence

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


def list_path(voc: Path, name: str) -> Path:
    return voc / "VOCdevkit/VOC2007/ImageSets/Main" / name


def test_both_years_ask_for_one(voc: Path) -> None:
    devkit = voc / "VOCdevkit"
    (devkit / "VOC2012/ImageSets/Main").mkdir(parents=True)
    assert VOCSource.recognises(voc)
    with pytest.raises(DataError, match=r"2 folders of PASCAL VOC: .* Pass the one to read: .*VOC2007 or .*VOC2012\."):
        VOCSource(devkit)
    assert VOCSource(devkit / "VOC2007").splits == ("train", "test")


@pytest.mark.parametrize(
    ("folder", "note"),
    [
        ("VOC2007", "split train: 2 images, the published set has 2,501 (2,499 fewer)."),
        ("VOC2012", "split train: 2 images, the published set has 5,717 (5,715 fewer)."),
        ("mine", None),
    ],
)
def test_the_folders_name_tells_the_year(voc: Path, folder: str, note: str | None, monkeypatch) -> None:
    root = voc / "VOCdevkit" / folder
    (voc / "VOCdevkit/VOC2007").rename(root)
    monkeypatch.chdir(root)
    for path in (root, Path()):
        source = VOCSource(path)
        assert source.notes == ()
        source.read("train")
        source.read("train")
        assert source.notes == ((note,) if note else ())


def test_train_and_val_are_counted_together(voc: Path) -> None:
    for label in VOC_LABELS:
        list_path(voc, f"{label}_val.txt").write_text("000003 1\n")
    source = VOCSource(voc)
    source.read("val")
    source.read("train")
    assert source.notes[-1] == "train and val together: 3 images, the published set has 5,011 (5,008 fewer)."


def test_the_whole_published_set_is_told_so(voc: Path) -> None:
    names = [f"{number:06d}" for number in range(4952)]
    for name in names:
        (voc / "VOCdevkit/VOC2007/JPEGImages" / f"{name}.jpg").touch()
    for label in VOC_LABELS:
        list_path(voc, f"{label}_test.txt").write_text("".join(f"{name} -1\n" for name in names))
    source = VOCSource(voc)
    source.read("test")
    assert source.notes == ("split test: 4,952 images, as published.",)


def test_where_is_the_first_list(voc: Path) -> None:
    list_path(voc, "aeroplane_train.txt").write_text("\n000002 -1\n000001 1\n")
    source = VOCSource(voc)
    assert [path.stem for path in source.read("train").paths] == ["000002", "000001"]
    assert source.where("train", 1) == (list_path(voc, "aeroplane_train.txt"), 3)


def test_problems_are_gathered_and_their_images_left_out(voc: Path) -> None:
    extra = "".join(f"{image} -1\n" for image in ("000001", "000002", "000003", "000004", "000005"))
    for label in VOC_LABELS:
        list_path(voc, f"{label}_train.txt").write_text(extra)
    (voc / "VOCdevkit/VOC2007/JPEGImages/000005.jpg").write_bytes(b"")
    list_path(voc, "bird_train.txt").write_text(extra + "000001 1\n")
    list_path(voc, "cat_train.txt").write_text(extra.replace("000002 -1", "000002 yes"))
    list_path(voc, "dog_train.txt").write_text(extra.replace("000003 -1\n", ""))
    list_path(voc, "sheep_train.txt").unlink()
    problems: list[Problem] = []
    source = VOCSource(voc, problems=problems)
    images = source.read("train")
    assert [path.stem for path in images.paths] == ["000001", "000005"]
    assert [source.where("train", index)[1] for index in range(2)] == [1, 5]
    assert images.target[:, VOC_LABELS.index("sheep")].tolist() == [-1, -1]
    assert images.target[:, VOC_LABELS.index("bird")].tolist() == [0, 0]
    assert [(problem.kind, problem.file and problem.file.name, problem.line) for problem in problems] == [
        ("missing list", "Main", None),
        ("repeated path", "bird_train.txt", 6),
        ("bad row", "cat_train.txt", 2),
        ("lists disagree", "dog_train.txt", None),
        ("missing file", "aeroplane_train.txt", 4),
    ]
    assert "aeroplane_train.txt:4:" in problems[-1].message
    assert "000004.jpg does not exist" in problems[-1].message


def test_no_image_at_all_raises_though_problems_are_gathered(voc: Path) -> None:
    for image in (voc / "VOCdevkit/VOC2007/JPEGImages").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="2 of 2 images of split 'train' are not in"):
        VOCSource(voc, problems=[]).read("train")


@pytest.mark.skipif(not REAL_VOC.exists(), reason="needs the shared VOC 2007 photos")
def test_co_occurrence_of_train_equals_a_count_over_the_xml() -> None:
    images = VOCSource(REAL_VOC).read("train")
    both = torch.zeros(20, 20, dtype=torch.int64)
    for path in images.paths:
        objects = ElementTree.parse(path.parents[1] / "Annotations" / f"{path.stem}.xml").findall("object")
        present = {thing.findtext("name") for thing in objects if thing.findtext("difficult") == "0"}
        for first in present:
            for second in present:
                both[VOC_LABELS.index(first), VOC_LABELS.index(second)] += 1
    co_occurrence, label_counts = count_co_occurrence(torch.from_numpy(images.target))
    assert torch.equal(label_counts, both.diagonal())
    assert torch.equal(co_occurrence, both.clone().fill_diagonal_(0))
    assert int(co_occurrence.sum()) > 1000


@pytest.mark.skipif(not REAL_VOC.exists(), reason="needs the shared VOC 2007 photos")
def test_real_voc() -> None:
    source = VOCSource(REAL_VOC)
    assert source.splits == ("train", "val")
    train, val = source.read("train"), source.read("val")
    assert (len(train), len(val)) == (2500, 1230)
    assert set(train.target.flatten().tolist()) == {-1, 0, 1}
    assert train.target[2].tolist().count(1) >= 1
    assert source.notes == (
        "split train: 2,500 images, the published set has 2,501 (1 fewer).",
        "split val: 1,230 images, the published set has 2,510 (1,280 fewer).",
        "train and val together: 3,730 images, the published set has 5,011 (1,281 fewer).",
    )
