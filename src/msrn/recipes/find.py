"""Find a learning rate or a batch size for a recipe; nothing is kept of the training that it takes."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from torch.utils.data import DataLoader

from msrn.data.transforms import Preprocessing
from msrn.recipes.build import build_loaders, build_module, build_recipe_model, describe, start_from_bundle
from msrn.recipes.schema import Recipe
from msrn.recipes.semantics import read_label_graph, read_word_vectors
from msrn.recipes.splits import Splits, read_splits
from msrn.training import MSRNModule, TrainerSettings, estimate_training_memory, free_memory_bytes, training_device_type
from msrn.training.find import BatchSizes, LearningRateCurve, find_batch_size, find_learning_rate


@dataclass(frozen=True)
class _Prepared:
    """What a run of the recipe would begin with."""

    splits: Splits
    module: MSRNModule
    settings: TrainerSettings

    def loader(self, recipe: Recipe) -> DataLoader[Any]:
        preprocessing = Preprocessing(recipe.data.size, recipe.data.mean, recipe.data.std)
        return build_loaders(recipe, self.splits, preprocessing)[0]


def find_recipe_learning_rate(recipe: Recipe, *, console: Console | None = None) -> LearningRateCurve:
    """Find `optimizer.lr` on the training images, from the weights that a run would begin with.

    Raises:
        TrainingError: The loss diverged too early, or the recipe asks for a GPU and there is none.
        DataError: The data cannot be read.
        ModelError: The model cannot be built.
    """
    prepared = _prepare(recipe, console)
    return find_learning_rate(prepared.module, prepared.settings, prepared.loader(recipe))


def find_recipe_batch_size(recipe: Recipe, *, console: Console | None = None) -> BatchSizes:
    """Find the largest `data.batch_size` that can be trained with, and how fast each size is.

    A GPU is tried until it is full. In the memory of the machine no more is tried than what is free by count.

    Raises:
        TrainingError: Not even two images fit, or the recipe asks for a GPU and there is none.
        DataError: The data cannot be read.
        ModelError: The model cannot be built.
    """
    prepared = _prepare(recipe, console)
    at_most = len(prepared.splits.train)
    device_type = training_device_type(prepared.settings)
    free_bytes = free_memory_bytes(device_type) if device_type == "cpu" else None
    if free_bytes is not None:
        estimate = estimate_training_memory(prepared.module, prepared.settings, size=recipe.data.size, batch_size=2)
        at_most = min(at_most, estimate.largest_batch(free_bytes))

    def make_loader(batch_size: int) -> DataLoader[Any]:
        data = recipe.data.model_copy(update={"batch_size": batch_size})
        return prepared.loader(recipe.model_copy(update={"data": data}))

    return find_batch_size(prepared.module, prepared.settings, make_loader, at_most=at_most)


def _prepare(recipe: Recipe, console: Console | None) -> _Prepared:
    splits = read_splits(recipe, console)
    graph = read_label_graph(recipe, splits)
    vectors = read_word_vectors(recipe, graph.label_graph)
    model = build_recipe_model(recipe, graph.label_graph, vectors)
    describe(recipe, splits, model, graph, console)
    start_from_bundle(recipe, model, graph.label_graph, vectors, console)
    return _Prepared(splits, build_module(recipe, splits, model), TrainerSettings(**recipe.trainer.model_dump()))
