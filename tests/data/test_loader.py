"""Batches: the same whatever reads them, a new order each epoch, unknown labels kept."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.data import LabelledImages
from msrn.data.loader import EpochSampler, ImageDataset, build_loader
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.errors import UnreadableImageError

PREPROCESSING = Preprocessing((24, 24))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(10):
        paths.append(folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, (30, 40, 3)).astype(np.uint8)).save(paths[-1])
    return LabelledImages(tuple(paths), rng.integers(-1, 2, (10, 3)).astype(np.int8), ("a", "b", "c"), "train")


def rows(images: LabelledImages, *, epoch: int = 0, **options) -> dict[int, torch.Tensor]:
    """The tensor of each image in one epoch, in the order they came."""
    settings = {"batch_size": 4, "shuffle": True, "seed": 3, **options}
    loader = build_loader(images, TrainTransform(PREPROCESSING), current_epoch=lambda: epoch, **settings)
    return {
        int(index): tensor for batch in loader for index, tensor in zip(batch["index"], batch["images"], strict=True)
    }


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_batch_size_change_no_view_of_an_image(images, num_workers):
    alone, shared = rows(images), rows(images, num_workers=num_workers, batch_size=2)
    assert list(alone) == list(shared)[: len(alone)]
    for index, tensor in alone.items():
        assert torch.equal(tensor, shared[index])


def test_epochs_have_orders_and_views_of_their_own(images):
    first, second, again = rows(images, batch_size=5), rows(images, epoch=1, batch_size=5), rows(images, batch_size=5)
    assert list(first) == list(again) != list(second)
    assert all(torch.equal(first[index], again[index]) for index in first)
    assert not any(torch.equal(first[index], second[index]) for index in first)


def test_seeds_have_orders_of_their_own(images):
    assert list(rows(images, batch_size=5)) != list(rows(images, batch_size=5, seed=4))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_epoch_is_asked_for_at_the_first_batch(images, num_workers):
    """Lightning makes its first iterator before it knows the epoch of a resumed run; workers stay over many epochs."""
    now = {"epoch": 0}
    settings = {"batch_size": 10, "shuffle": True, "num_workers": num_workers}
    loader = build_loader(images, PREPROCESSING, current_epoch=lambda: now["epoch"], **settings)
    iterator = iter(loader)
    for epoch in (3, 4):
        now["epoch"] = epoch
        order = [index for _, index in EpochSampler(10, seed=0, current_epoch=lambda: now["epoch"])]
        assert next(iterator)["index"].tolist() == order
        assert next(iterator, None) is None
        iterator = iter(loader)


def test_every_image_comes_once_and_only_training_drops_a_part_batch(images):
    assert sorted(EpochSampler(10, seed=0)) == [(0, index) for index in range(10)]
    assert len(rows(images)) == 8
    loader = build_loader(images, PREPROCESSING, batch_size=4)
    assert [len(batch["images"]) for batch in loader] == [4, 4, 2]
    assert len(rows(images, batch_size=16)) == 10  # a batch that is never full is not dropped


def test_evaluation_keeps_order_and_unknown_labels(images):
    batches = list(build_loader(images, PREPROCESSING, batch_size=4))
    target = torch.cat([batch["target"] for batch in batches])
    assert target.dtype == torch.int64
    assert np.array_equal(target.numpy(), images.target)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))


def test_reading_leaves_the_global_generator_alone(images):
    dataset = ImageDataset(images, TrainTransform(PREPROCESSING))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert not torch.equal(dataset[0, 1]["images"], dataset[1, 1]["images"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named(images, tmp_path, num_workers):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    both = LabelledImages((images.paths[0], broken), images.target[:2], images.label_names, "val")
    batches: Iterator = iter(build_loader(both, PREPROCESSING, batch_size=2, num_workers=num_workers))
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        next(batches)
