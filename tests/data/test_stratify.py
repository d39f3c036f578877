import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.data.stratify import Deviations, Positives, stratify


def random_target(seed: int, num_images: int, num_labels: int, present: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    target = (rng.random((num_images, num_labels)) < present).astype(np.int8)
    target[rng.random((num_images, num_labels)) < 0.1] = -1
    return target


def long_tail(seed: int, num_images: int, num_labels: int) -> np.ndarray:
    """Every image has a label or more; label k comes up with a chance like 1 / k."""
    rng = np.random.default_rng(seed)
    chances = 1 / np.arange(1, num_labels + 1)
    rows = np.repeat(np.arange(num_images), 1 + rng.poisson(2, num_images))
    target = np.zeros((num_images, num_labels), dtype=np.int8)
    target[rows, rng.choice(num_labels, len(rows), p=chances / chances.sum())] = 1
    return target


def counts_and_sizes(target: np.ndarray, part: np.ndarray, num_parts: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.stack([(target[part == p] == 1).sum(axis=0) for p in range(num_parts)])
    return counts, np.bincount(part, minlength=num_parts)


@given(
    seed=st.integers(0, 99), num_images=st.integers(0, 30), num_labels=st.integers(1, 5), num_groups=st.integers(1, 6)
)
def test_positives_are_those_of_a_plain_loop(seed: int, num_images: int, num_labels: int, num_groups: int) -> None:
    target = random_target(seed, num_images, num_labels)
    images = Positives.of_images(target)
    for row in range(num_images):
        columns = images.labels[images.starts[row] : images.starts[row + 1]]
        assert columns.tolist() == np.flatnonzero(target[row] == 1).tolist()
    group_of = np.unique(np.random.default_rng(seed).integers(0, num_groups, num_images), return_inverse=True)[1]
    groups = images.group(group_of)
    assert groups.sizes.tolist() == np.bincount(group_of).tolist()
    part = np.arange(len(groups.sizes), dtype=np.int8)
    expected = [(target[group_of == group] == 1).sum(axis=0).tolist() for group in part]
    assert groups.count(part, len(part)).tolist() == expected


def test_blocks_of_rows_join(monkeypatch: pytest.MonkeyPatch) -> None:
    target = random_target(0, 100, 4)
    whole = Positives.of_images(target)
    monkeypatch.setattr("msrn.data.stratify._ROWS_AT_ONCE", 7)
    blocks = Positives.of_images(target)
    for name in ("starts", "labels", "counts", "sizes"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    num_labels=st.integers(1, 8),
    present=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_sizes_are_exact(seed: int, sizes: list[int], num_labels: int, present: float) -> None:
    positives = Positives.of_images(random_target(seed, sum(sizes), num_labels, present))
    part = stratify(positives, sizes, seed=seed)
    assert np.bincount(part, minlength=len(sizes)).tolist() == sizes
    np.testing.assert_array_equal(part, stratify(positives, sizes, seed=seed))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), num_images=st.integers(3, 80), num_parts=st.integers(1, 3))
def test_groups_fill_every_part(seed: int, num_images: int, num_parts: int) -> None:
    rng = np.random.default_rng(seed)
    _, group_of = np.unique(rng.integers(0, max(num_images // 3, 1), num_images), return_inverse=True)
    positives = Positives.of_images(random_target(seed, num_images, 3)).group(group_of)
    num_parts = min(num_parts, len(positives.sizes))
    sizes = [num_images - (num_parts - 1)] + [1] * (num_parts - 1)
    part = stratify(positives, sizes, seed=seed)
    assert (np.bincount(part, minlength=num_parts) > 0).all()
    np.testing.assert_array_equal(part, stratify(positives, sizes, seed=seed))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999), num_labels=st.sampled_from([5, 60]), shares=st.sampled_from([(900, 100), (800, 100, 100)])
)
def test_a_long_tail_comes_as_near_as_whole_images_do(seed: int, num_labels: int, shares: tuple[int, ...]) -> None:
    target = long_tail(seed, 1000, num_labels)
    part = stratify(Positives.of_images(target), shares, seed=seed)
    counts, sizes = counts_and_sizes(target, part, len(shares))
    found = Deviations.of(counts, sizes)
    assert found.largest_count <= 1
    for _ in range(3):
        chance = np.random.default_rng(seed).permutation(part)
        random = Deviations.of(*counts_and_sizes(target, chance, len(shares)))
        assert found.largest_count <= random.largest_count
        assert found.mean_count < random.mean_count


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_groups_are_nearer_than_at_random_in_labels_and_sizes(seed: int) -> None:
    target = long_tail(seed, 1200, 20)
    _, group_of = np.unique(np.random.default_rng(seed).integers(0, 300, 1200), return_inverse=True)
    groups = Positives.of_images(target).group(group_of)
    part = stratify(groups, [960, 120, 120], seed=seed)
    assert np.abs(np.bincount(part, weights=groups.sizes) - [960, 120, 120]).max() <= 2
    chance = np.random.default_rng(seed).permutation(part)
    found, random = (Deviations.of(*counts_and_sizes(target, p[group_of], 3)) for p in (part, chance))
    assert found.mean_count < random.mean_count
    assert found.largest_count < random.largest_count


def test_frequent_labels_do_not_pay_for_rare_ones() -> None:
    """Serving rare labels first leaves the most frequent one what is over; exchanges mend it."""
    rng = np.random.default_rng(0)
    target = np.zeros((2000, 11), dtype=np.int8)
    target[np.arange(2000), rng.integers(1, 11, 2000)] = 1
    target[rng.random(2000) < 0.5, 0] = 1
    part = stratify(Positives.of_images(target), [1600, 400], seed=0)
    counts, sizes = counts_and_sizes(target, part, 2)
    assert Deviations.of(counts, sizes).largest_count <= 1


def test_one_large_group_leaves_something_for_the_others() -> None:
    target = np.ones((12, 1), dtype=np.int8)
    groups = Positives.of_images(target).group(np.array([0] * 10 + [1, 2]))
    part = stratify(groups, [6, 3, 3], seed=0)
    assert sorted(part.tolist()) == [0, 1, 2]
    assert part[0] == 0


def test_deviations_leave_out_labels_too_rare_for_every_part() -> None:
    counts = np.array([[2, 8], [0, 2]])
    found = Deviations.of(counts, np.array([8, 2]))
    assert (found.largest_share, found.mean_share) == (0.0, 0.0)
    assert (found.largest_count, found.mean_count) == (pytest.approx(0.4), pytest.approx(0.2))
    rare = Deviations.of(counts[:, :1], np.array([8, 2]))
    assert rare.largest_share is None
    assert Deviations.mean([found, found]) == found
    assert Deviations.mean([found, rare]).largest_share is None
    assert Deviations.of(counts, np.array([8, 2]), part=1).largest_count == pytest.approx(0.4)
