"""The exported model beside the original, on images of one's own."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from msrn.data.images import read_image
from msrn.data.packed import PackedImage
from msrn.errors import ModelError, UnreadableImageError
from msrn.export.onnx_predictor import OnnxPredictor
from msrn.predict import Predictor

Floats = npt.NDArray[np.float64]

_NUM_TIMED = 9


@dataclass(frozen=True)
class Changed:
    """A label of an image that only one of both gives it.

    Attributes:
        image: The file.
        label: The label.
        original: The original's probability.
        exported: The exported model's.
    """

    image: str
    label: str
    original: float
    exported: float


@dataclass(frozen=True)
class Check:
    """What differs, and how long both take.

    Attributes:
        num_images: Images compared.
        unreadable: Those that could not be read.
        batch_size: The larger of the two batch sizes; the other is 1.
        largest_difference: Of any probability, at both batch sizes, images prepared by each in its own way.
        changed: Labels above their threshold in one of both alone, at either batch size.
        speed: How many times as fast as the original the exported model is, on prepared images, by batch size: median of rounds
            in which both are timed in turn.
        seconds: An image's time in the exported model, by batch size.
    """

    num_images: int
    unreadable: tuple[str, ...]
    batch_size: int
    largest_difference: float
    changed: tuple[Changed, ...]
    speed: dict[int, float]
    seconds: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check_export(
    exported: str | Path, predictor: Predictor, images: Sequence[Path | PackedImage], *, batch_size: int = 8
) -> Check:
    """Compare an exported file with the model it came from.

    Args:
        exported: An .onnx or .pt2 file that `export_model` wrote.
        predictor: The original, on the CPU.
        images: Image files, or images packed in archives; those that cannot be read are named and left out.
        batch_size: Images a pass, beside 1.

    Raises:
        UnreadableImageError: No image can be read.
        ModelError: The .pt2 file cannot be read.
    """
    prepare, run = _exported(Path(exported), predictor)
    pairs, paths, unreadable = [], [], []
    for path in images:
        try:
            image = read_image(path)
        except UnreadableImageError as error:
            unreadable.append(str(error))
            continue
        pairs.append((predictor.bundle.preprocessing(image), prepare(image)))
        paths.append(path)
    if not pairs:
        raise UnreadableImageError(f"none of {len(images)} images can be read: {'; '.join(unreadable[:1])}")
    ours, theirs = torch.stack([own for own, _ in pairs]), np.stack([own for _, own in pairs])
    expected = torch.cat([predictor.probs(batch) for batch in ours.split(batch_size)]).numpy()
    least = predictor.bundle.label_thresholds.numpy()
    largest = 0.0
    changed: dict[tuple[int, int], Changed] = {}
    sizes = sorted({1, min(batch_size, len(paths))})
    for size in sizes:
        batches = [theirs[start : start + size] for start in range(0, len(paths), size)]
        received = np.concatenate([run(batch) for batch in batches])
        largest = max(largest, float(np.abs(received - expected).max()))
        for row, label in np.argwhere((received >= least) != (expected >= least)).tolist():
            pair = float(expected[row, label]), float(received[row, label])
            changed.setdefault((row, label), Changed(str(paths[row]), predictor.label_names[label], *pair))
    speed, seconds = {}, {}
    for size in sizes:
        ratios, times = [], []
        for _ in range(_NUM_TIMED):
            start = time.perf_counter()
            predictor.probs(ours[:size])
            middle = time.perf_counter()
            run(theirs[:size])
            taken = time.perf_counter() - middle
            ratios.append((middle - start) / taken)
            times.append(taken / size)
        speed[size], seconds[size] = statistics.median(ratios), statistics.median(times)
    return Check(len(paths), tuple(unreadable), sizes[-1], largest, tuple(changed.values()), speed, seconds)


def _exported(
    path: Path, predictor: Predictor
) -> tuple[Callable[[Image.Image], npt.NDArray[np.float32]], Callable[[npt.NDArray[np.float32]], Floats]]:
    """How the exported model prepares an image, and how it gives probabilities."""
    if path.suffix != ".pt2":
        exported = OnnxPredictor(path, num_threads=torch.get_num_threads())
        return exported.preprocess, exported.probs
    try:
        module = torch.export.load(path).module()
    except Exception as error:  # a damaged archive raises nearly anything
        raise ModelError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}. Export it again.") from error

    def run(images: npt.NDArray[np.float32]) -> Floats:
        with torch.inference_mode():
            found: Floats = module(torch.from_numpy(images))[0].double().numpy()
        return found

    return lambda image: predictor.bundle.preprocessing(image).numpy(), run
