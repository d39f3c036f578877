"""`msrn compare` as people use it: real runs, tiny ones; what is printed, written and refused."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import check_may_be_replaced, run
from PIL import Image

from msrn.compare import HEADS, Plan
from msrn.metrics import evaluate_predictions
from msrn.recipes.splits import read_splits

LABELS = ("red", "green", "blue")
TINY = [
    "data.size=[32,32]",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in which the colours that are there are brighter."""
    folder = tmp_path_factory.mktemp("data") / "colours"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = [("path", "labels", "split")]
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for number in range(count):
            present = rng.random(3) < 0.5
            pixels = rng.integers(0, 90, (32, 32, 3)) + 150 * present
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}-{number}.png")
            names = "|".join(name for name, is_there in zip(LABELS, present, strict=True) if is_there)
            rows.append((f"{split}-{number}.png", names or "[]", split))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison, made by the program in another process: one head searched, another that cannot be built."""
    folder = tmp_path_factory.mktemp("runs") / "comparison"
    own = folder.parent / "mine.yaml"
    own.write_text("too_deep: [model.head=msrn, model.num_stages=9]\n")
    command = [sys.executable, "-m", "msrn.cli.main", "compare", "scenes", f"data.root={data}", *TINY, "--out", folder]
    command += ["--heads", "avg_pool", "--reference", "avg_pool", "--seeds", "1", "--lrs", "0.01", "--variants", own]
    done = subprocess.run([*command, "--keep-predictions"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # of the head that cannot be built
    assert "too_deep-seed0-search-lr0.01 failed: " in done.stdout
    assert "run 3 of 4: average pooling, seed 0, lr 0.01" in done.stdout
    return folder


def test_a_run_leaves_all_that_it_found_and_no_path_of_the_machine(out: Path, data: Path) -> None:
    record = json.loads((out / "runs" / "avg_pool-seed0.json").read_text())
    assert (record["variant"], record["seed"], record["lr"]) == ("avg_pool", 0, 0.01)
    assert record["recipe"]["optimizer"]["lr"] == 0.01
    assert record["test"]["labels"].keys() == set(LABELS)
    assert record["val_mAP"] == max(record["val_mAP_by_epoch"])
    assert record["splits"].keys() == {"train", "val", "test"}
    for name in ("parameters", "flops", "train_seconds", "images_per_s", "peak_memory_bytes"):
        assert record[name] > 0, name
    assert record["machine"]["versions"]["torch"]
    texts = [path.read_text() for path in (*(out / "runs").iterdir(), out / "comparison.json", out / "comparison.md")]
    assert len(texts) == 5
    assert not any(str(data.parent) in text or str(out.parent) in text for text in texts)
    assert not (out / "training" / "avg_pool-seed0").exists()


def test_predictions_give_the_metrics_again(out: Path) -> None:
    found = np.load(out / "predictions" / "avg_pool-seed0.npz")
    assert (found["probs"].dtype, found["probs"].shape) == (np.float32, (8, 3))
    assert set(found["label_names"]) == set(LABELS)
    import torch

    again = evaluate_predictions(
        torch.from_numpy(found["probs"]), torch.from_numpy(found["target"]), found["label_names"].tolist()
    )
    record = json.loads((out / "runs" / "avg_pool-seed0.json").read_text())
    assert again["mAP"] == pytest.approx(record["test"]["mAP"])


def test_the_failed_head_is_in_the_comparison_with_its_reason(out: Path) -> None:
    comparison = json.loads((out / "comparison.json").read_text())
    assert [(one["variant"], one["is_search"]) for one in comparison["failed"]] == [("too_deep", True)]
    assert "stages" in comparison["failed"][0]["failed"]
    assert comparison["pending"] == 1  # its final run
    assert "failed: too_deep, search, lr 0.01: " in (out / "comparison.md").read_text()
    assert (out / "comparison.svg").read_text().startswith("<?xml")


def test_the_report_is_made_anew_from_the_runs(capsys, out: Path) -> None:
    before = json.loads((out / "comparison.json").read_text())
    (out / "comparison.md").unlink()
    code, printed, said = run(capsys, "compare", "--report", out, "--json", "-")
    assert (code, json.loads(printed)) == (0, before)
    check_may_be_replaced(printed)
    assert (out / "comparison.md").exists()
    assert "average pooling" in said


def test_a_try_sees_the_training_and_validation_images_of_the_final_runs(data: Path) -> None:
    plan = Plan("scenes", (f"data.root={data}", "data.test=val"), (HEADS["msrn"],), rates=(0.1,))
    tried, trained = (
        read_splits(plan.recipe_of(run)).record() for run in (*plan.search_runs(), plan.final_runs({"msrn": 0.1})[0])
    )
    assert tried.keys() == {"train", "val"}
    assert {name: trained[name] for name in tried} == tried
    assert trained["test"]["split"] == "val"


def test_a_dry_run_lists_the_runs_and_what_is_done(capsys, out: Path, data: Path, tmp_path: Path) -> None:
    options = ["--heads", "avg_pool,msrn", "--reference", "avg_pool", "--lrs", "0.01", "--seeds", "1"]
    before = sorted(path for path in out.rglob("*"))
    arguments = ["compare", "scenes", f"data.root={data}", *TINY, *options, "--dry-run", "--json", "-"]
    code, printed, _ = run(capsys, *arguments, "--out", out)
    listed = json.loads(printed)
    check_may_be_replaced(printed)
    assert code == 0
    states = {one["run"]: one["state"] for one in listed["runs"]}
    assert states["avg_pool-seed0"] == states["avg_pool-seed0-search-lr0.01"] == "done"
    assert states["msrn-seed0"] == states["msrn-seed0-search-lr0.01"] == "to do"
    assert listed["done"] == 2
    assert listed["estimated_seconds_left"] > 0
    assert sorted(path for path in out.rglob("*")) == before
    code, printed, _ = run(capsys, *arguments, "--out", tmp_path / "new")
    assert (json.loads(printed)["done"], (tmp_path / "new").exists()) == (0, False)


def test_another_recipe_or_other_data_in_the_same_folder_are_refused(
    capsys, out: Path, data: Path, tmp_path: Path
) -> None:
    options = ["--heads", "avg_pool", "--reference", "avg_pool", "--lrs", "0.01", "--seeds", "1", "--out", out]
    code, _, said = run(capsys, "compare", "scenes", f"data.root={data}", *TINY, "optimizer.weight_decay=0", *options)
    assert code == 1
    assert "another recipe: optimizer.weight_decay 0.05 -> 0.0." in said
    assert "Traceback" not in said
    other = tmp_path / "colours"
    other.mkdir()
    for path in data.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    table = other / "labels.csv"
    table.write_text("".join(row for row in table.read_text().splitlines(True) if not row.startswith("val-0.png")))
    code, _, said = run(capsys, "compare", "scenes", f"data.root={other}", *TINY, *options)
    assert code == 1
    assert "the data of today have other val images" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a comparison needs a recipe"),
        (["scenes", "--report", "folder"], "--report takes no recipe"),
        (["--report", "folder"], "holds no comparison"),
        (["--report", "."], "is not empty and holds no comparison. Give another folder by --report."),
        (["scenes", "--heads", "csar"], "no variant is named 'csar'"),
        (["scenes", "--heads", "csra"], "--reference msrn is not compared"),
        (["scenes", "--lrs", "0.1,fast"], "--lrs takes different positive numbers"),
        (["scenes", "--lrs", "0.1,0.1"], "--lrs takes different positive numbers"),
        (["scenes", "--search-epochs", "2"], "--search-epochs is for the tries of --lrs"),
        (["scenes", "--lr-from", "folder"], "holds no comparison"),
        (["scenes", "--lr-from", "."], "is not empty and holds no comparison. Give another folder by --lr-from."),
        (["scenes", "data.sise=[8,8]"], "'data.sise'"),
        (["scenes", "data.root=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_said_on_one_line(capsys, tmp_path, monkeypatch, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("of something else")
    code, out, said = run(capsys, "compare", *arguments)
    assert code == 1, (out, said)
    assert words in said
    assert "Traceback" not in out + said
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_killed_while_it_trains_it_goes_on_and_finds_the_same(capsys, data: Path, tmp_path: Path) -> None:
    """The numbers are those of a comparison that was not interrupted."""
    arguments = ["compare", "scenes", f"data.root={data}", *TINY[:-1], "trainer.max_epochs=40", "--heads", "msrn"]
    arguments += ["--seeds", "1", "--keep"]
    command = [sys.executable, "-m", "msrn.cli.main", *arguments, "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "training" / "msrn-seed0" / "run" / "checkpoints" / "last.ckpt"
    end_s = time.monotonic() + 600
    while not checkpoint.exists():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert not (tmp_path / "killed" / "runs").exists()
    records = []
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        assert run(capsys, *arguments, "--out", folder)[0] == 0
        records.append(json.loads((folder / "runs" / "msrn-seed0.json").read_text()))
    assert [record["was_resumed"] for record in records] == [True, False]
    assert records[0]["test"] == records[1]["test"]
    assert records[0]["val_mAP_by_epoch"] == records[1]["val_mAP_by_epoch"]
