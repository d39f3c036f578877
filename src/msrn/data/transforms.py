"""From an image to the network's input: one preparation for evaluation and prediction, one with chance for training."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import msrn._torchvision  # noqa: F401  (before torchvision, which is imported where it is used)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Image.Image], Tensor]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; saved in the bundle and used the same everywhere.

    Attributes:
        size: Height and width the whole image is resized to, without keeping its proportions (as published).
        mean: Subtracted from each of red, green and blue, as fractions.
        std: Divides each of red, green and blue.
        interpolation: "bilinear" or "bicubic".

    Example:
        >>> grey = Image.new("RGB", (640, 480), (128, 128, 128))
        >>> Preprocessing(size=(96, 64))(grey).shape
        torch.Size([3, 96, 64])
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        """Resize, scale to fractions and normalise an RGB image."""
        height, width = self.size
        if image.size != (width, height):
            image = image.resize((width, height), _RESAMPLING[self.interpolation])
        return self.normalize(image)

    def normalize(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        """Scale to fractions and normalise, without resizing."""
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)  # (3, H, W)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `config.json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)


class TrainTransform:
    """Random crop and flip ahead of the same normalisation as in evaluation.

    Draws from torch's global generator, which `ImageDataset` seeds for every image and epoch.

    Args:
        preprocessing: Target size and normalisation.
        crop_scale: Least and greatest share of the image's area that a crop keeps.
        crop_ratio: Least and greatest width : height of a crop.
        flip: Mirror half of the images.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        crop_scale: tuple[float, float] = (0.36, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
    ) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.preprocessing = preprocessing
        interpolation = InterpolationMode(preprocessing.interpolation)
        crop = v2.RandomResizedCrop(preprocessing.size, scale=crop_scale, ratio=crop_ratio, interpolation=interpolation)
        self.augment = v2.Compose([crop, *([v2.RandomHorizontalFlip()] if flip else [])])

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 H W"]:
        """A random view of the image, ready for the network."""
        return self.preprocessing.normalize(self.augment(image))
