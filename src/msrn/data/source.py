"""What every reader of labelled images offers: named labels, named splits, paths and targets."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from msrn.errors import EmptySplitError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabelledImages:
    """The images of one split and what is known of their labels.

    Attributes:
        paths: Image files, absolute or relative to the working directory.
        target: 1 present, 0 absent, -1 unknown, one row an image.
        label_names: The columns of `target`.
        split: Name of the split ("train", "val", "test").
    """

    paths: tuple[Path, ...]
    target: Int8[np.ndarray, "N L"]
    label_names: tuple[str, ...]
    split: str

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: "np.ndarray | list[int]", *, split: str | None = None) -> "LabelledImages":
        """The images at `indices`, in that order, under the name `split` if given."""
        rows = np.asarray(indices, dtype=np.int64)
        paths = tuple(self.paths[i] for i in rows)
        return LabelledImages(paths, self.target[rows], self.label_names, split or self.split)


class Source(ABC):
    """A data set as it lies on disk. Readers recognise their layout and read one split at a time.

    Attributes:
        root: Where the data set was found.
        label_names: All labels, in the order of the target's columns.
        splits: The splits that exist, in the order train, val, test.
    """

    root: Path
    label_names: tuple[str, ...]
    splits: tuple[str, ...]
    names_every_label: bool = False
    """Whether a label that the source never names is absent from its images, rather than unknown."""

    def read(self, split: str) -> LabelledImages:
        """Read one split.

        Raises:
            EmptySplitError: The split does not exist or holds no images.
            DataError: A list or table of the split cannot be read.
        """
        if split not in self.splits:
            known = ", ".join(self.splits) or "none"
            raise EmptySplitError(f"{self.root} has no split '{split}'; it has: {known}. Choose one of these.")
        images = self._read(split)
        if len(images) == 0:
            raise EmptySplitError(
                f"split '{split}' of {self.root} holds no images. Choose another split or add images to it."
            )
        return images

    @abstractmethod
    def _read(self, split: str) -> LabelledImages: ...
