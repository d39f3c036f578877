"""Run the server, in one process or several."""

import ipaddress
import socket
from collections.abc import Mapping
from functools import partial

from msrn.errors import MSRNError
from msrn.server.models import load_predictors
from msrn.server.process import BACKLOG, Server
from msrn.server.settings import ServerSettings
from msrn.server.workers import serve_by_workers


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; port 0 takes a free one.

    Raises:
        MSRNError: The address is in use, or is none of this machine.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MSRNError(f"cannot listen at {host}, port {port}: {reason}. Give another --host or --port.") from None


def check_proxies(proxies: str) -> None:
    """Refuse what is no list of addresses.

    Raises:
        MSRNError: One is neither an address, nor a network, nor `*`.
    """
    for address in (own.strip() for own in proxies.split(",")):
        try:
            if address != "*":
                ipaddress.ip_network(address)
        except ValueError:
            raise MSRNError(
                f"--proxy takes addresses and networks, such as 10.0.0.1,10.1.0.0/16, got '{address}'."
            ) from None


def serve(
    bundles: Mapping[str, str],
    listener: socket.socket,
    settings: ServerSettings,
    *,
    device: str | None = None,
    proxies: str | None = None,
    num_workers: int = 1,
) -> None:
    """Serve bundles until SIGTERM or Ctrl-C; what was accepted is answered first.

    SIGHUP reads the bundles anew. Several workers are started again when they die.

    Args:
        bundles: Folders or hub names, by the name they are served under.
        listener: From `listen`.
        settings: Limits.
        device: Where to run.
        proxies: Addresses, with commas, of proxies whose word on who asks is taken; `*` for all.
        num_workers: Processes; each has the bundles in memory.

    Raises:
        MSRNError: A bundle cannot be read.
    """
    predictors = load_predictors(bundles, device)
    if num_workers == 1:
        load = partial(load_predictors, bundles, device)
        Server(predictors, settings, proxies=proxies, load=load).run([listener])
        return
    del predictors  # they were good to read; each worker has its own
    serve_by_workers(bundles, listener, settings, device=device, proxies=proxies, num_workers=num_workers)
