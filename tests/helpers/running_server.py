"""`msrn serve` as a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class RunningServer:
    """A server that has answered."""

    process: "subprocess.Popen[str]"
    address: str
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def running_server(
    bundle: str | Path, log: Path, *options: str, env: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """Serve a bundle at a free port; killed in the end if it still runs."""
    command = [
        sys.executable,
        "-c",
        "from msrn.cli.main import main; main()",
        "serve",
        str(bundle),
        "--port",
        "0",
        *options,
    ]
    with log.open("w") as lines:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + log.read_text()
        address = found.group()
        while httpx.get(f"{address}/readyz", timeout=60).status_code != 200:
            time.sleep(0.1)
        yield RunningServer(process, address, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        process.stdout.close()
