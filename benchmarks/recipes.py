"""What the recipes take, counted without data, weights or a GPU.

    python benchmarks/recipes.py --json benchmarks/results/recipes.json [RECIPE ...]

For every recipe: parameters, FLOPs of an image forward, the memory of a training step as `msrn train RECIPE --dry-run` counts
it on a CPU, and the FLOPs of a whole run, a training step taken as three forward passes. Recipes named on the command line are
counted anew, all others stay.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from msrn.files import write_json
from msrn.labels import LabelGraph
from msrn.models import build_model, count_flops, count_parameters
from msrn.recipes import Recipe, list_recipes, load_recipe
from msrn.training import MSRNModule, OptimizerSettings, TrainerSettings, estimate_training_memory

# By the start of the recipe's name: labels, and images that are trained on.
DATA = {
    "voc2007-mobilenet": (20, 2_250),  # a tenth is held out
    "voc2007": (20, 2_501),
    "coco2014": (80, 82_081 - 4_104),  # a twentieth is held out
    "nuswide": (81, 161_789 - 8_089),  # likewise
    "scenes": (25, 2_000),
    "apparel": (11, 7_970),  # 0.7 of 11,385, as `msrn data split --val 0.1 --test 0.2` leaves
}


def data_of(name: str) -> tuple[int, int] | None:
    return next((facts for start, facts in DATA.items() if name.startswith(start)), None)


def build(recipe: Recipe, num_labels: int) -> torch.nn.Module:
    """The recipe's model on the meta device, with word vectors as wide as those of co-occurrence are."""
    zeros = torch.zeros(num_labels, num_labels, dtype=torch.long)
    graph = LabelGraph(tuple(map(str, range(num_labels))), zeros, zeros[0])
    with torch.device("meta"):
        return build_model(
            recipe.model.architecture(), graph, torch.zeros(num_labels, min(num_labels, recipe.labels.vector_dim))
        )


def count(recipe: Recipe, num_labels: int, num_images: int) -> dict[str, Any]:
    model = build(recipe, num_labels)
    flops = count_flops(model, recipe.data.size)
    optimizer = OptimizerSettings(**recipe.optimizer.model_dump())
    module = MSRNModule(model.train(), tuple(map(str, range(num_labels))), optimizer=optimizer)
    estimate = estimate_training_memory(
        module,
        TrainerSettings(precision=recipe.trainer.precision, accelerator="cpu"),
        size=recipe.data.size,
        batch_size=recipe.data.batch_size,
    )
    return {
        "backbone": recipe.model.backbone,
        "size": list(recipe.data.size),
        "precision": recipe.trainer.precision,
        "labels": num_labels,
        "images": num_images,
        "epochs": recipe.trainer.max_epochs,
        "parameters": count_parameters(model),
        "flops_per_image": flops,
        **estimate.to_dict(),
        "run_flops": 3 * flops * num_images * recipe.trainer.max_epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=[name for name in list_recipes() if data_of(name)])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    results = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {}
    for name in args.recipes:
        facts = data_of(name)
        if facts is None:
            parser.error(f"{name} is no recipe of a data set whose size is known")
        results[name] = count(load_recipe(name), *facts)
        own = results[name]
        print(
            f"{name}: {own['parameters'] / 1e6:.1f} M parameters, {own['flops_per_image'] / 1e9:.1f} GFLOPs an image, "
            f"{own['expected_bytes'] / 1e9:.1f} GB for {own['batch_size']} images, {own['run_flops'] / 1e15:.0f} PFLOPs a run",
            flush=True,
        )
        write_json(args.json, dict(sorted(results.items())))


if __name__ == "__main__":
    main()
