"""`msrn explain`: a sentence a label, pictures, JSON, and what it refuses."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image

from msrn.bundle import Bundle, save_bundle
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.metrics.calibration import ScaledLogits
from msrn.models import PUBLISHED, build_msrn

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8}


@pytest.fixture(scope="module")
def folder(label_graph: LabelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    torch.manual_seed(0)
    bundle = Bundle(build_msrn(label_graph, **TINY), label_graph, {"name": "msrn", **TINY}, Preprocessing((64, 64)))
    save_bundle(bundle, folder / "bundle")
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def test_sentences_pictures_and_json(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "why"
    arguments = ["explain", folder / "bundle", folder / "photo.png", "--labels", "cat, dog", "--out", out]
    code, shown, err = run(capsys, *arguments)
    assert code == 0, err
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["cat", "dog"]
    assert "logit" in lines[0]
    assert "residual" in lines[0]
    assert {path.name for path in out.iterdir()} == {"01-cat.png", "02-dog.png", "explanation.json"}
    code, printed, _ = run(capsys, *arguments[:-2], "--json", "-")
    assert (code, json.loads(printed)) == (0, json.loads((out / "explanation.json").read_text()))
    assert run(capsys, *arguments)[0] == 0  # an explanation may be replaced


@pytest.mark.slow
def test_several_images_make_a_page(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "of <b> & co.png"
    Image.open(folder / "photo.png").convert("L").rotate(90, expand=True).save(other)
    out = tmp_path / "gallery"
    arguments = ["explain", folder / "bundle", folder / "photo.png", other, "--top", "2", "--out", out]
    code, shown, err = run(capsys, *arguments, "--json", tmp_path / "all.json")
    assert code == 0, err
    assert [line for line in shown.splitlines() if line.endswith(".png")] == [str(folder / "photo.png"), str(other)]
    alone = [out / number / "explanation.json" for number in ("001", "002")]
    assert json.loads((tmp_path / "all.json").read_text()) == [json.loads(path.read_text()) for path in alone]
    page = (out / "index.html").read_text()
    pictures = re.findall(r'src="([^"]+)"', page)
    assert len(pictures) == 4
    assert all((out / picture).is_file() for picture in pictures)
    assert "of &lt;b&gt; &amp; co.png" in page
    assert run(capsys, *arguments)[0] == 0  # a gallery may be replaced
    (out / "002" / "mine.txt").write_text("")
    code, _, err = run(capsys, *arguments)
    assert (code, "holds other things; it is left alone" in err) == (1, True)
    assert (out / "002" / "mine.txt").is_file()


def test_problems_are_named(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("")
    command = ["explain", folder / "bundle", folder / "photo.png"]
    code, _, err = run(capsys, *command, "--out", tmp_path / "photos")
    assert (code, "holds other things; it is left alone" in err) == (1, True)
    (tmp_path / "photos" / "explanation.json").write_text("{}")  # one file of ours beside theirs is not enough
    code, _, err = run(capsys, *command, "--out", tmp_path / "photos")
    assert (code, "holds other things; it is left alone" in err) == (1, True)
    assert (tmp_path / "photos" / "mine.jpg").is_file()
    for name, content in (("01-beach.png", b""), ("index.html", b"<html>"), ("explanation.json", b"{}")):
        mine = tmp_path / f"mine-{name}"
        mine.mkdir()
        if name.endswith(".png"):
            Image.new("RGB", (4, 4)).save(mine / name)
        else:
            (mine / name).write_bytes(content)
        code, _, err = run(capsys, *command, "--out", mine)
        assert (code, "holds other things; it is left alone" in err) == (1, True)
        assert (mine / name).is_file()
    code, _, err = run(capsys, *command, "--labels", " , ")
    assert (code, "no label was named" in err) == (1, True)
    code, _, err = run(capsys, *command, tmp_path / "photos" / "mine.jpg", "--out", tmp_path / "some")
    assert (code, "1 of 2 images could not be read; the others are done" in err) == (1, True)
    assert (tmp_path / "some" / "001" / "explanation.json").is_file()
    code, _, err = run(capsys, *command, "--labels", "kat")
    assert (code, "Do you mean 'cat'?" in err) == (1, True)
    code, _, err = run(capsys, "explain", folder / "bundle", tmp_path / "photos" / "mine.jpg")
    assert (code, "mine.jpg" in err) == (1, True)


def test_where_no_image_can_be_read_nothing_is_written(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    out, numbers = tmp_path / "gallery", tmp_path / "all.json"
    command = ["explain", folder / "bundle", "--out", out, "--json", numbers]
    out.mkdir()
    (out / "index.html").write_text('<meta name="generator" content="msrn">')
    numbers.write_text('[{"path": "a.jpg", "size": [48, 64], "is_exact": true}]')
    before = {path: path.read_bytes() for path in (out / "index.html", numbers)}
    code, _, err = run(capsys, *command, tmp_path / "no.jpg", tmp_path / "none.jpg")
    assert (code, "2 of 2 images could not be read; nothing was written" in err, "others" in err) == (1, True, False)
    assert {path: path.read_bytes() for path in (*out.iterdir(), numbers)} == before
    assert run(capsys, *command[:2], "--out", tmp_path / "new", tmp_path / "no.jpg", tmp_path / "none.jpg")[0] == 1
    assert not (tmp_path / "new").exists()


def test_places_that_cannot_be_written_are_refused_first(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    shutil.copy(folder / "photo.png", tmp_path / "photo.png")
    command = ["explain", folder / "bundle", tmp_path / "photo.png"]
    for options, message in (
        (["--out", tmp_path / "file" / "why"], "cannot be written"),
        (["--out", folder / "bundle" / "why"], "is in the bundle, which holds nothing else"),
        (["--json", folder / "bundle" / "why.json"], "is in the bundle, which holds nothing else"),
        (
            ["--out", tmp_path / "why", "--json", tmp_path / "why" / "all.json"],
            "is in --out, which is replaced as a whole",
        ),
        (["--json", tmp_path / "photo.png"], "exists and is not what msrn writes"),
    ):
        code, shown, err = run(capsys, *command, *options)
        assert (code, shown, message in err) == (1, "", True), (options, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photo.png"]
    assert not (folder / "bundle" / "why").exists()


def test_related_labels_may_be_left_out(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    command = ["explain", folder / "bundle", folder / "photo.png", "--json", "-"]
    for options, is_asked in (([], True), (["--no-related"], False)):
        related = [row["related"] for row in json.loads(run(capsys, *command, *options)[1])["labels"]]
        assert [own is not None for own in related] == [is_asked] * 3


def test_labels_of_any_name(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    names = ["salt, pepper", "fork", "船" * 5, "new\nline", "long " * 60, "pepper"]
    graph = LabelGraph.from_target((torch.rand(40, 6, generator=torch.manual_seed(0)) < 0.5).int(), names)
    bundle = Bundle(build_msrn(graph, **TINY), graph, {"name": "msrn", **TINY}, Preprocessing((64, 64)))
    bundle = save_bundle(bundle, tmp_path / "bundle")
    command = ["explain", bundle, folder / "photo.png", "--no-related", "--json", "-"]
    code, out, _ = run(capsys, *command, "--labels", "salt, pepper", "--labels", "fork,pepper")
    assert (code, [row["name"] for row in json.loads(out)["labels"]]) == (0, ["salt, pepper", "fork", "pepper"])
    # Warnings of matplotlib are errors here.
    options = ["--labels", names[2], "--labels", names[3], "--labels", names[4]]
    code, out, err = run(capsys, *command[:-2], *options, "--out", tmp_path / "why")
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["船船船船船", "new", "long", "pictures:", "note:"]
    assert "no font here has 船; pictures show a box for each" in lines[-1]
    assert len(list((tmp_path / "why").glob("*.png"))) == 3


def test_a_joint_classifier_and_a_calibration_are_named(
    capsys: pytest.CaptureFixture[str], folder: Path, label_graph: LabelGraph, tmp_path: Path
) -> None:
    options = {**PUBLISHED, **TINY, "classifier_dim": 8}
    calibration = ScaledLogits((2.0,) * 6, (3.0,) * 6, "platt")
    model = build_msrn(label_graph, **options)
    bundle = Bundle(model, label_graph, {"name": "msrn", **options}, Preprocessing((64, 64)), calibration=calibration)
    command = ["explain", save_bundle(bundle, tmp_path / "bundle"), *[folder / "photo.png"] * 2, "--no-related"]
    command += ["--labels", "cat", "--out", tmp_path / "why"]
    code, out, err = run(capsys, *command)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith("cat"))
    assert re.match(
        r"cat \d+ % after calibration: most at .* logit .* \(an approximation: the classifier is not linear\)", line
    )
    report = json.loads((tmp_path / "why" / "001" / "explanation.json").read_text())
    said = (report["is_exact"], report["note"], report["is_calibrated"])
    assert said == (False, "an approximation: the classifier is not linear", True)
    page = (tmp_path / "why" / "index.html").read_text()
    assert page.count("What adds up is an approximation: the classifier is not linear") == 2
    assert page.count("% after calibration") == 2
