"""Preparing images: the published plain resize, numbers that numpy confirms, chance only in training."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import msrn._torchvision  # noqa: F401  (before torchvision)
from msrn.data.transforms import IMAGENET_MEAN, IMAGENET_STD, MultiScaleCrop, Preprocessing, TrainTransform

from torchvision.transforms import v2  # isort: skip  (needs msrn._torchvision)


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def test_values_are_normalised_fractions():
    image = noise(20, 30)
    expected = (np.asarray(image) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    received = Preprocessing((20, 30))(image)
    np.testing.assert_allclose(received.permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_whole_image_is_resized_to_height_and_width(interpolation):
    image = noise(50, 90)
    received = Preprocessing((16, 24), interpolation=interpolation)(image)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = np.asarray(image.resize((24, 16), filters[interpolation]))
    expected = (resized / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(received.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_it_survives_being_saved():
    preprocessing = Preprocessing((16, 24), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing


def test_training_views_differ_and_follow_the_seed():
    transform = TrainTransform(Preprocessing((16, 16)))
    image = noise(60, 60)

    def view(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image)

    assert view(0).shape == (3, 16, 16)
    assert torch.equal(view(0), view(0))
    assert not torch.equal(view(0), view(1))


def test_without_chance_training_sees_what_evaluation_sees():
    preprocessing = Preprocessing((30, 30))
    transform = TrainTransform(preprocessing, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    image = noise(30, 30)
    torch.testing.assert_close(transform(image), preprocessing(image))


def test_half_of_the_training_views_are_mirrored():
    transform = TrainTransform(Preprocessing((8, 8)), crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    image = noise(8, 8)
    straight = Preprocessing((8, 8))(image)
    torch.manual_seed(0)
    views = [transform(image) for _ in range(60)]
    mirrored = sum(torch.equal(view, straight.flip(-1)) for view in views)
    assert mirrored + sum(torch.equal(view, straight) for view in views) == 60
    assert 15 <= mirrored <= 45


# Bit for bit


def plainly_normalised(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.float() / 255 - mean) / std


@pytest.mark.parametrize("size", [(20, 30), (1, 1), (7, 64)])
def test_normalising_rows_at_a_time_changes_no_bit(size):
    image = noise(*size)
    preprocessing = Preprocessing(size)
    assert torch.equal(preprocessing(image), plainly_normalised(image))
    batch = torch.empty(2, 3, *size).contiguous(memory_format=torch.channels_last)
    assert preprocessing(image, out=batch[1]).data_ptr() == batch[1].data_ptr()
    assert torch.equal(batch[1], plainly_normalised(image))


@pytest.mark.parametrize("seed", range(5))
def test_default_views_are_torchvisions_crop_and_flip(seed):
    image = noise(50, 70)
    plain = v2.Compose([v2.RandomResizedCrop((24, 32), scale=(0.36, 1.0)), v2.RandomHorizontalFlip()])
    torch.manual_seed(seed)
    expected = plainly_normalised(plain(image))
    torch.manual_seed(seed)
    assert torch.equal(TrainTransform(Preprocessing((24, 32)))(image), expected)


# Multi-scale crops


def published_crops(height: int, width: int, size: tuple[int, int], scales: tuple[float, ...], max_distort: int):
    """Every (left, top, width, height) of the published crop, as often as it is drawn."""
    sides = [int(min(height, width) * scale) for scale in scales]
    crops = Counter()
    for i, j in itertools.product(range(len(scales)), repeat=2):
        if abs(i - j) > max_distort:
            continue
        crop_height = size[0] if abs(sides[i] - size[0]) < 3 else sides[i]
        crop_width = size[1] if abs(sides[j] - size[1]) < 3 else sides[j]
        across, down = (width - crop_width) // 4, (height - crop_height) // 4
        places = [
            (0, 0),
            (4, 0),
            (0, 4),
            (4, 4),
            (2, 2),
            (0, 2),
            (4, 2),
            (2, 4),
            (2, 0),
            (1, 1),
            (3, 1),
            (1, 3),
            (3, 3),
        ]
        crops.update((right * across, below * down, crop_width, crop_height) for right, below in places)
    return crops


@pytest.mark.parametrize(
    ("height", "width", "size", "scales", "max_distort"),
    [
        (48, 64, (16, 16), (1.0, 0.9, 0.8, 0.7, 0.6), 2),
        (64, 48, (38, 20), (1.0, 0.9, 0.8, 0.7, 0.6), 1),  # 0.8 of 48 misses 38 by a fraction
        (30, 30, (16, 16), (1.0, 0.5), 0),
    ],
)
def test_multi_scale_crops_are_the_published_ones_as_often(height, width, size, scales, max_distort):
    crop = MultiScaleCrop(size, scales=scales, max_distort=max_distort)
    expected = published_crops(height, width, size, scales, max_distort)
    torch.manual_seed(0)
    num_draws = 60 * expected.total()
    drawn = Counter(crop.draw(height, width) for _ in range(num_draws))
    assert drawn.keys() == expected.keys()
    assert len(crop.crop_sizes(height, width)) * 13 == expected.total()
    shares = np.array([[drawn[key], 60 * times] for key, times in expected.items()])
    chi_square = ((shares[:, 0] - shares[:, 1]) ** 2 / shares[:, 1]).sum()
    assert chi_square < len(shares) + 5 * math.sqrt(2 * len(shares))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_multi_scale_crops_lie_within_the_image(height, width, size, seed):
    torch.manual_seed(seed)
    left, top, crop_width, crop_height = MultiScaleCrop(size).draw(height, width)
    assert left >= 0 <= top
    assert left + crop_width <= width
    assert top + crop_height <= height
    assert min(crop_width, crop_height) >= 1


def test_multi_scale_views_are_crops_resized():
    image = noise(48, 64)
    crop = MultiScaleCrop((20, 24), interpolation="bicubic")
    torch.manual_seed(3)
    left, top, width, height = crop.draw(48, 64)
    torch.manual_seed(3)
    expected = Image.fromarray(np.asarray(image)[top : top + height, left : left + width])
    assert crop(image).tobytes() == expected.resize((24, 20), Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize("options", [{"scales": ()}, {"scales": (1.1,)}, {"scales": (0.0, 1.0)}, {"max_distort": -1}])
def test_impossible_crops_are_named(options):
    with pytest.raises(ValueError, match=r"expected scales in \(0, 1\] and max_distort >= 0, got"):
        MultiScaleCrop((8, 8), **options)


# What reduced decoding must leave


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    scale=st.floats(0.08, 1.0),
    ratios=st.tuples(st.floats(0.5, 2.0), st.floats(0.5, 2.0)),
    extra=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    seed=st.integers(0, 99),
)
def test_random_resized_crops_of_the_least_image_are_no_smaller_than_the_target(size, scale, ratios, extra, seed):
    ratio = (min(ratios), max(ratios))
    transform = TrainTransform(Preprocessing(size), crop_scale=(scale, 1.0), crop_ratio=ratio)
    image = Image.new("RGB", tuple(side + more for side, more in zip(transform.min_size[::-1], extra, strict=True)))
    torch.manual_seed(seed)
    for _ in range(20):
        drawn = transform.augment.transforms[0].make_params([image])
        assert drawn["height"] >= size[0]
        assert drawn["width"] >= size[1]


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    scales=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5),
    extra=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_multi_scale_crops_of_the_least_image_are_no_smaller_than_the_target(size, scales, extra):
    transform = TrainTransform(Preprocessing(size), crop="multi_scale", crop_scales=scales, max_distort=9)
    height, width = (side + more for side, more in zip(transform.min_size, extra, strict=True))
    sizes = MultiScaleCrop(size, scales=scales, max_distort=9).crop_sizes(height, width)
    assert all(crop_height >= size[0] and crop_width >= size[1] for crop_height, crop_width in sizes)


def test_whole_images_need_no_more_than_the_target():
    transform = TrainTransform(Preprocessing((24, 32)), crop="none", flip=False)
    assert transform.min_size == (24, 32)
    image = noise(50, 70)
    assert torch.equal(transform(image), Preprocessing((24, 32))(image))


# What else may be switched on


@pytest.mark.parametrize("options", [{"rand_augment": 2}, {"erase": 1.0}, {"crop": "multi_scale"}])
def test_augmentations_follow_the_seed_and_change_the_view(options):
    image = noise(60, 60)
    preprocessing = Preprocessing((32, 32))
    plain = TrainTransform(preprocessing, crop="none", flip=False)(image)
    transform = TrainTransform(preprocessing, **{"crop": "none", "flip": False, **options})

    def view(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image)

    views = [view(seed) for seed in range(8)]
    assert all(torch.equal(view(seed), views[seed]) for seed in range(8))
    assert sum(torch.equal(one, plain) for one in views) <= 2  # one of RandAugment's operations does nothing
    assert len({one.sum().item() for one in views}) > 4


def test_erased_is_a_rectangle_of_the_mean_colour_in_the_batch_itself():
    image = noise(32, 32)
    transform = TrainTransform(Preprocessing((32, 32)), crop="none", flip=False, erase=1.0)
    batch = torch.empty(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    assert transform(image, out=batch[0]).data_ptr() == batch.data_ptr()
    erased = (batch[0] == 0).all(dim=0)
    rows, columns = erased.any(dim=1).nonzero(), erased.any(dim=0).nonzero()
    assert erased[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert torch.equal(batch[0][:, ~erased], Preprocessing((32, 32))(image)[:, ~erased])
