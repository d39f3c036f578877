"""What a network that learns must be able to do: know 32 photos by heart."""

from pathlib import Path

import numpy as np
import pytest

from msrn.data import LabelledImages, open_source
from msrn.data.transforms import Preprocessing
from msrn.recipes import load_recipe
from msrn.recipes.build import build_loaders, build_module, build_recipe_model
from msrn.recipes.semantics import read_label_graph, read_word_vectors
from msrn.recipes.splits import Splits
from msrn.training import TrainerSettings, fit

SHARED = Path(__file__).parents[2].parent / "shared"
PHOTOS = SHARED / "voc2007" / "VOCdevkit"
WEIGHTS = SHARED / "weights" / "mobilenetv2_100.safetensors"


@pytest.mark.slow
@pytest.mark.skipif(not (PHOTOS.exists() and WEIGHTS.exists()), reason="needs VOC 2007 and MobileNetV2 in ../shared")
def test_msrn_knows_32_real_photos_by_heart(tmp_path: Path) -> None:
    recipe = load_recipe(
        "voc2007-mobilenet",
        [
            *(f"data.root={PHOTOS}", f"model.weights={WEIGHTS}", "trainer.accelerator=cpu"),
            *("data.crop=none", "data.flip=false", "data.size=[128,128]", "data.batch_size=16"),
            *("trainer.max_epochs=25", "schedule.warmup_steps=5", "data.num_workers=0"),
        ],
    )
    source = open_source(PHOTOS).read("train")
    rows = np.arange(0, len(source), len(source) // 32)[:32]
    photos = LabelledImages(
        tuple(source.paths[row] for row in rows), source.target[rows], source.label_names, source.split
    )
    splits = Splits(photos, photos, None, "the photos themselves")
    graph = read_label_graph(recipe, splits)
    model = build_recipe_model(recipe, graph.label_graph, read_word_vectors(recipe, graph.label_graph))
    loaders = build_loaders(recipe, splits, Preprocessing(recipe.data.size, recipe.data.mean, recipe.data.std))
    settings = TrainerSettings(**recipe.trainer.model_dump())
    result = fit(build_module(recipe, splits, model), settings, *loaders, tmp_path)
    assert len(photos) == 32
    assert result.best_mAP == 1.0
