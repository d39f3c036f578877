import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msrn.data.coco import COCOSource
from msrn.data.open import open_source
from msrn.data.source import Problem
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError
from msrn.labels.sets import LABEL_SETS

REAL_COCO = Path(__file__).parents[2].parent / "shared" / "coco-mini"

# Ids with gaps and out of order, as in COCO.
CATEGORIES = [(1, "person"), (18, "dog"), (17, "cat")]


def instances(
    images: list[tuple[int, str]],
    annotations: list[tuple[int, int]],
    categories: list[tuple[int, str]] = CATEGORIES,
) -> dict[str, Any]:
    """As published, with the parts that are not read."""
    return {
        "info": {"year": 2014},
        "images": [{"license": 5, "file_name": name, "height": 4, "width": 6, "id": number} for number, name in images],
        "licenses": [{"id": 5, "name": "free", "url": "https://example.org"}],
        "annotations": [
            {
                "segmentation": [[1.5, 2.0, 3.0]] if number else {"counts": [1, 2], "size": [4, 6]},
                "area": 1.5,
                "iscrowd": int(not number),
                "image_id": image,
                "bbox": [1, 2, 3, 4],
                "category_id": category,
                "id": number,
            }
            for number, (image, category) in enumerate(annotations)
        ],
        "categories": [{"supercategory": "thing", "id": number, "name": name} for number, name in categories],
    }


def write(root: Path, name: str, content: object, image_dir: str | None = None) -> Path:
    path = root / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    folder = root / (image_dir or name)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        for image in content["images"]:
            if "file_name" in image:
                (folder / image["file_name"]).touch()
    return path


TRAIN = instances(
    [
        (9, "COCO_train2014_000000000009.jpg"),
        (30, "COCO_train2014_000000000030.jpg"),
        (25, "COCO_train2014_000000000025.jpg"),
    ],
    [(25, 1), (9, 17), (25, 18), (25, 1)],
)
VAL = instances([(42, "COCO_val2014_000000000042.jpg")], [(42, 18)])


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write(tmp_path, "train2014", TRAIN)
    write(tmp_path, "val2014", VAL)
    return tmp_path


def test_categories_of_annotated_objects_are_labels_sorted_by_name(coco: Path) -> None:
    source = COCOSource(coco)
    assert source.splits == ("train", "val")
    assert source.label_names == ("cat", "dog", "person")
    train = source.read("train")
    assert [path.name[-6:-4] for path in train.paths] == ["09", "25"]
    assert all(path.is_file() for path in train.paths)
    # The first annotation, of person in image 25, is a crowd and counts.
    assert train.target.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert str(train.target.dtype) == "int8"
    assert source.read("val").target.tolist() == [[0, 1, 0]]
    assert source.where("train", 1) == (coco / "annotations/instances_train2014.json", None)


def test_images_without_annotations_are_left_out_or_kept_and_counted(coco: Path) -> None:
    dropped = COCOSource(coco)
    kept = COCOSource(coco, keep_unannotated=True)
    assert kept.read("train").target.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    start = (
        "split train: 3 images, the published set has 82,783 (82,780 fewer); "
        "2 with annotations, the published set has 82,081 (82,079 fewer); "
    )
    assert dropped.notes[0] == f"{start}1 without annotations left out."
    assert kept.notes[0] == f"{start}1 without annotations kept, with every label absent."
    assert "without annotations" not in dropped.notes[1]


@pytest.mark.parametrize("image_dir", ["train2014", "images/train2014", "images", "."])
def test_images_are_found(tmp_path: Path, image_dir: str) -> None:
    write(tmp_path, "train2014", TRAIN, image_dir)
    assert {path.parent for path in COCOSource(tmp_path).read("train").paths} == {tmp_path / image_dir}


def test_images_that_are_nowhere(coco: Path) -> None:
    for image in (coco / "train2014").iterdir():
        image.unlink()
    source = COCOSource(coco)
    assert len(source.read("val")) == 1
    with pytest.raises(
        DataError, match=r"none of the first 2 images of .*instances_train2014\.json is in .*train2014,"
    ):
        source.read("train")


