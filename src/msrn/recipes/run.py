"""Carry out a recipe: data, label graph, model, training, bundle, and the one look at the test split."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from msrn.bundle import Bundle, save_bundle
from msrn.bundle.bundle import CONFIG_FILE, check_bundle_folder
from msrn.data.split import relative_names
from msrn.data.transforms import Preprocessing
from msrn.errors import DataError, MSRNError, RecipeError, TrainingError
from msrn.files import is_leftover, json_text, read_bounded, remove_leftovers, write_json, write_text
from msrn.models import count_parameters
from msrn.predict import Predictor, evaluate, evaluation_protocol, protocol_lines
from msrn.processes import is_first_process
from msrn.recipes.build import build_loaders, build_module, build_recipe_model, describe, start_from_bundle
from msrn.recipes.load import load_recipe, save_recipe, without_paths
from msrn.recipes.schema import SPEED_KEYS, Recipe, changed_values
from msrn.recipes.semantics import read_label_graph, read_word_vectors, semantics_hash
from msrn.recipes.splits import Splits, read_splits
from msrn.training import TrainerSettings, fit
from msrn.training.checkpoints import LAST_FILE
from msrn.training.memory import explaining_out_of_memory

# What a run folder holds.
RECIPE_FILE = "recipe.yaml"
SPLITS_FILE = "splits.json"
HELD_OUT_FILE = "held_out.txt"
METRICS_FILE = "metrics.csv"
TENSORBOARD_DIR = "tensorboard"
CHECKPOINT_DIR = "checkpoints"
BUNDLE_DIR = "bundle"
TEST_FILE = "test.json"
_LOCK_FILE = ".lock"  # only while a run is at work
# Written to a temporary name first, which a run that is killed leaves.
_REPLACED = (RECIPE_FILE, SPLITS_FILE, HELD_OUT_FILE, METRICS_FILE, BUNDLE_DIR, TEST_FILE)
# Beside the splits in SPLITS_FILE: what else a run has to be resumed with.
_SEMANTICS = "label graph and word vectors"
_MAX_JSON_BYTES = 64_000_000
_MAX_NUMBER = 1e15  # of what a run measures; JSON holds numbers that no float does


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


def train_recipe(
    recipe: Recipe, run_dir: str | Path, *, resume: bool = False, console: Console | None = None
) -> RunResult:
    """Train by a recipe into a run folder.

    The folder holds `recipe.yaml` (resolved), `splits.json` (their hashes), `held_out.txt` (if val was drawn from train),
    `metrics.csv`, `checkpoints/`, `bundle/` (best epoch by validation mAP) and `test.json` where there is a test split. A run
    that fails before its first epoch has ended leaves nothing; one that is finished already is read back as it is.

    Where several processes train, only the first writes, prints and looks at the test split; the others return without.

    Raises:
        TrainingError: The folder already holds a run and `resume` is not set, or the other way round, or another process trains in
            it, or the loss is not finite.
        DataError: The data cannot be read.
        ModelError: The model cannot be built.
    """
    run_dir = Path(run_dir)
    if not is_first_process():
        return _begin_or_go_on(recipe, run_dir, None, resume=resume)
    _check_run_dir(recipe, run_dir, resume=resume)  # what is refused leaves no trace
    if resume and (finished := _finished_run(run_dir)) is not None:
        return finished
    with _alone(run_dir):
        _check_run_dir(recipe, run_dir, resume=resume)  # another run may have ended here just now
        for name in _REPLACED:
            remove_leftovers(run_dir / name)
        return _begin_or_go_on(recipe, run_dir, console, resume=resume)


def _begin_or_go_on(recipe: Recipe, run_dir: Path, console: Console | None, *, resume: bool) -> RunResult:
    if resume and (finished := _finished_run(run_dir)) is not None:
        return finished
    check_bundle_folder(run_dir / BUNDLE_DIR)
    if (run_dir / BUNDLE_DIR).exists() and not _has_checkpoint(run_dir):
        raise TrainingError(
            f"{run_dir} has ended, {BUNDLE_DIR}/{CONFIG_FILE} or {TEST_FILE} is damaged or missing, and no checkpoint is left "
            "that it could be made of; training anew would replace the bundle. Measure the bundle by msrn evaluate, or give "
            "another --out."
        )
    splits = read_splits(recipe, console)
    try:
        return _train(recipe, splits, run_dir, console)
    except BaseException:
        has_anything = _has_checkpoint(run_dir) or (run_dir / BUNDLE_DIR).exists()  # to resume or to look at
        if is_first_process() and not has_anything:
            for name in (RECIPE_FILE, SPLITS_FILE, HELD_OUT_FILE, METRICS_FILE):
                (run_dir / name).unlink(missing_ok=True)
            for name in (CHECKPOINT_DIR, TENSORBOARD_DIR):
                shutil.rmtree(run_dir / name, ignore_errors=True)
        raise


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Keep a second run out of a folder, which is made if it is missing, and removed where nothing came of the run.

    Raises:
        TrainingError: A run is at work in it.
        MSRNError: It cannot be written.
    """
    lock = FileLock(run_dir / _LOCK_FILE)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            f"another process trains in {run_dir}. Wait until it has ended, or give another folder by --out."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
            raise MSRNError(
                f"{run_dir} cannot be written: {error.strerror or error}. Free some space or give a path in a folder you own."
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (run_dir / _LOCK_FILE).unlink(missing_ok=True)  # before another can take it
        lock.release()
        with suppress(OSError):
            run_dir.rmdir()


def _train(recipe: Recipe, splits: Splits, run_dir: Path, console: Console | None) -> RunResult:
    graph = read_label_graph(recipe, splits)
    vectors = read_word_vectors(recipe, graph.label_graph)
    model = build_recipe_model(recipe, graph.label_graph, vectors)
    init_from = start_from_bundle(recipe, model, graph.label_graph, vectors, console)
    record = splits.record()
    has_files = recipe.labels.graph is not None or recipe.labels.vectors is not None
    given_vectors = vectors if recipe.labels.vectors is not None else None
    semantics = {_SEMANTICS: {"sha256": semantics_hash(graph.label_graph, given_vectors)}} if has_files else {}
    if init_from is not None:
        semantics["bundle of model.init_from"] = {"sha256": init_from["sha256"]}
    has_checkpoint = _has_checkpoint(run_dir)
    if has_checkpoint:
        _check_same_splits(record | semantics, run_dir)
    if is_first_process():
        save_recipe(recipe, run_dir / RECIPE_FILE)
        write_json(run_dir / SPLITS_FILE, record | semantics)
        if splits.is_held_out:
            write_text(run_dir / HELD_OUT_FILE, "".join(f"{name}\n" for name in relative_names(splits.val)))
    describe(recipe, splits, model, graph, console)
    preprocessing = Preprocessing(recipe.data.size, recipe.data.mean, recipe.data.std)
    train_loader, val_loader = build_loaders(recipe, splits, preprocessing)
    module = build_module(recipe, splits, model)
    settings = TrainerSettings(**recipe.trainer.model_dump())
    with explaining_out_of_memory(module, settings, size=recipe.data.size, batch_size=recipe.data.batch_size):
        result = fit(module, settings, train_loader, val_loader, run_dir, resume=has_checkpoint, console=console)
    model.load_state_dict(result.state_dict)
    training: dict[str, Any] = {
        "recipe_name": recipe.name,
        "best_epoch": result.best_epoch,
        "chosen_by": f"validation mAP on {splits.val_origin}",
        "val_mAP": result.best_mAP,
        "train_seconds": round(result.seconds, 1),
        "seconds_per_step": result.seconds_per_step,
        "images_per_s": result.images_per_s,
        "peak_memory_bytes": result.peak_memory_bytes,
        "parameters": count_parameters(model),
        "splits": record,
        "label_graph": {
            "rule": graph.label_graph.rule,
            "edges": graph.label_graph.num_edges,
            "split": graph.split,
            "images": graph.num_images,
            "split_sha256": graph.split_sha256,
        },
        **({} if init_from is None else {"init_from": init_from}),
        "recipe": without_paths(recipe),  # a bundle is shared
    }
    if not is_first_process():
        return RunResult(run_dir, run_dir / BUNDLE_DIR, result.best_epoch, result.best_mAP, None, training)
    architecture = recipe.model.architecture()
    bundle = Bundle(model.eval(), graph.label_graph, architecture, preprocessing, training=training)
    bundle_dir = save_bundle(bundle, run_dir / BUNDLE_DIR)
    test = None
    if splits.test is not None:
        test = evaluate(
            Predictor(bundle), splits.test, batch_size=recipe.data.batch_size, num_workers=recipe.data.num_workers
        )
        protocol = evaluation_protocol(bundle, splits.test, reading="read once, after validation chose the epoch")
        test = {**test, **record["test"], "threshold": bundle.threshold, "protocol": protocol}
        write_json(run_dir / TEST_FILE, test)
    return RunResult(run_dir, bundle_dir, result.best_epoch, result.best_mAP, test, training)


def _has_checkpoint(run_dir: Path) -> bool:
    return (run_dir / CHECKPOINT_DIR / LAST_FILE).is_file()


def _read_json(file: Path) -> Any:
    """What a file of the run holds.

    Raises:
        OSError: It cannot be read, or is no small file.
        ValueError: It is no JSON, or holds what JSON cannot write again, such as NaN or values too deep within each other.
    """
    try:
        value = json.loads(read_bounded(file, _MAX_JSON_BYTES))
        json_text(value)
    except RecursionError:
        raise ValueError("it holds values too deep within each other") from None
    return value


def _finished_run(run_dir: Path) -> RunResult | None:
    """What a run left that has nothing more to do.

    None where a part of that is missing or damaged: the run then goes on from its last checkpoint, and leaves it again.
    """
    try:
        training = _read_json(run_dir / BUNDLE_DIR / CONFIG_FILE)["training"]
        test = _read_json(run_dir / TEST_FILE) if "test" in training["splits"] else None
        is_whole = _is_training(training) and (test is None) == ("test" not in training["splits"])
        if not is_whole or not (test is None or _is_report(test)):
            return None
        return RunResult(run_dir, run_dir / BUNDLE_DIR, training["best_epoch"], training["val_mAP"], test, training)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_training(training: dict[str, Any]) -> bool:
    """Whether the words of a bundle on its training are such as `_train` writes, as far as people are told of them."""
    splits = training["splits"]
    return (
        type(training["best_epoch"]) is int
        and all(_is_number(training[name]) for name in ("val_mAP", "parameters", "train_seconds"))
        and isinstance(splits, dict)
        and all(isinstance(split["split"], str) for split in splits.values())
    )


def _is_report(test: dict[str, Any]) -> bool:
    """Whether a report of the test split is such as `_train` writes, as far as people are told of it."""
    names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
    numbers = [
        *names,
        *(f"{name}_top3" for name in names),
        *(f"{name}_fitted" for name in names if "CF1_fitted" in test),
    ]
    numbers += ["mAP", "coverage_error", "label_ranking_average_precision", "ranking_loss", "num_images", "num_unknown"]
    if isinstance(protocol := test.get("protocol"), dict):  # a sentence in runs of before it was written down
        protocol_lines(protocol)
    return all(test[name] is None or _is_number(test[name]) for name in numbers) and all(
        isinstance(name, str) for name in test["labels_without_positives"]
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER


def _check_same_splits(record: dict[str, dict[str, Any]], run_dir: Path) -> None:
    try:
        before = _read_json(run_dir / SPLITS_FILE)
        if not isinstance(before, dict):
            raise ValueError("it holds no splits")
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
        if run_dir.exists() and (not run_dir.is_dir() or not all(map(_is_leftover, run_dir.iterdir()))):
            raise TrainingError(f"{run_dir} is not empty. Go on with it by --resume, or give another folder by --out.")
        return
    if not saved.is_file():
        raise TrainingError(
            f"{run_dir} holds no {RECIPE_FILE}, so there is no run to resume. Start it without --resume."
        )
    before, now = (
        {key: value for key, value in own.by_dotted_key().items() if key not in SPEED_KEYS}
        for own in (load_recipe(saved), recipe)
    )
    if changed := changed_values(before, now):
        raise RecipeError(
            f"{run_dir} was started with another recipe (different: {', '.join(changed)}). "
            "Resume with the same recipe and overrides, or start a new run with another --out."
        )


def _is_leftover(path: Path) -> bool:
    """Whether a killed run can leave this without having begun."""
    return path.name == _LOCK_FILE or is_leftover(path, _REPLACED)
