"""From an image to the network's input: one preparation for evaluation and prediction, one with chance for training."""

import math
from collections.abc import Callable, Sequence
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
# Crops of the published training, as shares of the shorter side.
PUBLISHED_CROP_SCALES = (1.0, 0.9, 0.8, 0.7, 0.6)

Transform = Callable[..., Tensor]  # from an RGB image
CropName = Literal["random_resized", "multi_scale", "none"]
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

    def __call__(self, image: Image.Image, *, out: Float[Tensor, "3 H W"] | None = None) -> Float[Tensor, "3 H W"]:
        """Resize, scale to fractions and normalise an RGB image; see `normalize` for `out`."""
        return self.normalize(self.resize(image), out=out)

    def resize(self, image: Image.Image) -> Image.Image:
        """The whole image at the target size."""
        height, width = self.size
        if image.size == (width, height):
            return image
        return image.resize((width, height), _RESAMPLING[self.interpolation])

    def normalize(self, image: Image.Image, *, out: Float[Tensor, "3 H W"] | None = None) -> Float[Tensor, "3 H W"]:
        """Scale to fractions and normalise, without resizing.

        Args:
            image: An RGB image.
            out: Written to and returned: an image of a batch in `channels_last` order, as the result is without it.
        """
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
        height, width, _ = pixels.shape
        if out is None:
            out = torch.empty(pixels.shape).permute(2, 0, 1)
        # Whole rows at a time: three values a pixel are too few to vectorise over.
        mean, std = (torch.tensor(values).repeat(width) for values in (self.mean, self.std))  # (3 W,)
        rows = out.permute(1, 2, 0).view(height, 3 * width)
        rows.copy_(pixels.view(height, 3 * width)).div_(255).sub_(mean).div_(std)
        return out

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


