"""What every way to predict returns: Python, the command line, files, the exported model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Most pixels of a network's input, far above what anyone needs: of each image it takes 200 MB.
MAX_INPUT_PIXELS = 2**24


@dataclass(frozen=True)
class LabelProbability:
    """One label of an image.

    Attributes:
        name: The label.
        probability: Between 0 and 1.
    """

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The labels of one image, best first.

    Attributes:
        path: The image file, or None for an image in memory.
        labels: The labels asked for, best first.
        error: Why the image could not be read, or None.
    """

    path: Path | None
    labels: tuple[LabelProbability, ...]
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: `path` and `labels`, and `error` where the image could not be read."""
        labels = [{"name": label.name, "probability": label.probability} for label in self.labels]
        found = {"path": None if self.path is None else str(self.path), "labels": labels}
        return found if self.error is None else {**found, "error": self.error}
