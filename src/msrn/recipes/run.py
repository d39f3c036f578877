"""Carry out a recipe: data, label graph, model, training, bundle, and the one look at the test split; or only count its memory."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from msrn.bundle import Bundle, save_bundle
from msrn.bundle.bundle import CONFIG_FILE
from msrn.data import LabelledImages, check_disjoint, check_files, hold_out, open_source, split_hash
from msrn.data.loader import build_loader
from msrn.data.mixing import BatchMixing
from msrn.data.split import relative_names
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.errors import DataError, ModelError, RecipeError, TrainingError
from msrn.files import write_json, write_text
from msrn.labels import CountedGraph, EdgeRule, LabelGraph, read_graph, read_vectors, vectors_from_co_occurrence
from msrn.labels.pickles import read_published_graph, read_published_vectors
from msrn.models import MSRN, PooledClassifier, build_model, count_parameters, use_channels_last
from msrn.predict import Predictor, evaluate
from msrn.recipes.load import load_recipe, save_recipe, without_paths
from msrn.recipes.schema import Recipe
from msrn.training import (
    MemoryEstimate,
    MSRNModule,
    OptimizerSettings,
    ScheduleSettings,
    TrainerSettings,
    estimate_training_memory,
    fit,
    free_memory_bytes,
    training_device_type,
)
from msrn.training.callbacks import LAST_FILE

# Splits are drawn once for a data set, not once a run: runs with different seeds share them.
HOLD_OUT_SEED = 0
# What a run folder holds.
RECIPE_FILE = "recipe.yaml"
SPLITS_FILE = "splits.json"
HELD_OUT_FILE = "held_out.txt"
METRICS_FILE = "metrics.csv"
CHECKPOINT_DIR = "checkpoints"
BUNDLE_DIR = "bundle"
TEST_FILE = "test.json"
# Beside the splits in SPLITS_FILE: what else a run has to be resumed with.
_SEMANTICS = "label graph and word vectors"


@dataclass(frozen=True)
class Splits:
    """The images of a run.

    Attributes:
        train: Images to learn from.
        val: Images that choose the epoch.
        test: Images read once, at the end, or None.
        val_origin: Where `val` comes from, in words.
        is_held_out: Whether `val` is a part of the training split, drawn by us.
    """

    train: LabelledImages
    val: LabelledImages
    test: LabelledImages | None
    val_origin: str
    is_held_out: bool = False

    def named(self) -> dict[str, LabelledImages]:
        """The splits that exist, by their use."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in parts.items() if images is not None}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The hash of each split that exists, by its use."""
        return {name: split_hash(images) for name, images in self.named().items()}

    def record(self) -> dict[str, dict[str, Any]]:
        """What a run writes down about its splits: name in the source, number of images and hash."""
        return {
            name: {"split": images.split, "images": len(images), "sha256": self.hashes[name]}
            for name, images in self.named().items()
        }


@dataclass(frozen=True)
class RunResult:
    """What a finished run left.

    Attributes:
        run_dir: Recipe, metrics, checkpoints and bundle.
        bundle_dir: The bundle of the best epoch.
        best_epoch: Epoch (from 0) chosen by validation mAP.
        best_mAP: That mAP, as a fraction.
        test: Metrics on the test split, or None.
        training: What the bundle records of the training.
    """

    run_dir: Path
    bundle_dir: Path
    best_epoch: int
    best_mAP: float
    test: dict[str, Any] | None
    training: dict[str, Any]


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


