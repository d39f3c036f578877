"""Batches: the same whatever reads them, a new order each epoch, unknown labels kept."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gone import Gone
from PIL import Image

import msrn.data.loader
from msrn.data import LabelledImages
from msrn.data.cache import DecodedCache
from msrn.data.images import read_image
from msrn.data.loader import EpochSampler, ImageDataset, build_loader
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.errors import MSRNError, UnreadableImageError, is_killed_worker

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
    return rows_of(build_loader(images, TrainTransform(PREPROCESSING), current_epoch=lambda: epoch, **settings))


def rows_of(loader: msrn.data.loader.ImageLoader) -> dict[int, torch.Tensor]:
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
    workers = set(multiprocessing.active_children())
    batches: Iterator = iter(build_loader(both, PREPROCESSING, batch_size=2, num_workers=num_workers))
    with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
        next(batches)
    assert set(multiprocessing.active_children()) <= workers  # none waits for images that nobody will ask for


# Batches


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_is_its_images_one_by_one_in_channels_last_order(images, num_workers):
    transform = TrainTransform(PREPROCESSING, erase=0.5)
    loader = build_loader(images, transform, batch_size=5, num_workers=num_workers, shuffle=True, seed=3)
    dataset = ImageDataset(images, transform, seed=3)
    for batch in loader:
        assert batch["images"].is_contiguous(memory_format=torch.channels_last)
        for row, index in enumerate(batch["index"].tolist()):
            assert torch.equal(batch["images"][row], dataset[0, index]["images"])
            assert torch.equal(batch["target"][row], dataset[0, index]["target"])


def test_the_dataset_serves_any_loader(images):
    dataset = ImageDataset(images, PREPROCESSING)
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=5))
    assert torch.equal(torch.cat([batch["images"] for batch in batches])[7], dataset[7]["images"])


def test_batches_that_are_kept_stay_as_they_are(images):
    """Memory of batches is used again, but only once nobody holds them, nor a part of them."""
    loader = build_loader(images, TrainTransform(PREPROCESSING), batch_size=1, num_workers=2, shuffle=True, seed=3)
    dataset = ImageDataset(images, TrainTransform(PREPROCESSING), seed=3)
    kept = [(int(batch["index"]), batch["images"][0, 1:]) for _ in range(3) for batch in loader]
    assert len(kept) == 30
    assert all(torch.equal(view, dataset[0, index]["images"][1:]) for index, view in kept)
    assert loader.dataset.batches._is_used.sum() == 6
    del kept
    assert loader.dataset.batches._is_used.sum() == 0
    addresses = {batch["images"].data_ptr() for _ in range(3) for batch in loader}
    assert len(addresses) <= 6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_any_function_of_an_image_is_a_transform(images, num_workers):
    loader = build_loader(images, colour_sum, batch_size=5, num_workers=num_workers)
    batches = list(loader)
    expected = [colour_sum(read_image(path)) for path in images.paths]
    assert torch.equal(torch.cat([batch["images"] for batch in batches]), torch.stack(expected))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))


def colour_sum(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).sum(axis=(0, 1)))


# Reduced decoding


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """JPEGs of 160 x 200."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(6):
        paths.append(folder / f"{number}.jpg")
        pixels = rng.integers(0, 255, (5, 4, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((160, 200), Image.Resampling.BICUBIC).save(paths[-1], quality=95)
    return LabelledImages(tuple(paths), np.ones((6, 1), dtype=np.int8), ("a",), "train")


def test_reduced_decoding_gives_nearly_the_same_views(photos, monkeypatch):
    sizes = []

    def watched(path, **options):
        image = read_image(path, **options)
        sizes.append(image.size)
        return image

    transform = TrainTransform(PREPROCESSING, crop="multi_scale")
    options = {"batch_size": 6, "shuffle": True}
    monkeypatch.setattr(msrn.data.loader, "read_image", watched)
    reduced = rows_of(build_loader(photos, transform, **options, min_size=transform.min_size))
    full = rows_of(build_loader(photos, transform, **options))
    assert sizes == [(40 * 2, 50 * 2)] * 6 + [(160, 200)] * 6
    for index, view in full.items():
        assert not torch.equal(view, reduced[index])
        assert (view - reduced[index]).abs().mean() < 0.05  # of about 4: one level in 255 is 0.017


# Cache


def copies(images: LabelledImages, folder: Path) -> LabelledImages:
    """The same images in another folder."""
    paths = tuple(folder / path.name for path in images.paths)
    for path, copied in zip(images.paths, paths, strict=True):
        copied.write_bytes(path.read_bytes())
    return LabelledImages(paths, images.target, images.label_names, images.split)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_kept", [10, 4])
def test_views_are_the_same_with_a_cache(images, tmp_path, num_workers, num_kept):
    now = {"epoch": 0}
    copied = copies(images, tmp_path)
    loader = build_loader(
        copied,
        TrainTransform(PREPROCESSING),
        batch_size=2,
        num_workers=num_workers,
        shuffle=True,
        seed=3,
        current_epoch=lambda: now["epoch"],
        cache_bytes=num_kept * 3 * 30 * 40 + 1,
    )
    for epoch in range(3):
        now["epoch"] = epoch
        views, expected = rows_of(loader), rows(images, epoch=epoch, batch_size=2)
        assert list(views) == list(expected)
        assert all(torch.equal(view, expected[index]) for index, view in views.items())
        cache = loader.dataset.cache
        assert cache.used_bytes == num_kept * 3 * 30 * 40
        for index, path in enumerate(copied.paths):  # what is kept is not read again
            if cache.get(index) is not None:
                path.unlink(missing_ok=True)
    assert sum(path.exists() for path in copied.paths) == 10 - num_kept


def test_the_cache_holds_what_was_decoded(photos):
    cache = DecodedCache(6, max_bytes=10**6)
    dataset = ImageDataset(photos, TrainTransform(PREPROCESSING), min_size=(50, 50), cache=cache)
    views = [dataset[0, index]["images"] for index in range(6)]
    assert cache.get(0) == read_image(photos.paths[0], min_size=(50, 50))
    assert cache.get(0).size == (80, 100)
    assert all(torch.equal(dataset[0, index]["images"], view) for index, view in enumerate(views))


@pytest.mark.parametrize(
    ("method", "num_workers", "is_kept"), [("fork", 1, True), ("spawn", 1, False), ("spawn", 0, True)]
)
def test_nothing_is_kept_where_workers_cannot_share_it(images, monkeypatch, method, num_workers, is_kept):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    loader = build_loader(images, PREPROCESSING, batch_size=2, num_workers=num_workers, cache_bytes=10**6)
    assert (loader.dataset.cache is not None) == is_kept
    assert build_loader(images, PREPROCESSING, batch_size=2).dataset.cache is None


def test_an_unreadable_image_takes_no_room_for_good(images, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    both = LabelledImages((images.paths[0], broken), images.target[:2], images.label_names, "val")
    loader = build_loader(both, PREPROCESSING, batch_size=2, num_workers=1)
    for _ in range(6):
        with pytest.raises(UnreadableImageError, match=r"broken\.jpg"):
            list(loader)
    assert loader.dataset.batches.claim() is not None


def test_a_killed_worker_is_said_in_our_words(images):
    loader = build_loader(images, PREPROCESSING, batch_size=1, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(MSRNError, match=r"was killed, as systems do where memory runs out\. Lower data\.num_workers"):
        list(iterator)


@pytest.mark.skipif(sys.platform == "win32", reason="needs processes that share what is patched here")
def test_a_worker_killed_while_a_batch_is_fetched_is_said_in_our_words(images, monkeypatch):
    monkeypatch.setattr(msrn.data.loader, "by_value", lambda tensor: Gone())
    loader = build_loader(images, PREPROCESSING, batch_size=1, num_workers=1)
    with pytest.raises(MSRNError, match=r"was killed, as systems do where memory runs out\. Lower data\.num_workers"):
        list(loader)


def test_a_lost_connection_to_a_place_of_images_is_no_killed_worker():
    with pytest.raises(ConnectionError) as lost:
        raise ConnectionResetError("Connection reset by peer")
    assert not is_killed_worker(lost.value)
