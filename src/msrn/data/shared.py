"""Memory that a process shares with the workers it forks: a lock that may be lost, and batches in memory that is used again."""

import itertools
import math
import mmap
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

# Far longer than anyone holds the lock, unless a process was killed with it.
_LOCK_TIMEOUT_S = 5.0


class SharedLock:
    """A lock between forked processes. Where a killed process took it along, the others go on without it, after a few seconds."""

    def __init__(self) -> None:
        self._lock = multiprocessing.Lock()
        self._is_lost = False

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the lock, if it is to be had: yields whether it is."""
        is_held = not self._is_lost and self._lock.acquire(timeout=_LOCK_TIMEOUT_S)
        self._is_lost = not is_held
        try:
            yield is_held
        finally:
            if is_held:
                self._lock.release()


class SharedBatches:
    """Room for some batches of images, which workers write to and the process they work for reads, without a copy.

    A slot is free again once nothing refers to the batch that was read from it. New memory for every batch would have to be
    cleared by the system page by page, which takes longer than filling it.

    Args:
        num_slots: Batches that there is room for.
        batch_size: Most images a batch.
        size: Height and width of the images.

    Raises:
        OSError, OverflowError: The system does not give that much memory.
    """

    def __init__(self, num_slots: int, batch_size: int, size: tuple[int, int]) -> None:
        self.batch_size = batch_size
        shape = (num_slots, batch_size, *size, 3)
        self._is_used = np.frombuffer(mmap.mmap(-1, num_slots), np.uint8)
        self._memory = mmap.mmap(-1, 4 * int(np.prod(shape)))
        self._slots = np.frombuffer(self._memory, np.float32).reshape(shape)
        self._lock = SharedLock()
        self._key = next(_keys)
        _batches_of_key[self._key] = self

    def claim(self) -> int | None:
        """Take a free slot; None where there is none."""
        with self._lock.held() as is_held:
            free: list[int] = np.flatnonzero(self._is_used == 0).tolist() if is_held else []
            if free:
                self._is_used[free[0]] = 1
            return free[0] if free else None

    def release(self, slot: int) -> None:
        """Free a slot that was claimed and will not be sent."""
        self._is_used[slot] = 0

    def images(self, slot: int, num_images: int) -> Float[Tensor, "B 3 H W"]:
        """The images of a slot, in `channels_last` order, to be written to."""
        return torch.from_numpy(self._slots[slot, :num_images]).permute(0, 3, 1, 2)

    def parcel(self, slot: int, num_images: int) -> Any:
        """What to send of a slot that is written: it arrives as the images, and the slot is free once they are dropped."""
        return _Parcel(_receive, self._key, slot, num_images)

    def receive(self, slot: int, num_images: int) -> Float[Tensor, "B 3 H W"]:
        """The images of a slot that was sent."""
        pixels = self._slots[slot, :num_images]
        # The tensor's storage holds on to this array, and with it every view of the batch.
        finalize(pixels, self._release_in, os.getpid(), slot).atexit = False
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    def _release_in(self, process: int, slot: int) -> None:
        # A process that is forked while this one holds the batch drops its own copy, and must leave the slot alone.
        if os.getpid() == process:
            self.release(slot)

    def give_back(self) -> None:
        """Return the memory of free slots to the system until they are used again; on Linux only."""
        if sys.platform != "linux":
            return
        num_bytes = len(self._memory) // len(self._slots)
        with self._lock.held() as is_held:
            for slot in np.flatnonzero(self._is_used == 0).tolist() if is_held else ():
                start = math.ceil(slot * num_bytes / mmap.PAGESIZE) * mmap.PAGESIZE
                end = (slot + 1) * num_bytes // mmap.PAGESIZE * mmap.PAGESIZE
                if end > start:
                    self._memory.madvise(mmap.MADV_REMOVE, start, end - start)


_keys = itertools.count()
_batches_of_key: WeakValueDictionary[int, SharedBatches] = WeakValueDictionary()


def by_value(tensor: Tensor) -> Any:
    """What to send of a small tensor: it arrives as the tensor. PyTorch would open a file and a connection for it."""
    return _Parcel(torch.from_numpy, tensor.numpy())


class _Parcel:
    """Becomes what a function returns where it arrives."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _receive(key: int, slot: int, num_images: int) -> Tensor:
    return _batches_of_key[key].receive(slot, num_images)
