"""Around every request: an identifier, a log line, counts, and how many one client may have at a time."""

import json
import logging
import re
import secrets
import time
from collections import Counter
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msrn.server.metrics import Metrics
from msrn.server.problems import MEDIA_TYPE, ProblemError

LOGGER = logging.getLogger("msrn.server")
_IDENTIFIER = re.compile(r"[\w.-]{1,64}", re.ASCII)
# The page and everything it loads come from here, and from nowhere else.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON: time, level, message, and what `extra={"fields": ...}` has."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


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
        status = 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                own["X-Request-ID"] = identifier
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
            await send(message)

        client = (scope.get("client") or ("",))[0]  # not a header, which anybody can change
        is_limited = scope["path"].startswith("/v1/")
        try:
            if is_limited and self._under_way[client] >= self.max_requests_of_client:
                await _refuse(self.max_requests_of_client)(scope, receive, send_with_headers)
                return
            self._under_way[client] += is_limited
            try:
                await self.app(scope, receive, send_with_headers)
            finally:
                self._under_way[client] -= is_limited
                if not self._under_way[client]:
                    del self._under_way[client]
        finally:
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
            "client": (scope.get("client") or ("",))[0],
        }
        level = logging.DEBUG if path in {"/healthz", "/readyz", "/metrics"} and status < 400 else logging.INFO
        LOGGER.log(level, "request", extra={"fields": fields})


def _refuse(most: int) -> JSONResponse:
    detail = f"A client may have {most} requests at a time. Wait for an answer before sending more."
    error = ProblemError(429, "There are too many requests of this client.", detail)
    return JSONResponse(error.body(), 429, {"Retry-After": "1"}, MEDIA_TYPE)
