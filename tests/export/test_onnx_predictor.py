"""What an ONNX file of a stranger may say of itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_files import METADATA, small_onnx
from PIL import Image

from msrn.errors import BundleError, ModelError
from msrn.export import OnnxPredictor

Lost = Callable[[Any, Any, str], None]


def preprocessing(**changed: Any) -> dict[str, Any]:
    return {"preprocessing": {**METADATA["preprocessing"], **changed}}


def test_file_as_msrn_writes_it(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(small_onnx())
    found = OnnxPredictor(tmp_path / "m.onnx").predict(Image.new("RGB", (20, 20), "red"))
    assert [label.name for label in found[0].labels] == ["red"]


ODD: dict[str, dict[str, Any]] = {
    "a size without end": preprocessing(size=[float("inf"), 1]),
    "a size of text": {"preprocessing": '{"size": [1e999, 1]}'},
    "a huge size": preprocessing(size=[1, 10**11]),
    "a size of 400 digits": preprocessing(size=[1, 10**400]),
    "a size of fractions": preprocessing(size=[8.5, 8]),
    "labels within labels": {"labels": "[" * 100_000},
    "labels that are an object": {"labels": {"a": 1, "b": 2, "c": 3}},
    "labels that are numbers": {"labels": [1, 2, 3]},
    "labels that are no text": {"labels": ["\ud800", "b", "c"]},
    "no labels": {"labels": [], "thresholds": []},
    "a number of 5,000 digits": {"thresholds": "[" + "1" * 5000 + "]"},
    "thresholds that are none": {"thresholds": [float("nan")] * 3},
    "thresholds that are lists": {"thresholds": [[0.5]] * 3},
    "a threshold too few": {"thresholds": [0.5] * 2},
    "a mean of one number": preprocessing(mean=[0]),
    "a deviation of 0": preprocessing(std=[0, 0, 0]),
    "another interpolation": preprocessing(interpolation=[]),
    "preprocessing that is a list": {"preprocessing": []},
    "an input of two axes": {"input_shape": (1, 2)},
    "an input of one colour": {"input_shape": ("batch", 1, "height", "width")},
    "an input of another size": {"input_shape": ("batch", 3, 9, 9)},
    "more labels than probabilities": {"labels": list("abcd"), "thresholds": [0.5] * 4},
}


@pytest.mark.fault("an ONNX file whose metadata are odd")
@pytest.mark.parametrize("what", ODD)
def test_odd_metadata(tmp_path: Path, lost: Lost, what: str) -> None:
    (tmp_path / "m.onnx").write_bytes(small_onnx(**ODD[what]))
    with pytest.raises(BundleError, match=r"m\.onnx: its metadata .*Export it again by msrn export"):
        OnnxPredictor(tmp_path / "m.onnx")
    lost(["m.onnx"], [path.name for path in tmp_path.iterdir()], "files")


def test_metadata_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(small_onnx().replace(b"green", b"gr\xe8en"))
    with pytest.raises(BundleError, match="no ONNX model"):
        OnnxPredictor(tmp_path / "m.onnx")


def test_a_model_that_does_not_do_what_its_file_says(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(small_onnx(input_shape=("batch", "colours", "height", "width"), num_outputs="n"))
    predictor = OnnxPredictor(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"returns an array of shape \(1, 2\), expected \(1, 3\)"):
        predictor.probs(np.zeros((1, 2, 8, 8), dtype=np.float32))
    with pytest.raises(ModelError, match="the model cannot be run"):
        predictor.probs(np.zeros((1, 3), dtype=np.float32))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(BundleError, match="no regular file"):
        OnnxPredictor(tmp_path / "m.onnx")
