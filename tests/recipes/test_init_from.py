"""A chain of recipes: the second starts from the bundle of the first, which knows other labels."""

import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from msrn.bundle import load_bundle, save_bundle
from msrn.errors import BundleError, DataError, ModelError
from msrn.recipes import Recipe, load_recipe
from msrn.recipes.dry_run import dry_run
from msrn.recipes.run import RunResult, train_recipe

TINY = [
    "data.size=[32,32]",
    "data.batch_size=8",
    "data.num_workers=0",
    "data.cache_gb=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
]


def write_data(folder: Path, names: tuple[str, ...], splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    rng = np.random.default_rng(len(names))
    folder.mkdir(parents=True)
    rows = ["path,labels,split"]
    for split in splits:
        for number in range(16):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(folder / f"{split}-{number}.png")
            present = [name for name in names if rng.random() < 0.5]
            rows.append(f"{split}-{number}.png,{'|'.join(present) or '[]'},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def make_recipe(data: Path, *overrides: str) -> Recipe:
    return load_recipe("scenes", [*TINY, f"data.root={data}", *overrides])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A model of four labels."""
    folder = tmp_path_factory.mktemp("first")
    data = write_data(folder / "data", ("cat", "dining table", "dog", "tree"))
    return train_recipe(make_recipe(data, "name=first"), folder / "run")


@pytest.fixture(scope="module")
def other_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("second") / "data", ("boat", "cat", "diningtable"))


def test_the_second_run_starts_where_the_first_ended(first: RunResult, other_data: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing, so that what it starts with is what it ends with."""
    still = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "model.freeze_batch_norm=true"]
    console = Console(record=True, width=200, file=io.StringIO())
    recipe = make_recipe(other_data, f"model.init_from={first.bundle_dir}", *still)
    run = train_recipe(recipe, tmp_path / "run", console=console)
    old, new = (load_bundle(folder).model.state_dict() for folder in (first.bundle_dir, run.bundle_dir))
    backbone = [name for name in old if name.startswith("backbone.") and "num_batches" not in name]
    assert backbone
    for name in backbone:
        assert torch.allclose(new[name], old[name], atol=1e-6), name
    for row, other in ((1, 0), (2, 1)):  # the cat and the dining table
        assert torch.allclose(new["residual.linear.weight"][row], old["residual.linear.weight"][other], atol=1e-6)
    text = console.export_text()
    assert re.search(r"starts from first, 4 labels: .* M parameters kept; of .* the rows of 2 labels", text)
    record = load_bundle(run.bundle_dir).training["init_from"]
    assert record["labels_kept"] == ["cat", "diningtable"]
    assert (record["bundle"], record["labels_there"]) == ("first", 4)
    assert record["sha256"] == hashlib.sha256((first.bundle_dir / "model.safetensors").read_bytes()).hexdigest()
    assert "label_group.projection.weight" in record["new"]  # vectors from the co-occurrence of other labels
    assert str(first.bundle_dir) not in (run.bundle_dir / "config.json").read_text()
    assert run.test is not None
    assert run.test["protocol"]["pretraining"] == f"bundle first, sha256 {record['sha256'][:12]}"


def test_a_chained_run_goes_on_after_it_is_finished(first: RunResult, other_data: Path, tmp_path: Path) -> None:
    recipe = make_recipe(other_data, f"model.init_from={first.bundle_dir}", "data.test=null")
    result = train_recipe(recipe, tmp_path / "run")
    assert train_recipe(recipe, tmp_path / "run", resume=True).training == json.loads(json.dumps(result.training))


def test_a_run_goes_on_only_from_the_bundle_it_started_with(first: RunResult, other_data: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(first.bundle_dir, tmp_path / "start"))
    recipe = make_recipe(other_data, f"model.init_from={start}", "data.test=null")
    train_recipe(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bundle")  # as if it had been killed before its end
    bundle = load_bundle(start)
    next(bundle.model.parameters()).data.zero_()
    save_bundle(bundle, start)
    with pytest.raises(DataError, match=r"different: bundle of model\.init_from"):
        train_recipe(recipe, tmp_path / "run", resume=True)


@pytest.mark.parametrize("head", ["max_pool", "csra", "ml_gcn", "ml_decoder"])
def test_other_heads_are_chained_too(head: str, other_data: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", ("cat", "dog"), ("train", "val"))
    one = train_recipe(make_recipe(data, f"model.head={head}"), tmp_path / "one")
    recipe = make_recipe(other_data, f"model.head={head}", f"model.init_from={one.bundle_dir}", "data.test=null")
    record = train_recipe(recipe, tmp_path / "two").training["init_from"]
    assert record["labels_kept"] == ([] if head == "ml_gcn" else ["cat"])


def test_it_takes_the_place_of_pretrained_weights(first: RunResult, other_data: Path) -> None:
    start = f"model.init_from={first.bundle_dir}"
    dry_run(make_recipe(other_data, start, "model.pretrained=true", "model.weights=nowhere.safetensors"))


def test_another_architecture_is_refused_before_training(first: RunResult, other_data: Path, tmp_path: Path) -> None:
    start = f"model.init_from={first.bundle_dir}"
    for carry_out in (lambda recipe: train_recipe(recipe, tmp_path / "run"), dry_run):
        with pytest.raises(
            ModelError, match=r"init_from=.*/bundle: the bundle to start from .*: dim is 8 there and 16"
        ):
            carry_out(make_recipe(other_data, start, "model.dim=16"))
        with pytest.raises(ModelError, match="head is 'msrn' there and 'pooled' here"):
            carry_out(make_recipe(other_data, start, "model.head=avg_pool"))
        with pytest.raises(BundleError, match="does not exist"):
            carry_out(make_recipe(other_data, "model.init_from=runs/of/nobody"))
    assert not (tmp_path / "run").exists()
