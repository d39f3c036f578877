import json
from pathlib import Path
from typing import Any

import pytest

from msrn.data.label_studio import LabelStudioSource
from msrn.data.open import open_source
from msrn.data.source import Problem
from msrn.errors import DataError, SourceNotFoundError


def annotation(*choices: str, from_name: str = "choice", **more: Any) -> dict[str, Any]:
    result = {
        "id": "x",
        "type": "choices",
        "from_name": from_name,
        "to_name": "image",
        "value": {"choices": [*choices]},
    }
    return {"id": 1, "was_cancelled": False, "result": [result] if choices else [], **more}


def task(number: int, image: str, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": number, "annotations": [*annotations], "predictions": [], "data": {"image": image, **data}}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tmp_path / "project-1-at-2024-05-01.json"


def write(path: Path, *records: Any) -> Path:
    path.write_text(json.dumps([*records], indent=2), encoding="utf-8")
    return path


def names(source: LabelStudioSource, split: str = "train") -> list[str]:
    return [str(Path(path).relative_to(source.root)) for path in source.read(split).paths]


def test_choices_of_one_annotator(export: Path) -> None:
    write(
        export,
        task(1, "a.jpg", annotation("dog", "cat")),
        task(2, "b.jpg", annotation("owl")),
        task(3, "c.jpg", annotation()),
    )
    for path in (export, export.parent):
        source = open_source(path)
        assert isinstance(source, LabelStudioSource)
        assert source.label_names == ("cat", "dog", "owl")
        assert names(source) == ["a.jpg", "b.jpg", "c.jpg"]
        assert source.read("train").target.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
        assert source.where("train", 0) == (export, None)
        assert source.notes == ()


def test_annotators_who_disagree_leave_an_entry_unknown(export: Path) -> None:
    write(
        export,
        task(1, "a.jpg", annotation("dog", "cat"), annotation("dog", "owl")),
        task(2, "b.jpg", annotation("cat"), annotation("cat"), annotation("dog", was_cancelled=True)),
        task(3, "c.jpg", annotation("dog", was_cancelled=True)),
        task(4, "d.jpg"),
    )
    source = LabelStudioSource(export)
    assert source.label_names == ("cat", "dog", "owl")
    assert source.read("train").target.tolist() == [[-1, 1, -1], [1, 0, 0], [-1] * 3, [-1] * 3]
    assert source.notes == (
        "2 cancelled annotations were passed over.",
        "2 entries of 1 images are unknown, since their annotators disagree.",
    )


def test_fields_of_choices(export: Path) -> None:
    both = annotation("red", from_name="colour")
    both["result"] += annotation("dress", from_name="item")["result"]
    both["result"].append({"type": "textarea", "from_name": "notes", "value": {"text": ["nice"]}})
    write(export, task(1, "a.jpg", both))
    assert LabelStudioSource(export).label_names == ("dress", "red")
    assert LabelStudioSource(export, from_name="item").label_names == ("dress",)
    with pytest.raises(DataError, match="holds no choice of the field size: expected results of type choices"):
        LabelStudioSource(export, from_name="size")


def test_json_min_has_a_row_an_annotation(export: Path) -> None:
    more = {"annotator": 1, "annotation_id": 1, "lead_time": 2.5, "created_at": "2024-05-01T10:00:00Z"}
    write(
        export,
        {"image": "a.jpg", "id": 1, "choice": "cat", **more},
        {"image": "b.jpg", "id": 2, "choice": {"choices": ["cat", "dog"]}, **more},
        {"image": "b.jpg", "id": 2, "choice": "dog", **more},
        {"image": "c.jpg", "id": 3, "mood": "calm", "subset": "val", **more},
        {"image": "d.jpg", "id": 4, "choice": [{"choices": ["dog"]}, "cat"], **more},
    )
    source = open_source(export)
    assert source.label_names == ("cat", "dog")
    assert source.read("train").target.tolist() == [[1, 0], [-1, 1], [1, 1]]
    assert source.read("val").target.tolist() == [[0, 0]]
    assert open_source(export, from_name="mood").label_names == ("calm",)


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("photos/a.jpg", "photos/a.jpg"),
        ("a.jpg", "deep/below/a.jpg"),
        ("/data/upload/3/0f3a9b2c-a.jpg", "upload/3/0f3a9b2c-a.jpg"),
        ("/data/upload/3/0f3a9b2c-a.jpg", "3/0f3a9b2c-a.jpg"),
        ("/data/upload/3/0f3a9b2c-a.jpg", "0f3a9b2c-a.jpg"),
        ("/data/upload/3/0f3a9b2c-a.jpg", "a.jpg"),
        ("/data/upload/3/0f3a9b2c-a.jpg", "images/a.jpg"),
        ("http://localhost:8080/data/upload/3/0f3a9b2c-my%20a.jpg", "images/0f3a9b2c-my a.jpg"),
        ("/data/local-files/?d=photos/may/a%20b.jpg", "photos/may/a b.jpg"),
        ("/data/local-files/?d=photos/may/a%20b.jpg", "may/a b.jpg"),
        ("/data/local-files/?d=photos/may/a%20b.jpg", "a b.jpg"),
    ],
)
def test_images_are_found(export: Path, reference: str, file: str) -> None:
    image = export.parent / file
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b"")
    source = LabelStudioSource(write(export, task(1, reference, annotation("cat"))))
    assert names(source) == [file]


