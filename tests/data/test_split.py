import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.data.open import open_source
from msrn.data.source import LabelledImages
from msrn.data.split import (
    check_disjoint,
    check_files,
    check_groups_apart,
    hold_out,
    plan_split,
    split_hash,
    split_images,
)
from msrn.errors import DataError, EmptySplitError

VOC = Path(__file__).parents[2].parent / "shared" / "voc2007" / "VOCdevkit"


def make_images(target: np.ndarray, *, folder: str = "photos", split: str = "train") -> LabelledImages:
    target = np.asarray(target, dtype=np.int8)
    paths = tuple(Path(folder, f"{i}.jpg") for i in range(len(target)))
    return LabelledImages(paths, target, tuple(f"label {i}" for i in range(target.shape[1])), split)


def random_images(seed: int, num_images: int, num_labels: int, present: float = 0.3) -> LabelledImages:
    rng = np.random.default_rng(seed)
    target = (rng.random((num_images, num_labels)) < present).astype(np.int8)
    target[rng.random((num_images, num_labels)) < 0.2] = -1
    return make_images(target)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_images=st.integers(2, 60),
    num_labels=st.integers(1, 6),
    fraction=st.floats(0.001, 0.999),
    present=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_parts_share_the_images_out(
    seed: int, num_images: int, num_labels: int, fraction: float, present: float
) -> None:
    images = random_images(seed, num_images, num_labels, present)
    train, val = hold_out(images, fraction=fraction, seed=seed)
    check_disjoint(train, val)
    assert sorted(train.paths + val.paths) == sorted(images.paths)
    assert len(val) == min(max(round(fraction * num_images), 1), num_images - 1)
    assert (train.split, val.split) == ("train", "val")
    for part in (train, val):
        rows = [images.paths.index(path) for path in part.paths]
        assert rows == sorted(rows)
        np.testing.assert_array_equal(part.target, images.target[rows])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), num_labels=st.integers(1, 8), fraction=st.sampled_from([0.1, 0.25, 0.5]))
def test_every_label_keeps_its_share(seed: int, num_labels: int, fraction: float) -> None:
    images = random_images(seed, 400, num_labels, 0.1)
    _, val = hold_out(images, fraction=fraction, seed=seed)
    expected = fraction * (images.target == 1).sum(0)
    assert np.abs((val.target == 1).sum(0) - expected).max() <= 2


def test_rare_labels_reach_both_parts() -> None:
    target = np.zeros((1000, 3), dtype=np.int8)
    target[:2, 0] = target[500:504, 1] = target[::2, 2] = 1
    train, val = hold_out(make_images(target), fraction=0.5, seed=3)
    assert (train.target == 1).sum(0).tolist() == (val.target == 1).sum(0).tolist() == [1, 2, 250]


def test_same_seed_same_parts_and_other_seed_others() -> None:
    images = random_images(0, 50, 3)
    first, again, other = (hold_out(images, fraction=0.3, seed=seed)[1] for seed in (1, 1, 2))
    assert first.paths == again.paths
    assert first.paths != other.paths


def test_unknown_is_not_positive() -> None:
    known = random_images(0, 40, 3)
    absent = make_images(np.where(known.target == -1, 0, known.target))
    assert hold_out(known, fraction=0.3, seed=0)[1].paths == hold_out(absent, fraction=0.3, seed=0)[1].paths


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 20, float("nan")])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got"):
        hold_out(random_images(0, 5, 2), fraction=fraction, seed=0)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(EmptySplitError, match="'train' holds 1 image, expected at least 2"):
        hold_out(random_images(0, 1, 2), fraction=0.5, seed=0)


def test_hash_is_pinned_and_independent_of_the_place() -> None:
    images = make_images([[1, 0], [-1, 1]])
    text = b'[["label 0", "label 1"], ["0.jpg", "1.jpg"]]'
    expected = hashlib.sha256(text + np.array([1, 0, -1, 1], dtype=np.int8).tobytes()).hexdigest()
    assert split_hash(images) == split_hash(make_images(images.target, folder="/elsewhere")) == expected
    assert split_hash(images, root=Path("photos")) == expected
    assert split_hash(images, root=Path()) != expected


@given(row=st.integers(0, 9), column=st.integers(0, 2))
def test_hash_sees_every_target(row: int, column: int) -> None:
    images = random_images(0, 10, 3)
    changed = images.target.copy()
    changed[row, column] = 1 if changed[row, column] != 1 else -1
    assert split_hash(make_images(changed)) != split_hash(images)


def test_hash_sees_order_and_names() -> None:
    images = make_images([[1, 0], [1, 0]])
    assert split_hash(images) != split_hash(images.take([1, 0]))
    renamed = LabelledImages(images.paths, images.target, ("cat", "dog"), "train")
    assert split_hash(images) != split_hash(renamed)


def test_shared_files_are_named_however_they_are_written() -> None:
    train = make_images(np.ones((8, 1)))
    test = LabelledImages((Path("photos/x/../3.jpg"), Path("new.jpg")), np.ones((2, 1), np.int8), ("label 0",), "test")
    with pytest.raises(DataError, match=r"1 are in two: photos/x/../3.jpg \(train and test\)\. Keep each"):
        check_disjoint(train, test)
    with pytest.raises(DataError, match=r"8 are in two: .*, \.\.\.\. Keep"):
        check_disjoint(train, train)
    check_disjoint(train, make_images(np.ones((8, 1)), folder="other"))


