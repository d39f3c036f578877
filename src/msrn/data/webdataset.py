"""WebDataset: images and their labels side by side in tar archives."""

import json
import posixpath
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msrn.data.cells import BYTE_OF_CELL, LabelCells, cell_text, is_unknown, list_text, shown
from msrn.data.images import IMAGE_SUFFIXES
from msrn.data.packed import TarEntry, TarMember, walk_tar
from msrn.data.source import SPLITS, LabelledImages, Problem, Source, folders_of_splits, new_target, split_of_shard
from msrn.data.table import LABEL_COLUMNS
from msrn.errors import DataError, SourceNotFoundError

# tarfile tells compressed archives by their content; these are recognised so that they are refused with a reason.
_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_LABEL_BYTES = 1 << 20
_LABEL_SUFFIXES = frozenset({".json", ".txt", ".cls"})

_Labels = str | dict[str, int]
"""A label cell, or by label the byte of an int8."""


def find_shards(path: Path) -> list[Path]:
    """The tar archives at `path`: itself, those in the folder, or those in its folders that are named after splits."""
    if path.is_file():
        return [path] if path.name.lower().endswith(_SUFFIXES) else []
    if not path.is_dir():
        return []
    files = [file for folder in (path, *folders_of_splits(path)) for file in folder.iterdir()]
    return sorted(
        file
        for file in files
        if file.name.lower().endswith(_SUFFIXES) and not file.name.startswith(".") and file.is_file()
    )


@dataclass
class _Samples:
    """The images of one split and what their label files say, in the order of the shards."""

    images: list[TarMember] = field(default_factory=list)
    labels: list[_Labels] = field(default_factory=list)


