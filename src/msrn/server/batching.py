"""Requests that arrive together go through the network together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """There is no room for so many items now."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    result: "asyncio.Future[Result]"


@dataclass
class Batcher(Generic[Item, Result]):
    """Items from many requests, worked on in batches.

    While batches are being worked on others wait, and go together next: nothing is delayed for the sake of a fuller batch. An item
    whose request has gone (its client left, or its time is up) before its batch starts is not worked on.

    Args:
        work: Results of a batch, in its order; called in the executor.
        executor: Where to work.
        max_batch: Most items of a batch.
        max_waiting: Most items that wait; more are refused.
        num_streams: How many batches are worked on at a time.
        on_batch: Called with the size of each batch.
        on_waiting: Called with how many more items wait than before, or fewer.
    """

    work: Callable[[Sequence[Item]], Sequence[Result]]
    executor: Executor
    max_batch: int
    max_waiting: int
    num_streams: int = 1
    on_batch: Callable[[int], None] = lambda size: None
    on_waiting: Callable[[int], None] = lambda change: None
    _waiting: "deque[_Waiting[Item, Result]]" = field(default_factory=deque, init=False)
    _num_busy: int = field(default=0, init=False)
    _tasks: "set[asyncio.Task[None]]" = field(default_factory=set, init=False)

    def __len__(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    def check_room(self, count: int = 1) -> None:
        """Refuse what could not wait here.

        Raises:
            QueueFullError: So many items more would be too many.
        """
        if len(self._waiting) + count > self.max_waiting:
            raise QueueFullError

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Results of items of one request; all of them are taken, or none.

        Raises:
            QueueFullError: There is no room for them.
            Exception: What `work` raised for one of them.
        """
        self.check_room(len(items))
        loop = asyncio.get_running_loop()
        own: list[_Waiting[Item, Result]] = [_Waiting(item, loop.create_future()) for item in items]
        self._waiting.extend(own)
        self.on_waiting(len(own))
        while len(self._tasks) < min(self.num_streams, self._num_busy + len(self._waiting)):
            self._tasks.add(asyncio.create_task(self._run()))
        try:
            return list(await asyncio.gather(*(one.result for one in own)))
        finally:
            for one in own:  # of a request that was given up
                one.result.cancel()

    async def _run(self) -> None:
        while batch := self._take():
            self.on_batch(len(batch))
            self._num_busy += 1
            try:
                await self._work_on(batch)
            finally:
                self._num_busy -= 1
        # In the step that found nothing: what is submitted after it starts a stream of its own.
        self._tasks.remove(asyncio.current_task())  # type: ignore[arg-type]

    async def _work_on(self, batch: "list[_Waiting[Item, Result]]") -> None:
        """Answer a batch; where it fails each item is tried alone, so that only the one at fault has its error."""
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self.executor, self.work, [one.item for one in batch])
        except Exception as error:
            if len(batch) == 1 and not batch[0].result.done():
                batch[0].result.set_exception(error)
        else:
            for one, result in zip(batch, results, strict=True):
                if not one.result.done():
                    one.result.set_result(result)
        # Behind the block, as an error holds on to the memory of the batch. None of these is there where it went well.
        for one in batch:
            if not one.result.done():
                await self._work_on([one])

    def _take(self) -> "list[_Waiting[Item, Result]]":
        """The share of what waits of one of the streams that are free."""
        batch: list[_Waiting[Item, Result]] = []
        num_before = len(self._waiting)
        share = -(-num_before // (self.num_streams - self._num_busy))
        while self._waiting and len(batch) < min(self.max_batch, share):
            one = self._waiting.popleft()
            if not one.result.done():
                batch.append(one)
        self.on_waiting(len(self._waiting) - num_before)
        return batch