def test_two_years_ask_for_a_file(coco: Path) -> None:
    file = write(coco, "val2017", instances([(42, "000000000042.jpg")], [(42, 17)]))
    assert COCOSource.recognises(coco)
    with pytest.raises(
        DataError, match=r"holds 2 sets of MS-COCO: .* Pass one of .*_train2014\.json or .*_val2017\.json"
    ):
        COCOSource(coco)
    source = COCOSource(file)
    assert (source.root, source.splits) == (coco, ("val",))
    assert source.read("val").target.tolist() == [[1, 0, 0]]
    assert source.notes == (
        "split val: 1 images, the published set has 5,000 (4,999 fewer); "
        "1 with annotations, the published set has 4,952 (4,951 fewer).",
    )
    assert COCOSource(coco / "annotations/instances_val2014.json").splits == ("train", "val")


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("valid", "val"), ("Test", "test")])
def test_own_files_are_named_after_splits(tmp_path: Path, name: str, split: str) -> None:
    write(tmp_path, name, VAL)
    source = open_source(tmp_path)
    assert isinstance(source, COCOSource)
    assert source.splits == (split,)
    assert len(source.read(split)) == 1
    assert source.notes == ()


def test_files_beside_the_images(tmp_path: Path) -> None:
    write(tmp_path, "train", VAL, ".").rename(tmp_path / "instances_train.json")
    (tmp_path / "annotations").rmdir()
    for path in (tmp_path, tmp_path / "instances_train.json"):
        source = COCOSource(path)
        assert (source.root, len(source.read("train"))) == (tmp_path, 1)


def test_a_byte_order_mark_is_passed_over(coco: Path) -> None:
    path = coco / "annotations/instances_val2014.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(COCOSource(coco).read("val")) == 1


def test_two_files_of_a_split(coco: Path) -> None:
    write(coco, "valid2014", VAL)
    with pytest.raises(DataError, match=r"two files of split 'val': instances_val2014\.json and instances_valid2014"):
        COCOSource(coco)


def test_other_files_are_passed_over(coco: Path) -> None:
    for name in ("person_keypoints_val2014.json", "captions_val2014.json", "instances_minival2014.json"):
        (coco / "annotations" / name).write_text("not read")
    assert COCOSource(coco).splits == ("train", "val")
    assert not COCOSource.recognises(coco / "annotations/instances_minival2014.json")
    with pytest.raises(SourceNotFoundError, match=r"expected files such as annotations/instances_train2014\.json"):
        COCOSource(coco / "annotations/captions_val2014.json")


def test_different_categories(coco: Path) -> None:
    write(coco, "val2014", instances([(1, "a.jpg")], [(1, 1)], [(1, "person"), (2, "owl")]))
    with pytest.raises(
        DataError,
        match=r"_val2014\.json and instances_train2014\.json have different .* 3 are in one only: cat, dog, owl",
    ):
        COCOSource(coco, problems=[])


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([(1, "cat"), (2, "cat")], "got the name 'cat' twice"),
        ([(1, "cat"), (1, "dog")], "got an id twice"),
        ([], "got none"),
        ([(1, "")], "got {'id': 1, 'name': ''}"),
    ],
)
def test_categories_must_be_distinct(tmp_path: Path, categories: list[tuple[int, str]], message: str) -> None:
    write(tmp_path, "train", instances([(1, "a.jpg")], [], categories))
    with pytest.raises(DataError) as caught:
        COCOSource(tmp_path)
    assert message in str(caught.value)


FAULTY = instances(
    [(1, "a.jpg"), (2, "b.jpg"), (3, "a.jpg"), (2, "c.jpg")],
    [(1, 17), (2, 18), (3, 1), (4, 1), (1, 99)],
)
FAULTY["images"].append({"id": 5})
FAULTY["annotations"].append({"image_id": 1})
MESSAGES = (
    ("repeated path", "images 1 and 3 have the same file, a.jpg. Correct the file."),
    ("repeated id", "image 2 is listed a second time."),
    ("bad row", "expected id and file_name, got {'id': 5}."),
    ("unknown image id", "an annotation names image 4, which is not in 'images'."),
    ("unknown category id", "image 1 has category 99, which is not in 'categories'."),
    ("bad row", "expected image_id and category_id, got {'image_id': 1}."),
)


