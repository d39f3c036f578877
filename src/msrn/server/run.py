"""Run the server: one process or several, signals, logs."""

import asyncio
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from msrn.errors import MSRNError
from msrn.server.access import LOGGER, JsonFormatter
from msrn.server.app import create_app
from msrn.server.models import load_predictors
from msrn.server.settings import ServerSettings

_VARIABLE = "MSRN_SERVER"
_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
# Beyond a request's own time, for what is under way when the server is told to stop.
_GRACE = 5.0
# Within which a worker has read its bundles.
_START_SECONDS = 120


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; port 0 takes a free one.

    Raises:
        MSRNError: The address is in use, or is none of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MSRNError(f"cannot listen at {host}, port {port}: {reason}. Give another --host or --port.") from None


def serve(
    bundles: Mapping[str, str],
    listener: socket.socket,
    settings: ServerSettings,
    *,
    device: str | None = None,
    num_workers: int = 1,
    log_level: str = "info",
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C; what was accepted is answered first.

    SIGHUP reads the bundles anew. Several workers are started again when they die.

    Args:
        bundles: Folders or hub names, by the name they are served under.
        listener: From `listen`.
        settings: Limits.
        device: Where to run.
        num_workers: Processes; each has the bundles in memory.
        log_level: "debug", "info", "warning" or "error".

    Raises:
        MSRNError: A bundle cannot be read.
    """
    predictors = load_predictors(bundles, device)
    common: dict[str, Any] = {
        "log_config": _log_config(log_level),
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": int(settings.timeout + _GRACE),
    }
    if num_workers == 1:
        app = create_app(predictors, settings, load=lambda: load_predictors(bundles, device))
        _Server(uvicorn.Config(app, **common), app).run(sockets=[listener])
        return
    del predictors  # they were good to read; each worker has its own
    os.environ[_VARIABLE] = json.dumps(
        {
            "bundles": dict(bundles),
            "settings": asdict(settings),
            "device": device,
            "num_threads": max(1, torch.get_num_threads() // num_workers),
        }
    )
    with tempfile.TemporaryDirectory(prefix="msrn-counts-") as counts:
        os.environ[_COUNTS] = counts
        config = uvicorn.Config(
            "msrn.server.run:app_of_worker",
            factory=True,
            workers=num_workers,
            timeout_worker_healthcheck=_START_SECONDS,
            **common,
        )
        Multiprocess(config, sockets=[listener]).run()


def app_of_worker() -> FastAPI:
    """The application of one of several processes, as its parent described it."""
    described = json.loads(os.environ[_VARIABLE])
    torch.set_num_threads(described["num_threads"])
    predictors = load_predictors(described["bundles"], described["device"])
    return create_app(predictors, ServerSettings(**described["settings"]))


class _Server(uvicorn.Server):
    """Ends with exit code 0 once it has answered what it accepted, and reads bundles anew at SIGHUP."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.app = app
        self._reloading: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving; unlike uvicorn's own, without raising them again behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        yield

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal stops after what is under way, a second one now."""
        LOGGER.info("stopping", extra={"fields": {"signal": signal.Signals(sig).name}})
        self.app.state.is_ready = False
        self.force_exit = self.should_exit
        self.should_exit = True

    def _reload(self) -> None:
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.ensure_future(self.app.state.reload())


def _log_config(level: str) -> dict[str, Any]:
    own = {"handlers": ["lines"], "level": level.upper(), "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "loggers": {"msrn.server": own, "uvicorn": own, "uvicorn.error": own},
    }
