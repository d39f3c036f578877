"""Every reader takes any bytes and says what is wrong with them in its own words; `make fuzz` tries half a million each."""

from pathlib import Path

import pytest
from fuzz_targets import TARGETS, mutate, try_reading
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msrn.errors import MSRNError

EDITS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_files_that_it_takes(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    path = tmp_path / target.name
    assert target.seeds()
    for seed in target.seeds():
        path.write_bytes(seed)
        target.read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.faults()])
def test_files_that_it_refuses(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    path = tmp_path / target.name
    for fault in target.faults():
        path.write_bytes(fault)
        with pytest.raises(MSRNError, match=r"[a-z]"):
            target.read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 99), edits=EDITS)
def test_changed_files(tmp_path: Path, name: str, number: int, edits: list[tuple[int, int, int]]) -> None:
    target = TARGETS[name]
    seeds = target.inputs()
    data = mutate(seeds[number % len(seeds)], edits)
    error = try_reading(target, tmp_path / target.name, data)
    if error is not None:
        raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
