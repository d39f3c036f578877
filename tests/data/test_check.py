"""The doctor: each planted fault is found, with its file and line; a clean data set has none."""

import csv
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from msrn.data import PackedImage, check
from msrn.data.check import NUM_KEPT, DataReport, check_source, locate
from msrn.data.check import _find_misspelt as find_misspelt
from msrn.data.check import _inspect as inspect
from msrn.data.source import Problem
from msrn.errors import SourceNotFoundError
from msrn.labels.sets import LABEL_SETS

SHARED = Path(__file__).parents[2].parent / "shared"
LABELS = ("boat", "chair", "person")
Row = tuple[str, str, str]


def noise(path: Path, *, seed: int, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> Path:
    """An image like no other; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def write_table(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "labels", "split"), *rows])
    return path


def generated_photos(folder: Path, count: int) -> Iterator[Path]:
    for number in range(count):
        yield noise(folder / f"{number:03}.jpg", seed=number)


def voc_photos(folder: Path, count: int) -> Iterator[Path]:
    photos = sorted((SHARED / "voc2007" / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg"))
    if len(photos) < count:
        pytest.skip(f"needs the photos of {SHARED / 'voc2007'}")
    folder.mkdir(parents=True)
    for number, photo in enumerate(photos[:: len(photos) // count][:count]):
        yield Path(shutil.copy(photo, folder / f"{number:03}.jpg"))


@pytest.fixture(params=[generated_photos, voc_photos], ids=["generated", "voc2007"])
def clean(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Row]]:
    """The table of a data set without fault, and its rows; line n holds row n - 2."""
    make: Callable[[Path, int], Iterator[Path]] = request.param
    cells = ("person", "person|chair", "boat", "chair|boat", "[]")
    rows = []
    for number, photo in enumerate(make(tmp_path / "photos", 60)):
        split = "train" if number < 40 else "val" if number < 50 else "test"
        rows.append((photo.relative_to(tmp_path).as_posix(), cells[number % 5], split))
    return write_table(tmp_path / "photos.csv", rows), rows


def problems_of(report: DataReport, kind: str) -> list[tuple[str | None, int | None]]:
    return [(p.file and p.file.name, p.line) for p in report.problems if p.kind == kind]


def test_a_clean_data_set_has_no_problem(clean):
    report = check_source(clean[0])
    assert report.problems == ()
    assert report.num_errors == report.num_warnings == 0
    assert report.verdict == "Nothing is wrong with 60 images."
    assert report.label_names == LABELS
    assert [(split.name, split.num_images) for split in report.splits] == [("train", 40), ("val", 10), ("test", 10)]
    assert report.images.num_readable == 60


def test_each_of_twelve_planted_faults_is_found_with_file_and_line(clean, tmp_path):
    table, rows = clean
    photos = tmp_path / "photos"
    rows[0] = ("photos/gone.jpg", *rows[0][1:])  # 1, line 2
    (photos / "000.jpg").unlink()
    (photos / "001.jpg").write_bytes(b"")  # 2, line 3
    whole = (photos / "002.jpg").read_bytes()
    (photos / "002.jpg").write_bytes(whole[: len(whole) // 2])  # 3, line 4
    (photos / "003.jpg").write_text("<html>404 not found</html>")  # 4, line 5
    shutil.copy(photos / "005.jpg", photos / "045.jpg")  # 5, line 47: a training image in val
    shutil.copy(photos / "010.jpg", photos / "015.jpg")  # 6, line 17: a copy with the same labels
    shutil.copy(photos / "011.jpg", photos / "018.jpg")  # 7, line 20: a copy with other labels
    rows[20] = (rows[20][0], "persn", "train")  # 8, line 22
    rows[55] = (rows[55][0], "dragon", "test")  # 9, line 57: in no training image
    rows[21] = (rows[21][0], "", "train")  # 10, line 23
    noise(photos / "022.png", seed=900, size=(300, 8))
    (photos / "022.jpg").unlink()
    rows[22] = ("photos/022.png", *rows[22][1:])  # 11, line 24
    rows[30] = (rows[30][0], rows[30][1], "trian")  # 12, line 32
    (photos / "030.jpg").unlink()
    write_table(table, rows)
    with table.open("a", encoding="utf-8") as file:
        file.write("photos/extra.jpg,person\n")  # 13, line 62
        file.write(",person,train\n")  # 14, line 63
        file.write("photos/031.jpg,person,train\n")  # 15, line 64
    noise(photos / "unlisted.png", seed=901)  # 16, no line

    report = check_source(table)

    found = {kind: problems_of(report, kind) for kind, _ in report.problem_counts}
    assert found == {
        "missing file": [("photos.csv", 2)],
        "unreadable image": [("photos.csv", 3), ("photos.csv", 4), ("photos.csv", 5)],
        "duplicate across splits": [("photos.csv", 47)],
        "duplicate content": [("photos.csv", 17)],
        "conflicting labels": [("photos.csv", 20)],
        "misspelt label": [("photos.csv", 22)],
        "label not in train": [("photos.csv", 57)],
        "nothing known": [("photos.csv", 23)],
        "extreme size": [("photos.csv", 24)],
        "unknown split": [("photos.csv", 32)],
        "wrong number of fields": [("photos.csv", 62)],
        "blank path": [("photos.csv", 63)],
        "repeated path": [("photos.csv", 64)],
        "image in no row": [("unlisted.png", None)],
    }
    messages = {problem.kind: problem.message for problem in report.problems}
    assert "photos/gone.jpg: no such file" in messages["missing file"]
    assert "looks like 'person'" in messages["misspelt label"]
    assert "is present in test, but in no training image" in messages["label not in train"]
    assert "as " in messages["duplicate across splits"]
    assert "photos/005.jpg (photos.csv:7), in train" in messages["duplicate across splits"]
    assert "their labels differ: " in messages["conflicting labels"]
    assert "300 x 8 pixels" in messages["extreme size"]
    errors = {problem.kind for problem in report.problems if problem.is_error}
    assert errors == {
        *("missing file", "unreadable image", "duplicate across splits", "unknown split"),
        *("wrong number of fields", "blank path", "repeated path"),
    }
    texts = [problem.message for problem in report.problems if problem.kind == "unreadable image"]
    assert "an empty file" in texts[0]
    assert "damaged or truncated" in texts[1]
    assert "not an image that msrn reads (JPEG, PNG, " in texts[2]


def photos_csv(folder: Path, cells: dict[str, list[str]]) -> Path:
    """A table of sound images: label cells by split."""
    rows = []
    for split, of_split in cells.items():
        for cell in of_split:
            rows.append((noise(folder / f"{len(rows)}.png", seed=len(rows), size=(32, 32)).name, cell, split))
    return write_table(folder / "photos.csv", rows)


def test_labels_outside_the_given_set_name_the_nearest(tmp_path):
    table = photos_csv(tmp_path, {"train": ["Person", "person", "xylophone", "boat"]})
    (tmp_path / "known.txt").write_text("person\nboat\n")
    for known in (("person", "boat"), tmp_path / "known.txt", str(tmp_path / "known.txt")):
        report = check_source(table, known_labels=known, min_positives=0)
        assert problems_of(report, "unknown label") == [("photos.csv", 2), ("photos.csv", 4)]
        messages = [problem.message for problem in report.problems if problem.kind == "unknown label"]
        assert "the nearest one is 'person'" in messages[0]
        assert "nothing is near it" in messages[1]
        assert ("misspelt label", False) not in report.problem_counts  # said once


def test_labels_that_cannot_be_learnt_are_named(tmp_path):
    (tmp_path / "photos.csv").write_text(
        "path,always,never,split\n" + "".join(f"{i}.png,1,0,train\n" for i in range(4))
    )
    for number in range(4):
        noise(tmp_path / f"{number}.png", seed=number)
    report = check_source(tmp_path / "photos.csv", min_positives=5)
    assert report.problem_counts == {
        ("no positives", False): 1,
        ("few positives", False): 1,
        ("always present", False): 1,
    }
    assert problems_of(report, "no positives") == [("photos.csv", None)]
    assert problems_of(report, "always present") == [("photos.csv", 2)]


def test_labels_that_cannot_be_measured_are_named(tmp_path):
    cells = {"train": ["cat", "dog", "cat", "dog"], "val": ["cat"], "test": ["dog"]}
    report = check_source(photos_csv(tmp_path, cells), min_positives=2)
    assert report.problem_counts == {("label not in val", False): 1, ("label not in test", False): 1}
    assert problems_of(report, "label not in val") == [("photos.csv", 3)]  # dog
    assert report.verdict.startswith("0 errors and 2 warnings in 6 images: fit for training")


def test_a_group_in_two_splits_is_an_error(tmp_path):
    rows = ["path,cat,split,scene"]
    for number, (split, scene) in enumerate([("train", "a"), ("train", ""), ("val", "b"), ("val", "a"), ("val", "")]):
        rows.append(f"{noise(tmp_path / f'{number}.png', seed=number).name},{number % 2},{split},{scene}")
    (tmp_path / "photos.csv").write_text("\n".join(rows))
    report = check_source(tmp_path / "photos.csv", group_column="scene", min_positives=0)
    assert report.problem_counts == {("group across splits", True): 1}
    assert problems_of(report, "group across splits") == [("photos.csv", 5)]
    assert "group 'a' is in val and in train" in report.problems[0].message


def test_a_set_without_training_images_is_an_error(tmp_path):
    report = check_source(photos_csv(tmp_path, {"test": ["cat", "dog"]}))
    assert [problem.kind for problem in report.problems] == ["no train split"]
    assert "got: test" in report.problems[0].message


def test_a_table_that_cannot_be_read_is_one_error(tmp_path):
    (tmp_path / "photos.csv").write_text("colour,price\nred,3\n")
    report = check_source(tmp_path / "photos.csv")
    assert [(problem.kind, problem.is_error) for problem in report.problems] == [("unreadable data set", True)]
    assert "expected a column of paths" in report.problems[0].message
    assert report.layout is None
    assert report.splits == ()
    assert report.to_dict()["images"]["width"] is None


def test_a_path_that_does_not_exist_raises(tmp_path):
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        check_source(tmp_path / "nothing.csv")


def test_only_the_first_problems_of_a_kind_are_kept_and_all_are_counted(tmp_path):
    table = write_table(tmp_path / "photos.csv", [(f"{i}.jpg", "cat", "train") for i in range(NUM_KEPT + 7)])
    report = check_source(table)
    assert report.problem_counts["missing file", True] == NUM_KEPT + 7
    assert len(problems_of(report, "missing file")) == NUM_KEPT
    assert report.num_errors == NUM_KEPT + 7
    assert len(report.pictures) < 10


def test_counts_are_those_of_a_plain_loop(tmp_path):
    cells = ["cat|dog", "cat|dog|owl", "owl", "[]", "", "cat"]
    report = check_source(photos_csv(tmp_path, {"train": cells, "val": ["cat", ""]}))
    train, val = report.splits
    assert report.label_names == ("cat", "dog", "owl")
    assert train.positives.tolist() == [3, 2, 2]
    assert train.absent.tolist() == [2, 3, 3]
    assert train.unknown.tolist() == [1, 1, 1]
    assert train.labels_an_image == (2, 2, 1, 1)
    assert (train.num_nothing_known, val.num_nothing_known) == (1, 1)
    assert report.label_counts.tolist() == [3, 2, 2]  # of training images only
    assert report.co_occurrence.tolist() == [[0, 2, 1], [2, 0, 1], [1, 1, 0]]
    assert report.images.to_dict() == {
        "num_readable": 8,
        "decode": "all",
        "width": [32, 32, 32],
        "height": [32, 32, 32],
        "formats": {"PNG": 8},
        "modes": {"RGB": 8},
        "num_bytes": sum(path.stat().st_size for path in tmp_path.glob("*.png")),
    }


FORMATS = [
    ("a.jpg", "RGB", {}),
    ("a.jpg", "L", {}),
    ("a.jpg", "CMYK", {}),
    ("a.jpg", "RGB", {"progressive": True}),
    ("a.png", "RGB", {}),
    ("a.png", "L", {}),
    ("a.webp", "RGB", {"lossless": True}),
    ("a.bmp", "RGB", {}),
    ("a.tif", "RGB", {}),
]


@pytest.mark.parametrize("decode", ["all", "auto", "ends"])
@pytest.mark.parametrize(("name", "mode", "options"), FORMATS)
def test_files_that_were_cut_off_are_found(tmp_path, monkeypatch, name, mode, options, decode):
    if decode == "ends":
        monkeypatch.setattr("msrn.data.check._MAX_DECODED", 0)
    path = noise(tmp_path / name, seed=0, size=(120, 90), mode=mode, **options)
    table = write_table(tmp_path / "photos.csv", [(name, "cat", "train")])
    how = "all" if decode == "all" else "auto"
    assert ("unreadable image", True) not in check_source(table, decode=how).problem_counts
    whole = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        report = check_source(table, decode=how)
        assert report.images.decode == ("ends" if decode == "ends" else "all")
        assert problems_of(report, "unreadable image") == [("photos.csv", 2)]


def test_only_decoding_finds_damage_within_a_file_and_headers_do_not_read_on(tmp_path, monkeypatch):
    path = noise(tmp_path / "a.png", seed=0, size=(120, 90))
    damaged = bytearray(path.read_bytes())
    damaged[500:600] = bytes(100)
    path.write_bytes(damaged)
    table = write_table(tmp_path / "photos.csv", [("a.png", "cat", "train")])
    assert problems_of(check_source(table, decode="all"), "unreadable image") == [("photos.csv", 2)]
    assert problems_of(check_source(table, decode="none"), "unreadable image") == []
    monkeypatch.setattr("msrn.data.check._MAX_DECODED", 0)
    assert problems_of(check_source(table), "unreadable image") == []


def test_trailing_bytes_do_not_make_a_photo_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr("msrn.data.check._MAX_DECODED", 0)
    path = noise(tmp_path / "a.jpg", seed=0)
    path.write_bytes(path.read_bytes() + b"camera notes")
    report = check_source(write_table(tmp_path / "photos.csv", [("a.jpg", "cat", "train")]))
    assert report.num_errors == 0


def test_a_decompression_bomb_is_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    noise(tmp_path / "a.png", seed=0, size=(64, 48))
    noise(tmp_path / "b.png", seed=1, size=(40, 30))
    table = write_table(tmp_path / "photos.csv", [("a.png", "cat", "train"), ("b.png", "[]", "train")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check_source(table, decode="all")
    assert problems_of(report, "unreadable image") == [("photos.csv", 2)]
    assert problems_of(report, "extreme size") == [("photos.csv", 3)]


def test_large_files_that_agree_at_both_ends_are_told_apart(tmp_path):
    for name, middle in (("a.bmp", 0), ("b.bmp", 1), ("c.bmp", 0)):
        pixels = np.zeros((100, 100, 3), dtype=np.uint8)
        pixels[50, 50] = middle
        Image.fromarray(pixels).save(tmp_path / name)
    rows = [(name, "cat", "train") for name in ("a.bmp", "b.bmp", "c.bmp")]
    report = check_source(write_table(tmp_path / "photos.csv", rows))
    assert problems_of(report, "duplicate content") == [("photos.csv", 4)]


def test_images_in_archives_are_looked_at(tmp_path):
    import tarfile

    noise(tmp_path / "in" / "a.png", seed=0)
    noise(tmp_path / "in" / "b.png", seed=1)
    (tmp_path / "in" / "bad.png").write_text("no image")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in ("a.png", "b.png", "bad.png"):
            archive.add(tmp_path / "in" / name, name)
        archive.add(tmp_path / "in" / "a.png", "again.png")
    names = ("a.png", "b.png", "bad.png", "again.png", "gone.png")
    table = write_table(tmp_path / "photos.csv", [(f"photos.tar/{name}", "cat|dog", "train") for name in names])
    report = check_source(table)
    assert problems_of(report, "duplicate content") == [("photos.csv", 5)]
    broken = [p for p in report.problems if p.kind in ("unreadable image", "missing file")]
    assert [problem.line for problem in broken] == [4, 6]
    assert isinstance(report.pictures[0].images[0], PackedImage)


def test_the_number_of_threads_changes_nothing(tmp_path):
    table = photos_csv(tmp_path, {"train": ["cat"] * 5 + ["dog"] * 5})
    shutil.copy(tmp_path / "1.png", tmp_path / "7.png")
    steps: list[tuple[str, int, int]] = []
    one = check_source(table, num_workers=1, progress=lambda *step: steps.append(step))
    many = check_source(table, num_workers=7)
    assert one.to_dict() == many.to_dict()
    assert steps == [("reading images", 10, 10), ("comparing images", 2, 2)]


def test_unlisted_images_are_looked_for_only_beside_listed_ones(tmp_path):
    noise(tmp_path / "elsewhere" / "holiday.jpg", seed=99)
    noise(tmp_path / "set" / "cats" / "a.jpg", seed=0)
    noise(tmp_path / "set" / "cats" / ".hidden.jpg", seed=1)
    noise(tmp_path / "set" / "cats" / "more" / "b.jpg", seed=2)
    table = write_table(tmp_path / "photos.csv", [("set/cats/a.jpg", "cat", "train")])
    assert problems_of(check_source(table), "image in no row") == [("b.jpg", None)]


def test_impossible_arguments_are_refused(tmp_path):
    for arguments in ({"decode": "some"}, {"min_positives": -1}, {"num_workers": 0}):
        with pytest.raises((ValueError, TypeError)):
            check_source(tmp_path, **arguments)


@pytest.mark.parametrize(
    ("names", "counts", "misspelt"),
    [
        (("person", "persn"), (50, 2), {"persn": "person"}),
        (("person", "persons"), (50, 40), {"persons": "person"}),
        (("bus", "buses"), (50, 40), {"buses": "bus"}),
        (
            ("tv monitor", "tv_monitor", "TVmonitor"),
            (50, 3, 2),
            {"tv_monitor": "tv monitor", "TVmonitor": "tv monitor"},
        ),
        (("horse", "hosre"), (50, 2), {"hosre": "horse"}),
        (("skateboard", "skatebaord"), (50, 2), {"skatebaord": "skateboard"}),
        (("giraffe", "girafee"), (50, 2), {"girafee": "giraffe"}),
        (("person", "persn"), (50, 40), {}),  # both frequent
        (("cat", "car"), (50, 1), {}),
        (("house", "horse"), (50, 1), {}),
        (("class 10", "class 1"), (50, 1), {}),
        (("c", "c++", "c#"), (50, 1, 1), {}),
    ],
)
def test_misspelt_labels(names, counts, misspelt):
    found = find_misspelt(names, counts)
    assert {names[wrong]: names[right] for wrong, right in found} == misspelt


@pytest.mark.parametrize("labels", LABEL_SETS.values(), ids=list(LABEL_SETS))
def test_published_labels_are_not_misspelt(labels):
    for rare in range(len(labels)):
        counts = [1000] * len(labels)
        counts[rare] = 1
        assert find_misspelt(labels, counts) == []


@given(
    st.lists(st.text("abc _-1é", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    st.integers(0, 2**32 - 1),
)
def test_a_misspelt_label_is_never_the_more_frequent_one(names, seed):
    counts = np.random.default_rng(seed).integers(0, 100, len(names)).tolist()
    for wrong, right in find_misspelt(names, counts):
        assert wrong != right
        assert counts[wrong] <= counts[right]


def test_problems_are_told_with_file_and_line_once():
    table = Path("sets/photos.csv")
    assert locate(Problem("kind", "a.jpg: bad.", table, 3)) == "sets/photos.csv:3: a.jpg: bad."
    assert locate(Problem("kind", "sets/photos.csv:3: bad.", table, 3)) == "sets/photos.csv:3: bad."
    assert locate(Problem("kind", "bad\nluck.", table)) == "sets/photos.csv: bad luck."
    assert locate(Problem("kind", "bad.")) == "bad."


def test_what_lies_outside_of_the_folder_is_named_and_not_opened(tmp_path, monkeypatch):
    folder = tmp_path / "theirs"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "private.png"):
        Image.new("RGB", (20, 20)).save(path)
    (folder / "t.csv").write_text("path,labels,split\na.png,cat,train\n../private.png,cat,train\n")
    opened = []
    monkeypatch.setattr(check, "_inspect", lambda path, how: opened.append(path) or inspect(path, how))
    report = check_source(folder / "t.csv")
    assert [path.name for path in opened] == ["a.png"]
    assert [problem.kind for problem in report.problems if "private" in problem.message] == ["outside"]
    check_source(folder / "t.csv", allow_outside=True)
    assert [path.name for path in opened[1:]] == ["a.png", "private.png"]
