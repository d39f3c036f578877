"""Batches of images and targets for training and evaluation, the same whatever the number of workers."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, TypedDict, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from msrn.data.cache import DecodedCache
from msrn.data.images import read_image
from msrn.data.shared import SharedBatches, by_value
from msrn.data.source import LabelledImages
from msrn.data.transforms import Preprocessing, TrainTransform, Transform
from msrn.errors import MSRNError, is_killed_worker, without_traceback
from msrn.processes import leave_stopping_to_the_first, rank_and_world_size

# A worker is at most two batches ahead (PyTorch's default), and the one before is in use.
_SLOTS_PER_WORKER = 3


class Batch(TypedDict):
    """What a loader yields.

    Attributes:
        images: (B, 3, H, W), normalised, in `channels_last` order.
        target: (B, L): 1 present, 0 absent, -1 unknown.
        index: (B,) rows of the `LabelledImages` that the batch was read from.
    """

    images: Tensor
    target: Tensor
    index: Tensor


class EpochSampler(Sampler[tuple[int, int]]):
    """A new order each epoch, drawn from the seed and the epoch alone, so that a resumed run goes on as it would have.

    Processes that train together deal the order out: of R processes, the k-th batches of B images are together the k-th batch of
    R times B that one process would read. What does not fill batches of all processes is left out, unless there is no more.

    Args:
        num_images: Images N in the split.
        seed: Seed of the run.
        batch_size: Images a batch B.
        current_epoch: Tells the epoch when an iteration starts.

    Attributes:
        start: Images at the beginning of this process' order that an iteration leaves out.
    """

    def __init__(
        self, num_images: int, *, seed: int, batch_size: int = 1, current_epoch: Callable[[], int] = lambda: 0
    ) -> None:
        self.num_images = num_images
        self.seed = seed
        self.batch_size = batch_size
        self.current_epoch = current_epoch
        self.start = 0

    def _share(self) -> slice:
        """This process' part of an order."""
        rank, world_size = rank_and_world_size()
        step = world_size * self.batch_size
        return slice(rank, self.num_images // step * step or self.num_images, world_size)

    def __len__(self) -> int:
        return len(range(self.num_images)[self._share()])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.current_epoch()
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(self.num_images, generator=generator)[self._share()][self.start :].tolist()
        return iter([(epoch, index) for index in order])


class SharedOutBatches(Sampler[list[int]]):
    """Every image once, dealt out over the processes that train together, in as many batches for each of them.

    No image is repeated to make shares even, so that nothing is counted twice; batches of several processes may be smaller by one.

    Args:
        num_images: Images N in the split, at least one a process.
        batch_size: Images a batch; in several processes at least 2.
    """

    def __init__(self, num_images: int, *, batch_size: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size

    def __len__(self) -> int:
        _, world_size = rank_and_world_size()
        greatest = -(-self.num_images // world_size)
        return -(-greatest // self._most())

    def __iter__(self) -> Iterator[list[int]]:
        rank, world_size = rank_and_world_size()
        share = range(rank, self.num_images, world_size)
        if world_size == 1:
            yield from (list(share[at : at + self.batch_size]) for at in range(0, len(share), self.batch_size))
            return
        ends = [len(share) * number // len(self) for number in range(len(self) + 1)]
        yield from (list(share[start:end]) for start, end in pairwise(ends))

    def _most(self) -> int:
        _, world_size = rank_and_world_size()
        # Shares differ by one image at most: where batches hold two, no share is too small for as many batches as another.
        return self.batch_size if world_size == 1 else max(2, self.batch_size)


class ImageDataset(Dataset[Batch]):
    """Reads and transforms one image at a time.

    Args:
        images: Paths and targets.
        transform: From an RGB image to a tensor.
        seed: With the epoch and the image's number, seeds the transform's random draws: the worker that reads the image
            makes no difference.
        min_size: Least (height, width) the transform needs, for training: larger JPEGs may be decoded at a part of their size,
            see `read_image`. None reads every image at its own size, as evaluation does.
        cache: Keeps the decoded images.
    """

    def __init__(
        self,
        images: LabelledImages,
        transform: Transform,
        *,
        seed: int = 0,
        min_size: tuple[int, int] | None = None,
        cache: DecodedCache | None = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.min_size = min_size
        self.cache = cache
        self.target = torch.from_numpy(images.target)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int] | int) -> Batch:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        tensor = self._view(epoch, index)
        return {"images": tensor, "target": self.target[index].long(), "index": torch.tensor(index)}

    def _view(self, epoch: int, index: int, **out: Tensor) -> Tensor:
        image = self._read(index)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reach for every kind of device and take longer than the transform.
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
            return self.transform(image, **out)

    def _read(self, index: int) -> Image.Image:
        image = self.cache.get(index) if self.cache is not None else None
        if image is None:
            image = read_image(self.images.paths[index], min_size=self.min_size)
            if self.cache is not None:
                self.cache.put(index, image)
        return image


class BatchDataset(ImageDataset):
    """Reads whole batches, for a loader that collates nothing.

    Args:
        images: Paths and targets.
        transform: From an RGB image to a tensor.
        batches: Where workers put them.
        options: Arguments of `ImageDataset`.
    """

    def __init__(
        self, images: LabelledImages, transform: Transform, *, batches: SharedBatches | None = None, **options: Any
    ) -> None:
        super().__init__(images, transform, **options)
        self.batches = batches

    def __getitems__(self, keys: Sequence[tuple[int, int] | int]) -> Batch:
        """The batch of these keys."""
        if not isinstance(self.transform, Preprocessing | TrainTransform):
            return default_collate([self[key] for key in keys])  # type: ignore[no-any-return]
        # Each view is written to where the batch leaves from: copying and stacking would take as long as a small JPEG.
        batches = self.batches if get_worker_info() is not None else None
        slot = batches.claim() if batches is not None else None
        if batches is None or slot is None:
            images = torch.empty(len(keys), *self.transform.size, 3).permute(0, 3, 1, 2)  # (B, 3, H, W)
        else:
            images = batches.images(slot, len(keys))
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        try:
            for (epoch, index), out in zip(pairs, images, strict=True):
                self._view(epoch, index, out=out)
        except BaseException:
            if batches is not None and slot is not None:
                batches.release(slot)
            raise
        rows = torch.tensor([index for _, index in pairs])
        target = self.target[rows].long()
        if batches is None or slot is None:
            return {"images": images, "target": target, "index": rows}
        return {"images": batches.parcel(slot, len(keys)), "target": by_value(target), "index": by_value(rows)}


class ImageLoader(DataLoader[Batch]):
    """A loader whose iterations begin with their first batch, and whose errors read the same from any worker.

    Attributes:
        num_skipped: Batches that the next iteration leaves out at its beginning, without reading them: those that a run had seen
            before it was stopped.
    """

    num_skipped = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of one epoch.

        Raises:
            UnreadableImageError: An image cannot be read.
            MSRNError: A worker was killed, or has too many files open.
        """
        # Looked up now: a generator that is never finished ends when Python has forgotten the names of this module.
        batches = getattr(self.dataset, "batches", None)
        # A generator: Lightning makes its first iterator before it knows which epoch a resumed run goes on with, and
        # workers would be handed that iterator's order at once.
        if isinstance(self.sampler, EpochSampler):
            self.sampler.start = self.num_skipped * (self.batch_size or 1)
        self.num_skipped = 0
        try:
            yield from self._ending_workers()
        except MSRNError as error:
            raise without_traceback(error) from None
        except (RuntimeError, ConnectionError, EOFError) as error:
            if not is_killed_worker(error):
                raise
            if "Terminated" in str(error):
                raise MSRNError("the processes that read images were stopped. Go on with --resume.") from error
            raise MSRNError(
                "a process that reads images was killed, as systems do where memory runs out. Lower data.num_workers, "
                "data.cache_gb or data.batch_size, and go on with --resume."
            ) from error
        finally:
            if batches is not None:
                batches.give_back()

    def _ending_workers(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except GeneratorExit:  # who asks wants no more of this epoch
            raise
        except BaseException:
            self.end_workers()
            raise

    def end_workers(self) -> None:
        """End the processes that read; the next iteration starts others.

        After an error they are found by the garbage collector, at a time when they may no longer hear that they are to end: PyTorch
        then waits five seconds for each.
        """
        workers, self._iterator = cast(Any, self._iterator), None
        if hasattr(workers, "_shutdown_workers"):
            workers._shutdown_workers()


def build_loader(
    images: LabelledImages,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    shuffle: bool = False,
    is_shared_out: bool = False,
    seed: int = 0,
    current_epoch: Callable[[], int] = lambda: 0,
    min_size: tuple[int, int] | None = None,
    cache_bytes: int = 0,
) -> ImageLoader:
    """A loader over one split.

    Args:
        images: Paths and targets.
        transform: From an RGB image to a tensor.
        batch_size: Images a batch.
        num_workers: Processes that read images; 0 reads in this one.
        shuffle: Draw a new order each epoch and drop a last batch that is not full, as training does; processes that train
            together read a part each.
        is_shared_out: Without `shuffle`, let processes that train together read a part each too; otherwise each of them reads all.
        seed: Seed of order and transforms.
        current_epoch: Tells the epoch when an iteration starts.
        min_size: Least (height, width) the transform needs, see `ImageDataset`; a `TrainTransform` tells its own.
        cache_bytes: Memory for decoded images, filled in the first epoch. Workers share it where they are forked; under other
            start methods of `multiprocessing` nothing is kept.
    """
    is_forked = num_workers > 0 and multiprocessing.get_start_method() == "fork"
    is_shared = num_workers == 0 or is_forked
    cache = DecodedCache(len(images), max_bytes=cache_bytes) if cache_bytes > 0 and is_shared else None
    batches = None
    if is_forked and isinstance(transform, Preprocessing | TrainTransform):
        with suppress(OSError, OverflowError, MemoryError):
            batches = SharedBatches(_SLOTS_PER_WORKER * num_workers, max(2, batch_size), transform.size)
    order: dict[str, Any] = {"batch_size": batch_size}
    if shuffle:
        sampler = EpochSampler(len(images), seed=seed, batch_size=batch_size, current_epoch=current_epoch)
        order["sampler"] = sampler
    elif is_shared_out:
        order = {"batch_sampler": SharedOutBatches(len(images), batch_size=batch_size)}
    return ImageLoader(
        BatchDataset(images, transform, batches=batches, seed=seed, min_size=min_size, cache=cache),
        **order,
        collate_fn=_keep,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=leave_stopping_to_the_first,
        pin_memory=torch.cuda.is_available(),
    )


def _keep(batch: Any) -> Any:
    return batch


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
