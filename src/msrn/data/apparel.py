"""Apparel: folders named after a colour and an item."""

from pathlib import Path

from msrn.data.folder import FolderSource, has_split_folders, subfolders
from msrn.data.source import LabelledImages, Problem, Source
from msrn.errors import SourceNotFoundError

COLOURS = frozenset(
    {
        *("beige", "black", "blue", "brown", "cream", "gold", "gray", "green", "grey", "khaki", "maroon", "navy"),
        *("orange", "pink", "purple", "red", "silver", "tan", "teal", "turquoise", "violet", "white", "yellow"),
    }
)


class ApparelSource(Source):
    """Apparel as published: folders named `colour_item`, such as `black_dress`; each image has these two labels.

    Labels are the colours, sorted, and then the items, sorted. A folder's name says all: every other label is absent
    (the published builder and reader disagree about what 0 means). All is train, unless the folders lie in folders
    named train, val or test. The sets that go by this name differ in size, so no count is compared.

    Args:
        path: The folder that holds the folders.

    Raises:
        SourceNotFoundError: No such folder, or other folders in it.
        DataError: An image lies beside the folders, or there is none in them.

    Source: https://www.kaggle.com/datasets/trolukovich/apparel-images-dataset (11,385 images in 24 folders: 6 colours,
    5 items), and larger sets after it.
    """

    layout = "Apparel"
    recognised_by = "only folders named colour_item, such as black_dress"
    names_every_label = True

    def __init__(self, path: str | Path, *, problems: list[Problem] | None = None) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        if not self.recognises(path):
            raise SourceNotFoundError(
                f"{path} holds no Apparel: expected two folders or more, all named after a colour and an item, such as "
                "black_dress. Pass the folder that holds them."
            )
        self._tree = FolderSource(path, label_separator="_", problems=problems)
        self.root = path
        self.splits = self._tree.splits
        self.label_names = tuple(
            sorted(self._tree.label_names, key=lambda label: (label.lower() not in COLOURS, label))
        )

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether all folders, two or more, are named after a colour and an item, perhaps below splits."""
        if not path.is_dir():
            return False
        parents = subfolders(path) if has_split_folders(path) else [path]
        names = {folder.name for parent in parents for folder in subfolders(parent)}
        return len(names) >= 2 and all(map(_is_colour_and_item, names))

    def _read(self, split: str) -> LabelledImages:
        images = self._tree.read(split)
        columns = [images.label_names.index(label) for label in self.label_names]
        return LabelledImages(images.paths, images.target[:, columns], self.label_names, split)


def _is_colour_and_item(name: str) -> bool:
    colour, *items = name.split("_")
    return colour.lower() in COLOURS and len(items) == 1 and bool(items[0])
