"""A recipe carried out: which images are used for what, what the run folder holds, and how a run goes on."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import msrn.data.loader
from msrn.bundle import load_bundle
from msrn.data import open_source, split_hash
from msrn.data.images import read_image
from msrn.errors import (
    DataError,
    EmptySplitError,
    ModelError,
    NonFiniteLossError,
    RecipeError,
    TrainingError,
    UnreadableImageError,
)
from msrn.predict import Predictor, evaluate
from msrn.recipes import Recipe, load_recipe
from msrn.recipes.dry_run import dry_run
from msrn.recipes.run import _finished_run, train_recipe
from msrn.recipes.splits import read_splits
from msrn.recipes.validation import validation_images

TINY = [
    "data.size=[32,32]",
    "data.batch_size=8",
    "data.num_workers=0",
    "data.cache_gb=0",  # every read is counted
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "optimizer.name=adamw",
    "optimizer.lr=0.003",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]
COUNTS = {"train": 24, "val": 8, "test": 8}


def write_data(folder: Path, counts: dict[str, int] = COUNTS) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = ["path,labels,split"]
    for split, count in counts.items():
        for number in range(count):
            present = rng.random(3) < 0.5
            pixels = rng.integers(0, 90, (32, 32, 3)) + 150 * present
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}-{number}.png")
            labels = "|".join(
                name for name, is_there in zip(("red", "green", "blue"), present, strict=True) if is_there
            )
            rows.append(f"{split}-{number}.png,{labels or '[]'},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "colours")


def make_recipe(data: Path, *overrides: str) -> Recipe:
    return load_recipe("scenes", [*TINY, "trainer.gradient_clip=null", f"data.root={data}", *overrides])


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run, its result, and how often each image was read; do not change it."""
    reads: Counter[str] = Counter()

    def counted(path: Path, **options: Any) -> Image.Image:
        reads[Path(path).name] += 1
        return read_image(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msrn.data.loader, "read_image", counted)
        result = train_recipe(make_recipe(data), tmp_path_factory.mktemp("runs") / "run")
    return result, reads


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Splits


def test_own_validation_split_is_used(data: Path) -> None:
    splits = read_splits(make_recipe(data))
    assert splits.val_origin == "split val"
    assert [(images.split, len(images)) for images in splits.named().values()] == list(COUNTS.items())


@pytest.mark.parametrize(
    ("overrides", "test"),
    [
        (["data.val=held_out"], "test"),
        (["data.test=val"], "val"),
        (["data.val=held_out", "data.test=null"], None),
    ],
)
def test_part_of_train_is_held_out(data: Path, overrides: list[str], test: str | None) -> None:
    splits = read_splits(make_recipe(data, *overrides, "data.val_fraction=0.25"))
    assert (len(splits.train), len(splits.val)) == (18, 6)
    assert splits.val_origin == "6 images held out of train"
    assert (splits.test.split if splits.test else None) == test
    used = [path for images in splits.named().values() for path in images.paths]
    assert len(used) == len(set(used))
    assert {path.name.partition("-")[0] for path in splits.val.paths} == {"train"}
    again = read_splits(make_recipe(data, *overrides, "data.val_fraction=0.25", "trainer.seed=7"))
    assert again.val.paths == splits.val.paths  # drawn once for a data set, not once a run


def test_data_without_val_and_test(tmp_path: Path) -> None:
    recipe = make_recipe(write_data(tmp_path / "data", {"train": 20}))
    splits = read_splits(recipe)
    assert (len(splits.train), len(splits.val), splits.test) == (18, 2, None)
    with pytest.raises(EmptySplitError, match="has no split 'test'"):
        read_splits(make_recipe(tmp_path / "data", "data.test=test"))


def test_several_training_splits(data: Path) -> None:
    splits = read_splits(make_recipe(data, "data.train=[train,val]"))
    assert (len(splits.train) + len(splits.val), splits.val_origin) == (32, "3 images held out of train + val")
    assert splits.test is not None
    splits = read_splits(make_recipe(data, "data.train=[train,test]"))
    assert (splits.val_origin, splits.test) == ("split val", None)


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_any_label(tmp_path: Path, split: str) -> None:
    folder = write_data(tmp_path / "data")
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(re.sub(rf",[a-z|\[\]]+,{split}\n", f",[],{split}\n", text))
    with pytest.raises(DataError, match=f"no image of {split}|no validation image"):
        read_splits(make_recipe(folder))


