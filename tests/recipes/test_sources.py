"""Training from sources whose images are no files: tar shards, and a data set in Parquet."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msrn.predict import evaluate, load
from msrn.predict.evaluate import read_labelled
from msrn.recipes import load_recipe
from msrn.recipes.run import train_recipe

LABELS = ("red", "green", "blue")
TINY = [
    "data.size=[32,32]",
    "data.batch_size=8",
    "data.num_workers=2",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
]
COUNTS = {"train": 24, "val": 8, "test": 8}


def samples(split: str) -> list[tuple[bytes, list[str]]]:
    """JPEGs in the colours that their labels name."""
    rng = np.random.default_rng(sorted(COUNTS).index(split))
    found = []
    for _ in range(COUNTS[split]):
        present = rng.random(3) < 0.5
        pixels = rng.integers(0, 90, (40, 40, 3)) + 150 * present
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
        found.append((buffer.getvalue(), [name for name, is_there in zip(LABELS, present, strict=True) if is_there]))
    return found


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    for split in COUNTS:
        with tarfile.open(folder / f"{split}-000000.tar", "w") as tar:
            for number, (content, labels) in enumerate(samples(split)):
                files = {f"{number:04d}.jpg": content, f"{number:04d}.json": json.dumps({"labels": labels}).encode()}
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def write_parquet(folder: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    for split in COUNTS:
        rows = samples(split)
        images = [{"bytes": content, "path": f"{number}.jpg"} for number, (content, _) in enumerate(rows)]
        table = pa.table({"image": images, "labels": [labels for _, labels in rows]})
        parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("write", [write_shards, write_parquet])
def test_a_run_from_packed_images_ends_with_a_bundle_and_a_test(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if write is write_parquet:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root = write(tmp_path / "set")
    result = train_recipe(load_recipe("scenes", [*TINY, f"data.root={root}"]), tmp_path / "run")
    splits = result.training["splits"]
    assert {name: part["images"] for name, part in splits.items()} == COUNTS
    assert result.test is not None
    predictor = load(result.bundle_dir)
    again = evaluate(predictor, read_labelled(root, "test", predictor.label_names))
    assert again["mAP"] == pytest.approx(result.test["mAP"])


def test_the_same_images_as_files_and_as_shards_train_to_the_same_weights(tmp_path):
    shards = write_shards(tmp_path / "shards")
    rows = ["path,labels,split"]
    for split in COUNTS:
        with tarfile.open(shards / f"{split}-000000.tar") as tar:
            tar.extractall(tmp_path / "files" / split, filter="data")
        for number, (_, labels) in enumerate(samples(split)):
            rows.append(f"{split}/{number:04d}.jpg,{'|'.join(labels) or '[]'},{split}")
    (tmp_path / "files" / "labels.csv").write_text("\n".join(rows) + "\n")
    values = [
        train_recipe(load_recipe("scenes", [*TINY, f"data.root={root}"]), tmp_path / f"run-{root.name}").best_mAP
        for root in (shards, tmp_path / "files")
    ]
    assert values[0] == values[1]