def test_problems_are_gathered_and_reading_goes_on(tmp_path: Path) -> None:
    file = write(tmp_path, "train", FAULTY)
    problems: list[Problem] = []
    images = COCOSource(tmp_path, problems=problems).read("train")
    assert [path.name for path in images.paths] == ["a.jpg", "b.jpg"]
    assert images.target.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert [problem.kind for problem in problems] == [kind for kind, _ in MESSAGES]
    assert {problem.file for problem in problems} == {file}
    for problem, (_, message) in zip(problems, MESSAGES, strict=True):
        assert problem.message.startswith(f"{file}: {message}")


def test_the_first_problem_raises_where_none_are_gathered(tmp_path: Path) -> None:
    write(tmp_path, "train", FAULTY)
    with pytest.raises(DataError, match=r"instances_train\.json: images 1 and 3 have the same file, a\.jpg"):
        COCOSource(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [\n{]', r"instances_train\.json:2: no JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"images": [' + b"9" * 5000 + b"]}", r"instances_train\.json cannot be read \(Exceeds the limit"),
        (
            b'{"images": ['
            + b"[" * 900
            + b"]" * 900
            + b'], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
            r"instances_train\.json(:| holds| cannot be read) (values too deep|expected id|\()",
        ),
        (b"[]", "expected lists of images, annotations and categories"),
        (b'{"images": [], "annotations": [], "categories": {}}', "expected lists of images"),
    ],
)
def test_no_instances(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, "train", VAL).write_bytes(content)
    with pytest.raises(DataError, match=message):
        COCOSource(tmp_path)


def test_no_annotated_image(tmp_path: Path) -> None:
    write(tmp_path, "train", instances([(1, "a.jpg")], []))
    with pytest.raises(EmptySplitError, match=r"split 'train' .* holds no images"):
        COCOSource(tmp_path).read("train")
    assert len(COCOSource(tmp_path, keep_unannotated=True).read("train")) == 1


def test_the_whole_published_set_is_told_so(tmp_path: Path) -> None:
    images = [(number, f"{number:012d}.jpg") for number in range(5000)]
    file = write(tmp_path, "val2017", instances([], []))
    file.write_text(json.dumps(instances(images, [(number, 1) for number in range(4952)])))
    assert COCOSource(tmp_path).notes == (
        "split val: 5,000 images, as published; 4,952 with annotations, as published; 48 without annotations left out.",
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1, 17, 18])), min_size=1, max_size=12))
def test_target_is_what_a_plain_loop_gives(tmp_path_factory, annotations: list[tuple[int, int]]) -> None:
    root = tmp_path_factory.mktemp("coco")
    write(root, "train", instances([(number, f"{number}.jpg") for number in range(5)], annotations))
    source = COCOSource(root, keep_unannotated=True)
    name_of = dict(CATEGORIES)
    expected = [
        [int(any(name_of[c] == label for i, c in annotations if i == number)) for label in source.label_names]
        for number in range(5)
    ]
    assert source.read("train").target.tolist() == expected
    assert len(COCOSource(root).read("train")) == len({image for image, _ in annotations})


@pytest.mark.skipif(not REAL_COCO.exists(), reason="needs the shared COCO 2017 photos")
def test_real_coco() -> None:
    source = open_source(REAL_COCO)
    assert isinstance(source, COCOSource)
    assert source.label_names == LABEL_SETS["coco2014"] == LABEL_SETS["coco2017"]
    train, val = source.read("train"), source.read("val")
    assert (len(train), len(val)) == (126, 128)
    assert all(path.is_file() for path in (*train.paths, *val.paths))
    assert "2 without annotations left out" in source.notes[0]
    assert len(open_source(REAL_COCO, keep_unannotated=True).read("train")) == 128
    for file, images in zip(sorted((REAL_COCO / "annotations").iterdir()), (train, val), strict=True):
        content = json.loads(file.read_text())
        name_of_image = {image["id"]: image["file_name"] for image in content["images"]}
        name_of_category = {category["id"]: category["name"] for category in content["categories"]}
        expected = {(name_of_image[a["image_id"]], name_of_category[a["category_id"]]) for a in content["annotations"]}
        rows, columns = images.target.nonzero()
        assert {
            (images.paths[row].name, images.label_names[column]) for row, column in zip(rows, columns, strict=True)
        } == expected
