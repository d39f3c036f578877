"""What a process that was killed leaves to the first one: half of a batch, the rest of which can no longer be fetched."""

import socket
from multiprocessing.connection import Client
from typing import Any


class Gone:
    """Sent from a process to another, it is rebuilt over a connection that nobody answers."""

    def __reduce__(self) -> tuple[Any, ...]:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            return Client, (nobody.getsockname(),)
