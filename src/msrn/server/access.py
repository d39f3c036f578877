"""Around every request: an identifier, a log line, counts, and how many one client may have at a time."""

import asyncio
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msrn.server.logs import LOGGER, log_failure
from msrn.server.metrics import Metrics
from msrn.server.problems import ProblemError

Result = TypeVar("Result")

_IDENTIFIER = re.compile(r"[\w.-]{1,64}", re.ASCII)
# The page and everything it loads come from here, and from nowhere else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Access:
    """ASGI middleware for what all requests have in common.

    Args:
        app: The application.
        metrics: Counts.
        max_requests_of_client: Most requests to `/v1` of one client at a time.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_requests_of_client: int) -> None:
        self.app = app
        self.metrics = metrics
        self.max_requests_of_client = max_requests_of_client
        self._under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        identifier = given if _IDENTIFIER.fullmatch(given) else secrets.token_hex(8)
        start = time.perf_counter()
        status, has_begun = 500, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                own = MutableHeaders(scope=message)
                own["X-Request-ID"] = identifier
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
            await send(message)

        client = _client(scope)
        is_limited = scope["path"].startswith("/v1/")
        is_refused = is_limited and self._under_way[client] >= self.max_requests_of_client
        self._under_way[client] += is_limited
        try:
            await (_too_many(self.max_requests_of_client) if is_refused else self.app)(
                scope, receive, send_with_headers
            )
        except ClientDisconnect:
            status = 499  # as nginx counts those who left before they were answered
        except Exception as error:
            log_failure("unforeseen error", error, request=identifier)
            if not has_begun:
                await _unforeseen()(scope, receive, send_with_headers)
        finally:
            self._under_way[client] -= is_limited
            if not self._under_way[client]:
                del self._under_way[client]
            if is_refused:
                scope["route"] = _route(scope)
            self._note(scope, identifier, status, time.perf_counter() - start)

    def _note(self, scope: Scope, identifier: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        path = route if route is not None else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        fields = {
            "request": identifier,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "client": _client(scope),
        }
        level = logging.DEBUG if path in {"/healthz", "/readyz", "/metrics"} and status < 400 else logging.INFO
        LOGGER.log(level, "request", extra={"fields": fields})


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What work on a request gives; it is given up where the client leaves meanwhile.

    Args:
        request: One whose body was read.
        work: What is done for it.

    Raises:
        ClientDisconnect: The client has left.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _route(scope: Scope) -> Any:
    """The route of a request that was not led to it."""
    return next((own for own in scope["app"].routes if own.matches(scope)[0] is not Match.NONE), None)


def _client(scope: Scope) -> str:
    address: str = (scope.get("client") or ("",))[0]  # not a header, which anybody can change
    return address


def _too_many(most: int) -> JSONResponse:
    detail = f"A client may have {most} requests at a time. Wait for an answer before sending more."
    title = "There are too many requests of this client."
    return ProblemError(429, title, detail, headers={"Retry-After": "1"}).response()


def _unforeseen() -> JSONResponse:
    detail = "The server's log has more under this X-Request-ID. Please report it."
    return ProblemError(500, "Something went wrong that was not foreseen.", detail).response()
