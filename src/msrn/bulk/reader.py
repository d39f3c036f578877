"""Reading images in worker processes, batch by batch, in order; what cannot be read is said, not raised."""

import multiprocessing
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from msrn.bulk.sources import ImageRef
from msrn.data.images import read_image
from msrn.data.shared import SharedBatches
from msrn.data.transforms import Preprocessing
from msrn.errors import MSRNError, UnreadableImageError, is_killed_worker, without_traceback
from msrn.processes import leave_stopping_to_the_first

# A worker is at most two batches ahead (PyTorch's default), and the one before is in use.
_SLOTS_PER_WORKER = 3


class ReadBatch(NamedTuple):
    """Some images, read.

    Attributes:
        images: Those that could be read, ready for the network (n, 3, H, W).
        names: The paths of all, in order.
        errors: For each why it could not be read, or None.
    """

    images: Float[Tensor, "n 3 H W"]
    names: list[str]
    errors: list[str | None]


def read_into(
    images: Float[Tensor, "B 3 H W"], refs: Sequence[ImageRef], preprocessing: Preprocessing
) -> list[str | None]:
    """Read images, those that can be read into the first rows of `images`; for each why it could not be read, or None."""
    errors: list[str | None] = []
    for ref in refs:
        try:
            # At its own size, as everywhere outside of training: the same image has the same answer.
            preprocessing(read_image(ref), out=images[errors.count(None)])
        except UnreadableImageError as error:
            errors.append(str(error))
        else:
            errors.append(None)
    return errors


def empty_batch(count: int, preprocessing: Preprocessing) -> Float[Tensor, "B 3 H W"]:
    """Room for so many images, in `channels_last` order."""
    return torch.empty(count, *preprocessing.size, 3).permute(0, 3, 1, 2)


class _Reader(Dataset[ReadBatch]):
    def __init__(self, preprocessing: Preprocessing, batches: SharedBatches | None) -> None:
        self.preprocessing = preprocessing
        self.batches = batches

    def __getitems__(self, refs: list[ImageRef]) -> tuple[Any, list[str], list[str | None]]:
        batches = self.batches if get_worker_info() is not None else None
        slot = batches.claim() if batches is not None else None
        shared = None if batches is None or slot is None else batches.images(slot, len(refs))
        images = empty_batch(len(refs), self.preprocessing) if shared is None else shared
        errors = read_into(images, refs, self.preprocessing)
        num_read = errors.count(None)
        names = [str(ref) for ref in refs]
        if batches is None or slot is None:
            return images[:num_read], names, errors
        return batches.parcel(slot, num_read), names, errors


class _Batches:
    """Lists of images, taken from a stream as they are asked for."""

    def __init__(self, refs: Iterable[ImageRef], batch_size: int) -> None:
        self.refs = refs
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[ImageRef]]:
        pending = iter(self.refs)
        while batch := list(islice(pending, self.batch_size)):
            yield batch


def read_batches(
    refs: Iterable[ImageRef], preprocessing: Preprocessing, *, batch_size: int, num_workers: int
) -> Generator[ReadBatch, None, None]:
    """Batches of a stream of images, in its order.

    Args:
        refs: What to read; taken a few batches ahead.
        preprocessing: The network's.
        batch_size: Images a batch.
        num_workers: Processes that read; 0 reads in this one.

    Raises:
        MSRNError: A worker was killed, or has too many files open.
    """
    batches = None
    if num_workers > 0 and multiprocessing.get_start_method() == "fork":
        with suppress(OSError, OverflowError, MemoryError):
            batches = SharedBatches(_SLOTS_PER_WORKER * num_workers, batch_size, preprocessing.size)
    loader: DataLoader[ReadBatch] = DataLoader(
        _Reader(preprocessing, batches),
        batch_sampler=_Batches(refs, batch_size),  # type: ignore[arg-type]  # of images, not of their numbers
        collate_fn=_keep,
        num_workers=num_workers,
        pin_memory=False,
        worker_init_fn=leave_stopping_to_the_first,
    )
    batches_read: Any = iter(loader)
    try:
        for images, names, errors in batches_read:
            yield ReadBatch(images, names, errors)
    except MSRNError as error:
        raise without_traceback(error) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not is_killed_worker(error):
            raise
        with suppress(RuntimeError):  # PyTorch's word of the same, which may come as late as this
            batches_read._shutdown_workers()
        raise MSRNError(
            "a process that reads images was killed, as systems do where memory runs out. Lower --workers or --batch-size; the "
            "same command goes on where this one stopped."
        ) from error


def _keep(batch: Any) -> Any:
    return batch
