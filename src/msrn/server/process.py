"""One process that serves."""

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from msrn.predict import Predictor
from msrn.server.app import create_app
from msrn.server.connections import Connection, Room, most_open_files
from msrn.server.logs import LOGGER
from msrn.server.settings import ServerSettings

# Beyond a request's own time, for what is under way when the server is told to stop.
_GRACE = 5.0
BACKLOG = 2048  # connections that wait to be taken


class Server(uvicorn.Server):
    """Ends with exit code 0 once it has answered what it accepted, and reads bundles anew at SIGHUP.

    Args:
        predictors: What is served, by name.
        settings: Limits.
        proxies: Addresses, with commas, whose word on who asks is taken; `*` for all.
        load: Reads the predictors anew.
        on_start: Called once requests are answered.
        is_looked_after: Whether another process looks after this one, and kills it where it has to end at once.
    """

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        settings: ServerSettings,
        *,
        proxies: str | None = None,
        load: Callable[[], Mapping[str, Predictor]] | None = None,
        on_start: Callable[["Server"], None] = lambda server: None,
        is_looked_after: bool = False,
    ) -> None:
        self.app: FastAPI = create_app(predictors, settings, load=load)
        self.on_start = on_start
        self.is_looked_after = is_looked_after
        longest = settings.timeout + _GRACE
        # Half of the files that may be open are for connections, a quarter for those that come at once, the rest for the rest.
        num_files = most_open_files()
        room = Room(max(1, min(settings.max_connections, num_files // 2)), settings.timeout, longest)
        super().__init__(
            uvicorn.Config(
                self.app,
                http=cast(type[asyncio.Protocol], partial(Connection, room=room)),
                ws="none",
                backlog=max(1, min(BACKLOG, num_files // 4)),
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=proxies is not None,
                forwarded_allow_ips=proxies,
                timeout_graceful_shutdown=int(longest),
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn's own, without raising them again behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        loop.add_signal_handler(signal.SIGHUP, Again(self.app.state.reload))
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self.on_start(self)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal stops after what is under way; a second one now, but of a worker nothing.

        Workers hear of the end more than once: from their parent, from a system that tells all processes of a service, and
        by the end of their standard input.
        """
        LOGGER.info("stopping", extra={"fields": {"signal": signal.Signals(sig).name}})
        self.app.state.is_ready = False
        self.force_exit = self.should_exit and not self.is_looked_after
        self.should_exit = True


class Again:
    """Does something at each call; calls that come meanwhile have it done once more afterwards."""

    def __init__(self, do: Callable[[], Awaitable[None]]) -> None:
        self._do = do
        self._is_asked = False
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Do it soon."""
        self._is_asked = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._is_asked:
            self._is_asked = False
            await self._do()
        self._task = None
