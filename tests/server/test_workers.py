"""The process that looks after workers; here they are Python programs of a few lines."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from msrn.server.process import Again
from msrn.server.workers import Workers

# Notes its number in a folder; is ready where the folder has no file "broken"; ends by SIGTERM or with its parent.
WORKER = """
import json, os, pathlib, sys
folder = pathlib.Path(json.loads(sys.stdin.readline())["folder"])
(folder / f"{os.getpid()}.started").touch()
if (folder / "broken").exists():
    sys.exit(1)
while (folder / "slow").exists():
    pass
(folder / f"{os.getpid()}.ready").touch()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def look_after(
    folder: Path, listener: socket.socket, check: Callable[[Workers], Awaitable[None]], num_workers: int = 2
) -> None:
    """Check workers while they are looked after; in the end none is left."""

    async def main() -> None:
        command = [sys.executable, "-I", "-S", "-c", WORKER]
        workers = Workers({"folder": str(folder)}, listener, num_workers, command=command, pause=0.05)
        looking = asyncio.create_task(workers.run())
        try:
            await until(lambda: len(ready(folder)) == num_workers)
            await check(workers)
        finally:
            workers.stop()
            await asyncio.wait_for(looking, 20)

    asyncio.run(main())
    for own in folder.glob("*.started"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(own.stem), 0)


def ready(folder: Path) -> set[int]:
    return {int(own.stem) for own in folder.glob("*.ready")}


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_done():
            await asyncio.sleep(0.01)


def test_a_dead_worker_is_started_again_with_longer_pauses_until_one_gets_ready(
    tmp_path: Path, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    def pauses() -> list[float]:
        return [own.fields["seconds_to_the_next"] for own in caplog.records if own.msg == "a worker ended"]  # type: ignore[attr-defined]

    async def check(workers: Workers) -> None:
        (tmp_path / "broken").touch()
        first, other = ready(tmp_path)
        os.kill(first, signal.SIGKILL)
        await until(lambda: len(pauses()) == 4)
        assert pauses() == [0.05, 0.1, 0.2, 0.4]
        os.kill(other, 0)  # it goes on
        (tmp_path / "broken").unlink()
        await until(lambda: len(ready(tmp_path)) == 3)

    with caplog.at_level(logging.ERROR, "msrn.server"):
        look_after(tmp_path, listener, check)
    assert len(pauses()) == 4


def test_workers_are_replaced_one_by_one_unless_the_new_one_cannot_serve(
    tmp_path: Path, listener: socket.socket
) -> None:
    async def check(workers: Workers) -> None:
        (tmp_path / "broken").touch()
        await workers.replace_all()
        assert all(_lives(pid) for pid in ready(tmp_path))
        (tmp_path / "broken").unlink()
        before = ready(tmp_path)
        await workers.replace_all()
        assert not any(_lives(pid) for pid in before)
        assert len(ready(tmp_path) - before) == 2

    look_after(tmp_path, listener, check)


def test_one_that_died_while_another_was_replaced_is_not_replaced_twice(
    tmp_path: Path, listener: socket.socket
) -> None:
    def started() -> list[int]:
        return [int(own.stem) for own in tmp_path.glob("*.started")]

    async def check(workers: Workers) -> None:
        before = ready(tmp_path)
        (tmp_path / "slow").touch()
        replacing = asyncio.create_task(workers.replace_all())
        await until(lambda: len(started()) == 3)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(started()) == 4)  # for one of them; the other has its replacement already
        (tmp_path / "slow").unlink()
        await replacing
        await until(lambda: len(ready(tmp_path) - before) == 2)
        assert len(started()) == 4

    look_after(tmp_path, listener, check)


def test_the_end_does_not_wait_for_a_replacement(tmp_path: Path, listener: socket.socket) -> None:
    async def check(workers: Workers) -> None:
        (tmp_path / "slow").touch()
        replacing = asyncio.create_task(workers.replace_all())
        await until(lambda: len(list(tmp_path.glob("*.started"))) == 3)
        workers.stop()
        async with asyncio.timeout(5):
            await replacing

    look_after(tmp_path, listener, check)


def test_asked_meanwhile_it_is_done_once_more() -> None:
    done: list[int] = []

    async def main() -> None:
        go = asyncio.Event()

        async def work() -> None:
            await go.wait()
            done.append(1)

        again = Again(work)
        for _ in range(3):
            again()
            await asyncio.sleep(0)
        go.set()
        await asyncio.sleep(0.01)
        assert len(done) == 2
        again()
        await asyncio.sleep(0.01)
        assert len(done) == 3

    asyncio.run(main())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
