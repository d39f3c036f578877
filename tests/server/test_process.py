"""A server as a process: signals, workers, what it refuses to start with."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import run
from running_server import running_server
from tiny_bundle import noise
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from msrn.errors import MSRNError
from msrn.server.models import load_predictors
from msrn.server.process import Server
from msrn.server.run import check_proxies
from msrn.server.settings import ServerSettings


def files(count: int) -> list[tuple[str, tuple[str, bytes, str]]]:
    found = []
    for seed in range(count):
        buffer = io.BytesIO()
        noise(seed).resize((600, 400)).save(buffer, "PNG")
        found.append(("images", (f"{seed}.png", buffer.getvalue(), "image/png")))
    return found


@pytest.mark.fault("SIGTERM while requests are answered")
def test_sigterm_answers_what_was_accepted_and_ends_with_0(
    bundle_dir: Path, tmp_path: Path, lost: Callable[[Any, Any, str], None]
) -> None:
    with running_server(bundle_dir, tmp_path / "log") as server, ThreadPoolExecutor(8) as pool:
        sent = files(24)

        def ask(_: int) -> httpx.Response:
            return httpx.post(
                f"{server.address}/v1/predict", files=sent, timeout=60, headers={"X-Forwarded-For": "10.9.8.7"}
            )

        asked = [pool.submit(ask, number) for number in range(8)]
        while "msrn_batch_size_count" not in (counts := httpx.get(f"{server.address}/metrics").text) or not re.search(
            r'msrn_images_total\{model="\w+"\} [1-9]', counts
        ):
            time.sleep(0.01)  # until the network works on some
        time.sleep(0.2)
        assert server.stop() == 0
        lost([200] * 8, [one.result().status_code for one in asked], "answers")
    lines = (tmp_path / "log").read_text()
    assert {own["client"] for own in _lines(tmp_path / "log", "request")} == {"127.0.0.1"}  # not what a header claims
    assert "Traceback" not in lines
    assert lines.count('"status": 200') >= 8


def test_bundles_are_read_anew_without_a_request_being_dropped(bundle_dir: Path, tmp_path: Path) -> None:
    with running_server(bundle_dir, tmp_path / "log") as server:
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client() as client:
                while not stop.is_set():
                    statuses.append(client.post(f"{server.address}/v1/predict", files=files(1)).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        for number in range(1, 4):
            server.process.send_signal(signal.SIGHUP)
            _wait(lambda number=number: (tmp_path / "log").read_text().count("bundles read anew") == number)
            answered = len(statuses)
            _wait(lambda answered=answered: len(statuses) > answered + 1)
        stop.set()
        thread.join()
        assert len(statuses) > 3
        assert set(statuses) == {200}
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.fault("a body that never ends")
def test_who_stalls_is_not_waited_for(bundle_dir: Path, tmp_path: Path, lost: Callable[[Any, Any, str], None]) -> None:
    """Nor who says nothing; others are answered meanwhile."""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with running_server(bundle_dir, tmp_path / "log", "--timeout", "2", "--max-connections", "4") as server:
        host, _, port = server.address.removeprefix("http://").partition(":")
        clients = [socket.create_connection((host, int(port)), 30) for _ in range(12)]
        clients[-1].sendall(head + b"Content-Length: 1000\r\n\r\n--x\r\n")
        status = httpx.get(f"{server.address}/v1/labels").status_code
        told = [client.makefile("rb").read() for client in clients]  # to the end of the connection
        for client in clients:
            client.close()
    assert told[:-1] == [b""] * 11
    assert b"no answer after 2 seconds" in told[-1]
    lost([200, 504], [status, int(told[-1].split()[1])], "answers")


def test_a_worker_told_to_stop_again_answers_what_it_accepted(bundle_dir: Path, tmp_path: Path) -> None:
    """By its parent, by a system that tells all processes of a service, and by the end of its parent."""
    described = {
        "bundles": {"tiny": str(bundle_dir)},
        "settings": asdict(ServerSettings()),
        "device": "cpu",
        "proxies": None,
        "log_level": "INFO",
        "num_threads": 1,
    }
    part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    body = part + files(1)[0][1][1] + b"\r\n--x--\r\n"
    head = (
        "POST /v1/predict HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "msrn.server.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[listener.fileno()],
        ) as process,
    ):
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps({**described, "listener": listener.fileno()}).encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"ready\n", (tmp_path / "log").read_text()
            with socket.create_connection(listener.getsockname(), timeout=60) as client:
                client.sendall(head.encode())
                assert client.recv(100).startswith(b"HTTP/1.1 100")  # it waits for the body now
                for _ in range(2):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.3)  # a server looks every 0.1 s whether it is to stop
                process.stdin.close()
                time.sleep(0.3)
                client.sendall(body)
                answer = b"".join(iter(lambda: client.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_while_bundles_are_read_nothing_is_answered_sighup_does_nothing_and_sigterm_ends_it(bundle_dir: Path) -> None:
    command = """
