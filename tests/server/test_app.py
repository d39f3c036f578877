"""The interface over HTTP, in process."""

import asyncio
import base64
import copy
import io
import json
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from fastapi.testclient import TestClient
from image_files import bomb, odd_images
from PIL import Image
from tiny_bundle import noise

from msrn.errors import MSRNError
from msrn.predict import Predictor, load
from msrn.server import images, service
from msrn.server.app import create_app
from msrn.server.body import _read_json as read_json
from msrn.server.logs import JsonFormatter
from msrn.server.service import Service
from msrn.server.settings import ServerSettings


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return load(bundle_dir, device="cpu")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    with TestClient(create_app({"tiny": predictor, "again": predictor})) as client:
        yield client


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise(seed).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def files(*data: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{index}.png", own, "image/png")) for index, own in enumerate(data)]


def form(data: bytes) -> bytes:
    """A body with boundary x."""
    return b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n' + data + b"\r\n--x--\r\n"


FORM = "multipart/form-data; boundary=x"


def posted(kind: str) -> dict[str, Any]:
    """What a server hands to the app of a request for labels, besides its body."""
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/predict",
        "query_string": b"",
        "headers": [(b"content-type", kind.encode())],
        "client": ("10.0.0.1", 1),
    }


class Slow:
    """A predictor whose passes go on when the test says so."""

    def __init__(self, predictor: Predictor) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.num_images = 0
        self.predictor = copy.copy(predictor)

        def probs(images: Any) -> Any:
            self.num_images += len(images)
            self.started.set()
            assert self.go.wait(10)
            return predictor.probs(images)

        self.predictor.probs = probs  # type: ignore[method-assign]


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    pytest.fail("nothing came of it within 10 seconds")


def waiting(client: TestClient) -> float:
    """How many images wait."""
    found = re.search(r"^msrn_waiting_images (\S+)", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found.group(1))


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found


def test_a_form_and_json_have_the_answer_of_the_predictor(client: TestClient, predictor: Predictor) -> None:
    data = [png(seed) for seed in range(3)]
    by_form = client.post("/v1/predict", files=files(*data)).json()
    in_json = {"images": [base64.b64encode(own).decode() for own in data]}
    by_json = client.post("/v1/predict", json=in_json).json()
    for found in (by_form, by_json):
        assert found["model"] == "tiny"
        for own, image in zip(found["predictions"], data, strict=True):
            expected = predictor.predict(Image.open(io.BytesIO(image)))[0].labels
            assert [label["name"] for label in own["labels"]] == [label.name for label in expected]
            for label, other in zip(own["labels"], expected, strict=True):
                assert abs(label["probability"] - other.probability) < 1e-4
    assert [own["name"] for own in by_form["predictions"]] == ["0.png", "1.png", "2.png"]
    assert (by_form["predictions"][0]["width"], by_form["predictions"][0]["height"]) == noise(0).size


def test_thresholds_and_numbers_of_labels(client: TestClient) -> None:
    everything = client.post("/v1/predict", files=files(png()), data={"threshold": "0"}).json()
    labels = everything["predictions"][0]["labels"]
    assert len(labels) == 6
    assert [own["probability"] for own in labels] == sorted((own["probability"] for own in labels), reverse=True)
    two = client.post("/v1/predict", files=files(png()), data={"top_k": "2", "model": "again"}).json()
    assert two["model"] == "again"
    assert [own["name"] for own in two["predictions"][0]["labels"]] == [own["name"] for own in labels[:2]]