def test_missing_files_are_named_with_their_number(tmp_path):
    (tmp_path / "there.png").touch()
    paths = (tmp_path / "there.png", tmp_path / "gone.png", tmp_path / "lost.png")
    images = LabelledImages(paths, np.zeros((3, 1), dtype=np.int8), ("a",), "train")
    check_files(images.take([0]))
    with pytest.raises(DataError, match=r"2 images are missing: .*gone\.png, .*lost\.png\. Put"):
        check_files(images)


THREE = {"train": 0.7, "val": 0.2, "test": 0.1}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_images=st.integers(3, 80),
    fractions=st.sampled_from(
        [THREE, {"train": 0.5, "test": 0.5}, {"train": 1.0}, {"train": 0.998, "val": 0.001, "test": 0.001}]
    ),
)
def test_every_image_is_in_exactly_one_part_of_its_size(
    seed: int, num_images: int, fractions: dict[str, float]
) -> None:
    images = random_images(seed, num_images, 4)
    parts = split_images(images, fractions, seed=seed)
    assert list(parts) == list(fractions)
    assert sorted(path for part in parts.values() for path in part.paths) == sorted(images.paths)
    for name, part in parts.items():
        wanted = fractions[name] * num_images
        assert len(part) in {int(wanted), int(wanted) + 1} or len(part) == 1 or min(fractions.values()) * num_images < 1
        assert len(part) >= 1
        assert part.split == name
        rows = [images.paths.index(path) for path in part.paths]
        assert rows == sorted(rows)
        np.testing.assert_array_equal(part.target, images.target[rows])
    again = split_images(images, fractions, seed=seed)
    assert [part.paths for part in again.values()] == [part.paths for part in parts.values()]


def test_the_largest_remainder_gets_the_image_that_is_left() -> None:
    parts = split_images(random_images(0, 14, 3), {"train": 0.6, "val": 0.24, "test": 0.16}, seed=0)  # 8.4, 3.36, 2.24
    assert [len(part) for part in parts.values()] == [9, 3, 2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), num_images=st.integers(20, 80))
def test_groups_are_never_cut(seed: int, num_images: int) -> None:
    images = random_images(seed, num_images, 4)
    drawn = np.random.default_rng(seed).integers(0, num_images // 3, num_images)
    groups = [f"scene {i}" if i else "" for i in drawn]
    group_of = dict(zip(images.paths, groups, strict=True))
    parts = split_images(images, THREE, seed=seed, groups=groups)
    assert sorted(path for part in parts.values() for path in part.paths) == sorted(images.paths)
    check_groups_apart({name: [group_of[path] for path in part.paths] for name, part in parts.items()})


def test_groups_of_one_are_as_no_groups() -> None:
    images = random_images(0, 60, 4)
    ungrouped = split_images(images, THREE, seed=3)
    for groups in ([""] * 60, [str(i) for i in range(60)]):
        parts = split_images(images, THREE, seed=3, groups=groups)
        assert [part.paths for part in parts.values()] == [part.paths for part in ungrouped.values()]


def test_a_plan_tells_what_is_missing_and_how_far_off_it_is() -> None:
    target = np.zeros((100, 2), dtype=np.int8)
    target[0, 0] = target[::2, 1] = 1
    plan = plan_split(make_images(target), {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    assert plan.missing_labels() == {"train": {}, "val": {"label 0": 1}, "test": {"label 0": 1}}
    found, random = plan.deviations(), plan.random_deviations(seed=0)
    assert list(found) == list(random) == ["train", "val", "test", "all"]
    assert found["all"].largest_share == 0
    assert found["all"].largest_count == pytest.approx(0.2)
    assert random["all"].largest_share > 0.01
    assert random == plan.random_deviations(seed=0) != plan.random_deviations(seed=1)


@pytest.mark.parametrize("fractions", [{}, {"train": 0.5}, {"train": 1.0, "val": 0.0}, {"train": 1.2, "val": -0.2}])
def test_fractions_must_add_up(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fractions must be above 0 and add up to 1, got"):
        split_images(random_images(0, 9, 2), fractions, seed=0)


def test_too_few_images_or_groups() -> None:
    images = random_images(0, 9, 2)
    with pytest.raises(EmptySplitError, match="holds 2 images, expected at least one for each of train, val, test"):
        split_images(images.take([0, 1]), THREE, seed=0)
    with pytest.raises(EmptySplitError, match="holds 2 groups of images, expected at least one"):
        split_images(images, THREE, seed=0, groups=["a", "b", "a", "a", "b", "a", "a", "a", "b"])
    with pytest.raises(ValueError, match="one group an image, got 1 for 9 images"):
        split_images(images, THREE, seed=0, groups=["a"])


def test_groups_in_two_splits_are_named() -> None:
    check_groups_apart({"train": ["a", "", "a"], "test": ["b", ""]})
    with pytest.raises(DataError, match=r"1 are in two: b \(train and test\)\. Split all images anew"):
        check_groups_apart({"train": ["a", "b"], "test": ["b", "c", "b"]})


@pytest.mark.skipif(not VOC.exists(), reason="needs VOC 2007 in shared/")
def test_voc_comes_as_near_as_whole_images_do() -> None:
    source = open_source(VOC)
    parts = [source.read(split) for split in ("train", "val")]
    target = np.concatenate([part.target for part in parts])
    images = LabelledImages(parts[0].paths + parts[1].paths, target, source.label_names, "train")
    plan = plan_split(images, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    found, random = plan.deviations()["all"], plan.random_deviations(seed=0)["all"]
    assert found.largest_count < 1
    assert found.largest_share < 0.01 < 0.04 < random.largest_share
