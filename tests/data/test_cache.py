"""Decoded images kept in memory: bit for bit, within the budget, whole or absent, shared by processes."""

import multiprocessing
import os

import numpy as np
import pytest
from PIL import Image

import msrn.data.cache
import msrn.data.shared
from msrn.data.cache import DecodedCache


def noise(seed: int, height: int = 10, width: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_images_come_back_bit_for_bit() -> None:
    cache = DecodedCache(3, max_bytes=10_000)
    assert cache.get(1) is None
    cache.put(1, noise(1))
    cache.put(0, noise(0, 7, 5))
    assert [cache.get(number) for number in range(3)] == [noise(0, 7, 5), noise(1), None]
    assert cache.used_bytes == 3 * (10 * 20 + 7 * 5)


def test_what_comes_back_is_a_copy() -> None:
    cache = DecodedCache(1, max_bytes=10_000)
    cache.put(0, noise(0))
    cache.get(0).paste((0, 0, 0), (0, 0, 20, 10))
    assert cache.get(0) == noise(0)


def test_the_first_image_of_a_number_stays() -> None:
    cache = DecodedCache(1, max_bytes=10_000)
    cache.put(0, noise(0))
    cache.put(0, noise(1))
    assert cache.get(0) == noise(0)
    assert cache.used_bytes == 600


def test_budget_is_kept_and_filled_by_smaller_images() -> None:
    cache = DecodedCache(4, max_bytes=1300)
    for number, size in enumerate([(10, 20), (10, 20), (10, 20), (5, 6)]):
        cache.put(number, noise(number, *size))
    assert [cache.get(number) is not None for number in range(4)] == [True, True, False, True]
    assert cache.used_bytes == 1290


@pytest.mark.parametrize("max_bytes", [0, 2**62, 2**70])
def test_memory_that_is_not_given_leaves_the_cache_empty(max_bytes: int) -> None:
    cache = DecodedCache(1, max_bytes=max_bytes)
    cache.put(0, noise(0))
    assert cache.get(0) is None


# Processes


@pytest.fixture
def fork() -> multiprocessing.context.ForkContext:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("processes cannot be forked here")
    return multiprocessing.get_context("fork")


def fill(cache: DecodedCache, start: int) -> None:
    for number in range(40):
        cache.put((start + number) % 40, noise((start + number) % 40))


def test_processes_fill_and_read_the_same_cache(fork: multiprocessing.context.ForkContext) -> None:
    cache = DecodedCache(40, max_bytes=600 * 30)
    writers = [fork.Process(target=fill, args=(cache, start)) for start in (0, 20, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    kept = {number: image for number in range(40) if (image := cache.get(number)) is not None}
    assert len(kept) == 30
    assert cache.used_bytes == 600 * 30
    assert all(image == noise(number) for number, image in kept.items())


def die_while_writing(cache: DecodedCache) -> None:
    image = noise(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msrn.data.cache.np, "asarray", lambda image: os._exit(1))
        cache.put(0, image)


def test_an_image_whose_writer_died_is_absent_and_others_go_on(fork: multiprocessing.context.ForkContext) -> None:
    cache = DecodedCache(2, max_bytes=10_000)
    writer = fork.Process(target=die_while_writing, args=(cache,))
    writer.start()
    writer.join()
    assert writer.exitcode == 1
    assert cache.used_bytes == 600  # lost
    assert cache.get(0) is None
    cache.put(0, noise(0))  # nobody knows that the writer is gone
    cache.put(1, noise(1))
    assert (cache.get(0), cache.get(1)) == (None, noise(1))


def test_a_lock_that_never_comes_back_costs_the_cache_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msrn.data.shared, "_LOCK_TIMEOUT_S", 0.05)
    cache = DecodedCache(2, max_bytes=10_000)
    cache.put(0, noise(0))
    cache._lock._lock.acquire()  # as a killed process would leave it
    assert cache.get(0) is None
    monkeypatch.setattr(msrn.data.shared, "_LOCK_TIMEOUT_S", 1000)  # it is not waited for again
    cache.put(1, noise(1))
    assert cache.get(0) is None
    assert cache.used_bytes == 600
