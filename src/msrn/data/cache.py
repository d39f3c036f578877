"""Decoded images, kept in memory from the first epoch on and shared by the processes that read them."""

import mmap

import numpy as np
from PIL import Image

from msrn.data.shared import SharedLock

_IN_WORK = -1


class DecodedCache:
    """Keeps RGB images by their number, up to a number of bytes; images that no longer fit are not kept.

    The pixels lie in anonymous shared memory, so that worker processes forked from this one fill and read the same cache; it
    cannot be sent to processes that are started otherwise. Memory is taken as images come. An image appears once it is whole: one
    whose writer was killed is missing, its space lost. Files that change later stay as they were first read.

    Args:
        num_images: Images are numbered below this.
        max_bytes: Most bytes of pixels. Where the system does not give that much, nothing is kept.

    Example:
        >>> cache = DecodedCache(10, max_bytes=100)
        >>> cache.put(3, Image.new("RGB", (4, 2), (1, 2, 3)))
        >>> cache.get(3).getpixel((0, 0)), cache.get(4), cache.used_bytes
        ((1, 2, 3), None, 24)
    """

    def __init__(self, num_images: int, *, max_bytes: int) -> None:
        self._index = np.frombuffer(mmap.mmap(-1, 24 * num_images + 8), np.int64)
        self._entries = self._index[1:].reshape(
            num_images, 3
        )  # offset, height, width; height 0 where there is no image
        self._lock = SharedLock()
        try:
            self._pixels = np.frombuffer(mmap.mmap(-1, max_bytes), np.uint8)
        except (OSError, OverflowError, MemoryError, ValueError):
            self._pixels = np.empty(0, np.uint8)

    @property
    def used_bytes(self) -> int:
        """Bytes that images have taken."""
        return int(self._index[0])

    def get(self, number: int) -> Image.Image | None:
        """A copy of an image, or None where it is not kept."""
        with self._lock.held() as is_held:
            offset, height, width = self._entries[number].tolist() if is_held else (0, 0, 0)
        if height <= 0:
            return None
        return Image.fromarray(self._pixels[offset : offset + 3 * height * width].reshape(height, width, 3))

    def put(self, number: int, image: Image.Image) -> None:
        """Keep an RGB image, unless it is kept already or does not fit."""
        num_bytes = 3 * image.height * image.width
        with self._lock.held() as is_held:
            offset = self.used_bytes
            if not is_held or self._entries[number, 1] != 0 or offset + num_bytes > len(self._pixels):
                return
            self._index[0] += num_bytes
            self._entries[number, 1] = _IN_WORK
        self._pixels[offset : offset + num_bytes] = np.asarray(image).reshape(-1)
        with self._lock.held() as is_held:
            if is_held:
                self._entries[number] = offset, image.height, image.width