class WebDatasetSource(Source):
    """Images in tar archives (shards), each with a label file of the same name: `0001.jpg` and `0001.json`.

    Files belong together when their names are the same up to the first dot, folders included. Labels stand in

    - **.json**: `{"labels": ["cat", "dog"]}` (or `label`, `tags`), or one key a label with 1, 0 or null for unknown;
    - **.cls**: one name or number;
    - **.txt**: names, separated as in a table's cell or one a line.

    An image without a label file, or with a blank one, is unknown. The split comes from the shard's folder or the first
    word of its name, as in `val/0000.tar` and `val-000000.tar`; other shards are train. Opening reads through the shards
    once, past the images, which are later read from their place.

    Args:
        path: A .tar file, or a folder of them.
        label_separator: What stands between two labels of a .txt file; by default the first of `|`, `;` and `,` that
            occurs in any.

    Raises:
        SourceNotFoundError: No such path, or no archive there.
        DataError: An archive that is damaged, truncated or compressed, or no labels in it.

    Source: https://github.com/webdataset/webdataset.
    """

    layout = "WebDataset"
    recognised_by = ".tar files"

    def __init__(
        self, path: str | Path, *, label_separator: str | None = None, problems: list[Problem] | None = None
    ) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        shards = find_shards(path)
        if not shards:
            raise SourceNotFoundError(
                f"{path} holds no WebDataset: expected a .tar file, or a folder with some, such as train-000000.tar. "
                "Pass the folder of the shards."
            )
        self.root = path if path.is_dir() else path.parent
        self._samples: dict[str, _Samples] = {}
        self._num_without_image = 0
        for shard in shards:
            self._read_shard(shard, self._samples.setdefault(split_of_shard(shard, self.root), _Samples()))
        self.splits = tuple(split for split in SPLITS if split in self._samples)

        labels = [labels for samples in self._samples.values() for labels in samples.labels]
        by_label = [of_image for of_image in labels if isinstance(of_image, dict)]
        cells = [of_image for of_image in labels if isinstance(of_image, str)]
        self.names_every_label = not by_label
        self._cells = LabelCells(cells, label_separator)
        if by_label and self._cells.label_names:
            raise DataError(
                f"{path}: {len(by_label)} .json files have one key a label, others a list of labels. Use one form."
            )
        self.label_names = self._cells.label_names or tuple(dict.fromkeys(name for row in by_label for name in row))
        if not self.label_names:
            raise DataError(
                f"{path} names no label: expected a .json, .cls or .txt file beside each image, as in 0001.jpg and "
                "0001.json. Pack the labels with the images."
            )
        if self._num_without_image:
            self.notes = (f"{self._num_without_image} label files without an image were passed over.",)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is a tar archive or a folder of them."""
        return bool(find_shards(path))

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The shard of an image; it has no lines."""
        return self._samples[split].images[index].archive, None

    def _read_shard(self, shard: Path, samples: _Samples) -> None:
        images: dict[str, TarEntry] = {}
        texts: dict[str, dict[str, str]] = {}
        try:
            with shard.open("rb") as file:
                for entry in walk_tar(shard):
                    folder, name = posixpath.split(entry.name)
                    key, dot, rest = name.partition(".")
                    suffix = f".{rest.lower()}"
                    if not key or not dot:
                        continue
                    key = posixpath.join(folder, key)
                    if suffix in IMAGE_SUFFIXES:
                        first = images.setdefault(key, entry)
                        if first is not entry:
                            message = (
                                f"{shard}: {first.name} and {entry.name} are of one sample. Keep one image a sample."
                            )
                            self._report("repeated path", message, file=shard)
                    elif suffix in _LABEL_SUFFIXES:
                        if entry.size > _MAX_LABEL_BYTES:
                            message = (
                                f"{shard}: {entry.name} has {entry.size:,} bytes, more than labels take. Leave it out."
                            )
                            self._report("bad value", message, file=shard)
                            continue
                        text = entry.read_from(file).decode("utf-8-sig", errors="replace")
                        texts.setdefault(key, {})[suffix] = text
        except OSError as error:
            self._report("damaged archive", f"{shard}: {error.strerror}. Check its permissions.", file=shard)
        except DataError as error:
            self._report("damaged archive", str(error), file=shard)
        for key, entry in images.items():
            samples.images.append(TarMember(shard, entry.name, entry.offset, entry.size))
            samples.labels.append(self._parse(shard, key, texts.pop(key, {})))
        self._num_without_image += len(texts)

    def _parse(self, shard: Path, key: str, texts: dict[str, str]) -> _Labels:
        """What the label files of one sample say; blank where they say nothing."""
        if ".json" in texts:
            labels = self._parse_json(shard, f"{key}.json", texts[".json"], is_alone=len(texts) == 1)
            if labels is not None:
                return labels
        if ".cls" in texts:
            name = texts[".cls"].strip()
            return "" if is_unknown(name) else list_text([name])
        lines = [line for line in texts.get(".txt", "").splitlines() if line.strip()]
        return list_text(lines) if len(lines) > 1 else "".join(lines)

    def _parse_json(self, shard: Path, name: str, text: str, *, is_alone: bool) -> _Labels | None:
        """What a JSON file says; None where it holds no labels and another label file may."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._report("bad value", f"{shard}/{name}: no JSON ({error}). Correct the file.", file=shard)
            return ""
        if isinstance(value, dict):
            column = next((column for column in LABEL_COLUMNS if column in value), None)
            if column is None and not is_alone:
                return None
            if column is not None:
                value = value[column]
        if not isinstance(value, dict):
            return self._checked(shard, name, value)
        by_label = {str(label): BYTE_OF_CELL.get(cell_text(known).strip().lower()) for label, known in value.items()}
        bad = [label for label, byte in by_label.items() if byte is None]
        if bad:
            message = (
                f"{shard}/{name}: expected the key 'labels', or one key a label with 1, 0 or null, got '{bad[0]}': "
                f"{shown(cell_text(value[bad[0]]))}. Write the labels as a list under 'labels'."
            )
            self._report("bad value", message, file=shard)
        return {label: byte for label, byte in by_label.items() if byte is not None}

    def _checked(self, shard: Path, name: str, value: Any) -> str:
        cell = cell_text(value)
        if LabelCells([cell]).bad_cells:
            message = f"{shard}/{name}: expected a list of labels, got {shown(cell)}. Correct the file."
            self._report("bad value", message, file=shard)
            return ""
        return cell

    def _read(self, split: str) -> LabelledImages:
        samples = self._samples[split]
        if self.names_every_label:
            target = self._cells.target([str(cell) for cell in samples.labels], self.label_names)
        else:
            target = new_target(len(samples.images), len(self.label_names), -1)
            column_of_label = {label: column for column, label in enumerate(self.label_names)}
            for row, labels in zip(target.view(np.uint8), samples.labels, strict=True):
                if isinstance(labels, dict):
                    row[[column_of_label[label] for label in labels]] = list(labels.values())
        return LabelledImages(tuple(samples.images), target, self.label_names, split)
