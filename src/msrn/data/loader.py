"""Batches of images and targets for training and evaluation, the same whatever the number of workers."""

from collections.abc import Callable, Iterator
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from msrn.data.images import read_image
from msrn.data.source import LabelledImages
from msrn.data.transforms import Transform
from msrn.errors import UnreadableImageError


class Batch(TypedDict):
    """What a loader yields.

    Attributes:
        images: (B, 3, H, W), normalised.
        target: (B, L): 1 present, 0 absent, -1 unknown.
        index: (B,) rows of the `LabelledImages` that the batch was read from.
    """

    images: Tensor
    target: Tensor
    index: Tensor


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order each epoch, drawn from the seed and the epoch alone, so that a resumed run goes on as it would have.

    Args:
        num_images: Images N in the split.
        seed: Seed of the run.
        current_epoch: Tells the epoch when an iteration starts.
    """

    def __init__(self, num_images: int, *, seed: int, current_epoch: Callable[[], int] = lambda: 0) -> None:
        self.num_images = num_images
        self.seed = seed
        self.current_epoch = current_epoch

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.current_epoch()
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.num_images, generator=generator).tolist()
        return iter([(epoch, index) for index in order])


class ImageDataset(Dataset[Batch]):
    """Reads and transforms one image at a time.

    Args:
        images: Paths and targets.
        transform: From an RGB image to a tensor.
        seed: With the epoch and the image's number, seeds the transform's random draws: the worker that reads the image
            makes no difference.
    """

    def __init__(self, images: LabelledImages, transform: Transform, *, seed: int = 0) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.target = torch.from_numpy(images.target)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int] | int) -> Batch:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image = read_image(self.images.paths[index])
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reach for every kind of device and take longer than the transform.
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
            tensor = self.transform(image)
        return {"images": tensor, "target": self.target[index].long(), "index": torch.tensor(index)}


class ImageLoader(DataLoader[Batch]):
    """A loader whose iterations begin with their first batch, and whose errors read the same from any worker."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of one epoch.

        Raises:
            UnreadableImageError: An image cannot be read.
        """
        # A generator: Lightning makes its first iterator before it knows which epoch a resumed run goes on with, and
        # workers would be handed that iterator's order at once.
        try:
            yield from super().__iter__()
        except UnreadableImageError as error:
            # PyTorch puts a worker's whole traceback into the message; ours is its end.
            raise UnreadableImageError(str(error).rpartition(f"{UnreadableImageError.__name__}: ")[2].strip()) from None


def build_loader(
    images: LabelledImages,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    current_epoch: Callable[[], int] = lambda: 0,
) -> ImageLoader:
    """A loader over one split.

    Args:
        images: Paths and targets.
        transform: From an RGB image to a tensor.
        batch_size: Images a batch.
        num_workers: Processes that read images; 0 reads in this one.
        shuffle: Draw a new order each epoch and drop a last batch that is not full, as training does.
        seed: Seed of order and transforms.
        current_epoch: Tells the epoch when an iteration starts.
    """
    return ImageLoader(
        ImageDataset(images, transform, seed=seed),
        batch_size=batch_size,
        sampler=EpochSampler(len(images), seed=seed, current_epoch=current_epoch) if shuffle else None,
        drop_last=shuffle and len(images) >= batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def mix_seed(*numbers: int) -> int:
    """One well-spread seed from several numbers (FNV-1a over their decimal digits).

    Example:
        >>> mix_seed(0, 1) != mix_seed(1, 0)
        True
    """
    value = 0xCBF29CE484222325
    for byte in ",".join(map(str, numbers)).encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value & 0x7FFFFFFFFFFFFFFF
