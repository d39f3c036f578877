"""A job's results against the predictor's, whatever the source, format and number of workers, and after being stopped."""

import csv
import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from PIL import Image

import msrn
from msrn.bulk import FORMATS, tag_images
from msrn.bulk.sources import find_images
from msrn.bulk.writers import About, Writer
from msrn.data import open_source
from msrn.errors import DataError, EmptySplitError, MSRNError, SourceNotFoundError
from msrn.predict import Predictor


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return msrn.load(bundle_dir)


def expected_rows(predictor: Predictor, photos: Path, **options: Any) -> dict[str, dict[str, float]]:
    """By path the labels of each image predicted alone."""
    paths = [path for path in find_images([photos]) if "damaged" not in str(path)]
    found = [predictor.predict(path, **options)[0] for path in paths]  # type: ignore[arg-type]
    return {str(row.path): {label.name: label.probability for label in row.labels} for row in found}


def read_jsonl(path: Path) -> dict[str, dict[str, float]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["path"] for row in rows}) == len(rows)  # nothing twice
    return {row["path"]: {label["name"]: label["probability"] for label in row["labels"]} for row in rows}


def assert_same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert list(found) == list(expected)
    for path, labels in found.items():
        assert set(labels) == set(expected[path])
        assert labels == pytest.approx(expected[path], abs=1e-4)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_same_picture_same_answer(
    predictor: Predictor, photos: Path, tmp_path: Path, num_workers: int, batch_size: int
) -> None:
    seen: list[tuple[int, int]] = []
    result = tag_images(
        predictor,
        [photos],
        tmp_path / "tags.jsonl",
        batch_size=batch_size,
        num_workers=num_workers,
        on_progress=lambda *state: seen.append(state),
    )
    assert_same(read_jsonl(result.out), expected_rows(predictor, photos))
    assert (result.num_images, result.num_unreadable, result.num_resumed) == (12, 1, 0)
    assert seen[-1] == (13, 1)
    assert result.errors_file is not None
    failed = json.loads(result.errors_file.read_text())
    assert failed["path"] == str(photos / "damaged.jpg")
    assert "damaged" in failed["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "tags.jsonl", "tags.jsonl.errors.jsonl"]


@pytest.mark.parametrize("options", [{"threshold": 0.0}, {"top_k": 2}, {"threshold": 0.6, "top_k": 1}])
def test_thresholds_and_top_k(predictor: Predictor, photos: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    tag_images(predictor, [photos], tmp_path / "tags.jsonl", num_workers=0, **options)
    assert_same(read_jsonl(tmp_path / "tags.jsonl"), expected_rows(predictor, photos, **options))


def test_every_format_says_the_same(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    expected = expected_rows(predictor, photos)
    for name, file in (
        ("parquet", "t.parquet"),
        ("csv", "t.csv"),
        ("fiftyone", "f.json"),
        ("label-studio", "l.json"),
        ("xmp", "side"),
    ):
        tag_images(predictor, [photos], tmp_path / file, format=name, num_workers=0)

    table = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    found = {row["path"]: dict(zip(row["labels"], row["probabilities"], strict=True)) for row in table}
    assert_same(found, expected)

    with (tmp_path / "t.csv").open(newline="") as file_:
        rows = list(csv.DictReader(file_))
    cells = {
        row["path"]: [
            row[column].split("|") if row[column] not in ("", "[]") else [] for column in ("labels", "probabilities")
        ]
        for row in rows
    }
    assert_same(
        {path: dict(zip(labels, map(float, probs), strict=True)) for path, (labels, probs) in cells.items()}, expected
    )
    split = open_source(tmp_path / "t.csv").read("train")  # what was predicted may be trained on
    names = open_source(tmp_path / "t.csv").label_names
    for path, target in zip(split.paths, split.target, strict=True):
        assert {name for name, value in zip(names, target, strict=True) if value == 1} == set(expected[str(path)])
        assert (target != -1).all()  # none of the labels is known too

    fiftyone = json.loads((tmp_path / "f.json").read_text())
    assert fiftyone["classes"] == list(predictor.label_names)
    found = {path: {own["label"]: own["confidence"] for own in labels} for path, labels in fiftyone["labels"].items()}
    assert_same(found, expected)

    tasks = json.loads((tmp_path / "l.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d={path.lstrip('/')}" for path in expected
    ]
    for task, labels in zip(tasks, expected.values(), strict=True):
        (prediction,) = task["predictions"]
        (choice,) = prediction["result"]
        assert (choice["from_name"], choice["to_name"], choice["type"]) == ("labels", "image", "choices")
        assert choice["value"]["choices"] == list(labels)
        assert prediction["model_version"].startswith("msrn ")

    for path, labels in expected.items():
        text = (tmp_path / "side" / f"{path.lstrip('/')}.xmp").read_bytes()
        assert text.startswith(b'<?xpacket begin="\xef\xbb\xbf"')
        items = ET.fromstring(text).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
        assert [item.text for item in items] == list(labels)


def test_photo_programs_read_the_sidecars_keywords(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    """Pillow's own XMP reader stands for theirs."""
    tag_images(predictor, [photos / "02.png"], tmp_path / "side", top_k=6, num_workers=0)
    (sidecar,) = (tmp_path / "side").rglob("*.xmp")
    xmp = sidecar.read_bytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=xmp)
    with Image.open(tmp_path / "a.jpg") as image:
        keywords = image.getxmp()["xmpmeta"]["RDF"]["Description"]["subject"]["Bag"]["li"]
    assert set(keywords) == set(predictor.label_names)


def test_odd_names_of_files_and_labels(tmp_path: Path) -> None:
    names = ("tab\tand \x08 bell", "<&>")
    long = f"{'x' * 245}é.png"
    rows = [{"path": f"/a/../b/{long}", "labels": [{"name": name, "probability": 0.5} for name in names]}]
    FORMATS["xmp"].write(rows, tmp_path / "side", About(names, "m"))
    (sidecar,) = (tmp_path / "side" / "b").iterdir()
    assert len(sidecar.name.encode()) <= 255
    items = ET.fromstring(sidecar.read_bytes()).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    assert [item.text for item in items] == ["tab\tand  bell", "<&>"]
    about = About(("a|b",), "m")
    with pytest.raises(MSRNError, match=r"the label 'a\|b' has a '\|' in it"):
        FORMATS["csv"].check(about, tmp_path / "t.csv", [])


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl", "fiftyone", "label-studio", "xmp"])
def test_a_name_that_is_not_utf8_spoils_no_file(
    predictor: Predictor, photos: Path, tmp_path: Path, format: str
) -> None:
    odd = photos / os.fsdecode(b"caf\xe9.png")
    shutil.copy(photos / "02.png", odd)
    out = tmp_path / ("side" if format == "xmp" else "tags.csv" if format == "csv" else f"tags.{format}")
    if format == "parquet":
        pytest.importorskip("pyarrow")
    result = tag_images(predictor, [photos], out, format=format, num_workers=0)
    assert result.errors_file is not None
    failed = {row["path"]: row["error"] for row in map(json.loads, Path(result.errors_file).read_text().splitlines())}
    if format in ("parquet", "csv"):  # which could only name another file
        assert (result.num_images, result.num_unreadable) == (12, 2)
        assert "the name is not UTF-8, and no table holds others. Rename the file" in failed[str(odd)]
        assert len(open_source(out).read("train")) == 12
        return
    assert (result.num_images, list(failed)) == (13, [str(photos / "damaged.jpg")])
    if format == "xmp":
        assert (out / f"{str(odd).lstrip('/')}.xmp").exists()
        return
    text = out.read_text(encoding="utf-8")
    if format == "jsonl":
        found = [json.loads(line)["path"] for line in text.splitlines()]
    elif format == "fiftyone":
        found = list(json.loads(text)["labels"])
    else:
        found = [os.fsdecode(unquote_to_bytes(task["data"]["image"].partition("?d=")[2])) for task in json.loads(text)]
        found = [f"/{path}" for path in found]
    assert str(odd) in found
    assert all(Path(path).exists() for path in found)


class StoppedError(Exception):
    pass


def stop_after(count: int) -> Any:
    def see(done: int, _: int) -> None:
        if done >= count:
            raise StoppedError

    return see


def test_a_stopped_job_goes_on(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"
    for count in (3, 8):
        with pytest.raises(StoppedError):
            tag_images(
                predictor, [photos], out, batch_size=2, num_workers=0, part_size=2, on_progress=stop_after(count)
            )
        assert not out.exists()
    result = tag_images(predictor, [photos], out, batch_size=5, num_workers=2)
    assert result.num_resumed == 8
    assert_same(read_jsonl(out), expected_rows(predictor, photos))
    assert not (tmp_path / "tags.jsonl.parts").exists()


@pytest.mark.parametrize("moment", range(1, 34, 2))
def test_an_interrupt_between_any_two_steps_loses_and_doubles_nothing(
    predictor: Predictor, photos: Path, tmp_path: Path, moment: int
) -> None:
    """Ctrl-C, at each of the lines that handle parts."""
    out = tmp_path / "tags.jsonl"
    lines = 0

    def count(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename.endswith(("bulk/parts.py", "bulk/job.py")) and frame.f_code.co_name in (
            "add",
            "flush",
            "_predict",
        ):
            lines += event == "line"
            if lines == 3 * moment:
                lines += 1
                raise KeyboardInterrupt
            return count
        return None

    options: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "part_size": 3}
    sys.settrace(count)
    try:
        with pytest.raises(KeyboardInterrupt):
            tag_images(predictor, [photos], out, **options)
    finally:
        sys.settrace(None)
    assert not out.exists()
    tag_images(predictor, [photos], out, **options)
    assert_same(read_jsonl(out), expected_rows(predictor, photos))


def test_a_job_that_could_not_write_its_file_has_only_to_write_it(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tags.jsonl"

    def fail(rows: Any, path: Path, about: Any) -> None:
        (tmp_path / f".{path.name}.abcdefgh.msrn").write_text("half")  # as a kill would leave it
        raise MSRNError("no space")

    with monkeypatch.context() as patched:
        patched.setitem(FORMATS, "jsonl", Writer(fail))
        with pytest.raises(MSRNError, match="no space"):
            tag_images(predictor, [photos], out, num_workers=0)
    result = tag_images(predictor, [photos], out, num_workers=0)
    assert (result.num_resumed, result.num_images) == (13, 12)
    assert_same(read_jsonl(out), expected_rows(predictor, photos))
    assert not list(tmp_path.glob(".*"))


def test_another_job_is_not_mixed_in(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"

    def tag(*sources: Path, **options: Any) -> Any:
        return tag_images(
            predictor, list(sources) or [photos], out, batch_size=2, num_workers=0, part_size=2, **options
        )

    with pytest.raises(StoppedError):
        tag(on_progress=stop_after(4))
    with pytest.raises(MSRNError, match=r"holds an unfinished job that differs in threshold\. .*--restart"):
        tag(threshold=0.1)
    with pytest.raises(MSRNError, match="unfinished job that differs in sources"):
        tag(photos / "b")
    (photos / "000.png").write_bytes((photos / "02.png").read_bytes())  # one that comes first
    with pytest.raises(MSRNError, match="no longer those that the unfinished job"):
        tag()
    assert tag(restart=True).num_images == 13
    with pytest.raises(MSRNError, match=r"exists; it is left alone\. Give another --out, or --overwrite"):
        tag()
    (photos / "000.png").unlink()
    assert tag(overwrite=True).num_images == 12
    assert len(read_jsonl(out)) == 12


def test_a_job_that_failed_before_its_first_part_is_in_nobodys_way(
    predictor: Predictor, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tags.jsonl"
    (photos / "gap.csv").write_text("path,b\n02.png,2\n,3\n")
    with pytest.raises(DataError, match=r"gap\.csv:3: no path"):
        tag_images(predictor, [photos / "gap.csv"], out, num_workers=0)
    assert (tmp_path / "tags.jsonl.parts").exists()
    out.write_text("mine")
    with pytest.raises(MSRNError, match=r"tags\.jsonl exists; it is left alone"):
        tag_images(predictor, [photos], out, num_workers=0)
    out.unlink()
    assert tag_images(predictor, [photos], out, num_workers=0, threshold=0.1).num_images == 12
    assert not (tmp_path / "tags.jsonl.parts").exists()


DAMAGED_PARTS = {
    "empty": lambda _: "",
    "no JSON": lambda lines: "\n".join([lines[0], "{", lines[2]]),
    "far too deep": lambda lines: "\n".join([lines[0], "[" * 100_000, lines[2]]),
    "a row too few": lambda lines: "\n".join(lines[:2]),
    "a row too many": lambda lines: "\n".join([*lines, lines[2]]),
    "a list": lambda lines: "\n".join([lines[0], "[]", lines[2]]),
    "no path": lambda lines: "\n".join([lines[0], '{"labels": []}', lines[2]]),
    "half a label": lambda lines: "\n".join([lines[0], '{"path": "a.png", "labels": [{"name": "cat"}]}', lines[2]]),
    "no number": lambda lines: "\n".join([lines[0], *(re.sub("0[.][0-9]+", "NaN", line) for line in lines[1:])]),
    "a head too deep": lambda lines: "\n".join(["[" * 100_000, *lines[1:]]),
    "a head of no number": lambda lines: "\n".join(['{"images": 1e999, "listing": ""}', *lines[1:]]),
    "a head of too many": lambda lines: "\n".join([f'{{"images": {10**30}, "listing": ""}}', *lines[1:]]),
    "a head of none": lambda lines: "\n".join(['{"images": 0, "listing": ""}', *lines[1:]]),
}


@pytest.mark.fault("parts of a job that are damaged")
def test_damaged_parts_are_named(predictor: Predictor, photos: Path, tmp_path: Path, lost: Any) -> None:
    out = tmp_path / "tags.jsonl"
    options: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "part_size": 2, "threshold": 0.1}
    with pytest.raises(StoppedError):
        tag_images(predictor, [photos], out, on_progress=stop_after(4), **options)
    part, job_file = (tmp_path / "tags.jsonl.parts" / name for name in ("000000.jsonl", "job.json"))
    whole = part.read_text()
    for what, damage in DAMAGED_PARTS.items():
        part.write_text(damage(whole.splitlines()))
        assert part.read_text() != whole, what
        with pytest.raises(MSRNError, match=r"000000\.jsonl is damaged or missing\. Add --restart"):
            tag_images(predictor, [photos], out, **options)
    part.write_text(whole)
    job = job_file.read_text()
    for text in ("{", "[]", "[" * 100_000):
        job_file.write_text(text)
        with pytest.raises(MSRNError, match=r"job\.json is damaged or missing\. Add --restart"):
            tag_images(predictor, [photos], out, **options)
    job_file.unlink()
    with pytest.raises(MSRNError, match=r"job\.json is damaged or missing\. Add --restart"):
        tag_images(predictor, [photos], out, **options)
    part.unlink()
    part.mkdir()
    with pytest.raises(MSRNError, match=r"holds other things \(000000\.jsonl\); it is left alone"):
        tag_images(predictor, [photos], out, restart=True, **options)
    part.rmdir()
    part.write_text(whole)
    job_file.write_text(job)
    assert tag_images(predictor, [photos], out, **options).num_resumed >= 2
    images = [str(image) for image in find_images([photos]) if not str(image).endswith("damaged.jpg")]
    lost(images, list(read_jsonl(out)), "images")


def test_two_at_once_are_refused(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "tags.jsonl"

    def again(*_: int) -> None:
        tag_images(predictor, [photos], out, num_workers=0)

    with pytest.raises(MSRNError, match=r"another process is at work in .*tags\.jsonl\.parts"):
        tag_images(predictor, [photos], out, num_workers=0, on_progress=again)


def test_nothing_of_others_is_lost(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MSRNError, match="holds other things than XMP sidecars; it is left alone"):
        tag_images(predictor, [photos / "02.png"], photos / "b", format="xmp", overwrite=True)
    assert len(list((photos / "b").iterdir())) == 4
    (photos / "list.csv").write_text("path\n02.png\n")
    parts = tmp_path / "mine.csv.parts"
    parts.mkdir()
    (parts / "notes.jsonl").write_text("mine")
    for restart in (False, True):
        with pytest.raises(MSRNError, match=r"holds other things \(notes\.jsonl\); it is left alone"):
            tag_images(predictor, [photos / "02.png"], tmp_path / "mine.csv", num_workers=0, restart=restart)
    assert (parts / "notes.jsonl").read_text() == "mine"
    (tmp_path / "new.csv.errors.jsonl").write_text("mine")
    with pytest.raises(MSRNError, match=r"new\.csv\.errors\.jsonl exists; it is left alone"):
        tag_images(predictor, [photos / "02.png"], tmp_path / "new.csv", num_workers=0)
    with pytest.raises(MSRNError, match="is one of the sources"):
        tag_images(predictor, [photos / "list.csv"], photos / "list.csv", overwrite=True)
    (tmp_path / "link.csv").symlink_to(photos / "list.csv")  # a file is written where a link leads
    with pytest.raises(MSRNError, match="is one of the sources"):
        tag_images(predictor, [photos / "list.csv"], tmp_path / "link.csv", overwrite=True)
    assert (photos / "list.csv").read_text() == "path\n02.png\n"


def test_problems_are_said_before_the_work(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MSRNError, match=r"the ending tells no format.*label-studio"):
        tag_images(predictor, [photos], tmp_path / "tags.txt")
    with pytest.raises(MSRNError, match=r"there is no format 'cvs'\. Choose one of parquet, csv"):
        tag_images(predictor, [photos], tmp_path / "tags", format="cvs")
    with pytest.raises(MSRNError, match="has no name"):
        tag_images(predictor, [photos], Path())
    with pytest.raises(ValueError, match="batch_size is too small"):
        tag_images(predictor, [photos], tmp_path / "tags.csv", batch_size=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        tag_images(predictor, [photos], tmp_path / "tags.csv", threshold=2.0)
    with pytest.raises(MSRNError, match=r"annotation tools open no images in .*a\.tar"):
        tag_images(predictor, ["a.tar"], tmp_path / "tags.json", format="fiftyone")
    with pytest.raises(SourceNotFoundError):
        tag_images(predictor, [tmp_path / "none"], tmp_path / "tags.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptySplitError):
        tag_images(predictor, [photos, tmp_path / "empty"], tmp_path / "tags.csv", num_workers=0)
    assert not (tmp_path / "tags.csv.parts").exists()
    assert set(FORMATS) == {"parquet", "csv", "jsonl", "xmp", "label-studio", "fiftyone"}


def test_half_a_letter_in_a_name_is_listed_and_the_others_are_answered(
    predictor: Predictor, photos: Path, tmp_path: Path
) -> None:
    source = tmp_path / "list.jsonl"
    there = next(path for path in sorted(photos.rglob("*.png")))
    source.write_text('{"path": "\\ud800.jpg"}\n' + json.dumps({"path": str(there)}) + "\n")
    result = tag_images(predictor, [source], tmp_path / "tags.jsonl", num_workers=0, allow_outside=True)
    assert (result.num_images, result.num_unreadable) == (1, 1)
