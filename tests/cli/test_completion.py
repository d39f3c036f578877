"""Completion in a real shell, with the script that `msrn --show-completion` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MSRN = Path(sys.executable).with_name("msrn")


@pytest.mark.skipif(
    shutil.which("bash") is None or not MSRN.exists(), reason="needs bash, and msrn beside this interpreter"
)
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["labels", "gr"], ["graph", "groups"]),
        (["train", "voc2007-m"], ["voc2007-mobilenet"]),
        (["train", "scenes", "optimizer.backbone_f"], ["optimizer.backbone_factor="]),
        (["compare", "scenes", "--see"], ["--seeds"]),
        (["train", "mine"], []),  # bash offers files then
    ],
    ids=" ".join,
)
def test_bash_completes(tmp_path: Path, typed: list[str], expected: list[str]) -> None:
    environment = {
        **os.environ,
        "PATH": f"{MSRN.parent}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    shown = subprocess.run(
        ["msrn", "--show-completion", "bash"], capture_output=True, text=True, env=environment, check=True
    )
    words = " ".join(f"'{word}'" for word in ["msrn", *typed])
    (tmp_path / "complete.sh").write_text(
        f"{shown.stdout}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed)}\n"
        'function=$(complete -p msrn | sed -E "s/.*-F ([^ ]+).*/\\1/"); $function msrn\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", tmp_path / "complete.sh"], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == expected, done.stderr