class MultiScaleCrop:
    """A random crop whose sides are one of a few shares of the image's shorter side, at one of 13 places, as published.

    The places are the corners, the middles of the edges, the centre, and the points halfway between it and the corners. A side
    that misses the target by less than 3 pixels takes the target's length. Draws from torch's global generator.

    Args:
        size: Height and width that the crop is resized to.
        scales: Shares of the shorter side.
        max_distort: How many places the shares of height and width may lie apart in `scales`; 0 gives squares only.
        interpolation: "bilinear" or "bicubic".

    Raises:
        ValueError: There are no scales, one is not above 0 and at most 1, or `max_distort` is negative.

    Example:
        >>> crop = MultiScaleCrop((96, 96))
        >>> crop(Image.new("RGB", (640, 480))).size
        (96, 96)

    Source: Wang, Xiong, Wang, Qiao, "Towards Good Practices for Very Deep Two-Stream ConvNets", https://arxiv.org/abs/1507.02159.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        scales: Sequence[float] = PUBLISHED_CROP_SCALES,
        max_distort: int = 2,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        if not scales or not all(0 < scale <= 1 for scale in scales) or max_distort < 0:
            raise ValueError(
                f"expected scales in (0, 1] and max_distort >= 0, got {scales} and {max_distort}. "
                f"Pass such as {PUBLISHED_CROP_SCALES} and 2."
            )
        self.size = size
        self.scales = tuple(scales)
        self.max_distort = max_distort
        self.interpolation = interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        """A random crop at the target size."""
        left, top, width, height = self.draw(image.height, image.width)
        crop = image.crop((left, top, left + width, top + height))
        return crop.resize(self.size[::-1], _RESAMPLING[self.interpolation])

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a random crop of an image of this size."""
        sizes = self.crop_sizes(height, width)
        crop_height, crop_width = sizes[int(torch.randint(len(sizes), ()))]
        down, right = _PLACES[int(torch.randint(len(_PLACES), ()))]
        left, top = right * ((width - crop_width) // 4), down * ((height - crop_height) // 4)
        return left, top, crop_width, crop_height

    def crop_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Heights and widths of the crops that an image of this size may get, each equally likely."""
        sides = [max(1, int(min(height, width) * scale)) for scale in self.scales]
        # As published, but for a target that reaches beyond the image: theirs then adds a black edge.
        heights, widths = (
            [target if abs(side - target) < 3 and target <= longest else side for side in sides]
            for target, longest in zip(self.size, (height, width), strict=True)
        )
        return [
            (crop_height, crop_width)
            for i, crop_height in enumerate(heights)
            for j, crop_width in enumerate(widths)
            if abs(i - j) <= self.max_distort
        ]

    @property
    def min_size(self) -> tuple[int, int]:
        """Least height and width of an image none of whose crops is smaller than the target."""
        side = math.ceil(max(self.size) / min(self.scales)) + 1  # one more, as sides are rounded down
        return side, side


# Steps down and right, of four that reach the other edge.
_PLACES = (
    *((down, right) for down in (0, 2, 4) for right in (0, 2, 4)),
    *((down, right) for down in (1, 3) for right in (1, 3)),
)


class TrainTransform:
    """Chance ahead of the same normalisation as in evaluation: a crop, and what else is switched on.

    In this order: crop, flip, RandAugment, normalisation, erasing. Draws from torch's global generator, which `ImageDataset`
    seeds for every image and epoch.

    Args:
        preprocessing: Target size and normalisation.
        crop: "random_resized" (a share of the area, anywhere), "multi_scale" (as published, see `MultiScaleCrop`) or "none"
            (the whole image, as in evaluation).
        crop_scale: Least and greatest share of the image's area that a "random_resized" crop keeps.
        crop_ratio: Least and greatest width : height of a "random_resized" crop.
        crop_scales: Shares of the shorter side of a "multi_scale" crop.
        max_distort: How many places its shares of height and width may lie apart.
        flip: Mirror half of the images.
        rand_augment: Operations of RandAugment (colours, rotations, shears) an image; 0 for none.
        rand_augment_magnitude: Their strength, 0 to 30.
        erase: Chance that a rectangle is erased, set to the mean colour.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        crop: CropName = "random_resized",
        crop_scale: tuple[float, float] = (0.36, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        crop_scales: Sequence[float] = PUBLISHED_CROP_SCALES,
        max_distort: int = 2,
        flip: bool = True,
        rand_augment: int = 0,
        rand_augment_magnitude: int = 9,
        erase: float = 0.0,
    ) -> None:
        from torchvision.transforms import InterpolationMode, v2

        self.preprocessing = preprocessing
        self.size = size = preprocessing.size
        interpolation = InterpolationMode(preprocessing.interpolation)
        steps: list[Callable[[Image.Image], Image.Image]] = []
        if crop == "random_resized":
            steps.append(v2.RandomResizedCrop(size, scale=crop_scale, ratio=crop_ratio, interpolation=interpolation))
            self.min_size = _min_size_of_random_crops(size, crop_scale[0], crop_ratio)
        elif crop == "multi_scale":
            multi_scale = MultiScaleCrop(
                size, scales=crop_scales, max_distort=max_distort, interpolation=preprocessing.interpolation
            )
            steps.append(multi_scale)
            self.min_size = multi_scale.min_size
        else:
            steps.append(preprocessing.resize)
            self.min_size = size
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if rand_augment:
            steps.append(v2.RandAugment(rand_augment, rand_augment_magnitude, interpolation=interpolation))
        self.augment = v2.Compose(steps)
        self.erase = v2.RandomErasing(erase, inplace=True) if erase else None

    def __call__(self, image: Image.Image, *, out: Float[Tensor, "3 H W"] | None = None) -> Float[Tensor, "3 H W"]:
        """A random view of the image, ready for the network; see `Preprocessing.normalize` for `out`."""
        view = self.preprocessing.normalize(self.augment(image), out=out)
        return view if self.erase is None else self.erase(view)


def _min_size_of_random_crops(size: tuple[int, int], scale: float, ratio: tuple[float, float]) -> tuple[int, int]:
    """Least height and width of an image none of whose "random_resized" crops is smaller than the target."""
    height, width = size
    # A crop is sqrt(area * scale * ratio) wide and sqrt(area * scale / ratio) high; sqrt(area) is at least the shorter side.
    drawn = (width / math.sqrt(scale * ratio[0]), height * math.sqrt(ratio[1] / scale))
    # Where ten draws fit nowhere in a long image: its middle, over the whole of its shorter side.
    middle = (height, width, height * ratio[0], width / ratio[1])
    side = math.ceil(max(*drawn, *middle))
    return side, side
