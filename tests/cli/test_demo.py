"""`msrn demo`: data, two trained heads, a bundle and a page; run again, it goes on."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import check_may_be_replaced

import msrn.data.scenes
import msrn.recipes
from msrn.cli import main as cli
from msrn.data import open_source
from msrn.data.scenes import write_scenes
from msrn.predict import load
from msrn.recipes import Recipe, load_recipe

TINY = ["data.size=[32,32]", "data.num_workers=0", "model.backbone_options={channels: [8,8,16,16]}", "model.dim=8"]


def run_demo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["msrn", "demo", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


@pytest.fixture
def is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer images and a smaller network, else the same."""
    counts = {"num_train": 40, "num_val": 16, "num_test": 16}
    monkeypatch.setattr(msrn.data.scenes, "write_scenes", partial(write_scenes, **counts))

    def load_small(name: str, overrides: Any = ()) -> Recipe:
        return load_recipe(name, [*overrides, *TINY])

    monkeypatch.setattr(msrn.recipes, "load_recipe", load_small)


def check_left_behind(out: Path) -> None:
    source = open_source(out / "data")
    assert source.splits == ("train", "val", "test")
    assert load(out / "bundle").label_names == source.label_names
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "average pooling" in page
    assert "<svg" in page


@pytest.mark.usefixtures("is_small")
def test_demo_leaves_data_bundle_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "de:mo #1"  # YAML must not read this path as anything else
    assert run_demo(monkeypatch, "--out", out, "--epochs", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(out / "index.html")
    assert sum("on the test split, read once" in line for line in lines) == 2
    assert sum(line.startswith(str(out / "data" / "images" / "test")) for line in lines) == 3
    check_left_behind(out)

    before = (out / "runs" / "msrn" / "metrics.csv").stat().st_mtime_ns
    assert run_demo(monkeypatch, "--out", out, "--epochs", 1, "--json", "-") == 0
    again = capsys.readouterr()
    assert (out / "runs" / "msrn" / "metrics.csv").stat().st_mtime_ns == before
    report = json.loads(again.out)
    check_may_be_replaced(again.out)
    assert report["page"] == str(out / "index.html")
    assert {name: "mAP" in test for name, test in report["heads"].items()} == {"MSRN": True, "average pooling": True}
    assert again.err.splitlines()[-1] == str(out / "index.html")


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    assert run_demo(monkeypatch, "--out", tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: expected a new folder or written scenes, but ")
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine.txt"]


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run_demo(monkeypatch, "--out", tmp_path / "file") == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / 'file'}")
    assert captured.err.count("\n") == 1


@pytest.mark.usefixtures("is_small")
def test_runs_of_something_else_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "runs" / "msrn"
    mine.mkdir(parents=True)
    (mine / "recipe.yaml").write_text("name: mine\n")
    (mine / "weights").write_text("mine")
    assert run_demo(monkeypatch, "--out", tmp_path) == 1
    assert "another recipe" in capsys.readouterr().err
    assert (mine / "weights").read_text() == "mine"


@pytest.mark.slow
def test_demo_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(monkeypatch, "--out", tmp_path, "--epochs", 1) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "index.html")
    assert len(open_source(tmp_path / "data").read("train")) == 2000
    check_left_behind(tmp_path)
