"""Answers to requests that were made from the description alone, right and wrong ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from running_server import RunningServer, running_server
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

OPERATIONS = [
    ("POST", "/v1/predict"),
    ("POST", "/v1/explain"),
    ("GET", "/v1/labels"),
    ("GET", "/v1/model"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def server(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(bundle_dir, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{server.address}/openapi.json")


def test_all_operations_are_tried(api: Any) -> None:
    found = {(own.ok().method.upper(), own.ok().path) for own in api.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_described(
    api: Any, server: RunningServer, method: str, path: str, mode: GenerationMode
) -> None:
    operation = api[path][method]
    if mode.is_negative and method == "GET" and not path.startswith("/v1"):
        return  # nothing can be wrong where nothing is asked

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def check(case: Any) -> None:
        # No schema can say which bytes are an image, so what fits it may be refused.
        answer = case.call_and_validate(excluded_checks=[positive_data_acceptance, negative_data_rejection])
        assert answer.status_code < 500

    check()
    assert "unforeseen" not in server.log.read_text()
