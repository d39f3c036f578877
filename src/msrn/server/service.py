"""One bundle at work: images in, probabilities out, many requests at a time."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from msrn.predict import Predictor
from msrn.server.batching import Batcher
from msrn.server.images import decode
from msrn.server.settings import ServerSettings


class Service:
    """A predictor that serves many requests.

    Images are decoded and prepared in two threads; one more runs the network, so that batches follow one another.

    Args:
        name: The bundle's name.
        predictor: What predicts.
        settings: The limits.
    """

    def __init__(self, name: str, predictor: Predictor, settings: ServerSettings) -> None:
        self.name = name
        self.predictor = predictor
        self.settings = settings
        self._readers = ThreadPoolExecutor(2, thread_name_prefix=f"read-{name}")
        self._network = ThreadPoolExecutor(1, thread_name_prefix=f"network-{name}")
        self.batcher: Batcher[Tensor, Tensor] = Batcher(
            self._work, self._network, max_batch=settings.batch_size, max_waiting=settings.max_waiting
        )

    async def read(self, files: Sequence[bytes]) -> list[Image.Image]:
        """Images of one request.

        Raises:
            ProblemError: One of them is refused.
        """
        loop = asyncio.get_running_loop()
        return list(
            await asyncio.gather(
                *(loop.run_in_executor(self._readers, self._decode, data, index) for index, data in enumerate(files))
            )
        )

    async def probs(self, files: Sequence[bytes]) -> list[Float[Tensor, "L"]]:
        """Probabilities of the images of one request.

        Raises:
            QueueFullError: There is no room for them.
            ProblemError: One of them is refused.
        """
        self.batcher.check_room(len(files))
        loop = asyncio.get_running_loop()
        reading = (loop.run_in_executor(self._readers, self._prepare, data, index) for index, data in enumerate(files))
        return await self.batcher.submit(list(await asyncio.gather(*reading)))

    def close(self) -> None:
        """Let the threads go once they have nothing to do."""
        self._readers.shutdown(wait=False)
        self._network.shutdown(wait=False)

    def _decode(self, data: bytes, index: int) -> Image.Image:
        return decode(data, index, max_bytes=self.settings.max_image_bytes, max_pixels=self.settings.max_pixels)

    def _prepare(self, data: bytes, index: int) -> Tensor:
        prepared: Tensor = self.predictor.bundle.preprocessing(self._decode(data, index))
        return prepared

    def _work(self, images: Sequence[Tensor]) -> list[Tensor]:
        return list(self.predictor.probs(torch.stack(list(images))))
