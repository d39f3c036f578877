"""Odd numbers, images and names: each has an answer, and none takes the others along."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from deep_folders import nested
from image_files import bomb, encoded, odd_images
from PIL import Image
from tiny_bundle import TINY, noise, save_tiny_bundle

from msrn.bundle import load_bundle, save_bundle
from msrn.data import open_source

Lost = Callable[[Any, Any, str], None]
RECIPE = [
    "data.size=[32,32]", "data.num_workers=0", "data.test=null", "trainer.max_epochs=1", "trainer.accelerator=cpu",
    f"model.backbone={TINY['backbone']}", "model.backbone_options={channels: [8, 8, 16, 16]}", "model.dim=8",
]  # fmt: skip


def write_rows(folder: Path, rows: list[tuple[str, list[str] | None, str]]) -> Path:
    """A table of images and labels, None for unknown."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number, (name, labels, split) in enumerate(rows):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(folder / name, "PNG")
        lines.append(json.dumps({"path": name, "labels": labels, "split": split}))
    table = folder / "t.jsonl"
    table.write_text("\n".join(lines) + "\n")
    return table


def train(capsys: Any, table: Path, *more: str) -> Path:
    out = table.parent / "run"
    code, _, errors = run(capsys, "train", "scenes", f"data.root={table}", *RECIPE, *more, "--out", out)
    assert code == 0, errors
    return out


def finite(run_dir: Path) -> bool:
    return all(
        bool(torch.isfinite(tensor).all()) for tensor in load_bundle(run_dir / "bundle").model.state_dict().values()
    )


# Numbers


SETS: dict[str, tuple[list[list[str] | None], list[list[str] | None], list[str]]] = {
    "a last batch of one image": ([["a"], ["b"], ["a", "b"]] * 3, [["a"], ["b"], []], ["data.batch_size=2"]),
    "fewer images than a batch": ([["a"], ["b"]], [["a"], []], ["data.batch_size=2"]),
    "a batch of which nothing is known": (
        [["a"], None, None, None, ["b"], None],
        [["a"], ["b"]],
        ["data.batch_size=2"],
    ),
    "nothing known in all of a validation batch": (
        [["a"], ["b"]] * 2,
        [["a"], ["b"], None, None],
        ["data.batch_size=2"],
    ),
    "one label in all images": ([["a", "b"], ["a"]] * 2, [["a"], ["a", "b"]], ["data.batch_size=2"]),
    "a label that only validation has": ([["a"], ["b"]] * 2, [["c", "a"], ["b"]], ["data.batch_size=2"]),
    "images without labels": ([["a"], [], ["b"], []], [[], ["a"], ["b"]], ["data.batch_size=2"]),
    "a single label": ([["a"], []] * 2, [["a"], []], ["data.batch_size=2"]),
}


@pytest.mark.fault("labels that are all there, nowhere, or unknown; batches of one")
@pytest.mark.parametrize("what", SETS)
def test_odd_sets(capsys: Any, tmp_path: Path, lost: Lost, what: str) -> None:
    train_labels, val_labels, more = SETS[what]
    rows = [(f"{number}.png", labels, "train") for number, labels in enumerate(train_labels)]
    rows += [(f"v{number}.png", labels, "val") for number, labels in enumerate(val_labels)]
    table = write_rows(tmp_path / "data", rows)
    run_dir = train(capsys, table, *more)
    assert finite(run_dir)
    named = {label for labels in (*train_labels, *val_labels) for label in labels or ()}
    lost(sorted(named), load_bundle(run_dir / "bundle").label_graph.label_names, "labels")


