"""The interface over HTTP, in process."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from image_files import odd_images
from PIL import Image
from tiny_bundle import noise

from msrn.predict import Predictor, load
from msrn.server.app import create_app
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


def files(*data: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{index}.png", own, "image/png")) for index, own in enumerate(data)]


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


def test_a_large_request_is_not_read(predictor: Predictor) -> None:
    app = create_app({"tiny": predictor}, ServerSettings(max_request_bytes=1000))

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with TestClient(app) as client:
        problem(client.post("/v1/predict", content=b" " * 1001, headers={"content-type": "application/json"}), 413)
        problem(client.post("/v1/predict", content=chunks(), headers={"content-type": "application/json"}), 413)


def test_a_full_queue_and_a_passed_deadline(predictor: Predictor) -> None:
    with TestClient(create_app({"tiny": predictor}, ServerSettings(max_waiting=2))) as client:
        answer = client.post("/v1/predict", files=files(*[png()] * 3))
        problem(answer, 503)
        assert answer.headers["retry-after"] == "1"
    with TestClient(create_app({"tiny": predictor}, ServerSettings(timeout=0.0))) as client:
        problem(client.post("/v1/predict", files=files(png())), 504)
    with TestClient(create_app({"tiny": predictor}, ServerSettings(max_requests_of_client=0))) as client:
        problem(client.post("/v1/predict", files=files(png())), 429)
        assert client.get("/healthz").status_code == 200


def test_a_key(predictor: Predictor) -> None:
    with TestClient(create_app({"tiny": predictor}, ServerSettings(api_key="gehéim"))) as client:
        assert problem(client.get("/v1/labels"), 401)
        assert problem(client.get("/v1/labels", headers={"X-API-Key": "other"}), 401)
        for name, value in (("Authorization", "Bearer gehéim"), ("X-API-Key", "gehéim")):
            assert client.get("/v1/labels", headers={name: value.encode()}).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_an_explanation(client: TestClient, predictor: Predictor) -> None:
    found = client.post("/v1/explain", files=files(png(3)), data={"labels": ["dog", "sun & <sea>"]}).json()
    expected = predictor.explain(noise(3), ["dog", "sun & <sea>"])
    assert [label["name"] for label in found["labels"]] == ["dog", "sun & <sea>"]
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
        return {"new": predictor}

    app = create_app({"old": predictor}, load=load_again)
    with TestClient(app) as client:
        assert client.portal is not None
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
