"""Connections that keep a server waiting, over real sockets."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from msrn.server.connections import Connection, Room

App = Callable[[Any, Any, Any], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
LARGE = 20_000_000


async def answer(send: Any, body: bytes = b"hello") -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await answer(send)


async def answer_at_length(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, bytes(LARGE))


@asynccontextmanager
async def serving(room: Room, app: App = greet) -> AsyncIterator[tuple[str, int]]:
    """Where a server with such room listens."""
    config, state = uvicorn.Config(app, log_config=None), ServerState()
    make = partial(Connection, config, state, {}, room=room)
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()
    server.close()
    for own in list(state.connections):
        own.close()  # type: ignore[union-attr]
    while state.connections:
        await asyncio.sleep(0.01)


async def connect(address: tuple[str, int], sent: bytes) -> socket.socket:
    """A client that never reads but where it is told to."""
    client = await asyncio.to_thread(socket.create_connection, address, 20)
    client.sendall(sent)
    return client


def everything(client: socket.socket) -> bytes:
    """What a client is sent until its connection is closed."""
    found = b""
    try:
        while part := client.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    client.close()
    return found


WAITS = {
    "nothing": (b"", 0),
    "half a head": (b"GET / HT", 0),
    "a head letter by letter": (b"GET / HTTP/1.1\r\nX: ", 0),
    "an answer and half a head": (GET + b"GET / HT", 1),
    "an answer and nothing": (GET, 1),
    "a body letter by letter that nobody asked for": (
        b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 9999\r\n\r\n",
        1,
    ),
}


@pytest.mark.fault("a client that says nothing, or half of a request")
@pytest.mark.parametrize("what", WAITS)
def test_who_says_nothing_is_not_waited_for(lost: Callable[[Any, Any, str], None], what: str) -> None:
    """Its connection is closed, and others are answered meanwhile."""
    sent, num_answers = WAITS[what]

    async def main() -> list[int]:
        async with serving(Room(10, 0.3, 10)) as address:
            client = await connect(address, sent)

            def dribble() -> None:
                try:
                    while "letter by letter" in what:
                        time.sleep(0.05)
                        client.sendall(b"x")
                except OSError:
                    pass

            other = await connect(address, GET)
            dribbling = asyncio.to_thread(dribble)
            counts, _ = await asyncio.gather(asyncio.to_thread(everything, client), dribbling)
            return [counts.count(b"hello"), (await asyncio.to_thread(everything, other)).count(b"hello")]

    lost([num_answers, 1], asyncio.run(main()), "answers")


@pytest.mark.fault("a client that reads no answer")
def test_who_reads_no_answer_is_not_waited_for(lost: Callable[[Any, Any, str], None]) -> None:
    """Who reads it slowly has all of it."""

    async def main() -> list[int]:
        room = Room(10, 0.5, 0.5)
        async with serving(room, answer_at_length) as address:
            deaf, slow = await connect(address, GET), await connect(address, GET)

            def read_slowly() -> int:
                found = 0
                while found < LARGE and (part := slow.recv(1_000_000, socket.MSG_WAITALL)):
                    found += len(part)
                    time.sleep(0.1)
                return found

            found = await asyncio.to_thread(read_slowly)
            rest = len(await asyncio.to_thread(everything, deaf))  # what the system had taken of it
            assert rest < LARGE
            slow.close()
            return [found]

    (found,) = asyncio.run(main())
    lost(["all"], ["all" if found >= LARGE else found], "slow answers")


@pytest.mark.fault("more connections than the server may have")
def test_the_longest_silent_connection_makes_room(lost: Callable[[Any, Any, str], None]) -> None:
    """A good request is answered; where all have a request under way, a new one is told so."""
    go = threading.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(go.wait, 20)
        await answer(send)

    async def main() -> list[bytes]:
        async with serving(Room(3, 20, 20), wait) as address:
            silent = [await connect(address, b"") for _ in range(10)]
            good = [
                await connect(address, b"GET / HTTP/1.0\r\n\r\n") for _ in range(3)
            ]  # its answer ends the connection
            for client in silent:
                assert await asyncio.to_thread(everything, client) == b""
            refused = await asyncio.to_thread(everything, await connect(address, b""))
            head, _, body = refused.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1" in head.lower()
            assert "3 connections" in json.loads(body)["detail"]
            go.set()
            return [await asyncio.to_thread(everything, client) for client in good]

    answers = asyncio.run(main())
    lost([b"200"] * 3, [own[9:12] for own in answers], "answers")