def test_images_that_are_not_there_keep_the_place_where_they_were_looked_for(export: Path) -> None:
    for folder in ("one", "two"):  # which of these is meant?
        (export.parent / folder).mkdir()
        (export.parent / folder / "a.jpg").write_bytes(b"")
    write(export, task(1, "/data/upload/3/0f3a9b2c-a.jpg", annotation("cat")), task(2, "/x/b.jpg", annotation("cat")))
    found = open_source(export, allow_outside=True).read("train").paths
    assert found == (export.parent / "3/0f3a9b2c-a.jpg", Path("/x/b.jpg"))


def test_problems_are_gathered(export: Path) -> None:
    write(
        export,
        task(1, "https://example.org/a.jpg", annotation("cat")),
        task(2, "s3://bucket/a.jpg", annotation("cat")),
        task(3, "a.jpg", annotation("cat", "dgo"), split="train"),
        task(4, "x/../a.jpg", annotation("cat")),
        task(5, "b.jpg", annotation("cat"), split="holdout"),
        {"id": 6, "annotations": [], "data": {"text": "hello"}},
        "task",
    )
    with pytest.raises(DataError, match="task number 7: expected an object, got task"):
        open_source(export)
    problems: list[Problem] = []
    source = open_source(export, problems=problems, label_names=["cat"])
    assert source.read("train").target.tolist() == [[1]]
    assert [problem.kind for problem in problems] == [
        *("bad value", "remote image", "remote image", "repeated path", "unknown split", "blank path", "unknown label")
    ]
    assert "task 2: s3://bucket/a.jpg is no local file. Download it" in problems[2].message
    assert "task 4 repeats the image of task 3: x/../a.jpg" in problems[3].message
    assert (
        "task 6: expected the image's path under image or img, got the keys text. Pass path_column"
        in problems[5].message
    )
    assert {problem.file for problem in problems} == {export}


def test_other_json_is_not_taken_for_an_export(tmp_path: Path) -> None:
    for name, value in {
        "coco": {"images": [], "annotations": []},
        "list": [{"path": "a.jpg"}],
        "numbers": [1, 2],
        "nothing": [],
    }.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(value))
        assert not LabelStudioSource.recognises(file)
    with pytest.raises(SourceNotFoundError, match=r"is no Label Studio export: expected a \.json file"):
        LabelStudioSource(tmp_path)


def test_annotations_in_an_unknown_form(export: Path) -> None:
    write(export, task(1, "a.jpg", annotation("cat")), {**task(2, "b.jpg"), "annotations": [12]})
    with pytest.raises(DataError, match=r"task 2: annotations in an unknown form \(.*\)\. Export as JSON again"):
        open_source(export)
    assert open_source(export, problems=[]).read("train").target.tolist() == [[1], [-1]]


def test_truncated_export(export: Path) -> None:
    text = write(export, task(1, "a.jpg", annotation("cat"))).read_text()
    export.write_text(text[:-20])
    with pytest.raises(DataError, match=r"json: no whole JSON \(.*\)\. Export it again"):
        open_source(export)


@pytest.mark.parametrize("reference", ["http://[x", "//[x/a.jpg", "https://[::1/a.jpg"])
def test_addresses_that_are_none(export: Path, reference: str) -> None:
    write(export, task(1, reference, annotation("cat")))
    with pytest.raises(DataError, match=r"task 1: .* is no local file\. Download it"):
        open_source(export)


def test_references_that_no_path_has(export: Path) -> None:
    write(export, task(1, "/" * 200_000, annotation("cat")), task(2, "a.jpg", annotation("cat")))
    with pytest.raises(
        DataError, match=r"task 1: expected the image's path, got 200,000 characters, .*: /{77}\.{4} Store"
    ) as caught:
        open_source(export)
    assert len(str(caught.value)) < 500
    assert len(open_source(export, problems=[]).read("train")) == 1


@pytest.mark.parametrize("depth", [300, 600, 900, 3000])
def test_choices_too_deep_within_each_other(export: Path, depth: int) -> None:
    of_min = {"image": "a.jpg", "id": 1, "annotator": 1, "annotation_id": 1}
    choices = annotation("DEEP")
    records = [
        {**of_min, "choice": "DEEP"},
        {**of_min, "choice": {"choices": {"a": "DEEP"}}},
        task(1, "a.jpg", choices),
        {**task(1, "a.jpg", annotation("cat")), "id": "DEEP"},
    ]
    deep = "[" * depth + '"cat"' + "]" * depth
    for record in records:
        for problems in (None, []):
            export.write_text(json.dumps([record]).replace('"DEEP"', deep))
            message = ""
            try:
                assert len(open_source(export, problems=problems).read("train")) == 1
            except DataError as error:
                message = str(error)
            if message or depth > 1000:
                assert f"{export} holds values too deep within each other for an export" in message
