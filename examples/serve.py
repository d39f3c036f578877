"""A program that asks a server: start `msrn serve BUNDLE`, send photos, read labels, then ask why.

    python examples/serve.py BUNDLE IMAGE

Starts the server itself on a free port, prints the labels of the photo and where the first one is in it, and stops the server.
"""

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

bundle, image = sys.argv[1:3]
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "msrn.cli.main", "serve", bundle, "--port", str(port)]
server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ask(path: str, **body: object) -> dict:
    """Send JSON, read JSON."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


while server.poll() is None:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
        break
    except (urllib.error.URLError, ConnectionError):
        time.sleep(0.2)
try:
    photo = base64.b64encode(Path(image).read_bytes()).decode()
    found = ask("/v1/predict", images=[photo], top_k=3)["predictions"][0]
    print([f"{label['name']} {label['probability']:.2f}" for label in found["labels"]])
    why = ask("/v1/explain", images=[photo], labels=[found["labels"][0]["name"]])["labels"][0]
    print(f"{why['name']}: most of it at {why['details']['peak']} (row, column; fractions of the photo)")
finally:
    server.send_signal(signal.SIGTERM)
    print("exit code", server.wait())