# What a run leaves


def test_run_folder(finished: Any, data: Path) -> None:
    run_dir = finished[0].run_dir
    assert {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()} == {
        *("recipe.yaml", "splits.json", "metrics.csv", "test.json"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
        *("bundle/model.safetensors", "bundle/config.json", "bundle/README.md"),
    }
    assert load_recipe(run_dir / "recipe.yaml") == make_recipe(data)
    assert (run_dir / "metrics.csv").read_text().count("\n") == 3
    assert json.loads((run_dir / "test.json").read_text()) == finished[0].test


def test_saved_recipe_repeats_the_run(finished: Any, data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(finished[0].run_dir / "recipe.yaml")
    again = train_recipe(recipe, tmp_path / "again")
    assert again.best_mAP == finished[0].best_mAP
    weights, expected = (load_file(run.bundle_dir / "model.safetensors") for run in (again, finished[0]))
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


def test_bundle_records_protocol_and_splits(finished: Any, data: Path) -> None:
    result, _ = finished
    training = load_bundle(result.bundle_dir).training
    assert training == result.training
    assert training["chosen_by"] == "validation mAP on split val"
    assert training["val_mAP"] == result.best_mAP
    assert training["recipe"]["optimizer"]["lr"] == 0.003
    source = open_source(data)
    for split in COUNTS:
        expected = {"split": split, "images": COUNTS[split], "sha256": split_hash(source.read(split))}
        assert training["splits"][split] == expected
    assert json.loads((result.run_dir / "splits.json").read_text()) == training["splits"]


def test_bundle_holds_no_path_of_this_machine(finished: Any, data: Path) -> None:
    result, _ = finished
    for path in result.bundle_dir.iterdir():
        content = path.read_bytes()
        for private in (data.parent, result.run_dir.parent, Path.home(), Path.cwd()):
            assert str(private).encode() not in content, path


def test_bundle_is_the_best_epoch_and_the_test_result_is_its(finished: Any, data: Path) -> None:
    result, _ = finished
    rows = (result.run_dir / "metrics.csv").read_text().splitlines()
    scores = [float(row.split(",")[3]) for row in rows[1:]]
    assert result.best_epoch == int(np.argmax(scores))
    assert result.best_mAP == max(scores)
    predictor = Predictor(load_bundle(result.bundle_dir))
    assert evaluate(predictor, open_source(data).read("val"))["mAP"] == pytest.approx(max(scores), abs=1e-6)
    assert evaluate(predictor, open_source(data).read("test"))["mAP"] == pytest.approx(result.test["mAP"], abs=1e-6)


def test_test_images_are_read_once(finished: Any) -> None:
    reads = finished[1]
    assert {reads[f"test-{number}.png"] for number in range(COUNTS["test"])} == {1}
    assert {reads[f"val-{number}.png"] for number in range(COUNTS["val"])} == {2}
    assert {reads[f"train-{number}.png"] for number in range(COUNTS["train"])} == {2}


# Going on


def test_folder_that_is_not_empty_is_refused(finished: Any, data: Path, tmp_path: Path) -> None:
    before = files_of(finished[0].run_dir)
    with pytest.raises(TrainingError, match=r"is not empty\. Go on with it by --resume, or give another folder"):
        train_recipe(make_recipe(data), finished[0].run_dir)
    assert files_of(finished[0].run_dir) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match="is not empty"):
        train_recipe(make_recipe(data), tmp_path / "file")


def test_resuming_with_another_recipe_is_refused(finished: Any, data: Path) -> None:
    recipe = make_recipe(data, "optimizer.lr=0.1", "trainer.seed=1")
    with pytest.raises(
        RecipeError,
        match=r"another recipe \(different: optimizer\.lr 0\.\d+ -> 0\.1, trainer\.seed 0 -> 1\)\. Resume with the same",
    ):
        train_recipe(recipe, finished[0].run_dir, resume=True)


def test_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"holds no recipe\.yaml, so there is no run to resume"):
        train_recipe(make_recipe(data), tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_resuming_a_finished_run_changes_nothing(finished: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = finished
    before = files_of(result.run_dir)
    monkeypatch.setattr(msrn.data.loader, "read_image", lambda path, **options: pytest.fail("an image is read again"))
    assert train_recipe(make_recipe(data), result.run_dir, resume=True) == result
    assert files_of(result.run_dir) == before


DAMAGED = {
    "no JSON": lambda _: "{",
    "a list": lambda _: "[]",
    "nothing": lambda _: "null",
    "too deep": lambda text: text.replace("{", '{"x": ' + "[" * 990 + "]" * 990 + ",", 1),
    "far too deep": lambda _: "[" * 100_000,
    "no number": lambda text: re.sub(r'"(val_)?mAP": [0-9.e-]+', r'"\1mAP": NaN', text),
    "another number": lambda text: re.sub(r'"(val_)?mAP": [0-9.e-]+', r'"\1mAP": "high"', text),
    "too large a number": lambda text: re.sub(r'"(val_)?mAP": [0-9.e-]+', r'"\1mAP": 1' + "0" * 400, text),
    "no splits": lambda text: re.sub(r'"(splits|labels_without_positives|protocol)"', '"x"', text),
}


@pytest.mark.fault("files of a run that are damaged")
@pytest.mark.parametrize("name", ["bundle/config.json", "test.json"])
def test_damaged_results_are_made_again(finished: Any, data: Path, tmp_path: Path, lost: Any, name: str) -> None:
    """What a run left at its end is made of its last checkpoint."""
    result, _ = finished
    run_dir = tmp_path / "run"
    shutil.copytree(result.run_dir, run_dir)
    whole = (run_dir / name).read_text()
    for what, damage in DAMAGED.items():
        (run_dir / name).write_text(damage(whole))
        assert _finished_run(run_dir) is None, what
    again = train_recipe(make_recipe(data), run_dir, resume=True)
    assert (again.best_epoch, again.best_mAP) == (result.best_epoch, result.best_mAP)
    lost(files_of(result.bundle_dir).keys(), files_of(again.bundle_dir).keys(), "files of the bundle")
    lost([json.dumps(result.test)], [json.dumps(again.test)], "reports of the test split")


@pytest.mark.fault("files of a run that are damaged, and its checkpoints gone")
def test_without_a_checkpoint_damaged_results_leave_the_bundle_alone(
    finished: Any, data: Path, tmp_path: Path, lost: Any
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    shutil.rmtree(run_dir / "checkpoints")
    assert train_recipe(make_recipe(data), run_dir, resume=True).test == finished[0].test
    (run_dir / "test.json").write_text("[]")
    before = files_of(run_dir)
    with pytest.raises(
        TrainingError, match=r"no checkpoint is left .*; training anew would replace the bundle\. Measure"
    ):
        train_recipe(make_recipe(data), run_dir, resume=True)
    lost(before.items(), files_of(run_dir).items(), "files of the run")


@pytest.mark.parametrize("what", ["no JSON", "a list", "nothing", "too deep", "far too deep"])
def test_a_damaged_record_of_the_splits_is_named(finished: Any, data: Path, tmp_path: Path, what: str) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0].run_dir, run_dir)
    (run_dir / "test.json").unlink()  # one that has not ended
    (run_dir / "splits.json").write_text(DAMAGED[what]((run_dir / "splits.json").read_text()))
    before = files_of(run_dir)
    with pytest.raises(TrainingError, match=r"splits\.json cannot be read: .*\. Start a new run with another --out"):
        train_recipe(make_recipe(data), run_dir, resume=True)
    assert files_of(run_dir) == before
    if what == "far too deep":
        with pytest.raises(DataError, match=r"splits\.json cannot be read: .*\. Give labelled images by --data"):
            validation_images(load_bundle(run_dir / "bundle"), run_dir / "bundle")


@pytest.mark.fault("two runs in one folder")
@pytest.mark.parametrize("moment", [3, 24 + 8 + 3], ids=["first epoch", "second epoch"])
def test_a_second_run_keeps_out_of_the_folder(
    finished: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Any, moment: int
) -> None:
    run_dir = tmp_path / "run"
    refused: list[str] = []
    reads = 0

    def read(path: Path, **options: Any) -> Image.Image:
        nonlocal reads
        reads += 1
        if reads == moment:
            (run_dir / ".metrics.csv.abcdefgh.msrn").touch()  # what the first run is just writing
            for resume in (False, True):
                before = files_of(run_dir)
                with pytest.raises(TrainingError) as caught:
                    train_recipe(make_recipe(data), run_dir, resume=resume)
                refused.append(str(caught.value))
                assert files_of(run_dir) == before
            (run_dir / ".metrics.csv.abcdefgh.msrn").unlink()
        return read_image(path, **options)

    monkeypatch.setattr(msrn.data.loader, "read_image", read)
    train_recipe(make_recipe(data), run_dir)
    assert "is not empty" in refused[0]
    assert f"another process trains in {run_dir}. Wait until it has ended" in refused[1]
    weights, expected = (
        load_file(folder / "bundle" / "model.safetensors") for folder in (run_dir, finished[0].run_dir)
    )
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    assert not (run_dir / ".lock").exists()
    lost(list(files_of(finished[0].run_dir)), list(files_of(run_dir)), "files of the run")


def test_what_a_killed_run_leaves_before_it_has_begun_is_no_run(finished: Any, data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in (".lock", ".recipe.yaml.abcdefgh.msrn"):
        (run_dir / name).touch()
    train_recipe(make_recipe(data), run_dir)
    assert files_of(finished[0].run_dir).keys() == files_of(run_dir).keys()


class StoppedError(Exception):
    """What stops a run in these tests."""


def stop_after(monkeypatch: pytest.MonkeyPatch, num_reads: int, error: BaseException) -> None:
    reads = 0

    def read(path: Path, **options: Any) -> Image.Image:
        nonlocal reads
        reads += 1
        if reads > num_reads:
            raise error
        return read_image(path, **options)

    monkeypatch.setattr(msrn.data.loader, "read_image", read)


@pytest.mark.parametrize(
    ("num_reads", "rows"),
    [(5, None), (24 + 8 + 3, 1), (2 * (24 + 8) + 3, 2)],
    ids=["first epoch", "second epoch", "test"],
)
def test_stopped_run_goes_on_to_the_same_result(
    finished: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_reads: int, rows: int | None
) -> None:
    result, _ = finished
    run_dir = tmp_path / "run"
    stop_after(monkeypatch, num_reads, StoppedError())
    with pytest.raises(StoppedError):
        train_recipe(make_recipe(data), run_dir)
    monkeypatch.undo()
    if rows is None:
        assert not run_dir.exists()  # nothing half written
        return
    assert (run_dir / "metrics.csv").read_text().count("\n") == 1 + rows
    assert not (run_dir / "test.json").exists()
    again = train_recipe(make_recipe(data), run_dir, resume=True)
    assert (again.best_epoch, again.best_mAP, again.test) == (result.best_epoch, result.best_mAP, result.test)
    weights, expected = (load_file(folder / "model.safetensors") for folder in (again.bundle_dir, result.bundle_dir))
    assert all(torch.equal(value, weights[name]) for name, value in expected.items())


def test_a_run_goes_on_where_reading_and_saving_are_set_otherwise(
    finished: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = finished
    stop_after(monkeypatch, 24 + 8 + 3, StoppedError())
    with pytest.raises(StoppedError):
        train_recipe(make_recipe(data), tmp_path / "run")
    monkeypatch.undo()
    other = make_recipe(data, "data.num_workers=1", "data.cache_gb=0.01", "trainer.checkpoint_steps=2")
    again = train_recipe(other, tmp_path / "run", resume=True)
    assert (again.best_epoch, again.best_mAP, again.test) == (result.best_epoch, result.best_mAP, result.test)
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == other


def test_killed_before_its_first_epoch_it_starts_anew(finished: Any, data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text((finished[0].run_dir / "recipe.yaml").read_text())
    assert train_recipe(make_recipe(data), run_dir, resume=True).best_mAP == finished[0].best_mAP


def test_data_that_changed_in_between_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_data(tmp_path / "data")
    stop_after(monkeypatch, 24 + 8 + 3, StoppedError())
    with pytest.raises(StoppedError):
        train_recipe(make_recipe(folder), tmp_path / "run")
    monkeypatch.undo()
    lines = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
    with pytest.raises(DataError, match=r"the data has changed since \S+run was started \(different: train\)"):
        train_recipe(make_recipe(folder), tmp_path / "run", resume=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_leaves_nothing(tmp_path: Path, workers: int) -> None:
    folder = write_data(tmp_path / "data")
    cut = folder / "val-3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(UnreadableImageError, match=rf"^{cut}: damaged or truncated \(.*\)\. Copy it again"):
        train_recipe(make_recipe(folder, f"data.num_workers={workers}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_leaves_nothing_of_a_first_epoch(data: Path, tmp_path: Path) -> None:
    recipe = make_recipe(data, "optimizer.name=sgd", "optimizer.lr=1e30", "schedule.warmup_steps=0")
    with pytest.raises(NonFiniteLossError, match=r"in epoch 1 of 2, batch 2 \(images \S+train-\d+\.png, "):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_keeps_the_last_good_checkpoint(data: Path, tmp_path: Path) -> None:
    overrides = ["optimizer.name=sgd", "optimizer.lr=1e-3", "schedule.name=step", "schedule.milestones=[1]"]
    recipe = make_recipe(data, *overrides, "schedule.step_factor=1e33", "schedule.warmup_steps=0")
    with pytest.raises(NonFiniteLossError, match=r"in epoch 2 of 2, batch .* Epoch 1 is kept in last\.ckpt\."):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "bundle").exists()
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    ("head", "name"),
    [("avg_pool", "pooled"), ("csra", "csra"), ("ml_gcn", "ml_gcn"), ("ml_decoder", "ml_decoder"), ("msrn", "msrn")],
)
def test_every_head_shares_the_protocol(data: Path, tmp_path: Path, head: str, name: str) -> None:
    overrides = [f"model.head={head}", "model.frozen_stages=2", "model.csra_heads=2", "model.decoder_groups=2"]
    result = train_recipe(make_recipe(data, *overrides, "trainer.max_epochs=1"), tmp_path / "run")
    assert result.test is not None
    bundle = load_bundle(result.bundle_dir)
    assert (bundle.architecture["name"], bundle.architecture["frozen_stages"]) == (name, 2)
    predictor = Predictor(bundle, device="cpu")
    assert len(predictor.predict(data / "test-0.png", top_k=3)[0].labels) == 3
    assert evaluate(predictor, open_source(data).read("test"))["mAP"] == pytest.approx(result.test["mAP"])


# Counting memory instead of training


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how much memory is free."""
    return lambda count: monkeypatch.setattr(msrn.recipes.dry_run, "free_memory_bytes", lambda device_type: count)


def test_dry_run_counts_and_leaves_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_of(data)
    run = dry_run(make_recipe(data))
    assert run.fits
    assert (run.estimate.batch_size, run.estimate.device_type, run.num_images) == (8, "cpu", 24)
    assert run.largest_batch == 24  # no batch holds more than all training images
    assert run.estimate.expected_bytes < run.free_bytes
    assert run.trial is not None
    assert run.trial.timed_batches == 2  # of three
    assert (run.num_batches, run.num_val_batches) == (3, 1)
    assert run.epoch_seconds == run.trial.epoch_seconds(3, 1)
    assert run.run_seconds == 2 * run.epoch_seconds
    assert run.num_flops > 10**5
    assert json.loads(json.dumps(run.to_dict()))["largest_batch"] == 24
    assert list(tmp_path.iterdir()) == []
    assert files_of(data) == before


@pytest.mark.slow
def test_largest_batch_of_a_dry_run_is_one_that_fits(data: Path, free_memory: Any) -> None:
    recipe = make_recipe(data, "data.size=[64,64]", "data.batch_size=20")
    free_memory(dry_run(recipe).estimate.expected_bytes - 1_000_000)
    run = dry_run(recipe)
    assert not run.fits
    assert (run.trial, run.epoch_seconds, run.run_seconds) == (None, None, None)  # nothing was tried
    assert 0 < run.largest_batch < 20
    taken = [
        dry_run(make_recipe(data, "data.size=[64,64]", f"data.batch_size={size}")).estimate.expected_bytes
        for size in (run.largest_batch, run.largest_batch + 1)
    ]
    assert taken[0] <= run.free_bytes < taken[1]


def test_batch_of_a_dry_run_is_no_larger_than_the_data(data: Path) -> None:
    assert dry_run(make_recipe(data, "data.batch_size=5000")).estimate.batch_size == 24


@pytest.mark.parametrize(("free", "fits", "largest"), [(None, None, None), (10**6, False, 0)])
def test_dry_run_where_memory_is_unknown_or_short(
    data: Path, free_memory: Any, free: int | None, fits: bool | None, largest: int | None
) -> None:
    free_memory(free)
    run = dry_run(make_recipe(data))
    assert (run.fits, run.largest_batch) == (fits, largest)
    assert (run.trial is None) == (fits is False)


def test_dry_run_reads_no_weights_but_misses_the_file(data: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    recipe = make_recipe(data, "model.pretrained=true", f"model.weights={weights}")
    with pytest.raises(ModelError, match=rf"no weights file {weights}"):
        dry_run(recipe)
    weights.write_text("never read")
    assert dry_run(recipe).fits
