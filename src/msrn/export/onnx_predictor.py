"""Predicting with an exported ONNX file: onnxruntime, numpy and Pillow, without PyTorch."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from msrn.data.images import read_image, to_rgb
from msrn.errors import BundleError, MissingDependencyError, ModelError, UnreadableImageError
from msrn.files import is_utf8
from msrn.prediction import MAX_INPUT_PIXELS, LabelProbability, Prediction

Floats = npt.NDArray[np.float32]

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_KEYS = ("labels", "thresholds", "preprocessing", "version")


class OnnxPredictor:
    """An exported model that takes images, as `msrn.Predictor` does.

    Args:
        path: A file that `msrn export` wrote.
        providers: Of onnxruntime; by default those of the processor.
        num_threads: By default as many as onnxruntime chooses.

    Attributes:
        label_names: The labels, in the order of the probabilities.
        thresholds: The least probability of each label that is predicted.
        preprocessing: Size, mean, standard deviation and interpolation.

    Raises:
        BundleError: The file is no model, or `msrn export` did not write it.
        MissingDependencyError: onnxruntime is not installed.

    Example:
        `OnnxPredictor("model.onnx").predict("photo.jpg")[0].labels` are the photo's labels, best first.
    """

    def __init__(
        self, path: str | Path, *, providers: Sequence[str] = ("CPUExecutionProvider",), num_threads: int | None = None
    ) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise MissingDependencyError("an exported model needs onnxruntime: pip install onnxruntime.") from error

        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise BundleError(f"{path} is no regular file. Give a file that msrn export wrote.")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
            found = self.session.get_modelmeta().custom_metadata_map  # these too fail on text that is no UTF-8
            inputs = [(own.name, own.type, own.shape) for own in self.session.get_inputs()]
            outputs = {own.name: own.shape for own in self.session.get_outputs()}
        except Exception as error:  # onnxruntime has no base class of its errors
            reason = " ".join(str(error).split())[:200]
            raise BundleError(f"{path}: no ONNX model ({reason}). Export it again by msrn export.") from error
        missing = [key for key in _KEYS if key not in found]
        if missing:
            raise BundleError(f"{path}: no '{missing[0]}' in its metadata. Give a file that msrn export wrote.")
        try:
            labels, thresholds, preprocessing = (json.loads(found[key]) for key in _KEYS[:3])
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{path}: its metadata is damaged ({error!r}). Export it again by msrn export."
            ) from error
        if problem := _problem(labels, thresholds, preprocessing):
            raise BundleError(f"{path}: its metadata is damaged: {problem}. Export it again by msrn export.")
        if len(thresholds) != len(labels) or not _fits(inputs, outputs, len(labels), preprocessing["size"]):
            raise BundleError(
                f"{path}: its metadata does not fit together, or not the model's input and output. Export it again by msrn export."
            )
        self.label_names: tuple[str, ...] = tuple(labels)
        self.thresholds = np.array(thresholds, dtype=np.float64)
        self.preprocessing: dict[str, Any] = preprocessing
        self._size: tuple[int, int] = tuple(preprocessing["size"])
        self._mean, self._std = (
            np.tile(np.array(preprocessing[name], dtype=np.float32), self._size[1]) for name in ("mean", "std")
        )
        self._resampling = _RESAMPLING[preprocessing["interpolation"]]
        self._input: str = inputs[0][0]

    def predict(
        self,
        images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        batch_size: int = 16,
    ) -> list[Prediction]:
        """Ranked labels of one image or many; see `msrn.Predictor.predict`."""
        given = [images] if isinstance(images, str | Path | Image.Image) else images
        return list(self.predict_stream(given, threshold=threshold, top_k=top_k, batch_size=batch_size))

    def predict_stream(
        self,
        images: Iterable[str | Path | Image.Image],
        *,
        threshold: float | None = None,
        top_k: int | None = None,
        batch_size: int = 16,
    ) -> Iterator[Prediction]:
        """As `predict`, one batch at a time."""
        for name, number in (("batch_size", batch_size), ("top_k", 1 if top_k is None else top_k)):
            if number < 1:
                raise ValueError(f"{name} is at least 1, got {number}.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"threshold is a probability between 0 and 1, got {threshold}.")
        least = self.thresholds if threshold is None and top_k is None else np.float64(threshold or 0.0)
        pending = iter(images)
        while batch := list(islice(pending, batch_size)):
            prepared = [self._prepare(image) for image in batch]
            arrays = [own for own in prepared if not isinstance(own, str)]
            probs = iter(self.probs(np.stack(arrays)) if arrays else ())
            for image, own in zip(batch, prepared, strict=True):
                path = None if isinstance(image, Image.Image) else Path(image)
                if isinstance(own, str):
                    yield Prediction(path, (), error=own)
                else:
                    yield Prediction(path, self._rank(next(probs), least, top_k))

    def probs(self, images: Floats) -> npt.NDArray[np.float64]:
        """Probabilities (B, L) of a batch (B, 3, H, W) that is already preprocessed.

        Raises:
            ModelError: The model cannot be run, or its output is none of probabilities.
        """
        try:
            given = self.session.run(["probabilities"], {self._input: images})[0]
        except Exception as error:  # onnxruntime has no base class of its errors
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{self.path}: the model cannot be run ({reason}). Export it again by msrn export."
            ) from error
        found: npt.NDArray[np.float64] = np.asarray(given, dtype=np.float64)
        if found.shape != (len(images), len(self.label_names)):
            raise ModelError(
                f"{self.path}: the model returns an array of shape {found.shape}, expected {(len(images), len(self.label_names))}. "
                "Export it again by msrn export."
            )
        if not np.isfinite(found).all():
            raise ModelError(f"{self.path}: the model's output is not finite. Export it again, with --precision fp32.")
        return found

    def preprocess(self, image: Image.Image) -> Floats:
        """The network's input (3, H, W) of an RGB image, as `msrn.data.transforms.Preprocessing` makes it."""
        height, width = self._size
        if image.size != (width, height):
            image = image.resize((width, height), self._resampling)
        rows = np.asarray(image, dtype=np.float32).reshape(height, 3 * width) / np.float32(255)
        rows = (rows - self._mean) / self._std
        return np.ascontiguousarray(rows.reshape(height, width, 3).transpose(2, 0, 1))

    def _prepare(self, image: str | Path | Image.Image) -> Floats | str:
        try:
            rgb = to_rgb(image) if isinstance(image, Image.Image) else read_image(image)
        except UnreadableImageError as error:
            return str(error)
        except OSError as error:
            return f"the image in memory cannot be read ({error}). Open it again, or leave it out."
        return self.preprocess(rgb)

    def _rank(self, probs: npt.NDArray[np.float64], least: Any, top_k: int | None) -> tuple[LabelProbability, ...]:
        order = np.argsort(-probs, kind="stable")
        order = order[(probs >= least)[order]]
        return tuple(LabelProbability(self.label_names[label], float(probs[label])) for label in order[:top_k])


