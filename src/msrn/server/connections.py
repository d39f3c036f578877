"""Connections: how many there may be, and how long one may keep the server waiting."""

import asyncio
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from msrn.server.problems import ProblemError


class Room:
    """For so many connections at a time.

    Args:
        most: Most connections; where there are more, the one that has waited longest for a request is closed.
        seconds: Within which a request has to come, headers and all.
        seconds_of_request: Within which one that came has to be answered.
    """

    def __init__(self, most: int, seconds: float, seconds_of_request: float) -> None:
        self.most = most
        self.seconds = seconds
        self.seconds_of_request = seconds_of_request
        self.at_rest: dict[Connection, None] = {}  # without a request, the longest first


def most_open_files() -> int:
    """How many files, sockets among them, this process may have open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


class Connection(H11Protocol):
    """uvicorn's, which by itself waits for ever for who sends nothing or half of something, and for who reads no answer."""

    def __init__(self, *args: Any, room: Room, **options: Any) -> None:
        super().__init__(*args, **options)
        self.room = room
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > self.room.most:
            if not self.room.at_rest:
                self._refuse()
                return
            next(iter(self.room.at_rest)).close()
        self._rest()

    def handle_events(self) -> None:
        """Handle what came; a request that is there has its own time."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.room.at_rest.pop(self, None)
            self._wait(self.room.seconds_of_request)

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it came already."""
        self._rest()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self.room.at_rest.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """End now."""
        self.room.at_rest.pop(self, None)
        self.transport.abort()

    def _rest(self) -> None:
        self.room.at_rest[self] = None
        self._wait(self.room.seconds)

    def _wait(self, seconds: float, unread: float = float("inf")) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._look, seconds, unread)

    def _look(self, seconds: float, unread: float) -> None:
        """End, unless the client has taken some of its answer since there were so many bytes of it."""
        left = self.transport.get_write_buffer_size()
        if 0 < left < unread:
            self._wait(seconds, left)
        else:
            self.close()

    def _refuse(self) -> None:
        detail = f"It has {self.room.most:,} connections with a request already. Try again in a moment."
        headers = {"Retry-After": "1", "Connection": "close"}
        answer = ProblemError(503, "The server is busy.", detail, headers=headers).response()
        begin = h11.Response(
            status_code=answer.status_code,
            headers=answer.raw_headers,
            reason=HTTPStatus(answer.status_code).phrase.encode(),
        )
        for event in (begin, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
