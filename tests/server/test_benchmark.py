"""The benchmark of the server: how parts of a measurement are put together."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")


def test_statuses_of_every_part_count() -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "serving.py"
    spec = importlib.util.spec_from_file_location("serving", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    first = {"rate": 10.0, "statuses": {"200": 5, "500": 1}, "p50_ms": 4.0, "p99_ms": 9.0}
    last = {"rate": 20.0, "statuses": {"200": 7}, "p50_ms": 5.0, "p99_ms": 8.0}
    parts = [{**own, "processor_seconds_of_clients": 1.0} for own in (first, last)]
    assert module.together(parts) == {
        "rate": 15.0,
        "statuses": {"200": 12, "500": 1},
        "p50_ms": 5.0,
        "p99_ms": 9.0,
        "processor_seconds_of_clients": 2.0,
    }
