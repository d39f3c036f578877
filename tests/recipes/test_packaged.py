"""The recipes that come with msrn: what they open with, what they say, and that every network they name is built and runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import msrn.recipes
from msrn.labels import LabelGraph
from msrn.models import build_model, count_parameters
from msrn.models.flops import without_data
from msrn.recipes import list_recipes, load_recipe

FOLDER = Path(msrn.recipes.__file__).parent
COUNTED = Path(__file__).parents[2] / "benchmarks" / "results" / "recipes.json"
NUM_LABELS = {"voc2007": 20, "coco2014": 80, "nuswide": 81, "apparel": 11}
MODERN = ("convnext", "swin", "dinov2")


def opening(name: str) -> str:
    """The comment ahead of the first key, on one line."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = [
        line for number, line in enumerate(lines) if all(before.startswith("#") for before in lines[: number + 1])
    ]
    return " ".join(line.lstrip("# ") for line in comment)


@pytest.mark.parametrize("name", list_recipes())
def test_opening_tells_data_memory_time_and_map(name: str) -> None:
    text = opening(name)
    for word in ("Data: ", "Memory: ", "Time: ", "mAP: "):
        assert word in text
    assert re.search(r"[Mm]easured|mAP: that of your photos", text)


@pytest.mark.parametrize("name", [name for name in list_recipes() if name != "photos"])
def test_opening_tells_what_was_counted(name: str) -> None:
    own = json.loads(COUNTED.read_text(encoding="utf-8"))[name]
    found = re.search(
        r"([\d.]+) M parameters, ([\d.]+) GFLOPs an image\. Memory: ([\d.]+) GB for a step of (\d+)", opening(name)
    )
    assert found is not None
    parameters, flops, memory, batch = map(float, found.groups())
    for told, counted in (
        (parameters, own["parameters"] / 1e6),
        (flops, own["flops_per_image"] / 1e9),
        (memory, own["expected_bytes"] / 1e9),
    ):
        assert told == pytest.approx(counted, abs=0.51 if counted >= 5 else 0.051)
    recipe = load_recipe(name)
    assert batch == own["batch_size"] == recipe.data.batch_size
    assert own["size"] == list(recipe.data.size)
    assert (own["epochs"], own["backbone"]) == (recipe.trainer.max_epochs, recipe.model.backbone)


@pytest.mark.parametrize(
    ("name", "batch_size", "group_ratio"),
    [("voc2007", 24, 0.2), ("coco2014", 12, 0.05), ("nuswide", 12, 0.05), ("apparel", 12, 0.2)],
)
def test_published_settings(name: str, batch_size: int, group_ratio: float) -> None:
    recipe = load_recipe(name)
    assert (recipe.data.size, recipe.data.crop, recipe.data.batch_size) == ((448, 448), "multi_scale", batch_size)
    assert (recipe.data.crop_scales, recipe.data.max_distort, recipe.data.flip) == ((1.0, 0.9, 0.8, 0.7, 0.6), 2, True)
    model = recipe.model
    assert (model.preset, model.backbone, model.classifier) == ("published", "resnet101.tv_in1k", "joint")
    assert (model.group_ratio, model.dim, model.pretrained) == (group_ratio, 512, True)
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.1, 0.9, 1e-4)
    assert optimizer.lr * optimizer.backbone_factor == pytest.approx(0.01)
    assert (recipe.schedule.name, recipe.schedule.milestones, recipe.schedule.step_factor) == ("step", (30,), 0.1)
    assert (recipe.loss.name, recipe.loss.group_weight) == ("soft_margin", 1e-4)


@pytest.mark.parametrize("data", NUM_LABELS)
def test_recipes_of_one_data_set_read_it_alike(data: str) -> None:
    published = load_recipe(data)
    keys = ("train", "val", "test", "val_fraction")
    for other in (
        *(f"{data}-{backbone}" for backbone in MODERN),
        *(["voc2007-from-coco"] if data == "voc2007" else []),
    ):
        recipe = load_recipe(other)
        assert [getattr(recipe.data, key) for key in keys] == [getattr(published.data, key) for key in keys]
        assert recipe.model.group_ratio == published.model.group_ratio


def test_the_chain_goes_on_with_the_same_network() -> None:
    first, second = load_recipe("coco2014").model, load_recipe("voc2007-from-coco").model
    assert second.init_from == "runs/coco2014/bundle"
    assert first.architecture() == {**second.architecture(), "group_ratio": first.group_ratio}


def distinct_networks() -> list[Any]:
    """A recipe for each backbone and preset."""
    found = {}
    for name in list_recipes():
        model = load_recipe(name).model
        found.setdefault((model.backbone, str(model.backbone_options), model.preset, model.frozen_stages), name)
    return list(found.values())


@pytest.mark.parametrize("name", distinct_networks())
def test_every_network_is_built_and_runs(name: str) -> None:
    """On tensors without data: sizes are those of the recipe, no number is computed."""
    recipe = load_recipe(name)
    num_labels = next((count for data, count in NUM_LABELS.items() if name.startswith(data)), 25)
    zeros = torch.zeros(num_labels, num_labels, dtype=torch.long)
    graph = LabelGraph(tuple(map(str, range(num_labels))), zeros, zeros[0])
    with torch.device("meta"):
        model = build_model(recipe.model.architecture(), graph, torch.zeros(num_labels, 300))
    model = without_data(model, "meta")  # buffers too
    logits = model(torch.empty(2, 3, *recipe.data.size, device="meta"))
    assert logits.shape == (2, num_labels)
    assert model.backbone.strides == ((14, 14, 14) if name.endswith("dinov2") else (8, 16, 32))
    found = re.search(r"([\d.]+) M parameters", opening(name))
    assert found is not None
    assert float(found[1]) == pytest.approx(count_parameters(model) / 1e6, rel=0.05, abs=0.51)