def _problem(labels: Any, thresholds: Any, preprocessing: Any) -> str | None:
    """What is wrong with a file's metadata, if anything."""
    if not isinstance(labels, list) or not labels or not all(isinstance(own, str) and is_utf8(own) for own in labels):
        return "labels is no list of names"
    if not _are_numbers(thresholds):
        return "thresholds is no list of numbers"
    if not isinstance(preprocessing, dict):
        return "preprocessing is no object of keys and values"
    size: Any
    mean: Any
    std: Any
    size, mean, std = (preprocessing.get(name) for name in ("size", "mean", "std"))
    if not (_are_numbers(size) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        return "size is no height and width"
    if math.prod(size) > MAX_INPUT_PIXELS:
        return f"size has more than {MAX_INPUT_PIXELS:,} pixels"
    if not (_are_numbers(mean) and len(mean) == 3 and _are_numbers(std) and len(std) == 3 and min(std) > 0):
        return "mean and std are not three numbers each, std above 0"
    if preprocessing.get("interpolation") not in tuple(_RESAMPLING):
        return "interpolation is neither bilinear nor bicubic"
    return None


def _fits(
    inputs: list[tuple[str, str, list[Any]]], outputs: dict[str, list[Any]], num_labels: int, size: list[int]
) -> bool:
    """Whether a model takes images of a size, and returns a probability for each of so many labels."""
    if len(inputs) != 1 or inputs[0][1] != "tensor(float)" or "probabilities" not in outputs:
        return False
    pairs = [(inputs[0][2], [None, 3, *size]), (outputs["probabilities"], [None, num_labels])]
    return all(
        len(given) == len(expected)
        and all(  # names stand for any number
            not isinstance(own, int) or other in (None, own) for own, other in zip(given, expected, strict=True)
        )
        for given, expected in pairs
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(own, int | float) and not isinstance(own, bool) and abs(own) < 1e30 for own in values
    )
