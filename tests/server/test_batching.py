"""Batches of what arrives together."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest

from msrn.server.batching import Batcher, QueueFullError


def double(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


def test_what_waits_while_a_batch_runs_goes_together_next() -> None:
    sizes: list[int] = []
    started, go = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        started.set()
        assert go.wait(10)
        return double(items)

    async def main() -> list[list[int]]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(work, executor, max_batch=4, max_waiting=100, on_batch=sizes.append)
            first = asyncio.create_task(batcher.submit([1]))
            await asyncio.to_thread(started.wait, 10)
            rest = [asyncio.create_task(batcher.submit([number, 10 * number])) for number in (2, 3, 4)]
            await asyncio.sleep(0)
            assert len(batcher) == 6
            go.set()
            return await asyncio.gather(first, *rest)

    assert asyncio.run(main()) == [[2], [4, 40], [6, 60], [8, 80]]
    assert sizes == [1, 4, 2]


def test_what_has_no_room_is_refused_whole() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(double, executor, max_batch=4, max_waiting=3)
            with pytest.raises(QueueFullError):
                await batcher.submit([1, 2, 3, 4])
            assert len(batcher) == 0
            assert await batcher.submit([1, 2, 3]) == [2, 4, 6]

    asyncio.run(main())


def test_a_request_that_left_is_not_worked_on() -> None:
    seen: list[int] = []
    started, go = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        seen.extend(items)
        started.set()
        assert go.wait(10)
        return double(items)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(work, executor, max_batch=4, max_waiting=100)
            first = asyncio.create_task(batcher.submit([1]))
            await asyncio.to_thread(started.wait, 10)
            left = asyncio.create_task(batcher.submit([2]))
            stays = asyncio.create_task(batcher.submit([3]))
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.sleep(0)
            go.set()
            assert await first == [2]
            assert await stays == [6]

    asyncio.run(main())
    assert seen == [1, 3]


def test_an_error_reaches_its_batch_and_the_next_one_works() -> None:
    def work(items: Sequence[int]) -> list[int]:
        if -1 in items:
            raise ValueError("no")
        return double(items)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(work, executor, max_batch=4, max_waiting=100)
            with pytest.raises(ValueError, match="no"):
                await batcher.submit([-1, 2])
            assert await batcher.submit([2]) == [4]

    asyncio.run(main())


def test_only_the_item_at_fault_has_the_error() -> None:
    tried: list[list[int]] = []
    started, go = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        tried.append(list(items))
        started.set()
        assert go.wait(10)
        if -1 in items:
            raise ValueError("no")
        return double(items)

    async def main() -> list[Any]:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(work, executor, max_batch=8, max_waiting=100)
            first = asyncio.create_task(batcher.submit([1]))
            await asyncio.to_thread(started.wait, 10)
            rest = [asyncio.create_task(batcher.submit(items)) for items in ([2, 3], [-1, 4], [5])]
            await asyncio.sleep(0)
            go.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

    first, two, wrong, five = asyncio.run(main())
    assert (first, two, five) == ([2], [4, 6], [10])
    assert str(wrong) == "no"
    assert tried[:2] == [[1], [2, 3, -1, 4, 5]]
    assert [own for own in tried[2:] if own != [4]] == [[2], [3], [-1], [5]]  # the request of 4 is over with -1


def test_streams_share_what_waits() -> None:
    sizes: list[int] = []
    both = threading.Barrier(2)

    def work(items: Sequence[int]) -> list[int]:
        both.wait(10)  # neither goes on before the other has begun
        return double(items)

    async def main() -> list[int]:
        with ThreadPoolExecutor(2) as executor:
            batcher = Batcher(work, executor, max_batch=16, max_waiting=100, num_streams=2, on_batch=sizes.append)
            return await batcher.submit(list(range(6)))

    assert asyncio.run(main()) == [0, 2, 4, 6, 8, 10]
    assert sizes[0] == 3
    assert sum(sizes) == 6


class ByHand(Executor):
    """Work that is done when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []

    def submit(self, work: Any, /, *args: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        self.asked.append(lambda: future.set_result(work(*args, **options)))
        return future


def test_what_is_submitted_in_the_step_in_which_a_stream_ends_is_worked_on() -> None:
    network, reader = ByHand(), ByHand()

    async def main() -> list[int]:
        batcher = Batcher(double, network, max_batch=4, max_waiting=100)
        first = asyncio.create_task(batcher.submit([1]))

        async def read_and_submit() -> list[int]:
            item = await asyncio.get_running_loop().run_in_executor(reader, lambda: 2)
            return await batcher.submit([item])

        second = asyncio.create_task(read_and_submit())
        await asyncio.sleep(0.01)
        network.asked[0]()
        reader.asked[0]()
        assert await first == [2]
        await asyncio.sleep(0.01)
        assert len(network.asked) == 2
        network.asked[1]()
        return await second

    assert asyncio.run(main()) == [4]


def test_a_free_stream_does_not_wait_for_a_busy_one() -> None:
    network = ByHand()
    waiting: list[int] = []

    async def main() -> None:
        batcher = Batcher(double, network, max_batch=4, max_waiting=100, num_streams=2, on_waiting=waiting.append)
        first = asyncio.create_task(batcher.submit([1]))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(batcher.submit([2]))
        await asyncio.sleep(0.01)
        assert len(network.asked) == 2
        for done in network.asked:
            done()
        assert await first + await second == [2, 4]

    asyncio.run(main())
    assert sum(waiting) == 0
    assert max(waiting) == 1