def test_what_is_refused(client: TestClient) -> None:
    assert (
        "threshold" in problem(client.post("/v1/predict", files=files(png()), data={"threshold": "2"}), 422)["detail"]
    )
    assert "x" in problem(client.post("/v1/predict", files=files(png()), data={"x": "2"}), 422)["detail"]
    assert "tiny, again" in problem(client.post("/v1/predict", files=files(png()), data={"model": "no"}), 404)["detail"]
    assert "32" in problem(client.post("/v1/predict", files=files(*[png()] * 33)), 413)["detail"]
    assert problem(client.post("/v1/predict", files=files(png(), b"<svg/>")), 415)["image"] == 1
    assert problem(client.post("/v1/predict", files=files(png()[:200])), 422)["image"] == 0
    problem(client.post("/v1/predict", files=[("photo", ("a.png", png(), "image/png"))]), 422)
    problem(client.post("/v1/predict", data={"images": "text"}), 415)
    problem(client.post("/v1/predict", content=b"abc", headers={"content-type": "text/plain"}), 415)
    problem(client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"}), 422)
    problem(client.post("/v1/predict", content=b"[1]", headers={"content-type": "application/json"}), 422)
    problem(client.post("/v1/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 422)
    problem(client.post("/v1/predict", json={"images": []}), 422)
    problem(client.post("/v1/predict", json={"images": ["data:image/png;base64,AAAA"]}), 422)
    problem(client.post("/v1/predict", json={"images": 5}), 422)
    problem(client.get("/v1/predict"), 405)
    problem(client.get("/v1/nothing"), 404)


@pytest.mark.parametrize(("data", "status"), odd_images().values(), ids=odd_images())
def test_odd_images_have_the_right_answer(client: TestClient, predictor: Predictor, data: bytes, status: int) -> None:
    answer = client.post("/v1/predict", files=files(data), data={"threshold": "0"})
    if status != 200:
        assert problem(answer, status)["image"] == 0
        return
    found = answer.json()["predictions"][0]
    with Image.open(io.BytesIO(data)) as image:
        expected = {own.name: own.probability for own in predictor.predict(image, threshold=0.0)[0].labels}
    for label in found["labels"]:
        assert abs(label["probability"] - expected[label["name"]]) < 1e-4


@pytest.mark.fault("a request with more bytes than the server takes")
def test_a_large_request_is_not_read(predictor: Predictor, lost: Callable[[Any, Any, str], None]) -> None:
    app = create_app({"tiny": predictor}, ServerSettings(max_request_bytes=1000))

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with TestClient(app) as client:
        problem(client.post("/v1/predict", content=b" " * 1001, headers={"content-type": "application/json"}), 413)
        problem(client.post("/v1/predict", content=chunks(), headers={"content-type": "application/json"}), 413)
        lost(
            [200],
            [client.post("/v1/predict", content=form(tiny_png()), headers={"content-type": FORM}).status_code],
            "others",
        )


@pytest.mark.fault("a file with more bytes or pixels than the server takes")
def test_a_large_image_is_not_decoded(predictor: Predictor, lost: Callable[[Any, Any, str], None]) -> None:
    app = create_app({"tiny": predictor}, ServerSettings(max_image_bytes=30_000, max_pixels=1_000_000))
    data = [png(), png() + bytes(30_000), bomb(1001, 1000), bomb(60_000, 60_000), png()]
    with TestClient(app) as client:
        answers = [client.post("/v1/predict", files=files(own)) for own in data]
    for answer, word in zip(answers[1:4], ("30,000 bytes", "1,000,000 pixels", "1,000,000 pixels"), strict=True):
        assert word in problem(answer, 413)["detail"]
    lost([200, 200], [answers[0].status_code, answers[4].status_code], "other answers")


@pytest.mark.fault("more images than may wait")
def test_a_full_queue(predictor: Predictor, lost: Callable[[Any, Any, str], None]) -> None:
    slow = Slow(predictor)
    settings = ServerSettings(max_images=2, max_waiting=2, num_streams=1, batch_size=1)
    with TestClient(create_app({"tiny": slow.predictor}, settings)) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/predict", files=files(png()))
        assert slow.started.wait(10)
        second = pool.submit(client.post, "/v1/predict", files=files(png(), png()))
        wait_until(lambda: waiting(client) == 2)
        answer = client.post("/v1/predict", files=files(png()))
        assert "2 images wait" in problem(answer, 503)["detail"]
        assert answer.headers["retry-after"] == "1"
        slow.go.set()
        lost([200, 200], [own.result().status_code for own in (first, second)], "requests that waited")


def test_a_passed_deadline(predictor: Predictor) -> None:
    with TestClient(create_app({"tiny": predictor}, ServerSettings(timeout=0.0))) as client:
        problem(client.post("/v1/predict", files=files(png())), 504)


def test_a_client_has_so_many_requests_at_a_time_and_the_others_are_counted_at_their_address(
    predictor: Predictor,
) -> None:
    slow = Slow(predictor)
    app = create_app({"tiny": slow.predictor}, ServerSettings(max_requests_of_client=1))
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/predict", files=files(png()))
        assert slow.started.wait(10)
        answer = client.post("/v1/predict", files=files(png()))
        assert "1 requests at a time" in problem(answer, 429)["detail"]
        assert answer.headers["retry-after"] == "1"
        problem(client.get("/v1/nothing"), 429)
        assert client.get("/healthz").status_code == 200
        slow.go.set()
        assert first.result().status_code == 200
        assert client.post("/v1/predict", files=files(png())).status_code == 200
        text = client.get("/metrics").text
    for path, status, count in (("/v1/predict", 200, 2), ("/v1/predict", 429, 1), ("other", 429, 1)):
        assert f'msrn_requests_total{{path="{path}",status="{status}"}} {count}.0' in text


def test_requests_under_way_have_so_many_bytes_together_until_their_images_are_decoded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, reading, go = Slow(predictor), threading.Event(), threading.Event()
    decode = service.decode

    def slowly(*args: Any, **options: Any) -> Any:
        reading.set()
        assert go.wait(10)
        return decode(*args, **options)

    monkeypatch.setattr(service, "decode", slowly)
    body = form(png())
    most = len(body) * 3 // 2
    settings = ServerSettings(max_request_bytes=most, max_total_bytes=most, num_streams=1, batch_size=1)
    with TestClient(create_app({"tiny": slow.predictor}, settings)) as client, ThreadPoolExecutor(2) as pool:

        def ask(content: Any = body) -> Any:
            return client.post("/v1/predict", content=content, headers={"content-type": FORM})

        first = pool.submit(ask)
        assert reading.wait(10)
        for content in (body, iter([body[:100], body[100:]])):  # with a length beforehand and without one
            answer = ask(content)
            assert f"{most:,} bytes together" in problem(answer, 503)["detail"]
            assert answer.headers["retry-after"] == "1"
        go.set()
        assert slow.started.wait(10)
        second = pool.submit(ask)  # the first is decoded now, though not answered yet
        wait_until(lambda: waiting(client) == 1)
        slow.go.set()
        assert [own.result().status_code for own in (first, second)] == [200, 200]
        assert ask(body[:-10]).status_code == 422
        assert ask().status_code == 200


def ask_in_one_batch(predictor: Predictor, probs: Callable[[Any], Any], *data: bytes) -> list[Any]:
    """The answers to some images, a request each, that go through the network together; `probs` are its numbers."""
    slow = Slow(predictor)
    first = slow.predictor.probs
    sizes: list[int] = []

    def work(images: Any) -> Any:
        sizes.append(len(images))
        return first(images) if len(sizes) == 1 else probs(images)

    slow.predictor.probs = work  # type: ignore[method-assign]
    settings = ServerSettings(num_streams=1)
    with TestClient(create_app({"tiny": slow.predictor}, settings)) as client, ThreadPoolExecutor(8) as pool:
        before = pool.submit(client.post, "/v1/predict", files=files(png()))
        assert slow.started.wait(10)
        asked = []
        for number, own in enumerate(data):
            asked.append(pool.submit(client.post, "/v1/predict", files=files(own)))
            wait_until(lambda number=number: waiting(client) == number + 1)  # type: ignore[misc]
        slow.go.set()
        assert before.result().status_code == 200
        answers = [own.result() for own in asked]
    assert sizes[1] == len(data)
    return answers


def beyond_memory() -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.fault("memory that runs out while a batch goes through the network")
@pytest.mark.parametrize("most", [1, 0])
def test_memory_that_runs_out(predictor: Predictor, lost: Callable[[Any, Any, str], None], most: int) -> None:
    def probs(images: Any) -> Any:
        if len(images) > most:
            beyond_memory()
        return predictor.probs(images)

    answers = ask_in_one_batch(predictor, probs, png(), png(1))
    if not most:
        for answer in answers:
            assert "Try again in a moment" in problem(answer, 503)["detail"]
            assert answer.headers["retry-after"] == "1"
    lost([200 if most else 503] * 2, [answer.status_code for answer in answers], "answers")


def test_memory_that_runs_out_while_an_image_is_decoded_is_no_damage(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(image: Any) -> Any:
        return bytearray(2**60)

    monkeypatch.setattr(images, "to_rgb", run_out)
    with TestClient(create_app({"tiny": predictor})) as client:
        assert "memory" in problem(client.post("/v1/predict", files=files(png())), 503)["title"]


@pytest.mark.fault("an image for which the network gives no number")
def test_no_finite_numbers(predictor: Predictor, lost: Callable[[Any, Any, str], None]) -> None:
    """Only its own request has the error."""
    data = [png(), png(1), png(2)]
    (bad,) = predictor.bundle.preprocessing(noise(1)).unsqueeze(0)

    def probs(images: Any) -> Any:
        at_fault = (images == bad).flatten(1).all(dim=1)
        return predictor.probs(torch.where(at_fault[:, None, None, None], torch.nan, images))

    answers = ask_in_one_batch(predictor, probs, *data)
    assert "not finite" in problem(answers[1], 500)["detail"]
    lost([200, 500, 200], [answer.status_code for answer in answers], "answers")


def test_who_leaves_before_the_answer_is_not_worked_for(predictor: Predictor, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(predictor)
    app = create_app({"tiny": slow.predictor}, ServerSettings(num_streams=1, batch_size=1))
    messages, sent = [{"type": "http.request", "body": form(png()), "more_body": False}], []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        with app.state.models.use(None) as own:
            while not len(own.batcher):
                await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/v1/predict", files=files(png()))
        assert slow.started.wait(10)
        assert client.portal is not None
        client.portal.call(app, posted(FORM), receive, send)
        slow.go.set()
        assert first.result().status_code == 200
        assert client.post("/v1/predict", files=files(png())).status_code == 200
        assert 'path="/v1/predict",status="499"} 1.0' in client.get("/metrics").text
    assert sent == []
    assert slow.num_images == 2
    assert [own for own in caplog.records if own.levelname == "ERROR"] == []


def test_it_is_not_ready_before_and_after_it_serves(predictor: Predictor) -> None:
    app = create_app({"tiny": predictor})
    client = TestClient(app)  # without its block the app is not started
    assert client.get("/healthz").status_code == 200
    problem(client.get("/readyz"), 503)
    with TestClient(app) as started:
        assert started.get("/readyz").status_code == 200
    problem(client.get("/readyz"), 503)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_images": 8, "max_waiting": 7}, "Give --max-waiting 8 or more, or --max-images 7 or less"),
        ({"max_request_bytes": 5_000_001, "max_total_bytes": 5_000_000}, "Give --max-total-megabytes 6 or more"),
    ],
)
def test_limits_that_would_always_refuse_a_large_request_are_refused(limits: dict[str, int], message: str) -> None:
    with pytest.raises(MSRNError, match=message):
        ServerSettings(**limits)  # type: ignore[arg-type]


def test_long_text_is_refused_and_not_sent_back(client: TestClient) -> None:
    image, long = base64.b64encode(png()).decode(), "x" * 1001
    for answer in (
        client.post("/v1/explain", json={"images": [image], "labels": [long]}),
        client.post("/v1/explain", files=files(png()), data={"labels": long}),
    ):
        assert "labels.0: String should have at most 1000 characters" in problem(answer, 422)["detail"]
    for address, options in (
        ("explain", {"labels": [long[:1000]]}),
        ("predict", {long: 1}),
        ("predict", {"top_k": long}),
    ):
        answer = client.post(f"/v1/{address}", json={"images": [image], **options})
        assert len(problem(answer, 422)["detail"]) < 200
    assert len(problem(client.post(f"/v1/predict?{long}=1", files=files(png())), 422)["detail"]) < 200
    answer = client.post("/v1/predict", content=b"", headers={"content-type": long})
    assert len(problem(answer, 415)["detail"]) < 200


def test_browsers_ask_whether_the_page_is_still_the_same(client: TestClient) -> None:
    answer = client.get("/static/page.js")
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get("/static/page.js", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


def test_a_key(predictor: Predictor) -> None:
    with TestClient(create_app({"tiny": predictor}, ServerSettings(api_key="secret +1"))) as client:
        for headers in (
            {},
            {"X-API-Key": "other"},
            {"Authorization": "secret +1"},
            {"Authorization": "Basic secret +1"},
        ):
            assert problem(client.get("/v1/labels", headers=headers), 401)
            assert problem(client.get("/metrics", headers=headers), 401)
        assert problem(client.get("/v1/labels", headers={"X-API-Key": "gehéim".encode()}), 401)
        for name, value in (
            ("Authorization", "Bearer secret +1"),
            ("authorization", "bearer secret +1"),
            ("X-API-Key", "secret +1"),
        ):
            assert client.get("/v1/labels", headers={name: value}).status_code == 200
            assert client.get("/metrics", headers={name: value}).status_code == 200
        assert client.get("/readyz").status_code == 200
        described = client.get("/openapi.json").json()
        schemes = {(own["type"], own.get("scheme")) for own in described["components"]["securitySchemes"].values()}
        assert schemes == {("http", "bearer"), ("apiKey", None)}
        assert described["paths"]["/v1/predict"]["post"]["security"]


@pytest.mark.parametrize("key", ["gehéim", "ключ", "two\nlines", " ", "", " key"])
def test_a_key_that_no_header_holds_is_refused(key: str) -> None:
    with pytest.raises(MSRNError, match="printable ASCII"):
        ServerSettings(api_key=key)


def test_pillows_limit_is_never_the_one_that_counts() -> None:
    with pytest.raises(MSRNError, match="178"):
        ServerSettings(max_pixels=179_000_000)


def test_json_with_millions_of_values_is_refused_before_it_is_decoded(client: TestClient) -> None:
    for body in (
        b'{"images": [' + b'"",' * 2_000_000 + b'""]}',
        b'{"images": ["AAAA"], "labels": [' + b"1," * 2_000_000 + b"1]}",
    ):
        answer = client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
        assert "32 images" in problem(answer, 413)["detail"]
    assert "32 images" in problem(client.post("/v1/predict", json={"images": ["!"] * 33}), 413)["detail"]


def test_base64_is_decoded_beside_the_event_loop(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    decode = base64.b64decode

    def watched(*args: Any, **options: Any) -> bytes:
        with pytest.raises(RuntimeError):  # no loop runs in this thread
            asyncio.get_running_loop()
        threads.append(threading.current_thread().name)
        return decode(*args, **options)

    monkeypatch.setattr(base64, "b64decode", watched)
    assert client.post("/v1/predict", json={"images": [base64.encodebytes(png()).decode()]}).status_code == 200
    assert len(threads) == 1


def test_labels_are_listed_and_ranked_beside_the_event_loop(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10,000 labels this takes seconds, in which others are answered."""
    seen: list[str] = []

    def beside(name: str) -> None:
        with pytest.raises(RuntimeError):  # no loop runs in this thread
            asyncio.get_running_loop()
        seen.append(name)

    labels, rank, own = Service.labels, predictor.rank, copy.copy(predictor)
    monkeypatch.setattr(Service, "labels", property(lambda self: (beside("labels"), labels.func(self))[1]))
    monkeypatch.setattr(own, "rank", lambda *args, **options: (beside("rank"), rank(*args, **options))[1])
    with TestClient(create_app({"tiny": own})) as client:
        assert len(client.get("/v1/labels").json()["labels"]) == 6
        assert client.post("/v1/predict", files=files(png())).status_code == 200
    assert seen == ["labels", "rank"]


def test_a_large_image_in_json_is_refused_before_it_is_decoded(predictor: Predictor) -> None:
    with TestClient(create_app({"tiny": predictor}, ServerSettings(max_image_bytes=30))) as client:
        asked = problem(client.post("/v1/predict", json={"images": ["AAAA", "?" * 44]}), 413)
        assert asked["image"] == 1
        assert "30 bytes, this one has 33" in asked["detail"]


@pytest.mark.parametrize("image", [b"ab ", b"\\n", b"abcd"], ids=["words", "lines", "letters"])
def test_json_takes_a_few_times_its_size(image: bytes) -> None:
    body = b'{"images": ["' + image * (1_200_000 // len(image)) + b'"]}'
    tracemalloc.start()
    try:
        _, uploads = read_json(body, ServerSettings(), 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(uploads[0].data) <= 3 * len(body) // 4
    assert peak < 4 * len(body)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_who_leaves_while_sending_is_no_error_of_the_server(
    client: TestClient, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": b'--x\r\nContent-Disposition: form-data; name="ima', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    assert client.portal is not None
    with caplog.at_level("INFO", "msrn.server"):
        client.portal.call(client.app, posted(kind), receive, send)
    assert sent == []
    (line,) = caplog.records
    assert (line.levelname, line.fields["status"], line.exc_info) == ("INFO", 499, None)  # type: ignore[attr-defined]
    assert 'status="499"' in client.get("/metrics").text


def test_an_error_that_nobody_foresaw_has_every_header_and_is_found_in_the_log(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise KeyError("no")

    monkeypatch.setattr(Service, "tag", fail)
    answer = client.post("/v1/predict", files=files(png()), headers={"X-Request-ID": "mine-2"})
    assert "X-Request-ID" in problem(answer, 500)["detail"]
    assert answer.headers["x-request-id"] == "mine-2"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    (line,) = [json.loads(JsonFormatter().format(own)) for own in caplog.records if own.levelname == "ERROR"]
    assert line["request"] == "mine-2"
    assert "KeyError" in line["exception"]


def test_text_that_utf8_cannot_hold_is_answered(client: TestClient) -> None:
    lone = "\ud800"
    image = base64.b64encode(png()).decode()
    for address, options in (
        ("explain", {"labels": [lone]}),
        ("predict", {lone: 1}),
        ("predict", {"threshold": lone}),
    ):
        body = json.dumps({"images": [image], **options}).encode()
        answer = client.post(f"/v1/{address}", content=body, headers={"content-type": "application/json"})
        problem(answer, 422)
    form = (
        b'--x\r\nContent-Disposition: form-data; name="images"; filename="\\\\ud800"\r\n\r\n' + png() + b"\r\n--x--\r\n"
    )
    for charset in ("unicode_escape", "idna", "zlib", "no"):
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        assert client.post("/v1/predict", content=form, headers=headers).status_code in {200, 422}


def test_options_in_the_wrong_place_or_twice_are_refused(client: TestClient) -> None:
    asked = problem(client.post("/v1/predict?threshold=0", files=files(png())), 422)
    assert "threshold in the address" in asked["detail"]
    asked = problem(client.post("/v1/predict", files=files(png()), data={"threshold": ["0", "1"]}), 422)
    assert "'threshold' is there more than once" in asked["detail"]
    body = b'{"images": [], "top_k": 1, "top_k": 2}'
    answer = client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert "'top_k' is there more than once" in problem(answer, 422)["detail"]


def test_a_form_that_was_cut_off_is_told_so(client: TestClient) -> None:
    whole, headers = form(png()), {"content-type": FORM}
    assert client.post("/v1/predict", content=whole, headers=headers).status_code == 200
    assert "cut off" in problem(client.post("/v1/predict", content=whole[:-10], headers=headers), 422)["detail"]


def test_a_slow_pass_is_given_up_and_its_client_may_ask_again(predictor: Predictor) -> None:
    slow = copy.copy(predictor)
    go = threading.Event()
    slow.probs = lambda images: (go.wait(10), predictor.probs(images))[1]  # type: ignore[method-assign]
    settings = ServerSettings(timeout=0.3, max_requests_of_client=1, num_streams=1)
    with TestClient(create_app({"tiny": slow}, settings)) as client:
        assert "0.3 seconds" in problem(client.post("/v1/predict", files=files(png())), 504)["detail"]
        go.set()
        for _ in range(2):
            assert client.post("/v1/predict", files=files(png())).status_code == 200
            problem(client.post("/v1/predict", files=files(b"no")), 415)


def test_images_that_wait_are_counted_and_those_to_be_explained_wait_as_files(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, decoded = Slow(predictor), []
    decode = service.decode

    def watched(*args: Any, **options: Any) -> Any:
        decoded.append(args)
        return decode(*args, **options)

    monkeypatch.setattr(service, "decode", watched)
    app = create_app({"tiny": slow.predictor}, ServerSettings(num_streams=1, batch_size=1))
    with TestClient(app) as client, ThreadPoolExecutor(3) as pool:
        assert waiting(client) == 0
        first = pool.submit(client.post, "/v1/predict", files=files(png()))
        assert slow.started.wait(10)
        others = [pool.submit(client.post, "/v1/explain", files=files(png())) for _ in range(2)]
        wait_until(lambda: waiting(client) == 1)
        assert len(decoded) == 1
        slow.go.set()
        assert {own.result().status_code for own in (first, *others)} == {200}
        assert waiting(client) == 0
        assert len(decoded) == 3


def test_head(client: TestClient) -> None:
    for path in ("/", "/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_an_explanation(client: TestClient, predictor: Predictor) -> None:
    found = client.post("/v1/explain", files=files(png(3)), data={"labels": ["dog", "sun & <sea>"]}).json()
    expected = predictor.explain(noise(3), ["dog", "sun & <sea>"])
    assert [label["name"] for label in found["labels"]] == ["dog", "sun & <sea>"]
    assert (found["is_calibrated"], found["note"]) == (True, None)
    for column, label in enumerate(found["labels"]):
        assert abs(label["logit"] - float(expected.parts.logits[0, column])) < 1e-4
        stages = {own["stage"]: own for own in label["maps"]}
        assert list(stages) == ["all", "stage 1", "stage 2", "stage 3", "residual"]
        assert max(stages["all"]["height"], stages["all"]["width"]) == 56
        assert len(stages["all"]["values"]) == stages["all"]["height"]
    problem(client.post("/v1/explain", files=files(png()), data={"labels": "cow"}), 422)
    problem(client.post("/v1/explain", files=files(png(), png())), 413)


def test_labels_and_model(client: TestClient, predictor: Predictor) -> None:
    found = client.get("/v1/labels").json()["labels"]
    assert tuple(own["name"] for own in found) == predictor.label_names
    assert {own["threshold"] for own in found} == {0.5}
    model = client.get("/v1/model", params={"model": "again"}).json()
    assert model["name"] == "again"
    assert model["models"] == ["tiny", "again"]
    assert model["can_explain"]
    problem(client.get("/v1/model", params={"model": "no"}), 404)


def test_counts_and_headers(client: TestClient) -> None:
    answer = client.get("/healthz", headers={"X-Request-ID": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    client.post("/v1/predict", files=files(png(), png()))
    text = client.get("/metrics").text
    assert 'msrn_requests_total{path="/v1/predict",status="200"}' in text
    assert 'msrn_images_total{model="tiny"}' in text


def test_reload_keeps_the_old_when_the_new_cannot_be_read(predictor: Predictor) -> None:
    from msrn.errors import BundleError

    calls: list[str] = []

    def load_again() -> dict[str, Predictor]:
        calls.append("")
        if len(calls) == 1:
            raise BundleError("half written")
        if len(calls) == 2:
            raise OSError("no such disk")
        return {"new": predictor}

    app = create_app({"old": predictor}, load=load_again)
    with TestClient(app) as client:
        assert client.portal is not None
        for _ in range(2):
            client.portal.call(app.state.reload)
            assert client.get("/v1/model").json()["name"] == "old"
        client.portal.call(app.state.reload)
        assert client.get("/v1/model").json()["name"] == "new"
        assert client.post("/v1/predict", files=files(png())).json()["model"] == "new"


def test_the_description_is_whole(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/predict", "/v1/explain", "/v1/labels", "/v1/model", "/healthz", "/readyz", "/metrics"
    }  # fmt: skip
    content = described["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert json.dumps(content["application/json"]["schema"]).count("examples")
    for path in described["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    assert list(answer["content"]) == ["application/problem+json"]


def test_every_example_is_as_its_schema_says(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    found: list[tuple[str, Any, Any]] = []

    def look(node: Any, where: str) -> None:
        if isinstance(node, list):
            for own in node:
                look(own, where)
        elif isinstance(node, dict):
            if "example" in node:  # of a type of content
                found.append((where, node["schema"], node["example"]))
            if isinstance(node.get("examples"), list):  # of a schema
                found.extend((where, node, own) for own in node["examples"])
            for name, own in node.items():
                if name not in {"example", "examples"}:
                    look(own, f"{where}/{name}")

    look(described, "")
    for _, schema, example in found:
        validator = jsonschema.Draft202012Validator({**schema, "components": described["components"]})
        validator.validate(example)
    places = " ".join(where for where, _, _ in found)
    for name in ("PredictResponse", "ExplainResponse", "LabelsResponse", "ModelResponse", "Problem", "Health"):
        assert f"/components/schemas/{name}" in places
    assert "/v1/explain/post/requestBody/content/application/json" in places
    assert "/v1/explain/post/requestBody/content/multipart/form-data" in places
    assert "/metrics/get/responses/200/content/text/plain" in places


def test_the_example_of_a_request_is_answered(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    for path in ("/v1/predict", "/v1/explain"):
        content = described["paths"][path]["post"]["requestBody"]["content"]
        assert client.post(path, json=content["application/json"]["example"]).status_code == 200
