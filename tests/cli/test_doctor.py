"""`msrn doctor` and `msrn recipe`."""

import json
from typing import Any

import pytest
import torch
import yaml
from command_line import run

from msrn import machine
from msrn.recipes import list_recipes, load_recipe


def test_doctor_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert f"torch {torch.__version__}" in out
    code, out, _ = run(capsys, "doctor", "--json", "-")
    found = json.loads(out)
    assert found["versions"]["torch"] == torch.__version__
    assert all(extra["missing"] == [] for name, extra in found["extras"].items() if name != "kernels")


def test_doctor_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: None if name in ("lightning", "fastapi") else real(name))
    found = json.loads(run(capsys, "doctor", "--json", "-")[1])["extras"]
    assert {name: extra["missing"] for name, extra in found.items() if extra["missing"]} == {
        "train": ["lightning"],
        "server": ["fastapi"],
    }
    assert "pip install 'msrn[train]'" in run(capsys, "doctor")[1]


def test_extras_are_those_of_the_package() -> None:
    """None is forgotten."""
    from importlib.metadata import metadata

    extras = set(metadata("msrn").get_all("Provides-Extra") or ())
    assert extras - {"all", "dev", "docs"} == set(machine._EXTRAS)


def test_recipes_are_listed_shown_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    said: dict[str, Any] = json.loads(run(capsys, "recipe", "list", "--json", "-")[1])
    assert list(said["recipes"]) == list_recipes()
    code, out, _ = run(capsys, "recipe", "show", "photos", "data.batch_size=3")
    assert code == 0
    assert yaml.safe_load(out) == load_recipe("photos", ["data.batch_size=3"]).model_dump(mode="json")
    assert run(capsys, "recipe", "check", "photos")[:2] == (
        0,
        "photos: fine, msrn on mobilenetv2_100, data photos.csv\n",
    )
    code, _, err = run(capsys, "recipe", "check", "photos", "optimizer.lrr=1")
    assert code == 1
    assert "did you mean 'optimizer.lr'?" in err


def test_what_is_shown_can_be_trained_with(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(run(capsys, "recipe", "show", "scenes")[1])
    assert load_recipe(path) == load_recipe("scenes")
