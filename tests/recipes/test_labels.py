"""Label graph and word vectors that a recipe names: what training does with them and what the bundle says."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import msrn.data.loader
from msrn.bundle import load_bundle
from msrn.data import open_source, split_hash
from msrn.data.images import read_image
from msrn.errors import DataError, LabelMismatchError, SourceNotFoundError
from msrn.labels import (
    CountedGraph,
    EdgeRule,
    LabelGraph,
    LabelVectors,
    VectorOrigin,
    count_co_occurrence,
    edges_by_top_k,
    write_graph,
    write_vectors,
)
from msrn.recipes import Recipe, load_recipe
from msrn.recipes.dry_run import dry_run
from msrn.recipes.run import RunResult, train_recipe

NAMES = ("red", "green", "blue")
TINY = [
    "data.size=[32,32]",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.gradient_clip=null",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = ["path,labels,split"]
    for split, count in {"train": 16, "val": 8, "test": 8}.items():
        for number in range(count):
            present = rng.random(3) < 0.6
            pixels = rng.integers(0, 90, (32, 32, 3)) + 150 * present
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}-{number}.png")
            labels = "|".join(name for name, is_there in zip(NAMES, present, strict=True) if is_there)
            rows.append(f"{split}-{number}.png,{labels or '[]'},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def make_recipe(data: Path, *overrides: str) -> Recipe:
    return load_recipe("scenes", [*TINY, f"data.root={data}", *overrides])


class StoppedError(Exception):
    pass


def split_of(data: Path) -> tuple[Any, Any]:
    """Paths and targets of train."""
    images = open_source(data).read("train")
    return images.paths, images.target


def counted(data: Path, split: str, rule: EdgeRule | None = None) -> CountedGraph:
    images = open_source(data).read(split)
    graph = LabelGraph.from_target(torch.from_numpy(images.target), images.label_names, rule=rule)
    return CountedGraph(graph, len(images), split, split_hash(images))


def train(data: Path, run_dir: Path, *overrides: str) -> tuple[RunResult, str]:
    text = io.StringIO()
    result = train_recipe(make_recipe(data, *overrides), run_dir, console=Console(file=text, width=1000))
    return result, text.getvalue()


def test_graph_and_vectors_from_files(data: Path, tmp_path: Path) -> None:
    graph = counted(data, "train", EdgeRule("top-k", top_k=1))
    names = graph.label_graph.label_names
    turned = CountedGraph(graph.label_graph.reorder(names[::-1]), graph.num_images, "train", graph.split_sha256)
    write_graph(tmp_path / "graph.json", turned)
    vectors = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    more = ("owl", *names[::-1])  # another order, and a label that the data has not
    write_vectors(tmp_path / "v.safetensors", LabelVectors(more, vectors, (VectorOrigin("words"),) * 4, "glove.txt"))
    files = (f"labels.graph={tmp_path / 'graph.json'}", f"labels.vectors={tmp_path / 'v.safetensors'}")
    result, out = train(data, tmp_path / "run", *files)
    assert "graph.json, the 1 labels that follow each most often, counted on 16 images (train), those that are" in out
    bundle = load_bundle(result.bundle_dir)
    assert bundle.label_names == names
    assert torch.equal(bundle.label_graph.adjacency, graph.label_graph.adjacency)
    assert bundle.label_graph.rule == "the 1 labels that follow each most often"
    assert bundle.label_graph.edges is not None
    state = bundle.model.state_dict()
    assert torch.equal(state["label_group.word_vectors"], vectors[1:].flip(0))
    assert torch.equal(state["label_group.adjacency"], graph.label_graph.adjacency)
    assert bundle.training["label_graph"] == {
        "rule": "the 1 labels that follow each most often",
        "edges": graph.label_graph.num_edges,
        "split": "train",
        "images": 16,
        "split_sha256": bundle.training["splits"]["train"]["sha256"],
    }
    # No path of this machine goes into a bundle.
    assert bundle.training["recipe"]["labels"]["graph"] == "graph.json"
    assert bundle.training["recipe"]["labels"]["vectors"] == "v.safetensors"
    assert str(tmp_path) not in (result.bundle_dir / "config.json").read_text()


@pytest.mark.parametrize("rule", ["threshold", "top-k", "lift"])
def test_rule_of_the_recipe(data: Path, rule: str) -> None:
    overrides = (f"labels.rule={rule}", "labels.top_k=2", "labels.significance=0.9", "labels.threshold=0.7")
    text = io.StringIO()
    dry_run(make_recipe(data, *overrides), console=Console(file=text, width=1000))
    expected = counted(data, "train", EdgeRule(rule, 0.7, 2, 0.9)).label_graph  # type: ignore[arg-type]
    assert f"3 labels, {expected.num_edges} edges" in text.getvalue()


def test_rule_is_kept_in_the_bundle(data: Path, tmp_path: Path) -> None:
    result, _ = train(data, tmp_path / "run", "labels.rule=top-k", "labels.top_k=1")
    loaded = load_bundle(result.bundle_dir).label_graph
    target = torch.from_numpy(open_source(data).read("train").target)
    assert torch.equal(loaded.adjacency > 0, edges_by_top_k(*count_co_occurrence(target), k=1) | torch.eye(3).bool())


def test_graph_of_other_training_images_is_used_and_said(data: Path, tmp_path: Path) -> None:
    write_graph(tmp_path / "graph.json", counted(data, "train"))
    text = io.StringIO()
    recipe = make_recipe(data, "data.val=held_out", f"labels.graph={tmp_path / 'graph.json'}")
    dry_run(recipe, console=Console(file=text, width=1000))
    assert "counted on 16 images (train), not the very ones that are trained on" in text.getvalue()
    by_hand: dict[str, Any] = {"labels": list(NAMES), "co_occurrence": [[0] * 3] * 3, "label_counts": [1, 2, 3]}
    (tmp_path / "graph.json").write_text(json.dumps(by_hand))
    dry_run(recipe, console=Console(file=text, width=1000))
    assert "counted on unknown images (unknown split), not the very ones" in text.getvalue()


def test_graph_of_the_test_images_is_refused(data: Path, tmp_path: Path) -> None:
    write_graph(tmp_path / "graph.json", counted(data, "test"))
    with pytest.raises(DataError, match=r"graph\.json was counted on the test images of this run"):
        train(data, tmp_path / "run", f"labels.graph={tmp_path / 'graph.json'}")
    assert not (tmp_path / "run").exists()


def test_files_of_other_labels(data: Path, tmp_path: Path) -> None:
    graph = LabelGraph.from_target(torch.tensor([[1, 1, 0]]), ["red", "green", "teal"])
    write_graph(tmp_path / "graph.json", CountedGraph(graph))
    with pytest.raises(LabelMismatchError, match=r"It lacks 'blue'\. It has 'teal' beside them\."):
        dry_run(make_recipe(data, f"labels.graph={tmp_path / 'graph.json'}"))
    vectors = LabelVectors(("red",), torch.ones(1, 4), (VectorOrigin("words"),), "x")
    write_vectors(tmp_path / "v.safetensors", vectors)
    with pytest.raises(LabelMismatchError, match=r"2 of 3 labels have no word vector: '\w+', '\w+'\."):
        dry_run(make_recipe(data, f"labels.vectors={tmp_path / 'v.safetensors'}"))


@pytest.mark.parametrize("name", ["glove.6B.300d.txt", "wiki.vec", "GoogleNews.bin", "GoogleNews.bin.gz"])
def test_files_of_many_words_go_through_the_command(data: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"msrn labels vectors DATA --from {name} --out vectors\.safetensors"):
        dry_run(make_recipe(data, f"labels.vectors={name}"))


def test_files_that_do_not_exist(data: Path, tmp_path: Path) -> None:
    for key in ("graph=none.json", "vectors=none.safetensors"):
        with pytest.raises(SourceNotFoundError, match="does not exist"):
            dry_run(make_recipe(data, f"labels.{key}"))


def test_a_published_graph_is_taken_in_the_order_of_the_data(data: Path, tmp_path: Path) -> None:
    both, counts = count_co_occurrence(torch.from_numpy(open_source(data).read("train").target))
    for name, size in (("voc_adj.pkl", 3), ("small_adj.pkl", 2)):
        content = {"adj": both[:size, :size].numpy(), "nums": counts[:size].numpy()}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    result = train_recipe(make_recipe(data, f"labels.graph={tmp_path / 'voc_adj.pkl'}"), tmp_path / "run")
    assert torch.equal(load_bundle(result.bundle_dir).label_graph.co_occurrence, both)
    with pytest.raises(
        DataError, match=r"small_adj\.pkl is a graph of 2 labels, the data has 3\. Give the graph of these"
    ):
        train_recipe(make_recipe(data, f"labels.graph={tmp_path / 'small_adj.pkl'}"), tmp_path / "other")


def test_pickles_are_still_taken_row_by_row(data: Path, tmp_path: Path) -> None:
    (tmp_path / "glove.pkl").write_bytes(pickle.dumps([[1.0, 2.0]] * 2))
    with pytest.raises(DataError, match="holds 2 word vectors, the data has 3 labels"):
        dry_run(make_recipe(data, f"labels.vectors={tmp_path / 'glove.pkl'}"))


def test_a_graph_that_changed_since_the_run_was_started_is_noticed(data, tmp_path, monkeypatch):
    """The weights hold the graph they were trained with; a bundle must not tell of another one."""
    shutil.copytree(data, tmp_path / "set")
    write_graph(tmp_path / "graph.json", counted(tmp_path / "set", "train"))
    recipe = make_recipe(
        tmp_path / "set", f"labels.graph={tmp_path / 'graph.json'}", "trainer.max_epochs=2", "data.cache_gb=0"
    )
    reads = 0

    def read(path: Path, **options: Any) -> Image.Image:
        nonlocal reads
        reads += 1
        if reads > 16 + 8 + 3:  # in the second epoch
            raise StoppedError
        return read_image(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(msrn.data.loader, "read_image", read)
        with pytest.raises(StoppedError):
            train_recipe(recipe, tmp_path / "run")
    write_graph(tmp_path / "graph.json", counted(tmp_path / "set", "train", EdgeRule("top-k", top_k=1)))
    with pytest.raises(
        DataError, match=r"has changed since \S+run was started \(different: label graph and word vectors\)"
    ):
        train_recipe(recipe, tmp_path / "run", resume=True)
    write_graph(tmp_path / "graph.json", counted(tmp_path / "set", "train"))
    assert train_recipe(recipe, tmp_path / "run", resume=True).best_mAP > 0


def test_paths_of_both_kinds_and_other_encodings_can_be_held_out(data, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    rows = ["path,labels"]
    for number, (path, target) in enumerate(zip(*split_of(data), strict=True)):
        shown = str(path) if number % 2 else os.path.relpath(path, tmp_path)
        rows.append(
            f"{shown},{'|'.join(label for label, is_there in zip(NAMES, target, strict=True) if is_there) or '[]'}"
        )
    (tmp_path / "mixed.csv").write_text("\n".join(rows) + "\n")
    for folder in NAMES:
        (tmp_path / "tree" / folder).mkdir(parents=True)
        for number in range(6):
            there = number if number else name.removesuffix(".png")
            Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / "tree" / folder / f"{there}.png")
    for root in (tmp_path / "mixed.csv", tmp_path / "tree"):
        result = train_recipe(
            make_recipe(root, "data.val_fraction=0.5", "data.allow_outside=true"), tmp_path / f"run-{root.stem}"
        )
        assert (result.run_dir / "held_out.txt").read_bytes().count(b"\n") == result.training["splits"]["val"]["images"]