import time, msrn.server.run
msrn.server.run.load_predictors = lambda *_: time.sleep(60)
from msrn.cli.main import main
main()
"""
    options = ["serve", str(bundle_dir), "--port", "0"]
    with subprocess.Popen([sys.executable, "-c", command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found
            process.send_signal(signal.SIGHUP)
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(f"{found.group()}/readyz", timeout=0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.fault("a worker of the server that the system kills")
def test_a_killed_worker_comes_back_and_a_reload_is_ended_by_sigterm(
    bundle_dir: Path, tmp_path: Path, lost: Callable[[Any, Any, str], None]
) -> None:
    log, bundle = tmp_path / "log", tmp_path / "bundle"
    shutil.copytree(bundle_dir, bundle)
    with running_server(bundle, log, "--workers", "2") as server:
        _wait(lambda: len(_workers(log)) == 2)
        os.kill(_workers(log)[0], signal.SIGKILL)
        _wait(lambda: len(_workers(log)) == 3)
        asked = [httpx.post(f"{server.address}/v1/predict", files=files(2), timeout=60) for _ in range(6)]
        lost([200] * 6, [answer.status_code for answer in asked], "answers behind it")
        counts = httpx.get(f"{server.address}/metrics").text
        assert "msrn_images_total" in counts
        assert "msrn_waiting_images 0.0" in counts
        (bundle / "model.safetensors").write_bytes(b"")
        server.process.send_signal(signal.SIGHUP)
        _wait(lambda: _lines(log, "the bundles stay as they were"))
        assert "model.safetensors" in _lines(log, "the worker cannot serve")[0]["error"]
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert server.stop() == 0
    assert len(_lines(log, "the worker cannot serve")) == 1  # the second reload did not come so far
    assert "Traceback" not in log.read_text()


def test_what_it_does_not_start_with(bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run(capsys, "serve", tmp_path / "nothing", "--port", "0")
    assert code == 1
    assert "nothing" in error
    _, _, error = run(capsys, "serve", f"a={bundle_dir}", f"a={bundle_dir}")
    assert "two bundles have the name 'a'" in error
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, error = run(capsys, "serve", bundle_dir, "--port", taken.getsockname()[1])
    assert code == 1
    assert "in use" in error


def test_an_empty_key_is_not_taken_for_none(
    bundle_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = run(capsys, "serve", bundle_dir, "--api-key", "")
    assert code == 1
    assert "the API key is empty" in error
    monkeypatch.setenv("MSRN_API_KEY", "")
    code, _, error = run(capsys, "serve", bundle_dir)
    assert code == 1
    assert "unset MSRN_API_KEY" in error


def test_a_second_signal_ends_a_server_at_once_unless_it_is_looked_after(bundle_dir: Path) -> None:
    predictors = load_predictors({"tiny": str(bundle_dir)}, "cpu")
    for is_looked_after in (False, True):
        server = Server(predictors, ServerSettings(), is_looked_after=is_looked_after)
        server.handle_exit(signal.SIGTERM, None)
        assert (server.should_exit, server.force_exit) == (True, False)
        server.handle_exit(signal.SIGTERM, None)
        assert server.force_exit is not is_looked_after


def test_who_asks_is_what_a_proxy_says_only_where_it_is_named(bundle_dir: Path) -> None:
    predictors = load_predictors({"tiny": str(bundle_dir)}, "cpu")
    for proxies, is_believed in ((None, False), ("10.0.0.0/8,127.0.0.1", True)):
        server = Server(predictors, ServerSettings(), proxies=proxies)
        server.config.load()
        assert isinstance(server.config.loaded_app, ProxyHeadersMiddleware) == is_believed
    check_proxies("10.0.0.1, 10.1.0.0/16,*,::1")
    with pytest.raises(MSRNError, match="--proxy takes addresses"):
        check_proxies("nginx")


def _lines(log: Path, message: str) -> list[dict[str, Any]]:
    """Log lines with this message; all of the log is JSON."""
    return [own for line in log.read_text().splitlines() if (own := json.loads(line))["message"] == message]


def _workers(log: Path) -> list[int]:
    return [int(number) for number in re.findall(r"Started server process \[(\d+)\]", log.read_text())]


def _wait(is_done: Any) -> None:
    for _ in range(600):
        if is_done():
            return
        time.sleep(0.1)
    pytest.fail("nothing came of it within a minute")