@pytest.mark.fault("numbers that overflow, or are none")
def test_not_finite(capsys: Any, tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    """Whoever asks hears it; a number that is none is never written as an answer."""
    noise(0).save(tmp_path / "0.png")
    bundle = load_bundle(bundle_dir)
    with torch.no_grad():
        list(bundle.model.parameters())[-1].fill_(float("nan"))
    broken = save_bundle(bundle, tmp_path / "broken")
    code, out, errors = run(capsys, "predict", broken, tmp_path / "0.png", "--json", "-")
    assert (code, out) == (1, "")
    assert "not finite" in errors
    code, _, errors = run(
        capsys, "predict", broken, tmp_path / "0.png", "--out", tmp_path / "tags.jsonl", "--workers", "0"
    )
    assert code == 1
    assert "not finite" in errors
    assert not (tmp_path / "tags.jsonl").exists()
    lost(["0.png"], [path.name for path in tmp_path.glob("*.png")], "images")


@pytest.mark.fault("float16 that overflows in an exported model")
def test_half_precision_overflow(capsys: Any, tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    noise(0).save(tmp_path / "0.png")
    bundle = load_bundle(save_tiny_bundle(tmp_path / "bundle", is_pooled=True))
    with torch.no_grad():
        for parameter in bundle.model.head.parameters():
            parameter.mul_(1e6)
    large = save_bundle(bundle, tmp_path / "large")
    options = ["--calibration", tmp_path / "0.png", "--json", tmp_path / "e.json"]
    code, shown, errors = run(capsys, "export", large, "--out", tmp_path / "m.onnx", "--precision", "fp16", *options)
    assert code == 0, errors
    found = json.loads((tmp_path / "e.json").read_text())["check"]
    assert found["largest_difference"] > 0.5
    assert f"{len(found['changed'])} decisions changed" in shown
    # One that gives no number at all is refused, and takes no earlier file's place.
    (tmp_path / "m.onnx").write_bytes(b"an earlier model")
    bundle = load_bundle(bundle_dir)
    with torch.no_grad():
        next(bundle.model.backbone.parameters()).fill_(3e38)
    large = save_bundle(bundle, tmp_path / "larger")
    code, _, errors = run(capsys, "export", large, "--out", tmp_path / "m.onnx", "--precision", "fp16", *options)
    assert code == 1
    assert "differ from the original's by nan" in errors
    lost(b"an earlier model", (tmp_path / "m.onnx").read_bytes(), "files")


# Images


@pytest.mark.slow
@pytest.mark.fault("images of every kind, good and bad")
def test_images(tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    """A bad one is named, and all others are answered."""
    folder = tmp_path / "photos"
    folder.mkdir()
    expected = {}
    alpha = Image.new("RGBA", (30, 20), (255, 0, 0, 100))
    more = {
        "alpha": (encoded(alpha), 200),
        "greyscale": (encoded(Image.effect_noise((30, 20), 90), "JPEG"), 200),
        "50,000 x 1": (encoded(Image.new("RGB", (50_000, 1), "red")), 200),
        "100 megapixels": (encoded(Image.new("L", (10_000, 10_000), 90)), 200),
        "bomb of 1 x 2^30": (bomb(1, 2**30), 413),
    }
    for number, (what, (data, status)) in enumerate({**odd_images(), **more}.items()):
        (folder / f"{number:02d}.png").write_bytes(data)
        expected[f"{number:02d}.png"] = status == 200
        assert what
    command = [sys.executable, "-m", "msrn.cli.main", "predict", bundle_dir, folder, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {Path(row["path"]).name: "error" not in row for row in rows}
    lost(sorted(expected.items()), sorted(found.items()), "answers")


# Names


PATHS = [
    "ä ö.png",
    "a\nb.png",
    " leading.png",
    "船/🙂.png",
    "-dash.png",
    "=1+1.png",
    "a'b\"c.png",
    "%20.png",
    "a,b|c;d.png",
    "#.png",
]


@pytest.mark.fault("blanks, newlines and every script in paths")
def test_paths(capsys: Any, tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    folder = tmp_path / "a folder\nof 写真"
    write_rows(folder, [(name, ["a"], "train") for name in PATHS])
    for suffix in (".jsonl", ".parquet", ".csv"):
        out = tmp_path / f"tags{suffix}"
        assert run(capsys, "predict", bundle_dir, folder, "--out", out, "--workers", "0")[0] == 0
        if suffix != ".jsonl":  # its labels have probabilities beside them
            opened = open_source(out, allow_outside=True)
            assert {str(path) for path in opened.read("train").paths} == {str(folder / name) for name in PATHS}
    rows = [json.loads(line) for line in (tmp_path / "tags.jsonl").read_text().splitlines()]
    lost([str(folder / name) for name in PATHS], [row["path"] for row in rows], "paths")


LABELS = [
    "NA", "N/A", "null", "None", "1e5", "007", "True", "0", "1", "船", "🙂", "two words", "line\nbreak", "a,b", "<b>", "=1+1", "[]",
    "x|y",
]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="how long a path may be")
@pytest.mark.fault("folders that lie a thousand deep, or deeper than a path may be long")
def test_deep_folders(capsys: Any, tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    photos = tmp_path / "photos"
    for label in ("cat", "dog"):
        (photos / label).mkdir(parents=True)
        noise(1).save(photos / label / "1.png")
    image = encoded(noise(0))
    out, errors_file = tmp_path / "tags.jsonl", tmp_path / "tags.jsonl.errors.jsonl"
    options = ["--out", out, "--workers", "0", "--overwrite"]
    with nested(photos / "dog", depth=1200, file=("0.png", image)) as deep:
        paths = [str(deep), *(str(photos / label / "1.png") for label in ("cat", "dog"))]
        assert run(capsys, "predict", bundle_dir, photos, *options)[0] == 0
        lost(paths, [json.loads(line)["path"] for line in out.read_text().splitlines()], "images that are answered")
        assert run(capsys, "data", "check", photos)[0] == 0
        lost(paths, map(str, open_source(photos).read("train").paths), "images of a data set")
    with nested(photos / "dog", depth=2500, file=("0.png", image)):
        assert run(capsys, "predict", bundle_dir, photos, *options)[0] == 0
        lost(paths[1:], [json.loads(line)["path"] for line in out.read_text().splitlines()], "images beside it")
        assert "the folder cannot be listed (File name too long)" in errors_file.read_text()
        code, said, _ = run(capsys, "data", "check", photos)
        assert code == 1
        assert "unreadable folder" in said


@pytest.mark.fault("labels that look like something else")
def test_labels(capsys: Any, tmp_path: Path, lost: Lost) -> None:
    """From a table to a bundle and back."""
    rows = [
        (f"{number}.png", [LABELS[number], LABELS[(number + 1) % len(LABELS)]], "train")
        for number in range(len(LABELS))
    ]
    rows += [(f"v{number}.png", [label], "val") for number, label in enumerate(LABELS)]
    table = write_rows(tmp_path / "data", rows)
    run_dir = train(capsys, table, "data.batch_size=6")
    _, printed, _ = run(
        capsys, "predict", run_dir / "bundle", tmp_path / "data" / "0.png", "--top", "99", "--json", "-"
    )
    lost(LABELS, [label["name"] for label in json.loads(printed)["labels"]], "labels")


@pytest.mark.fault("a label that means unknown elsewhere")
def test_label_of_a_column(capsys: Any, tmp_path: Path, lost: Lost) -> None:
    """One column a label: its name is never taken for a value."""
    folder = tmp_path / "data"
    folder.mkdir()
    names = ["-1", "?", "nan", "cat"]
    lines = [",".join(["path", "split", *names])]
    for number in range(8):
        noise(number).save(folder / f"{number}.png")
        values = ["1" if (number + column) % 2 else "0" for column in range(4)]
        lines.append(",".join([f"{number}.png", "val" if number > 5 else "train", *values]))
    (folder / "t.csv").write_text("\n".join(lines))
    run_dir = train(capsys, folder / "t.csv", "data.batch_size=3")
    _, printed, _ = run(capsys, "predict", run_dir / "bundle", folder / "0.png", "--top", "9", "--json", "-")
    lost(names, [label["name"] for label in json.loads(printed)["labels"]], "labels")
    code, _, errors = run(capsys, "predict", run_dir / "bundle", folder, "--out", folder / "tags.csv", "--workers", "0")
    assert code == 1
    assert "means in tables that nothing is known" in errors


@pytest.mark.fault("no images at all")
def test_nothing(capsys: Any, tmp_path: Path, bundle_dir: Path, lost: Lost) -> None:
    from msrn.predict import load

    assert load(bundle_dir).predict([]) == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("path,labels\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for source in ("empty", "t.csv"):
        code, _, errors = run(capsys, "predict", bundle_dir, tmp_path / source, "--out", tmp_path / "tags.csv")
        assert code == 1
        assert "holds no images" in errors
    lost(before, sorted(path.name for path in tmp_path.iterdir()), "files")


@pytest.mark.slow
@pytest.mark.fault("10,000 labels")
def test_many_labels(capsys: Any, tmp_path: Path, lost: Lost) -> None:
    """They train, are saved, and are answered."""
    rows = [
        (
            f"{number}.png",
            [f"label {(number * 170 + k) % 10_000}" for k in range(170)],
            "train" if number % 6 else "val",
        )
        for number in range(60)
    ]
    table = write_rows(tmp_path / "data", rows)
    run_dir = train(capsys, table, "data.batch_size=25")
    _, printed, _ = run(
        capsys, "predict", run_dir / "bundle", tmp_path / "data" / "0.png", "--threshold", "0", "--json", "-"
    )
    lost(
        [f"label {number}" for number in range(10_000)],
        [label["name"] for label in json.loads(printed)["labels"]],
        "labels",
    )
