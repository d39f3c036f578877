"""From a recipe and its images to what is trained: model, Lightning module and loaders."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from msrn.bundle import find_bundle, load_bundle, start_from
from msrn.bundle.bundle import WEIGHTS_FILE
from msrn.data.loader import build_loader
from msrn.data.mixing import BatchMixing
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.errors import ModelError
from msrn.labels import CountedGraph, LabelGraph
from msrn.models import MSRN, Classifier, build_model, count_parameters, use_channels_last
from msrn.recipes.schema import Recipe
from msrn.recipes.splits import Splits
from msrn.training import (
    LossSettings,
    MSRNModule,
    MultilabelLoss,
    OptimizerSettings,
    ScheduleSettings,
    TrainerSettings,
    free_memory_bytes,
    planned_processes,
)


def build_recipe_model(
    recipe: Recipe, label_graph: LabelGraph, vectors: Float[Tensor, "L E"], *, read_weights: bool = True
) -> MSRN | Classifier:
    """The model as training starts with it."""
    torch.manual_seed(recipe.trainer.seed)
    options = recipe.model.architecture()
    weights = recipe.model.weights
    has_own = recipe.model.init_from is None  # a bundle's weights take the place of pre-trained ones
    if has_own and read_weights:
        options |= {"pretrained": recipe.model.pretrained, "weights": weights}
    elif has_own and weights is not None and not Path(weights).expanduser().is_file():
        raise ModelError(f"no weights file {weights}. Give an existing file as model.weights, or leave it out.")
    model = build_model(options, label_graph, vectors)
    use_channels_last(model)
    return model


def start_from_bundle(
    recipe: Recipe,
    model: MSRN | Classifier,
    label_graph: LabelGraph,
    vectors: Float[Tensor, "L E"],
    console: Console | None,
) -> dict[str, Any] | None:
    """Take over what the bundle of `model.init_from` knows, and say so.

    Returns:
        What the new bundle records of it; None without `init_from`.
    """
    name = recipe.model.init_from
    if name is None:
        return None
    path = find_bundle(name)
    bundle = load_bundle(path)
    try:
        architecture, has_given = recipe.model.architecture(), recipe.labels.vectors is not None
        transfer = start_from(bundle, model, architecture, label_graph, vectors, has_given_vectors=has_given)
    except ModelError as error:
        raise ModelError(f"model.init_from={name}: {error}") from None
    origin = bundle.training.get("recipe_name") or path.name
    if console is not None:
        console.print(
            f"starts from {origin}, {transfer.num_labels} labels: {transfer}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    with (path / WEIGHTS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bundle": origin, "sha256": digest, **transfer.to_dict()}


def build_module(recipe: Recipe, splits: Splits, model: MSRN | Classifier) -> MSRNModule:
    """What is trained: the model with loss, optimizer, schedule and mixing."""
    mixup, cutmix = recipe.data.mixup, recipe.data.cutmix
    settings = LossSettings(**recipe.loss.model_dump(exclude={"group_weight"}))
    return MSRNModule(
        model,
        splits.train.label_names,
        loss=MultilabelLoss(settings, torch.from_numpy(splits.train.target)),
        group_loss_weight=recipe.loss.group_weight,
        optimizer=OptimizerSettings(**recipe.optimizer.model_dump()),
        schedule=ScheduleSettings(**recipe.schedule.model_dump()),
        mixing=BatchMixing(mixup=mixup, cutmix=cutmix, seed=recipe.trainer.seed) if mixup or cutmix else None,
        image_paths=splits.train.paths,
        val_image_paths=splits.val.paths,
    )


def build_loaders(
    recipe: Recipe, splits: Splits, preprocessing: Preprocessing
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Batches of the training and of the validation images."""
    transform = TrainTransform(preprocessing, **recipe.data.augmentation())
    shared: dict[str, Any] = {"batch_size": recipe.data.batch_size, "num_workers": recipe.data.num_workers}
    min_size = transform.min_size if recipe.data.reduced_decode else None
    train_loader = build_loader(
        splits.train,
        transform,
        **shared,
        shuffle=True,
        seed=recipe.trainer.seed,
        min_size=min_size,
        cache_bytes=_cache_bytes(recipe),
    )
    return train_loader, build_loader(splits.val, preprocessing, **shared, is_shared_out=True)


def describe(
    recipe: Recipe,
    splits: Splits,
    model: MSRN | Classifier,
    graph: CountedGraph,
    console: Console | None,
) -> None:
    """Print what is trained on what."""
    label_graph = graph.label_graph
    if console is not None:
        console.print(
            f"{recipe.name}: {recipe.model.head} on {recipe.model.backbone}, {count_parameters(model) / 1e6:.1f} M parameters\n"
            f"train {len(splits.train)} images, val {len(splits.val)} ({splits.val_origin}), "
            f"test {len(splits.test) if splits.test else 'none'}; {label_graph.num_labels} labels, {label_graph.num_edges} edges",
            highlight=False,
            markup=False,
        )
        plan = planned_processes(TrainerSettings(**recipe.trainer.model_dump()))
        batch_size = recipe.data.batch_size * plan.world_size
        if plan.world_size > 1:
            console.print(
                f"{plan.world_size} processes ({plan.strategy}), {recipe.data.batch_size} images each: {batch_size} a batch",
                highlight=False,
            )
        num_steps = max(1, len(splits.train) // batch_size) * recipe.trainer.max_epochs
        if recipe.schedule.warmup_steps >= num_steps:
            console.print(
                f"warning: the warm-up takes {recipe.schedule.warmup_steps} steps and the whole run {num_steps}, so the learning "
                "rate never falls. Raise trainer.max_epochs, or lower schedule.warmup_steps.",
                highlight=False,
                markup=False,
                style="yellow",
            )
        if recipe.labels.graph is not None:
            is_same = graph.split_sha256 == splits.hashes["train"]
            console.print(
                f"label graph from {recipe.labels.graph}, {label_graph.rule}, counted on {graph.num_images or 'unknown'} images"
                f" ({graph.split or 'unknown split'}), {'those' if is_same else 'not the very ones'} that are trained on"
                f"{'' if recipe.labels.rule == 'threshold' else '; its edges are taken, labels.rule is ignored'}",
                highlight=False,
                markup=False,
            )


def _cache_bytes(recipe: Recipe) -> int:
    """Memory for decoded images; none by default where the system does not tell how much there is."""
    cache_gb = recipe.data.cache_gb
    if cache_gb is not None:
        return int(1e9 * cache_gb)
    plan = planned_processes(TrainerSettings(**recipe.trainer.model_dump()))
    return (free_memory_bytes("cpu") or 0) // (4 * plan.devices)
