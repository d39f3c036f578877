"""Several processes that serve at one address, and the one that looks after them."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from prometheus_client.multiprocess import mark_process_dead

from msrn.server.logs import LOGGER, configure_logs, log_failure
from msrn.server.metrics import FOLDER
from msrn.server.models import load_predictors
from msrn.server.process import Again, Server
from msrn.server.settings import ServerSettings

_READY = b"ready\n"
# Within which a worker that replaces another has read its bundles.
_START_SECONDS = 120.0
_LONGEST_PAUSE = 30.0


class _Worker:
    """A process, soon or already."""

    def __init__(self) -> None:
        self.process: Process | None = None
        self.is_ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.has_ended = asyncio.Event()

    def send(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Workers:
    """Keeps a number of workers alive.

    They hear of the end by SIGTERM, or by the end of their standard input where this process was killed, and say on standard
    output when they are ready.

    Args:
        described: What a worker is told, as JSON.
        listener: Where all of them accept connections.
        num_workers: How many.
        command: What a worker runs.
        pause: Seconds until a dead worker is started again; doubled, up to 30, while they do not even get ready.
    """

    def __init__(
        self,
        described: Mapping[str, Any],
        listener: socket.socket,
        num_workers: int,
        *,
        command: Sequence[str] = (sys.executable, "-m", "msrn.server.workers"),
        pause: float = 1.0,
    ) -> None:
        self.described = json.dumps({**described, "listener": listener.fileno()}).encode() + b"\n"
        self.listener = listener
        self.num_workers = num_workers
        self._workers: set[_Worker] = set()
        self._lives: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self.command = command
        self.pause = self._next_pause = pause

    async def run(self) -> None:
        """Look after the workers."""
        with tempfile.TemporaryDirectory(prefix="msrn-counts-") as self._counts:
            for _ in range(self.num_workers):
                self._start()
            await self._stopping.wait()
            while self._lives:
                await asyncio.wait(self._lives)

    def stop(self) -> None:
        """Let the workers answer what they accepted and end; the second time end them now."""
        LOGGER.info("stopping")
        for worker in self._workers:
            worker.send(signal.SIGKILL if self._stopping.is_set() else signal.SIGTERM)
        self._stopping.set()

    async def replace_all(self) -> None:
        """Replace the workers one by one, each only when its successor answers requests."""
        for old in list(self._workers):
            if self._stopping.is_set():
                return
            if old.has_ended.is_set():  # meanwhile: the one after it has read the new bundles
                continue
            new = self._start()
            await asyncio.wait([new.is_ready], timeout=_START_SECONDS)
            if not new.is_ready.done() or not new.is_ready.result():
                new.send(signal.SIGKILL)
                await new.has_ended.wait()
                LOGGER.error("the bundles stay as they were")
                return
            old.send(signal.SIGTERM)
            await old.has_ended.wait()
        LOGGER.info("bundles read anew")

    def _start(self) -> _Worker:
        worker = _Worker()
        self._workers.add(worker)
        life = asyncio.create_task(self._live(worker))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return worker

    async def _live(self, worker: _Worker) -> None:
        """A worker from its start to its end, and to the next one's where there are too few then."""
        code = None
        try:
            code = await self._work(worker)
        except OSError as error:
            log_failure("a worker cannot be started", error)
        self._workers.remove(worker)
        if not worker.is_ready.done():
            worker.is_ready.set_result(False)
        worker.has_ended.set()
        if self._is_full():
            return
        pause = self.pause if worker.is_ready.result() else self._next_pause
        self._next_pause = min(2 * pause, _LONGEST_PAUSE)
        LOGGER.error("a worker ended", extra={"fields": {"code": code, "seconds_to_the_next": pause}})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), pause)
        if not self._is_full():
            self._start()

    def _is_full(self) -> bool:
        return self._stopping.is_set() or len(self._workers) >= self.num_workers

    async def _work(self, worker: _Worker) -> int:
        """Its exit code."""
        worker.process = process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=[self.listener.fileno()],
            start_new_session=True,  # a terminal's Ctrl-C is for this process, which tells its workers
            env={**os.environ, FOLDER: self._counts},
        )
        if self._stopping.is_set():
            worker.send(signal.SIGTERM)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self.described)
        async for line in process.stdout:
            if line == _READY:
                worker.is_ready.set_result(True)
        code = await process.wait()
        mark_process_dead(process.pid, self._counts)
        return code


def serve_by_workers(
    bundles: Mapping[str, str],
    listener: socket.socket,
    settings: ServerSettings,
    *,
    device: str | None,
    proxies: str | None,
    num_workers: int,
) -> None:
    """Serve bundles by several processes until SIGTERM or Ctrl-C."""
    described = {
        "bundles": dict(bundles),
        "settings": asdict(settings),
        "device": device,
        "proxies": proxies,
        "log_level": LOGGER.getEffectiveLevel(),
        "num_threads": max(1, torch.get_num_threads() // num_workers),
    }

    async def run() -> None:
        workers = Workers(described, listener, num_workers)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, workers.stop)
        loop.add_signal_handler(signal.SIGHUP, Again(workers.replace_all))
        await workers.run()

    asyncio.run(run())


def main() -> None:
    """Serve as a worker, as the first line of standard input describes it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is for the parent, which replaces its workers
    described = json.loads(sys.stdin.readline())
    configure_logs(described["log_level"])
    torch.set_num_threads(described["num_threads"])
    try:
        predictors = load_predictors(described["bundles"], described["device"])
        settings = ServerSettings(**described["settings"])
        server = Server(predictors, settings, proxies=described["proxies"], on_start=_tell, is_looked_after=True)
        server.run([socket.socket(fileno=described["listener"])])
    except Exception as error:  # a worker that cannot start says why on one line, and another is started later
        log_failure("the worker cannot serve", error, process=os.getpid())
        sys.exit(1)


def _tell(server: Server) -> None:
    """Say that requests are answered now; stop when standard input ends, as then nobody looks after this process."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin.fileno())
        server.handle_exit(signal.SIGTERM, None)

    loop.add_reader(sys.stdin.fileno(), stop)
    sys.stdout.buffer.write(_READY)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