def scenes_dir() -> Path:
    """Where the generated data set is kept between runs."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "msrn" / "scenes"


def read_splits(recipe: Recipe, console: Console | None = None) -> Splits:
    """Read the splits a recipe names; hold a part of train out where there is no validation split.

    Raises:
        DataError: The data cannot be read, a split is empty, or splits share an image.
    """
    data = recipe.data
    root = Path(data.root).expanduser()
    if data.root == "scenes":
        from msrn.data.scenes import write_scenes

        root = scenes_dir()
        if console is not None and not root.exists():
            console.print(f"drawing scenes into {root}", highlight=False)
        write_scenes(root)
    source = open_source(root, **data.source_options())
    parts = [source.read(split) for split in data.train]
    train = parts[0] if len(parts) == 1 else LabelledImages.join(parts, split="train")
    has_own_val = "val" in source.splits and "val" not in (*data.train, data.test)
    if not (train.target == 1).any():
        raise DataError(
            f"no image of {' + '.join(data.train)} in {root} has a label. Label some, or choose another split."
        )
    val_split = ("val" if has_own_val else "held_out") if data.val == "auto" else data.val
    if val_split != "held_out":
        val, val_origin = source.read(val_split), f"split {val_split}"
    else:
        train, val = hold_out(train, fraction=data.val_fraction, seed=HOLD_OUT_SEED)
        val_origin = f"{len(val)} images held out of {' + '.join(data.train)}"
    has_own_test = "test" in source.splits and "test" not in (*data.train, data.val)
    test_split = ("test" if has_own_test else None) if data.test == "auto" else data.test
    test = source.read(test_split) if test_split is not None else None
    if not (val.target == 1).any():
        raise DataError(
            f"no validation image ({val_origin}) has a label, so no epoch can be chosen. Add images with labels."
        )
    if console is not None:
        for note in source.notes:
            console.print(note, highlight=False, markup=False)
    splits = Splits(train, val, test, val_origin, is_held_out=val_split == "held_out")
    check_disjoint(*splits.named().values())
    check_files(*splits.named().values())
    return splits


def train_recipe(
    recipe: Recipe, run_dir: str | Path, *, resume: bool = False, console: Console | None = None
) -> RunResult:
    """Train by a recipe into a run folder.

    The folder holds `recipe.yaml` (resolved), `splits.json` (their hashes), `held_out.txt` (if val was drawn from train),
    `metrics.csv`, `checkpoints/`, `bundle/` (best epoch by validation mAP) and `test.json` where there is a test split. A run
    that fails before its first epoch has ended leaves nothing; one that is finished already is read back as it is.

    Raises:
        TrainingError: The folder already holds a run and `resume` is not set, or the other way round, or the loss is not finite.
        DataError: The data cannot be read.
        ModelError: The model cannot be built.
    """
    run_dir = Path(run_dir)
    _check_run_dir(recipe, run_dir, resume=resume)
    if resume and (finished := _finished_run(run_dir)) is not None:
        return finished
    splits = read_splits(recipe, console)
    try:
        return _train(recipe, splits, run_dir, console)
    except BaseException:
        if not _has_checkpoint(run_dir) and not (run_dir / BUNDLE_DIR).exists():  # nothing to resume or to look at
            for name in (RECIPE_FILE, SPLITS_FILE, HELD_OUT_FILE, METRICS_FILE):
                (run_dir / name).unlink(missing_ok=True)
            shutil.rmtree(run_dir / CHECKPOINT_DIR, ignore_errors=True)
            with suppress(OSError):
                run_dir.rmdir()
        raise


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
    graph = _label_graph(recipe, splits)
    vectors = _word_vectors(recipe, graph.label_graph)
    model = _build_model(recipe, graph.label_graph, vectors, read_weights=False)
    _describe(recipe, splits, model, graph, console)
    module = _build_module(recipe, splits, model)
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


def _train(recipe: Recipe, splits: Splits, run_dir: Path, console: Console | None) -> RunResult:
    graph = _label_graph(recipe, splits)
    vectors = _word_vectors(recipe, graph.label_graph)
    model = _build_model(recipe, graph.label_graph, vectors)
    record = splits.record()
    has_files = recipe.labels.graph is not None or recipe.labels.vectors is not None
    given_vectors = vectors if recipe.labels.vectors is not None else None
    semantics = {_SEMANTICS: {"sha256": _semantics_hash(graph.label_graph, given_vectors)}} if has_files else {}
    has_checkpoint = _has_checkpoint(run_dir)
    if has_checkpoint:
        _check_same_splits(record | semantics, run_dir)
    save_recipe(recipe, run_dir / RECIPE_FILE)
    write_json(run_dir / SPLITS_FILE, record | semantics)
    if splits.is_held_out:
        write_text(run_dir / HELD_OUT_FILE, "".join(f"{name}\n" for name in relative_names(splits.val)))
    _describe(recipe, splits, model, graph, console)
    preprocessing = Preprocessing(recipe.data.size, recipe.data.mean, recipe.data.std)
    transform = TrainTransform(preprocessing, **recipe.data.augmentation())
    loader: dict[str, Any] = {"batch_size": recipe.data.batch_size, "num_workers": recipe.data.num_workers}
    seed = recipe.trainer.seed
    min_size = transform.min_size if recipe.data.reduced_decode else None
    cache_bytes = _cache_bytes(recipe)
    train_loader = build_loader(
        splits.train, transform, **loader, shuffle=True, seed=seed, min_size=min_size, cache_bytes=cache_bytes
    )
    val_loader = build_loader(splits.val, preprocessing, **loader)
    module = _build_module(recipe, splits, model)
    settings = TrainerSettings(**recipe.trainer.model_dump())
    result = fit(module, settings, train_loader, val_loader, run_dir, resume=has_checkpoint, console=console)
    model.load_state_dict(result.state_dict)
    training: dict[str, Any] = {
        "recipe_name": recipe.name,
        "best_epoch": result.best_epoch,
        "chosen_by": f"validation mAP on {splits.val_origin}",
        "val_mAP": result.best_mAP,
        "train_seconds": round(result.seconds, 1),
        "parameters": count_parameters(model),
        "splits": record,
        "label_graph": {
            "rule": graph.label_graph.rule,
            "edges": graph.label_graph.num_edges,
            "split": graph.split,
            "images": graph.num_images,
            "split_sha256": graph.split_sha256,
        },
        "recipe": without_paths(recipe),  # a bundle is shared
    }
    architecture = recipe.model.architecture()
    bundle = Bundle(model.eval(), graph.label_graph, architecture, preprocessing, training=training)
    bundle_dir = save_bundle(bundle, run_dir / BUNDLE_DIR)
    test = None
    if splits.test is not None:
        test = evaluate(
            Predictor(bundle), splits.test, batch_size=recipe.data.batch_size, num_workers=recipe.data.num_workers
        )
        protocol = "read once, after validation chose the epoch"
        test = {**test, **record["test"], "threshold": bundle.threshold, "protocol": protocol}
        write_json(run_dir / TEST_FILE, test)
    return RunResult(run_dir, bundle_dir, result.best_epoch, result.best_mAP, test, training)


def _label_graph(recipe: Recipe, splits: Splits) -> CountedGraph:
    """The label graph that the recipe names, or that of the training images."""
    labels, train = recipe.labels, splits.train
    if labels.graph is None:
        rule = EdgeRule(labels.rule, labels.threshold, labels.top_k, labels.significance)
        label_graph = LabelGraph.from_target(torch.from_numpy(train.target), train.label_names, rule=rule)
        return CountedGraph(label_graph, len(train), train.split, splits.hashes["train"])
    if Path(labels.graph).suffix.lower() in (".pkl", ".pickle"):
        both, counts = read_published_graph(labels.graph)
        if len(counts) != len(train.label_names):
            raise DataError(
                f"{labels.graph} is a graph of {len(counts)} labels, the data has {len(train.label_names)}. "
                "Give the graph of these labels, in the data's order, or leave labels.graph out."
            )
        return CountedGraph(LabelGraph(train.label_names, both, counts, threshold=labels.threshold))
    graph = read_graph(labels.graph)
    if graph.split_sha256 is not None and graph.split_sha256 == splits.hashes.get("test"):
        raise DataError(
            f"{labels.graph} was counted on the test images of this run, so that it knows their labels. "
            "Count it on training images: msrn labels graph DATA --json FILE."
        )
    return replace(graph, label_graph=graph.label_graph.reorder(train.label_names))


def _build_model(
    recipe: Recipe, label_graph: LabelGraph, vectors: Float[Tensor, "L E"], *, read_weights: bool = True
) -> MSRN | PooledClassifier:
    """The model as training starts with it."""
    torch.manual_seed(recipe.trainer.seed)
    options = recipe.model.architecture()
    weights = recipe.model.weights
    if read_weights:
        options |= {"pretrained": recipe.model.pretrained, "weights": weights}
    elif weights is not None and not Path(weights).expanduser().is_file():
        raise ModelError(f"no weights file {weights}. Give an existing file as model.weights, or leave it out.")
    model = build_model(options, label_graph, vectors)
    use_channels_last(model)
    return model


def _build_module(recipe: Recipe, splits: Splits, model: MSRN | PooledClassifier) -> MSRNModule:
    """What is trained: the model with loss, optimizer, schedule and mixing."""
    mixup, cutmix = recipe.data.mixup, recipe.data.cutmix
    return MSRNModule(
        model,
        splits.train.label_names,
        group_loss_weight=recipe.loss.group_weight,
        optimizer=OptimizerSettings(**recipe.optimizer.model_dump()),
        schedule=ScheduleSettings(**recipe.schedule.model_dump()),
        mixing=BatchMixing(mixup=mixup, cutmix=cutmix, seed=recipe.trainer.seed) if mixup or cutmix else None,
        image_paths=splits.train.paths,
        val_image_paths=splits.val.paths,
    )


def _describe(
    recipe: Recipe,
    splits: Splits,
    model: MSRN | PooledClassifier,
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
        num_steps = max(1, len(splits.train) // recipe.data.batch_size) * recipe.trainer.max_epochs
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
                f"{'' if recipe.labels.rule == 'threshold' else '; its edges stand, labels.rule is not looked at'}",
                highlight=False,
                markup=False,
            )


def _word_vectors(recipe: Recipe, label_graph: LabelGraph) -> Float[Tensor, "L E"]:
    path = recipe.labels.vectors
    if path is None:
        return vectors_from_co_occurrence(label_graph, dim=recipe.labels.vector_dim)
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        return read_vectors(path).of(label_graph.label_names)
    if suffix in (".txt", ".vec", ".bin", ".gz"):
        raise DataError(
            f"{path} is a file of many words, labels.vectors takes one vector a label. "
            f"Make them: msrn labels vectors DATA --from {path} --out vectors.safetensors."
        )
    vectors = read_published_vectors(path)
    if len(vectors) != label_graph.num_labels:
        raise DataError(
            f"{path} holds {len(vectors)} word vectors, the data has {label_graph.num_labels} labels. "
            "Give one vector a label, in the data's order, or leave labels.vectors out."
        )
    return vectors


def _semantics_hash(label_graph: LabelGraph, vectors: Float[Tensor, "L E"] | None) -> str:
    """Fingerprint of the graph, and of vectors from a file; others follow from the graph."""
    digest = hashlib.sha256()
    tensors = [label_graph.co_occurrence, label_graph.label_counts, label_graph.adjacency > 0]
    if vectors is not None:
        tensors.append(vectors)
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cache_bytes(recipe: Recipe) -> int:
    """Memory for decoded images; none by default where the system does not tell how much there is."""
    cache_gb = recipe.data.cache_gb
    return (free_memory_bytes("cpu") or 0) // 4 if cache_gb is None else int(1e9 * cache_gb)


def _has_checkpoint(run_dir: Path) -> bool:
    return (run_dir / CHECKPOINT_DIR / LAST_FILE).is_file()


def _finished_run(run_dir: Path) -> RunResult | None:
    """What a run left that has nothing more to do, or None."""
    try:
        training = json.loads((run_dir / BUNDLE_DIR / CONFIG_FILE).read_text(encoding="utf-8"))["training"]
        has_test = "test" in training["splits"]
        test = json.loads((run_dir / TEST_FILE).read_text(encoding="utf-8")) if has_test else None
        return RunResult(run_dir, run_dir / BUNDLE_DIR, training["best_epoch"], training["val_mAP"], test, training)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_same_splits(record: dict[str, dict[str, Any]], run_dir: Path) -> None:
    try:
        before = json.loads((run_dir / SPLITS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{run_dir / SPLITS_FILE} cannot be read: {error}. Start a new run with another --out."
        ) from None
    if _SEMANTICS in record:
        before.setdefault(_SEMANTICS, record[_SEMANTICS])  # runs that were started before it was written down
    changed = [name for name in {**before, **record} if before.get(name) != record.get(name)]
    if changed:
        raise DataError(
            f"the data has changed since {run_dir} was started (different: {', '.join(changed)}). "
            "Bring back the data it was started with, or start a new run with another --out."
        )


def _check_run_dir(recipe: Recipe, run_dir: Path, *, resume: bool) -> None:
    saved = run_dir / RECIPE_FILE
    if not resume:
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise TrainingError(f"{run_dir} is not empty. Go on with it by --resume, or give another folder by --out.")
        return
    if not saved.is_file():
        raise TrainingError(
            f"{run_dir} holds no {RECIPE_FILE}, so there is no run to resume. Start it without --resume."
        )
    before = load_recipe(saved)
    if before != recipe:
        old, new = before.model_dump(), recipe.model_dump()
        changed = [key for key in new if old[key] != new[key]]
        raise RecipeError(
            f"{run_dir} was started with another recipe (different: {', '.join(changed)}). "
            "Resume with the same recipe and overrides, or start a new run with another --out."
        )
