from pathlib import Path

import pytest

from msrn.data.nuswide import NUSWIDESource
from msrn.data.open import open_source
from msrn.data.source import Problem
from msrn.errors import DataError, SourceNotFoundError
from msrn.labels.sets import LABEL_SETS

TRAIN = ["actor\\0001_2124494179.jpg", "zebra\\0433_2412350000.jpg", "actor\\0002_174174086.jpg"]
TEST = ["sky\\0007_1.jpg"]
PRESENT = {"sky": [1, 0, 1], "clouds": [1, 0, 0], "zebra": [0, 0, 0]}


def labels_file(root: Path, label: str, split: str) -> Path:
    return root / "Groundtruth" / "TrainTestLabels" / f"Labels_{label}_{split}.txt"


@pytest.fixture
def nuswide(tmp_path: Path) -> Path:
    """All 81 concepts, three images of train and one of test, with the line ends and the spaces of the archives."""
    for folder in ("Groundtruth/TrainTestLabels", "ImageList", "ConceptsList"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ConceptsList/Concepts81.txt").write_text("\n".join(LABEL_SETS["nuswide"]) + "\n")
    for split, names in (("Train", TRAIN), ("Test", TEST)):
        (tmp_path / f"ImageList/{split}Imagelist.txt").write_bytes("".join(f"{name} \r\n" for name in names).encode())
        for name in names:
            image = tmp_path / "Flickr" / name.replace("\\", "/")
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
    for label in LABEL_SETS["nuswide"]:
        values = PRESENT.get(label, [0, 0, 0])
        labels_file(tmp_path, label, "Train").write_text("".join(f"{value}\n" for value in values))
        labels_file(tmp_path, label, "Test").write_text(f"{int(label == 'sky')}\n")
    return tmp_path


def present(source: NUSWIDESource, split: str) -> list[list[str]]:
    images = source.read(split)
    assert set(images.target.flatten().tolist()) <= {0, 1}
    return [[label for label, value in zip(images.label_names, row, strict=True) if value] for row in images.target]


def test_every_line_is_an_image(nuswide: Path) -> None:
    source = open_source(nuswide)
    assert isinstance(source, NUSWIDESource)
    assert source.splits == ("train", "test")
    assert source.label_names == LABEL_SETS["nuswide"]
    assert present(source, "train") == [["clouds", "sky"], [], ["sky"]]
    assert present(source, "test") == [["sky"]]
    paths = source.read("train").paths
    assert paths[1] == nuswide / "Flickr/zebra/0433_2412350000.jpg"
    assert all(path.is_file() for path in paths)
    assert source.where("train", 2) == (nuswide / "ImageList/TrainImagelist.txt", 3)


def test_images_of_nothing_are_kept_and_counted(nuswide: Path) -> None:
    source = NUSWIDESource(nuswide)
    source.read("train")
    assert source.notes == (
        "split train: 3 images, the published set has 161,789 (161,786 fewer); 1 with none of the 81 labels, kept.",
    )


@pytest.mark.parametrize("folder", ["Flickr", "images", "."])
@pytest.mark.parametrize("is_flat", [False, True])
def test_images_are_found(nuswide: Path, folder: str, is_flat: bool) -> None:
    for name in (*TRAIN, *TEST):
        image = nuswide / folder / (name.rpartition("\\")[2] if is_flat else name.replace("\\", "/"))
        image.parent.mkdir(parents=True, exist_ok=True)
        (nuswide / "Flickr" / name.replace("\\", "/")).rename(image)
    source = NUSWIDESource(nuswide)
    assert all(path.is_file() for split in source.splits for path in source.read(split).paths)


def test_images_that_are_nowhere(nuswide: Path) -> None:
    (nuswide / "Flickr").rename(nuswide / "photos")
    with pytest.raises(
        DataError, match=r"none of the first 3 images of .*TrainImagelist\.txt is in .*Flickr, .*images, .*actor/0001_"
    ):
        NUSWIDESource(nuswide).read("train")


def test_concepts_in_the_root_or_missing(nuswide: Path) -> None:
    path = (nuswide / "ConceptsList/Concepts81.txt").rename(nuswide / "Concepts81.txt")
    assert len(NUSWIDESource(nuswide).label_names) == 81
    path.write_text("sky\nsky\n")
    with pytest.raises(DataError, match=r"Concepts81\.txt: expected the names .* got 2 lines with 1 names"):
        NUSWIDESource(nuswide)
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"lacks Concepts81\.txt: expected it there or in ConceptsList"):
        NUSWIDESource(nuswide)


def test_no_nuswide(nuswide: Path) -> None:
    for path in (nuswide / "Flickr", nuswide / "nowhere"):
        with pytest.raises(
            SourceNotFoundError, match="expected Groundtruth/TrainTestLabels and ImageList/TrainImagelist"
        ):
            NUSWIDESource(path)


def test_lists_of_different_length_are_both_named(nuswide: Path) -> None:
    labels_file(nuswide, "sky", "Train").write_text("1\n0\n")
    with pytest.raises(
        DataError, match=r"Labels_sky_Train\.txt has 2 lines, .*TrainImagelist\.txt has 3: expected one for each image"
    ):
        NUSWIDESource(nuswide).read("train")


def test_missing_list_is_named(nuswide: Path) -> None:
    labels_file(nuswide, "sky", "Train").unlink()
    with pytest.raises(DataError, match=r"Labels_sky_Train\.txt does not exist"):
        NUSWIDESource(nuswide).read("train")


def test_problems_are_gathered_and_reading_goes_on(nuswide: Path) -> None:
    names = [*TRAIN, "", TRAIN[0], "sky\\0009_1.jpg"]
    (nuswide / "ImageList/TrainImagelist.txt").write_text("\r\n".join(names))
    for label in LABEL_SETS["nuswide"]:
        labels_file(nuswide, label, "Train").write_text("1\n0\n0\n0\n0\n0\n")
    labels_file(nuswide, "airport", "Train").write_text("1\n")
    labels_file(nuswide, "cat", "Train").write_text("1\n0\nyes\n0\n0\n0\n")
    labels_file(nuswide, "dog", "Train").unlink()
    problems: list[Problem] = []
    source = NUSWIDESource(nuswide, problems=problems)
    images = source.read("train")
    assert [path.name for path in images.paths] == ["0001_2124494179.jpg", "0433_2412350000.jpg", "0009_1.jpg"]
    assert [source.where("train", index)[1] for index in range(3)] == [1, 2, 6]
    unknown = [label for label, column in zip(images.label_names, images.target.T, strict=True) if (column < 0).all()]
    assert unknown == ["airport", "dog"]
    assert images.target[:, images.label_names.index("sky")].tolist() == [1, 0, 0]
    assert [(problem.kind, problem.file and problem.file.name, problem.line) for problem in problems] == [
        ("blank path", "TrainImagelist.txt", 4),
        ("repeated path", "TrainImagelist.txt", 5),
        ("lists disagree", "Labels_airport_Train.txt", None),
        ("bad value", "Labels_cat_Train.txt", 3),
        ("missing list", "TrainTestLabels", None),
    ]
    assert "Labels_cat_Train.txt:3: expected 0 or 1, got 'yes'" in problems[3].message
    assert "first on line 1" in problems[1].message


def test_no_list_that_fits_raises_though_problems_are_gathered(nuswide: Path) -> None:
    (nuswide / "ImageList/TrainImagelist.txt").write_text("\n".join(TRAIN[:2]))
    with pytest.raises(DataError, match=r"none of the lists of split 'train' .* has the 2 lines of .*TrainImagelist"):
        NUSWIDESource(nuswide, problems=[]).read("train")
