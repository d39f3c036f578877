"""`msrn report`: the page and the numbers of a bundle, alone and beside another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from tiny_training import LABELS, write_pictures

from msrn.bundle import Bundle, load_bundle, save_bundle
from msrn.cli.report import names_of
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.models import build_pooled

TINY = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pictures with a table, and three bundles: two of their labels, in another order, and one of other labels."""
    folder = tmp_path_factory.mktemp("report")
    images = write_pictures(folder)
    rows = ["path,split," + ",".join(LABELS)]
    rows += [
        f"{path.name},test," + ",".join(map(str, row)) for path, row in zip(images.paths, images.target, strict=True)
    ]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    for name, labels in (("ours", LABELS), ("theirs", LABELS[::-1]), ("others", (*LABELS, "odd"))):
        torch.manual_seed(len(name))
        graph = LabelGraph.from_target(torch.from_numpy(np.ones((2, len(labels)), dtype=np.int8)), labels)
        model = build_pooled(len(labels), **TINY)
        save_bundle(Bundle(model, graph, {"name": "pooled", **TINY}, Preprocessing((32, 32))), folder / name / "bundle")
    return folder


def test_page_and_numbers_are_written(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    code, shown, err = run(
        capsys,
        "report",
        folder / "ours" / "bundle",
        "--data",
        folder,
        "--out",
        out,
        "--vs",
        folder / "theirs" / "bundle",
    )
    assert code == 0, err
    assert f"page: {out / 'index.html'}" in shown
    report = json.loads((out / "report.json").read_text())
    assert report["name"] == "ours"
    assert report["vs"].endswith("theirs/bundle")
    assert report["other"]["name"] == "theirs"
    assert [row["name"] for row in report["labels"]] == list(LABELS)
    assert len(report["other"]["labels"]) == len(LABELS)
    _, printed, _ = run(
        capsys, "evaluate", folder / "theirs" / "bundle", "--data", folder, "--split", "test", "--json", "-"
    )
    theirs = json.loads(printed)
    assert report["other"]["metrics"]["mAP"] == pytest.approx(theirs["mAP"])
    assert [row["AP"] for row in report["other"]["labels"]] == pytest.approx(
        [theirs["labels"][name] for name in LABELS]
    )
    shown_rows = {suspect["image"] for suspect in report["suspects"]}
    assert {int(row) for row in report["paths"]} >= shown_rows
    assert all(Path(path).is_file() for path in report["paths"].values())
    page = (out / "index.html").read_text()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_images_that_fitted_the_model_are_told(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(folder / "ours" / "bundle")
    trained = tmp_path / "trained" / "bundle"
    run(capsys, "thresholds", folder / "ours" / "bundle", "--data", folder, "--split", "test", "--out", trained)
    code, shown, _ = run(capsys, "report", trained, "--data", folder, "--out", tmp_path / "page")
    assert (code, "thresholds and calibration were fitted on these images" in " ".join(shown.split())) == (0, True)
    report = json.loads((tmp_path / "page" / "report.json").read_text())
    training = {"splits": {"train": {"sha256": report["protocol"]["sha256"]}}}
    save_bundle(replace(bundle, training=training), trained)
    code, shown, _ = run(capsys, "report", trained, "--data", folder, "--out", tmp_path / "page")
    assert (code, "the model was trained on these images" in " ".join(shown.split())) == (0, True)


def test_numbers_alone_go_to_standard_output(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    code, out, _ = run(capsys, "report", folder / "ours" / "bundle", "--data", folder, "--json", "-")
    assert code == 0
    report = json.loads(out)
    assert (report["num_images"], report["other"]) == (16, None)


def test_problems_are_named(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    bundle, data = folder / "ours" / "bundle", ["--data", folder]
    code, _, err = run(capsys, "report", bundle, *data)
    assert (code, "a report needs a place: --out FOLDER" in err) == (1, True)
    code, _, err = run(capsys, "report", bundle, *data, "--out", tmp_path / "out", "--vs", folder / "others" / "bundle")
    assert code == 1
    assert "know different labels, such as 'odd'" in err
    assert not (tmp_path / "out").exists()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<!doctype html>my own page")
    code, _, err = run(capsys, "report", bundle, *data, "--out", tmp_path / "site")
    assert (code, "holds other things; it is left alone" in err) == (1, True)
    assert (tmp_path / "site" / "index.html").read_text() == "<!doctype html>my own page"
    (tmp_path / "site" / "report.json").write_text('{"mine": 1}')
    code, _, err = run(capsys, "report", bundle, *data, "--out", tmp_path / "site")
    assert (code, "holds other things; it is left alone" in err) == (1, True)
    table = (folder / "labels.csv").read_text()
    code, _, err = run(capsys, "report", bundle, "--data", folder / "labels.csv", "--json", folder / "labels.csv")
    assert (code, "is a part of the data" in err) == (1, True)
    assert (folder / "labels.csv").read_text() == table
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "report", bundle, *data, "--out", tmp_path / "file")
    assert (code, "holds other things" in err) == (1, True)


def test_bundles_are_called_by_what_tells_them_apart() -> None:
    assert names_of(Path("runs/photos/bundle"), None) == ("photos", "")
    assert names_of(Path("a/run/bundle"), Path("b/run/bundle")) == ("a/run", "b/run")
    assert names_of(Path("tagger"), Path("before")) == ("tagger", "before")
    assert names_of(Path("one/bundle"), Path("one/bundle")) == ("one", "one again")
