"""`msrn thresholds`: from the run's own validation images or others, into the bundle, and off again."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from command_line import run
from tiny_training import write_pictures

import msrn
from msrn.cli import main as cli


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sixteen pictures, of which four are held out."""
    folder = tmp_path_factory.mktemp("pictures")
    images = write_pictures(folder)
    rows = [
        ",".join(
            [path.name, "|".join(name for name, value in zip(images.label_names, row, strict=True) if value) or "[]"]
        )
        for path, row in zip(images.paths, images.target, strict=True)
    ]
    (folder / "labels.csv").write_text("path,labels\n" + "\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("runs") / "tiny"
    options = [
        f"data.root={folder}", "data.val_fraction=0.5", "data.size=[32,32]", "data.batch_size=4", "model.backbone=resnet10t",
        "model.backbone_options={channels: [8, 8, 16, 16]}", "model.dim=8", "trainer.max_epochs=1",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["msrn", "train", "scenes", *options, "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code
    return out


@pytest.fixture
def bundle(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run" / "bundle"


def test_the_runs_own_validation_images_by_default(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    code, out, err = run(capsys, "thresholds", bundle, "--json", "-", "--min-positives", 1)
    assert code == 0, err
    report = json.loads(out)
    splits = json.loads((bundle.parent / "splits.json").read_text())
    assert report["fitted_on"]["sha256"] == splits["val"]["sha256"]
    assert report["fitted_on"]["images"] == 8
    assert "thresholds for f1, fitted on 8 images" in " ".join(err.split())
    config = json.loads((bundle / "config.json").read_text())
    assert config["thresholds"]["values"] == [row["threshold"] for row in report["labels"].values()]
    loaded = msrn.load(bundle)
    assert loaded.bundle.label_thresholds.tolist() == config["thresholds"]["values"]


def test_another_bundle_and_back_again(capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "config.json").read_text()
    out = tmp_path / "tagger"
    assert run(capsys, "thresholds", bundle, "--target", "recall=0.5", "--calibration", "platt", "--out", out)[0] == 0
    assert (bundle / "config.json").read_text() == before
    config = json.loads((out / "config.json").read_text())
    assert (config["thresholds"]["objective"], config["calibration"]["method"]) == ("recall=0.5", "platt")
    code, shown, _ = run(capsys, "thresholds", out, "--reset")
    assert (code, "every label from 0.5, not calibrated" in " ".join(shown.split())) == (0, True)
    after = json.loads((out / "config.json").read_text())
    assert "thresholds" not in after
    assert "calibration" not in after


def test_wrong_options_and_places_are_named(capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path) -> None:
    code, _, err = run(capsys, "thresholds", bundle, "--target", "precision=90")
    assert (code, "precision is a fraction below 1" in " ".join(err.replace("│", "").split())) == (2, True)
    code, _, err = run(capsys, "thresholds", bundle, "--calibration", "beta")
    assert (code, "'beta' is none of auto" in " ".join(err.replace("│", "").split())) == (2, True)
    alone = Path(shutil.copytree(bundle, tmp_path / "alone" / "bundle"))
    code, _, err = run(capsys, "thresholds", alone)
    assert code == 1
    assert "does not lie in the folder of its run" in err
    assert "Give labelled images by --data and --split" in err


def test_nothing_is_changed_before_everything_is_known_to_fit(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    before = (bundle / "config.json").read_text()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("")
    (tmp_path / "mine.json").write_text("[1]")
    (tmp_path / "mine.html").write_text("<!doctype html>my own page")
    for options, words in (
        (["--json", tmp_path / "photos"], "is a folder"),
        (["--json", tmp_path / "mine.json"], "is not what msrn writes; it is left alone"),
        (["--json", tmp_path / "mine.html"], "is not what msrn writes; it is left alone"),
        (["--out", tmp_path / "photos"], "exists and is not a bundle; it is left alone"),
    ):
        code, _, err = run(capsys, "thresholds", bundle, *options)
        assert (code, words in err) == (1, True), err
    for options, words in (
        (["--split", "train"], "without --data the validation images of the bundle's run are taken"),
        (["--label-column", "tags"], "without --data"),
        (["--reset", "--data", tmp_path], "it reads no data"),
        (["--reset", "--target", "recall=0.5"], "it reads no data, fits nothing"),
    ):
        code, _, err = run(capsys, "thresholds", bundle, *options)
        assert (code, words in " ".join(err.replace("│", "").split())) == (2, True), err
    assert (bundle / "config.json").read_text() == before
    assert (tmp_path / "mine.json").read_text() == "[1]"


def test_a_damaged_key_is_taken_off(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "thresholds": {"values": 3}}))
    assert "--reset" in run(capsys, "thresholds", bundle)[2]
    assert run(capsys, "thresholds", bundle, "--reset")[0] == 0
    assert run(capsys, "thresholds", bundle)[0] == 0


def test_validation_images_that_have_changed_are_refused(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    splits = json.loads((bundle.parent / "splits.json").read_text())
    splits["val"]["sha256"] = "0" * 64
    (bundle.parent / "splits.json").write_text(json.dumps(splits))
    code, _, err = run(capsys, "thresholds", bundle)
    assert code == 1
    assert "have changed since it was trained" in err
