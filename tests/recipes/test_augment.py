"""Augmentation by recipe: what the keys switch on, and that a run with all of it learns, resumes and repeats exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import msrn.recipes.build
from msrn.data.transforms import MultiScaleCrop, Preprocessing, TrainTransform
from msrn.errors import RecipeError
from msrn.recipes import Recipe, load_recipe
from msrn.recipes.dry_run import dry_run
from msrn.recipes.run import RunResult, train_recipe
from msrn.training import MSRNModule

TINY = [
    "data.size=[32,32]",
    "data.batch_size=8",
    "data.num_workers=0",
    "model.backbone=resnet10t",
    "model.backbone_options={channels: [8, 8, 16, 16]}",
    "model.dim=8",
    "optimizer.name=adamw",
    "optimizer.lr=0.003",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
]
EVERYTHING = [
    "data.crop=multi_scale",
    "data.crop_scales=[1.0, 0.8]",
    "data.max_distort=1",
    "data.rand_augment=1",
    "data.rand_augment_magnitude=5",
    "data.erase=0.3",
    "data.mixup=0.4",
    "data.cutmix=1.0",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEGs of 80 x 100 whose labels can be seen in their colour; some are unknown."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = ["path,red,green,blue,split"]
    for split, count in {"train": 16, "val": 8}.items():
        for number in range(count):
            present = rng.random(3) < 0.5
            colour = rng.integers(0, 90, 3) + 150 * present
            Image.new("RGB", (100, 80), tuple(colour.tolist())).save(folder / f"{split}-{number}.jpg")
            values = ["?" if split == "train" and rng.random() < 0.1 else str(int(value)) for value in present]
            rows.append(f"{split}-{number}.jpg,{','.join(values)},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def make_recipe(data: Path, *overrides: str) -> Recipe:
    return load_recipe("scenes", [*TINY, "trainer.gradient_clip=null", f"data.root={data}", *overrides])


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return train_recipe(make_recipe(data, *EVERYTHING), tmp_path_factory.mktemp("runs") / "run")


def weights_of(result: RunResult) -> dict[str, torch.Tensor]:
    return load_file(result.bundle_dir / "model.safetensors")


def is_same(result: RunResult, expected: RunResult) -> bool:
    weights = weights_of(result)
    return result.best_mAP == expected.best_mAP and all(
        torch.equal(value, weights[name]) for name, value in weights_of(expected).items()
    )


def test_mixing_changes_a_run(finished: RunResult, data: Path, tmp_path: Path) -> None:
    assert not is_same(train_recipe(make_recipe(data, *EVERYTHING[:-2]), tmp_path / "unmixed"), finished)


class StoppedError(Exception):
    """What stops a run in these tests."""


def test_a_stopped_run_goes_on_to_the_same_result(
    finished: RunResult, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(data, *EVERYTHING)
    step = MSRNModule.training_step

    def stop_in_second_epoch(self: MSRNModule, batch: Any, batch_index: int) -> Any:
        if (self.current_epoch, batch_index) == (1, 1):
            raise StoppedError
        return step(self, batch, batch_index)

    monkeypatch.setattr(MSRNModule, "training_step", stop_in_second_epoch)
    with pytest.raises(StoppedError):
        train_recipe(recipe, tmp_path / "run")
    monkeypatch.undo()
    torch.manual_seed(12345)  # whatever the state of the process
    assert is_same(train_recipe(recipe, tmp_path / "run", resume=True), finished)


@pytest.mark.parametrize("overrides", [["data.cache_gb=0"], ["data.num_workers=2", "data.cache_gb=1e-4"]])
def test_cache_and_workers_change_nothing(
    finished: RunResult, data: Path, tmp_path: Path, overrides: list[str]
) -> None:
    assert is_same(train_recipe(make_recipe(data, *EVERYTHING, *overrides), tmp_path / "run"), finished)


def test_memory_is_counted_with_mixing(data: Path) -> None:
    plain, mixed = (dry_run(make_recipe(data, *overrides)).estimate for overrides in ([], EVERYTHING))
    assert mixed.peak_bytes_per_image >= plain.peak_bytes_per_image


# What the loader is given


def loader_options(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrainTransform, dict]:
    given: list[tuple[TrainTransform, dict]] = []

    def watched(images: Any, transform: TrainTransform, **options: Any) -> Any:
        given.append((transform, options))
        raise StoppedError

    monkeypatch.setattr(msrn.recipes.build, "build_loader", watched)
    with pytest.raises(StoppedError):
        train_recipe(recipe, tmp_path / "run")
    return given[0]


def test_by_default_large_jpegs_are_reduced_and_a_quarter_of_the_free_memory_keeps_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(msrn.recipes.build, "free_memory_bytes", lambda device_type: 4_000_000)
    transform, options = loader_options(make_recipe(data), tmp_path, monkeypatch)
    assert options["min_size"] == transform.min_size
    assert options["cache_bytes"] == 1_000_000
    monkeypatch.setattr(msrn.recipes.build, "free_memory_bytes", lambda device_type: None)
    assert loader_options(make_recipe(data), tmp_path, monkeypatch)[1]["cache_bytes"] == 0


def test_reduced_decoding_and_cache_are_set(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(data, "data.reduced_decode=false", "data.cache_gb=0.5")
    _, options = loader_options(recipe, tmp_path, monkeypatch)
    assert (options["min_size"], options["cache_bytes"]) == (None, 500_000_000)


def test_default_keys_are_the_default_transform() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3)).astype(np.uint8))
    preprocessing = Preprocessing((32, 32))
    views = []
    for transform in (TrainTransform(preprocessing), TrainTransform(preprocessing, **Recipe().data.augmentation())):
        torch.manual_seed(0)
        views.append(transform(image))
    assert torch.equal(*views)


def test_voc2007_crops_as_published() -> None:
    data = load_recipe("voc2007").data
    crop = TrainTransform(Preprocessing(data.size), **data.augmentation()).augment.transforms[0]
    assert isinstance(crop, MultiScaleCrop)
    assert (crop.scales, crop.max_distort) == ((1.0, 0.9, 0.8, 0.7, 0.6), 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.crop=centre", r"data\.crop: input should be 'random_resized', 'multi_scale' or 'none', got 'centre'"),
        ("data.crop_scales=[]", r"data\.crop_scales: "),
        ("data.crop_scales=[1.2]", r"data\.crop_scales\.0: .*got 1\.2"),
        ("data.erase=1.5", r"data\.erase: .*got 1\.5"),
        ("data.mixup=-1", r"data\.mixup: .*got -1"),
        ("data.rand_augment_magnitude=31", r"data\.rand_augment_magnitude: .*got 31"),
        ("data.cache_gb=-1", r"data\.cache_gb: .*got -1"),
        ("data.cutmixx=1", r"unknown key 'data\.cutmixx', did you mean 'data\.cutmix'\?"),
    ],
)
def test_impossible_values_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("scenes", [override])
