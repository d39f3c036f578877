"""Batches of what arrives together."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from in_loop import run

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

    assert run(main()) == [[2], [4, 40], [6, 60], [8, 80]]
    assert sizes == [1, 4, 2]


def test_what_has_no_room_is_refused_whole() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(double, executor, max_batch=4, max_waiting=3)
            with pytest.raises(QueueFullError):
                await batcher.submit([1, 2, 3, 4])
            assert len(batcher) == 0
            assert await batcher.submit([1, 2, 3]) == [2, 4, 6]

    run(main())


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

    run(main())
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

    run(main())


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

    assert run(main()) == [0, 2, 4, 6, 8, 10]
    assert sizes[0] == 3
    assert sum(sizes) == 6
