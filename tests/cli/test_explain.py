"""`msrn explain`: a sentence a label, pictures, JSON, and what it refuses."""

import json
import re
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
from msrn.models import build_msrn

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
