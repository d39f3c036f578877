"""Folders within each other, as many as nobody means to have."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nested(top: Path, *, depth: int, name: str = "d", file: tuple[str, bytes] | None = None) -> Iterator[Path]:
    """Make folders called `name` below `top`, one in the other, a file in the last; yield its path, and remove them all.

    Names are given one by one, so that the path may be longer than the system takes.
    """
    top.mkdir(parents=True, exist_ok=True)
    handle = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=handle)
        below = os.open(name, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = below
    if file is not None:
        with open(os.open(file[0], os.O_WRONLY | os.O_CREAT, dir_fd=handle), "wb") as opened:  # noqa: PTH123
            opened.write(file[1])
    os.close(handle)
    try:
        yield top.joinpath(*[name] * depth, file[0] if file else "")
    finally:
        subprocess.run(["rm", "-rf", top / name], check=True)  # Python's own removal is of calls within each other
