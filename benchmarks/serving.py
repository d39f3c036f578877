"""The server under load, beside calling the predictor in a loop.

    python benchmarks/serving.py BUNDLE IMAGE ... --json benchmarks/results/serving.json

In turn, --rounds times: `predictor.predict(image)` in a loop for some seconds, then a server (a process of its own) asked
by 32 clients that each send one image after the other. Clients, server and loop share this machine's processors; the clients'
own processor time is kept, as it is not there for the server. Then ten times as many clients: what is refused, and the
server's memory before and after, once with the default limits (more than 64 requests of an address are answered by 429) and
once with those of an address lifted (more images than may wait are answered by 503).
"""

import argparse
import asyncio
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from msrn.files import write_json
from msrn.machine import machine
from msrn.predict import load

CLIENTS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--loop-seconds", type=float, default=20)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    predictor = load(args.bundle, device="cpu")
    photos = [image.read_bytes() for image in args.images]
    loops: list[float] = []
    rounds: list[dict[str, Any]] = []
    with serving(args.bundle) as server:
        asyncio.run(ask(server, photos, CLIENTS, 3))  # warm up
        for _ in range(args.rounds):
            loops.append(loop(predictor, args.images, args.loop_seconds))
            rounds.append(asyncio.run(ask(server, photos, CLIENTS, args.seconds)))
            print(f"loop {loops[-1]:.1f} images a second, {rounds[-1]}")
    found: dict[str, Any] = {
        "machine": machine(),
        "backbone": predictor.bundle.architecture.get("backbone"),
        "size": list(predictor.bundle.preprocessing.size),
        "clients": CLIENTS,
        "seconds": args.seconds,
        "loop_rate": loops,
        "rounds": rounds,
        "ratio": [own["rate"] / rate for own, rate in zip(rounds, loops, strict=True)],
        "overload": {},
    }
    for name, options in {
        "default limits": [],
        "no limit of an address": ["--max-requests", "100000", "--max-waiting", "64"],
    }.items():
        with serving(args.bundle, *options) as server:
            asyncio.run(ask(server, photos, CLIENTS, 5))
            memory = [resident(server["pid"])]
            thirds = []
            for _ in range(3):
                thirds.append(asyncio.run(ask(server, photos, 10 * CLIENTS, args.seconds / 3)))
                memory.append(resident(server["pid"]))
            own = together(thirds)
            found["overload"][name] = {**own, "clients": 10 * CLIENTS, "megabytes_before_and_after_each_third": memory}
            print(name, found["overload"][name])
    print(f"ratio to the loop: median {statistics.median(found['ratio']):.2f} of {found['ratio']}")
    write_json(args.json, found)


@contextlib.contextmanager
def serving(bundle: str, *options: str) -> Iterator[dict[str, Any]]:
    """A server at a free port."""
    command = [sys.executable, "-c", "from msrn.cli.main import main; main()", "serve", bundle, "--port", "0"]
    process = subprocess.Popen([*command, "--log-level", "warning", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        time.sleep(1)
        yield {"url": found.group(), "pid": process.pid}
    finally:
        process.terminate()
        print(f"the server ended with {process.wait()}")


def resident(pid: int) -> float:
    """Memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def loop(predictor: Any, images: list[Path], seconds: float) -> float:
    """Images a second, one at a time."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        predictor.predict(images[count % len(images)])
        count += 1
    return count / (time.perf_counter() - start)


async def ask(server: dict[str, Any], photos: list[bytes], num_clients: int, seconds: float) -> dict[str, Any]:
    """Clients that each send one image after the other."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    used, start = time.process_time(), time.perf_counter()

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        count = number
        while time.perf_counter() - start < seconds:
            form = aiohttp.FormData()
            form.add_field("images", photos[count % len(photos)], filename="photo.jpg", content_type="image/jpeg")
            sent = time.perf_counter()
            try:
                async with session.post(f"{server['url']}/v1/predict", data=form) as answer:
                    await answer.read()
                    status = str(answer.status)
            except (aiohttp.ClientError, OSError) as error:
                status = type(error).__name__
            statuses[status] += 1
            if status == "200":
                latencies.append(time.perf_counter() - sent)
            else:
                await asyncio.sleep(0.25)  # as a client does that is told to wait
            count += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, number) for number in range(num_clients)))
    taken = time.perf_counter() - start
    latencies.sort()
    return {
        "rate": statuses["200"] / taken,
        "statuses": dict(statuses),
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[int(0.99 * len(latencies))],
        "processor_seconds_of_clients": time.process_time() - used,
    }


def together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What `ask` found in parts of equal length: their statuses, the mean rate, the greatest latencies."""
    statuses: Counter[str] = Counter()
    for part in parts:
        statuses.update(part["statuses"])
    return {
        "rate": statistics.mean(part["rate"] for part in parts),
        "statuses": dict(statuses),
        "p50_ms": max(part["p50_ms"] for part in parts),
        "p99_ms": max(part["p99_ms"] for part in parts),
        "processor_seconds_of_clients": sum(part["processor_seconds_of_clients"] for part in parts),
    }


if __name__ == "__main__":
    main()
