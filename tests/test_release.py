"""What is released: a wheel and an sdist that hold what they should, installed into an empty environment and used there."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("py.typed", "recipes/photos.yaml", "report/templates/", "server/static/index.html", "cli/doctor.py")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make release` has built, or built here."""
    if folder := os.environ.get("MSRN_DIST"):
        return (ROOT / folder).resolve()
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_both_hold_what_they_should(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert all(any(f"msrn/{part}" in name for name in names) for part in PARTS)
    assert not [name for name in names if name.startswith("tests/")]
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert all(any(f"src/msrn/{part}" in name for name in names) for part in PARTS)
    assert any(name.endswith("/LICENSE") for name in names)
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    command = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{wheel}[train,report]"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, env=environment)

    def msrn(*words: str) -> str:
        given = [tmp_path / "env" / "bin" / "msrn", *words]
        done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert msrn("--version").startswith("msrn ")
    assert "PyTorch" in msrn("doctor")
    assert "MSRN on the test split, read once" in msrn("demo", "--epochs", "1", "--out", "demo")
    picture = "demo/data/images/test/00000.jpg"
    assert "labels" in msrn("predict", "demo/bundle", picture, "--top", "3", "--json", "-")
    assert "logit" in msrn("explain", "demo/bundle", picture, "--top", "1", "--out", "why")
