"""Bundles to and from the hub: the hub's own client, against a small server that speaks its protocol."""

import base64
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import msrn
from msrn.bundle import Bundle, find_bundle, load_bundle, push_bundle, save_bundle
from msrn.data.transforms import Preprocessing
from msrn.errors import BundleError, MSRNError
from msrn.labels import LabelGraph
from msrn.models import build_pooled

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files of one repository, and what was asked."""

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.messages: list[str] = []


def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bytes, kind: str = "application/json", code: int = 200, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.path == "/api/repos/create":
                hub.made.append(json.loads(content))
                self.answer(json.dumps({"url": f"http://{self.headers['Host']}/me/tagger"}).encode())
            elif self.path == "/api/validate-yaml":  # of the model card
                self.answer(b'{"errors": [], "warnings": []}')
            elif "/preupload/" in self.path:
                files = [
                    {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(content)["files"]
                ]
                self.answer(json.dumps({"files": files}).encode())
            elif "/commit/" in self.path:
                for line in map(json.loads, content.splitlines()):
                    if line["key"] == "header":
                        hub.messages.append(line["value"]["summary"])
                    elif line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"http://{self.headers['Host']}/me/tagger/commit/{COMMIT}"
                self.answer(json.dumps({"commitUrl": url, "commitOid": COMMIT, "success": True}).encode())
            else:
                self.answer(b"{}", code=404)

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/me/tagger/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in hub.files.items()
                ]
                self.answer(json.dumps(tree).encode())
            elif path.startswith("/api/models/me/tagger"):
                siblings = [{"rfilename": name, "size": len(data)} for name, data in hub.files.items()]
                self.answer(
                    json.dumps({"id": "me/tagger", "sha": COMMIT, "siblings": siblings, "private": False}).encode()
                )
            elif path.startswith("/me/tagger/resolve/") and path.rpartition("/")[2] in hub.files:
                data = hub.files[path.rpartition("/")[2]]
                self.answer(
                    data, "application/octet-stream", ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT
                )
            else:
                self.answer(b"{}", code=404)

        do_HEAD = do_GET

    return Handler


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


def start(hub_address: str, cache: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A process of its own: the hub's client reads its address when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub_address,
        "HF_HOME": str(cache),
        "HF_TOKEN": "hf_of_nobody",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def folder(label_graph: LabelGraph, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_pooled(label_graph.num_labels, **TINY)
    bundle = Bundle(model, label_graph, {"name": "pooled", **TINY}, Preprocessing((64, 64)))
    folder = save_bundle(bundle, tmp_path / "bundle")
    (folder / "private.txt").write_text("of no concern to others")
    return folder


LOAD = """
import sys, msrn
print(",".join(msrn.load(sys.argv[1]).label_names))
"""


@pytest.mark.slow
def test_there_and_back(hub: Hub, folder: Path, tmp_path: Path) -> None:
    command = ["-m", "msrn.cli.main", "push", folder, "me/tagger", "--private", "--message", "first words"]
    pushed = start(hub.address, tmp_path / "cache", *command)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"{hub.address}/me/tagger/commit/{COMMIT}"
    assert set(hub.files) == {"model.safetensors", "config.json", "README.md"}  # not what else lies there
    assert hub.files["config.json"] == (folder / "config.json").read_bytes()
    assert "private" in (hub.made[0].get("visibility"), *hub.made[0])
    assert hub.messages == ["first words"]

    names = ",".join(load_bundle(folder).label_names)
    for name in ("hub:me/tagger", "hub:me/tagger@main"):
        loaded = start(hub.address, tmp_path / "cache", "-c", LOAD, name)
        assert (loaded.stdout.strip(), loaded.returncode) == (names, 0), loaded.stderr
    # Without a network, what was loaded before is still there, and what was not is named.
    nowhere = "http://127.0.0.1:9"
    loaded = start(nowhere, tmp_path / "cache", "-c", LOAD, "hub:me/tagger")
    assert (loaded.stdout.strip(), loaded.returncode) == (names, 0), loaded.stderr
    command = ["-m", "msrn.cli.main", "predict", "hub:me/other", folder / "private.txt"]
    refused = start(nowhere, tmp_path / "cache", *command)
    assert refused.returncode == 1
    assert "hub:me/other was not found on the Hugging Face hub" in refused.stderr
    assert "Give the bundle folder" in refused.stderr
    refused = start(nowhere, tmp_path / "cache", "-m", "msrn.cli.main", "push", folder, "me/tagger")
    assert refused.returncode == 1
    assert "me/tagger could not be put on the Hugging Face hub" in refused.stderr
    assert "hf auth login" in refused.stderr


def test_names_and_folders_are_checked_first(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MSRNError, match="expected owner/name"):
        push_bundle(folder, "tagger")
    with pytest.raises(BundleError):
        push_bundle(tmp_path, "me/tagger")
    with pytest.raises(BundleError, match="expected hub:owner/name"):
        msrn.load("hub:tagger")
    assert find_bundle(folder) == folder
