"""`msrn predict` without and with --out: what each takes, and what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from PIL import Image

from msrn.bundle import Bundle, save_bundle
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.models import build_pooled

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}


@pytest.fixture(scope="module")
def bundle(label_graph: LabelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = build_pooled(label_graph.num_labels, **TINY)
    found = Bundle(model, label_graph, {"name": "pooled", **TINY}, Preprocessing((64, 64)))
    return save_bundle(found, tmp_path_factory.mktemp("predict") / "bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 30), (80 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_into_a_file(capsys: pytest.CaptureFixture[str], bundle: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    command = ["predict", bundle, f"{photos}/*", "--out", tmp_path / "tags.jsonl", "--workers", "0", "--threshold", "0"]
    code, out, err = run(capsys, *command, "--json", "-")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["images"], summary["unreadable"], summary["resumed_behind"]) == (3, 1, 0)
    assert "3 images tagged" in err
    assert "1 could not be read" in err
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    alone = run(capsys, "predict", bundle, photos / "2.png", "--threshold", "0", "--json", "-")[1]
    assert json.loads(alone)["labels"] == [
        {"name": label["name"], "probability": pytest.approx(label["probability"], abs=1e-4)}
        for label in rows[2]["labels"]
    ]


def test_a_job_of_unreadable_images_fails(capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")
    code, _, err = run(capsys, "predict", bundle, tmp_path / "bad.jpg", "--out", tmp_path / "t.csv", "--workers", "0")
    assert (code, "none of the images could be read" in err) == (1, True)


@pytest.mark.parametrize("source", ["list.csv", "shard.tar", "*.png", "-", "https://example.org/a.jpg"])
def test_what_needs_a_file_says_so(capsys: pytest.CaptureFixture[str], bundle: Path, photos: Path, source: str) -> None:
    given = source if source == "-" or "://" in source else photos / source
    code, _, err = run(capsys, "predict", bundle, given)
    assert (code, "are tagged into a file. Add --out FILE." in err) == (1, True)


def test_options_of_a_file_without_one(capsys: pytest.CaptureFixture[str], bundle: Path, photos: Path) -> None:
    for option in (["--format", "csv"], ["--workers", "2"], ["--restart"], ["--engine", "ray"]):
        code, _, err = run(capsys, "predict", bundle, photos, *option)
        assert (code, f"{option[0]} is for writing to a file. Add --out" in err) == (1, True)


def test_json_replaces_no_photo(capsys: pytest.CaptureFixture[str], bundle: Path, photos: Path) -> None:
    photo = photos / "0.png"
    before = photo.read_bytes()
    for sources in ([photo], [photos / "1.png"]):
        code, _, err = run(capsys, "predict", bundle, *sources, "--json", photo)
        assert code == 1
        assert "is an image, which would be lost" in err
    assert photo.read_bytes() == before


def test_json_replaces_no_source_and_no_result(
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.csv").write_text("path\nphotos/0.png\n")
    Path("link.json").symlink_to("list.csv")
    Path("notes.json").write_text('{"mine": 1}')
    for source, out, json_file, words in (
        ("./list.csv", "tags.jsonl", "list.csv", "is a part of the data, which would be lost"),
        ("list.csv", "tags.jsonl", "link.json", "is a part of the data, which would be lost"),
        ("photos", "tags.jsonl", "tags.jsonl", "would take the place of tags.jsonl, which is written too"),
        ("photos", "./tags.jsonl", tmp_path / "tags.jsonl", "would take the place of ./tags.jsonl"),
        ("photos", "t.csv", "t.csv.errors.jsonl", "would take the place of t.csv.errors.jsonl"),
        ("photos", "side/", "side/summary.json", "would take the place of side,"),
        ("photos", f"file://{tmp_path}/t.csv", "t.csv", "would take the place of file://"),
        ("photos", "t.csv", "notes.json", "exists and is not what msrn writes; it is left alone"),
        ("photos", "t.csv", "photos", "is a folder"),
    ):
        code, _, err = run(capsys, "predict", bundle, source, "--out", out, "--json", json_file)
        assert (code, words in err) == (1, True), err
    assert Path("list.csv").read_text() == "path\nphotos/0.png\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "list.csv", "notes.json", "photos"]


def test_a_summary_is_replaced_by_the_next(
    capsys: pytest.CaptureFixture[str], bundle: Path, photos: Path, tmp_path: Path
) -> None:
    summary = tmp_path / "summary.json"
    summary.touch()  # as `mktemp` does
    for source in (photos, photos / "0.png"):
        arguments = [source, "--out", tmp_path / "t.csv", "--overwrite", "--workers", "0", "--json", summary]
        code, _, err = run(capsys, "predict", bundle, *arguments)
        assert code == 0, err
    assert json.loads(summary.read_text())["images"] == 1


def test_ray_takes_no_device(capsys: pytest.CaptureFixture[str], bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    code, _, err = run(capsys, "predict", bundle, photos, "--out", out, "--engine", "ray", "--device", "cpu")
    assert (code, "--device cpu is for this machine; on Ray every worker has a GPU" in err) == (1, True)
