"""`msrn serve`."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

EPILOG = """Examples:

  msrn serve runs/scenes/bundle

  msrn serve pets=runs/a/bundle scenes=runs/b/bundle --port 9000

  MSRN_API_KEY=$(openssl rand -hex 16) msrn serve BUNDLE --host 0.0.0.0 --workers 4

  curl -F images=@photo.jpg http://127.0.0.1:8000/v1/predict"""

_LOCAL = {"127.0.0.1", "localhost", "::1"}


def _end(number: int, frame: Any) -> NoReturn:
    os._exit(0)


def _go_on(number: int, frame: Any) -> None:
    pass


@contextmanager
def _signals_before_serving() -> Iterator[None]:
    """Until the server has handlers of its own, SIGTERM ends the command with 0 and SIGHUP does nothing.

    Nothing was accepted yet, and bundles are only being read. Without a handler SIGHUP would end the command, and SIGTERM not even
    do so in a container, whose first process ignores it.
    """
    before = {number: signal.signal(number, do) for number, do in ((signal.SIGTERM, _end), (signal.SIGHUP, _go_on))}
    try:
        yield
    finally:
        for number, do in before.items():
            signal.signal(number, do or signal.SIG_DFL)


@_signals_before_serving()
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundle folders or hub:OWNER/NAME, also as NAME=BUNDLE. The first is asked by default.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the bundles in memory.")] = 1,
    device: Annotated[
        str | None,
        typer.Option(help="Where to run, such as cuda:1; by default a GPU if there is one.", show_default=False),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="MSRN_API_KEY", help="What callers have to send as 'X-API-Key'.", show_default=False),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESSES",
            help="Proxies in front of this server, such as 10.0.0.1,10.1.0.0/16: who asks is then the address that they send as "
            "X-Forwarded-For.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most images a pass.")] = 16,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Batches that go through the network at a time; by default one on a GPU, up to four on processors, which share "
            "the threads. 1 answers a lone request soonest.",
            show_default=False,
        ),
    ] = None,
    max_images: Annotated[int, typer.Option(min=1, help="Most images of a request.")] = 32,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Largest image file.")] = 20,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Most pixels of an image, up to 178.")] = 50,
    max_total_megabytes: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Most megabytes of requests whose images are not decoded yet, of all addresses together; more are answered by "
            "503. By default room for four of the largest requests.",
            show_default=False,
        ),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Most images that wait; more are answered by 503.")] = 256,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Most requests of one address at a time; more are answered by 429.")
    ] = 64,
    max_connections: Annotated[
        int,
        typer.Option(
            min=1,
            help="Most open connections, of all addresses together, and no more than half of what `ulimit -n` allows; beyond them "
            "the one that has waited longest for a request is closed.",
        ),
    ] = 1000,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1,
            help="Seconds after which a request is answered by 504, and a connection on which none came is closed.",
        ),
    ] = 30,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve bundles over HTTP: a page for people at /, an interface for programs at /v1, its description at /openapi.json.

    SIGTERM and Ctrl-C stop it once what it accepted is answered; SIGHUP reads the bundles anew without a request being dropped.
    Its address is said on standard output; what it logs are JSON lines on standard error.
    """
    from msrn.errors import MissingDependencyError, MSRNError

    try:
        from msrn.server.run import check_proxies, listen
        from msrn.server.run import serve as serve_bundles
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("msrn"):
            raise
        raise MissingDependencyError(
            f"serving needs {error.name}, which is not installed. Install it: pip install 'msrn[server]'."
        ) from None
    from msrn.server.logs import LOGGER, configure_logs
    from msrn.server.models import name_bundles
    from msrn.server.settings import ServerSettings

    if log_level not in {"debug", "info", "warning", "error"}:
        raise MSRNError(f"--log-level is debug, info, warning or error, got '{log_level}'.")
    is_empty = api_key is None and "MSRN_API_KEY" in os.environ  # Typer takes an empty variable for an unset one
    if api_key == "" or is_empty:
        raise MSRNError(
            "the API key is empty. Give one, such as that of: openssl rand -hex 16. Where anybody may ask, unset MSRN_API_KEY and "
            "leave --api-key out."
        )
    max_request_bytes = int(max_megabytes * 1.4e6 * min(max_images, 4)) + 1_000_000
    settings = ServerSettings(
        max_images=max_images,
        max_image_bytes=int(max_megabytes * 1e6),
        max_request_bytes=max_request_bytes,
        max_total_bytes=4 * max_request_bytes if max_total_megabytes is None else int(max_total_megabytes * 1e6),
        max_pixels=int(max_megapixels * 1e6),
        max_waiting=max_waiting,
        max_requests_of_client=max_requests,
        max_connections=max_connections,
        batch_size=batch_size,
        num_streams=streams,
        timeout=timeout,
        api_key=api_key,
    )
    if proxy is not None:
        check_proxies(proxy)
    named = name_bundles(bundles)
    configure_logs(log_level)
    with listen(host, port) as listener:
        shown, number = listener.getsockname()[:2]
        address = f"http://{f'[{shown}]' if ':' in shown else shown}:{number}"
        typer.echo(f"Serving {', '.join(named)} at {address}")
        if host not in _LOCAL and settings.api_key is None:
            LOGGER.warning("Anybody who reaches this machine may ask it: there is no --api-key.")
        serve_bundles(named, listener, settings, device=device, proxies=proxy, num_workers=workers)
