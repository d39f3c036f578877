"""The lock file: every package that pip reports, by its hash, or none at all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "lock.py"


def item(name: str, **source: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": "1.0"}, "download_info": {"url": "https://x", **source}}


def lock(folder: Path, *items: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    if not TOOL.is_file():
        pytest.skip("the tools lie in the repository only")
    report = folder / "report.json"
    report.write_text(json.dumps({"install": items}))
    return subprocess.run([sys.executable, TOOL, report], capture_output=True, text=True, check=False)


def test_packages_stand_by_name_with_their_hash(tmp_path: Path) -> None:
    hashed = [item(name, archive_info={"hashes": {"sha256": name * 3}}) for name in ("Zebra", "ant")]
    done = lock(tmp_path, *hashed, item("msrn", dir_info={"editable": True}))
    assert done.returncode == 0
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert lines == ["ant==1.0 --hash=sha256:antantant", "zebra==1.0 --hash=sha256:ZebraZebraZebra"]


@pytest.mark.parametrize("source", [{}, {"archive_info": {}}, {"archive_info": {"hashes": {"md5": "1"}}}])
def test_a_package_without_a_hash_is_not_passed_over(tmp_path: Path, source: dict[str, Any]) -> None:
    done = lock(tmp_path, item("ant", **source))
    assert done.returncode == 1
    assert "pip tells no SHA-256 of ant" in done.stderr
