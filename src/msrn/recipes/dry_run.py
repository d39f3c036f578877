"""What a run of a recipe would take, before it is started."""

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from msrn.data.transforms import Preprocessing
from msrn.models import count_flops, count_parameters
from msrn.recipes.build import build_loaders, build_module, build_recipe_model, describe, start_from_bundle
from msrn.recipes.schema import Recipe
from msrn.recipes.semantics import read_label_graph, read_word_vectors
from msrn.recipes.splits import read_splits
from msrn.training import (
    MemoryEstimate,
    TrainerSettings,
    Trial,
    check_processes,
    estimate_training_memory,
    free_memory_bytes,
    planned_processes,
    training_device_type,
    try_training,
)


@dataclass(frozen=True)
class DryRun:
    """What a run of a recipe would take.

    Attributes:
        recipe: The recipe.
        num_parameters: Numbers that the model holds.
        num_flops: Floating-point operations of one image's forward pass; a multiply-add counts 2.
        estimate: Memory of a training step.
        num_images: Training images; a batch never holds more.
        num_batches: Batches of an epoch.
        num_val_batches: Batches of a validation.
        free_bytes: Memory that is free where the recipe would train; None where the system does not tell.
        largest_batch: Most images a batch that fits in it; None where it is not known.
        trial: What a few batches showed; None where the batch does not fit.
    """

    recipe: Recipe
    num_parameters: int
    num_flops: int
    estimate: MemoryEstimate
    num_images: int
    num_batches: int
    num_val_batches: int
    free_bytes: int | None
    largest_batch: int | None
    trial: Trial | None

    @property
    def fits(self) -> bool | None:
        """Whether the recipe's batch fits, as far as it is known."""
        return None if self.largest_batch is None else self.estimate.batch_size <= self.largest_batch

    @property
    def epoch_seconds(self) -> float | None:
        """Time of an epoch with its validation, from the batches tried."""
        return None if self.trial is None else self.trial.epoch_seconds(self.num_batches, self.num_val_batches)

    @property
    def run_seconds(self) -> float | None:
        """Time of all epochs."""
        epoch_seconds = self.epoch_seconds
        return None if epoch_seconds is None else self.recipe.trainer.max_epochs * epoch_seconds

    def to_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON."""
        return {
            "recipe": self.recipe.name,
            "size": list(self.recipe.data.size),
            "precision": self.recipe.trainer.precision,
            "parameters": self.num_parameters,
            "flops_per_image": self.num_flops,
            **self.estimate.to_dict(),
            "free_bytes": self.free_bytes,
            "fits": self.fits,
            "largest_batch": self.largest_batch,
            "num_train_images": self.num_images,
            "batches": self.num_batches,
            "val_batches": self.num_val_batches,
            "max_epochs": self.recipe.trainer.max_epochs,
            "trial": None if self.trial is None else self.trial.to_dict(),
            "epoch_seconds": self.epoch_seconds,
            "run_seconds": self.run_seconds,
        }


def dry_run(recipe: Recipe, *, console: Console | None = None) -> DryRun:
    """Read the data, build the model, count what a training step takes, and train a few batches, as a run would.

    The model has no pre-trained weights, since none are needed to see that it works. Where the batch does not fit, none is
    trained. No run folder is made, and nothing of the training is kept.

    Raises:
        TrainingError: The recipe asks for a GPU and there is none.
        NonFiniteLossError: The loss of a batch is not finite.
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
    start_from_bundle(recipe, model, graph.label_graph, vectors, console)
    module = build_module(recipe, splits, model)
    num_images, size = len(splits.train), recipe.data.size

    def count(batch_size: int) -> MemoryEstimate:
        return estimate_training_memory(module, settings, size=size, batch_size=batch_size)

    estimate, largest = count(min(recipe.data.batch_size, num_images)), None
    if free_bytes is not None:
        largest = min(num_images, estimate.largest_batch(free_bytes))
        while largest > 0 and (fitting := count(largest).largest_batch(free_bytes)) < largest:
            largest = fitting
    train_loader, val_loader = build_loaders(recipe, splits, Preprocessing(size, recipe.data.mean, recipe.data.std))
    plan = planned_processes(settings)
    check_processes(plan, settings, train_loader, val_loader)
    world_size = plan.world_size
    num_flops, fits = count_flops(model, size), largest is None or estimate.batch_size <= largest
    return DryRun(
        recipe,
        count_parameters(model),
        num_flops,
        estimate,
        num_images,
        max(1, len(train_loader) // world_size),
        -(-len(val_loader) // world_size),
        free_bytes,
        largest,
        try_training(module, settings, train_loader, val_loader) if fits else None,
    )
