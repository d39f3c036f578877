"""What a run of a recipe would take, before it is started."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from msrn.recipes.build import build_module, build_recipe_model, describe
from msrn.recipes.schema import Recipe
from msrn.recipes.semantics import read_label_graph, read_word_vectors
from msrn.recipes.splits import read_splits
from msrn.training import (
    MemoryEstimate,
    TrainerSettings,
    estimate_training_memory,
    free_memory_bytes,
    training_device_type,
)


@dataclass(frozen=True)
class DryRun:
    """What a run of a recipe would take.

    Attributes:
        recipe: The recipe.
        estimate: Memory of a training step.
        num_images: Training images; a batch never holds more.
        free_bytes: Memory that is free where the recipe would train; None where the system does not tell.
        largest_batch: Most images a batch that fits in it; None where it is not known.
    """

    recipe: Recipe
    estimate: MemoryEstimate
    num_images: int
    free_bytes: int | None
    largest_batch: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the recipe's batch fits, as far as it is known."""
        return None if self.largest_batch is None else self.estimate.batch_size <= self.largest_batch

    def to_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return {
            "recipe": self.recipe.name,
            "size": list(self.recipe.data.size),
            "precision": self.recipe.trainer.precision,
            **self.estimate.to_dict(),
            "free_bytes": self.free_bytes,
            "fits": self.fits,
            "largest_batch": self.largest_batch,
            "num_train_images": self.num_images,
        }


def dry_run(recipe: Recipe, *, console: Console | None = None) -> DryRun:
    """Read the data and build the model as a run would, without pre-trained weights, and count the memory of a training step.

    Nothing is trained and no run folder is made.

    Raises:
        TrainingError: The recipe asks for a GPU and there is none.
        DataError: The data cannot be read.
        ModelError: The model cannot be built, or does not take images of this size.
    """
    splits = read_splits(recipe, console)
    settings = TrainerSettings(**recipe.trainer.model_dump())
    free_bytes = free_memory_bytes(training_device_type(settings))
    graph = read_label_graph(recipe, splits)
    vectors = read_word_vectors(recipe, graph.label_graph)
    model = build_recipe_model(recipe, graph.label_graph, vectors, read_weights=False)
    describe(recipe, splits, model, graph, console)
    module = build_module(recipe, splits, model)
    num_images = len(splits.train)

    def count(batch_size: int) -> MemoryEstimate:
        return estimate_training_memory(module, settings, size=recipe.data.size, batch_size=batch_size)

    estimate = count(min(recipe.data.batch_size, num_images))
    if free_bytes is None:
        return DryRun(recipe, estimate, num_images, None, None)
    largest = min(num_images, estimate.largest_batch(free_bytes))
    while largest > 0 and (fitting := count(largest).largest_batch(free_bytes)) < largest:
        largest = fitting
    return DryRun(recipe, estimate, num_images, free_bytes, largest)
