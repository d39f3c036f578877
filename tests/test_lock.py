"""The lock file holds every package by its hash, or is not written; the one in the repository is that of the project as it is."""

import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
TOOL, LOCK = ROOT / "tools" / "lock.py", ROOT / "requirements.lock"
ENVIRONMENT = {"python_version": "3.11", "platform_system": "Linux", "platform_machine": "x86_64"}


def item(name: str, version: str = "1.0", **source: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": "https://x", **source}}


def lock(folder: Path, *items: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    if not TOOL.is_file():
        pytest.skip("the tools lie in the repository only")
    report = folder / "report.json"
    report.write_text(json.dumps({"environment": ENVIRONMENT, "install": items}))
    return subprocess.run([sys.executable, TOOL, report], capture_output=True, text=True, check=False)


def test_packages_stand_by_name_with_their_hash(tmp_path: Path) -> None:
    hashed = [item(name, archive_info={"hashes": {"sha256": name * 3}}) for name in ("Zebra", "ant")]
    done = lock(tmp_path, *hashed, item("msrn", dir_info={"editable": True}))
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("#", "--"))]
    assert lines == ["ant==1.0 --hash=sha256:antantant", "zebra==1.0 --hash=sha256:ZebraZebraZebra"]


@pytest.mark.parametrize("source", [{}, {"archive_info": {}}, {"archive_info": {"hashes": {"md5": "1"}}}])
def test_a_package_without_a_hash_is_not_passed_over(tmp_path: Path, source: dict[str, Any]) -> None:
    done = lock(tmp_path, item("ant", **source))
    assert done.returncode == 1
    assert "pip tells no SHA-256 of ant" in done.stderr


def test_a_torch_that_the_named_index_does_not_have_is_not_locked(tmp_path: Path) -> None:
    source = {"archive_info": {"hashes": {"sha256": "1"}}}
    assert lock(tmp_path, item("torch", "2.0+cpu", **source)).returncode == 0
    done = lock(tmp_path, item("torch", "2.0", **source))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip found torch 2.0, which is no build for CPUs. Lock again with PIP_EXTRA_INDEX_URL=" in done.stderr


# The repository's own


@pytest.fixture(scope="module")
def locked() -> dict[str, Version]:
    if not LOCK.is_file():
        pytest.skip("the lock lies in the repository only")
    lines = [line for line in LOCK.read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    found = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines[1:]]
    assert all(found), [line for line, match in zip(lines[1:], found, strict=True) if match is None]
    return {canonicalize_name(match[1]): Version(match[2]) for match in found if match}


def own_requirements(*extras: str) -> Iterator[Requirement]:
    """What the project asks for by itself and by some of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    for requirement in map(Requirement, (line for lines in wanted for line in lines)):
        if requirement.name == project["name"]:
            yield from own_requirements(*requirement.extras)
        else:
            yield requirement


def all_needed(requirement: Requirement, found: set[tuple[str, str]]) -> None:
    """Add a requirement, and what it needs in turn, as (package, extra)."""
    name = canonicalize_name(requirement.name)
    if name.startswith(("nvidia-", "cuda-")):  # of torch's CUDA build; the lock has the CPU's
        return
    for extra in {"", *requirement.extras} - {extra for known, extra in found if known == name}:
        found.add((name, extra))
        for other in map(Requirement, metadata.requires(name) or ()):
            if other.marker is None or other.marker.evaluate({"extra": extra}):
                all_needed(other, found)


def test_every_requirement_is_locked(locked: dict[str, Version]) -> None:
    for requirement in own_requirements("all", "dev"):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock licenses"
        assert requirement.specifier.contains(version), requirement


@pytest.mark.skipif(
    (platform.python_version_tuple()[:2], platform.system(), platform.machine()) != (("3", "11"), "Linux", "x86_64"),
    reason="the lock is for Python 3.11 on Linux (x86_64), and others need other packages",
)
def test_what_those_require_in_turn_is_locked_and_nothing_else(locked: dict[str, Version]) -> None:
    found: set[tuple[str, str]] = set()
    for requirement in own_requirements("all", "dev"):
        all_needed(requirement, found)
    assert {name for name, _ in found} == set(locked)


def test_versions_are_those_that_are_tested(locked: dict[str, Version]) -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    tested = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    assert set(locked) - set(tested) == set()
    assert [name for name, version in locked.items() if not tested[name].contains(version)] == []
    assert [name for name, version in locked.items() if version.local is not None] == [
        "torch"
    ]  # as `make audit` has it


def test_the_licence_of_every_locked_package_is_listed(locked: dict[str, Version]) -> None:
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.+) \| \S+ \|$", (ROOT / "docs" / "licenses.md").read_text(), re.M)
    listed = {canonicalize_name(name): Version(version) for name, version, _ in rows[1:]}
    assert listed == locked
    assert [name for name, _, licence in rows if licence == "UNKNOWN"] == ["axe-playwright-python"]
