"""A reader of your own: registered, a data set in its layout is opened, split, trained on and evaluated like any other.

    python examples/new_data_reader.py

Reads photos whose labels stand in their names, as in `cat+dog-0001.png`. Prints the labels and the target of each split.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from msrn.data import LabelledImages, Source, open_source, register_source
from msrn.data.source import Problem


@register_source
class LabelsInNames(Source):
    """Photos in the folders train, val and test, named by their labels."""

    layout = "labels in names"

    def __init__(self, root: Path, *, problems: list[Problem] | None = None) -> None:
        self.root, self.problems = root, problems
        self.splits = tuple(split for split in ("train", "val", "test") if (root / split).is_dir())
        self.label_names = tuple(sorted({label for path in root.glob("*/*.png") for label in self._labels(path)}))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether there are photos with labels in their names."""
        return any(path.glob("train/*-*.png"))

    def _labels(self, path: Path) -> list[str]:
        return path.stem.rpartition("-")[0].split("+")

    def _read(self, split: str) -> LabelledImages:
        paths = tuple(sorted((self.root / split).glob("*.png")))
        target = np.array([[name in self._labels(path) for name in self.label_names] for path in paths], dtype=np.int8)
        return LabelledImages(paths, target, self.label_names, split)


root = Path(tempfile.mkdtemp())
for split, names in {"train": ["cat+dog-1", "cat-2", "dog-3"], "val": ["cat-4"]}.items():
    (root / split).mkdir()
    for name in names:
        Image.new("RGB", (8, 8)).save(root / split / f"{name}.png")

source = open_source(root)
print(source.label_names)
for split in source.splits:
    print(split, source.read(split).target.tolist())
