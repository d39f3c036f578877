"""Preparing images: the published plain resize, numbers that numpy confirms, chance only in training."""

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, TrainTransform


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
