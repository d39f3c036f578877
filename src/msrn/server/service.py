"""One bundle at work: images in, probabilities or explanations out, many requests at a time."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from msrn.explain import Explanation
from msrn.models import MSRN
from msrn.predict import Predictor
from msrn.server.batching import Batcher
from msrn.server.images import decode
from msrn.server.schemas import Label
from msrn.server.settings import ServerSettings

_NUM_READERS = 2
_MOST_STREAMS = 4
NEVER = 2.0  # stands for an infinite threshold, which JSON has not


@dataclass(frozen=True)
class Tagged:
    """An image's probabilities.

    Attributes:
        probs: Of every label.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """

    probs: Float[Tensor, "L"]
    width: int
    height: int


@dataclass(frozen=True)
class _Question:
    data: bytes
    labels: tuple[str, ...] | None
    top_k: int


class Service:
    """A predictor that serves many requests.

    Images are decoded and prepared in threads; others run the network. On processors these are several, each with a part of them:
    a batch that is spread over all processors waits for the one that decodes an image at that moment.

    Args:
        name: The bundle's name.
        predictor: What predicts.
        settings: The limits.
        on_batch: Called with the number of images of each batch.
        on_waiting: Called with how many more images wait than before, or fewer.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        settings: ServerSettings,
        on_batch: Callable[[int], None] = lambda size: None,
        on_waiting: Callable[[int], None] = lambda change: None,
    ) -> None:
        self.name = name
        self.predictor = predictor
        self.settings = settings
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix=f"read-{name}")
        num_streams, num_threads = share_threads(predictor.device.type, settings.num_streams)
        self._network = ThreadPoolExecutor(
            num_streams, f"network-{name}", initializer=torch.set_num_threads, initargs=(num_threads,)
        )
        self.batcher: Batcher[Tensor, Tensor] = Batcher(
            self._predict,
            self._network,
            max_batch=settings.batch_size,
            max_waiting=settings.max_waiting,
            num_streams=num_streams,
            on_batch=on_batch,
            on_waiting=on_waiting,
        )
        self.explainer: Batcher[_Question, Explanation] = Batcher(
            self._explain,
            self._network,
            max_batch=1,
            max_waiting=settings.max_waiting,
            on_waiting=on_waiting,
        )
        self._num_reading = 0

    @property
    def can_explain(self) -> bool:
        """Whether the head has an explanation of its own."""
        return isinstance(self.predictor.bundle.model, MSRN)

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Each label's own threshold; above 1 for one that is never predicted."""
        bundle = self.predictor.bundle
        return {
            name: min(value, NEVER)
            for name, value in zip(bundle.label_names, bundle.label_thresholds.tolist(), strict=True)
        }

    @cached_property
    def labels(self) -> list[Label]:
        """The labels, with their groups and the labels they attend to."""
        bundle = self.predictor.bundle
        names = bundle.label_names
        groups: list[int | None] = [None] * len(names)
        neighbours: list[list[str]] = [[] for _ in names]
        if isinstance(bundle.model, MSRN):
            with torch.inference_mode():
                membership = bundle.model.embed().assignment.cpu()
            if membership.shape[1]:
                groups = membership.argmax(dim=1).tolist()
            # An edge leads from the label that is followed; the follower attends to it.
            for other, label in bundle.label_graph.adjacency.nonzero().tolist():
                if label != other:
                    neighbours[label].append(names[other])
        return [
            Label(name=name, threshold=self.thresholds[name], group=group, neighbours=own)
            for name, group, own in zip(names, groups, neighbours, strict=True)
        ]

    async def tag(self, files: list[bytes], on_decoded: Callable[[], None] = lambda: None) -> list[Tagged]:
        """Probabilities of the images of one request.

        Args:
            files: The image files; emptied once they are decoded, as they are not needed any more.
            on_decoded: Called then.

        Raises:
            QueueFullError: There is no room for them.
            ProblemError: One of them is refused.
        """
        count = len(files)
        self.batcher.check_room(self._num_reading + count)
        self._num_reading += count
        loop = asyncio.get_running_loop()
        try:
            prepared = await _all(
                [loop.run_in_executor(self._readers, self._prepare, data, index) for index, data in enumerate(files)]
            )
        finally:
            self._num_reading -= count
        files.clear()
        on_decoded()
        probs = await self.batcher.submit([tensor for tensor, _, _ in prepared])
        return [Tagged(own, width, height) for own, (_, width, height) in zip(probs, prepared, strict=True)]

    async def explain(self, data: bytes, labels: Sequence[str] | None, top_k: int) -> Explanation:
        """Why an image has some labels.

        Raises:
            QueueFullError: There is no room for it.
            ProblemError: It is refused.
            LabelMismatchError: The model does not know a label.
        """
        # The file waits, not its pixels, of which there may be a hundred times as many bytes.
        question = _Question(data, None if labels is None else tuple(labels), top_k)
        return (await self.explainer.submit([question]))[0]

    def close(self) -> None:
        """Let the threads go once they have nothing to do."""
        self._readers.shutdown(wait=False)
        self._network.shutdown(wait=False)

    def _decode(self, data: bytes, index: int) -> Image.Image:
        return decode(data, index, max_bytes=self.settings.max_image_bytes, max_pixels=self.settings.max_pixels)

    def _prepare(self, data: bytes, index: int) -> tuple[Tensor, int, int]:
        image = self._decode(data, index)
        return self.predictor.bundle.preprocessing(image), image.width, image.height

    def _predict(self, images: Sequence[Tensor]) -> list[Tensor]:
        return list(self.predictor.probs(torch.stack(list(images))))

    def _explain(self, questions: Sequence[_Question]) -> list[Explanation]:
        return [self.predictor.explain(self._decode(own.data, 0), own.labels, top_k=own.top_k) for own in questions]


def share_threads(device: str, num_streams: int | None) -> tuple[int, int]:
    """How many batches go through the network at a time, and with how many threads each."""
    num_threads = torch.get_num_threads()
    if device != "cpu":
        return num_streams or 1, num_threads
    num_streams = num_streams or min(_MOST_STREAMS, num_threads)
    return num_streams, max(1, num_threads // num_streams)


async def _all(futures: "Sequence[asyncio.Future[tuple[Tensor, int, int]]]") -> list[tuple[Tensor, int, int]]:
    """All results; with the first error the rest is not begun."""
    try:
        return list(await asyncio.gather(*futures))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
