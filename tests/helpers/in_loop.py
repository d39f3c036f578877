"""Coroutines in a loop of their own."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """As `asyncio.run`, in another thread: in this one the browser's loop may run."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, main).result()
