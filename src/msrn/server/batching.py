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
    """

    work: Callable[[Sequence[Item]], Sequence[Result]]
    executor: Executor
    max_batch: int
    max_waiting: int
    num_streams: int = 1
    on_batch: Callable[[int], None] = lambda size: None
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
            Exception: What `work` raised for a batch that one of them was in.
        """
        self.check_room(len(items))
        loop = asyncio.get_running_loop()
        own: list[_Waiting[Item, Result]] = [_Waiting(item, loop.create_future()) for item in items]
        self._waiting.extend(own)
        while len(self._tasks) < min(self.num_streams, len(self._waiting)):
            task = asyncio.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            return list(await asyncio.gather(*(one.result for one in own)))
        finally:
            for one in own:  # of a request that was given up
                one.result.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch: list[_Waiting[Item, Result]] = []
            share = -(-len(self._waiting) // (self.num_streams - self._num_busy))  # of the streams that are free
            while self._waiting and len(batch) < min(self.max_batch, share):
                one = self._waiting.popleft()
                if not one.result.done():
                    batch.append(one)
            if not batch:
                continue
            self.on_batch(len(batch))
            self._num_busy += 1
            try:
                results = await loop.run_in_executor(self.executor, self.work, [one.item for one in batch])
            except Exception as error:
                for one in batch:
                    if not one.result.done():
                        one.result.set_exception(error)
                continue
            finally:
                self._num_busy -= 1
            for one, result in zip(batch, results, strict=True):
                if not one.result.done():
                    one.result.set_result(result)
