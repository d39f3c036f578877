"""The doctor: looks through a data set for what would break training or deserves a look, and counts what is in it."""

import hashlib
import os
import re
import warnings
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt64
from PIL import Image

from msrn.data.cells import LABEL_SEPARATORS
from msrn.data.images import IMAGE_SUFFIXES, open_file, open_image, read_image
from msrn.data.open import open_source
from msrn.data.packed import PackedImage
from msrn.data.source import LabelledImages, Problem, Source, is_outside, new_target
from msrn.data.split import split_hash
from msrn.errors import DataError, SourceNotFoundError, UnreadableImageError
from msrn.files import walk

Decode = Literal["auto", "all", "none"]
Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the images done and the images of the step."""

NUM_KEPT = 100
"""Problems of a kind that are kept with their message; the others are counted."""

_MAX_DECODED = 20_000
_NUM_PICTURES = 8
_MIN_SIDE = 16
_MAX_ASPECT = 10
_RARE = 5  # a misspelt label has at most a fifth of the images of the right one
_CHUNK_IMAGES = 256
_CHUNK_ROWS = 1 << 15
_END_BYTES = 4096
# Published sets hold images besides those of their lists, on purpose.
_HOLDS_MORE = frozenset({"PASCAL VOC", "MS-COCO", "NUS-WIDE"})


@dataclass(frozen=True)
class Picture:
    """A problem that can be looked at.

    Attributes:
        problem: What is wrong.
        images: The image at fault, and the one it is a copy of.
    """

    problem: Problem
    images: tuple[Path | PackedImage, ...]


@dataclass(frozen=True, eq=False)
class SplitSummary:
    """What one split holds, a number a label in the arrays.

    Attributes:
        name: The split.
        num_images: Its images.
        split_hash: Its fingerprint, see `msrn.data.split_hash`.
        positives: Images in which the label is present.
        absent: Images in which it is not.
        unknown: Images of which it is not known.
        labels_an_image: How many images have 0, 1, 2, ... labels.
        num_nothing_known: Images of which nothing is known.
    """

    name: str
    num_images: int
    split_hash: str
    positives: Int[np.ndarray, " L"]
    absent: Int[np.ndarray, " L"]
    unknown: Int[np.ndarray, " L"]
    labels_an_image: tuple[int, ...]
    num_nothing_known: int


@dataclass(frozen=True, eq=False)
class ImageSummary:
    """What the readable image files are like.

    Attributes:
        num_readable: Images that could be read as far as `decode` looked.
        decode: "all" if every image was decoded; "ends" if headers and end markers were looked at; "none" for headers.
        widths: Width of each readable image.
        heights: Height of each readable image.
        formats: Images a file format, such as "JPEG".
        modes: Images a mode of Pillow, such as "RGB" or "L".
        num_bytes: Size of all files.
    """

    num_readable: int
    decode: str
    widths: Int[np.ndarray, " N"]
    heights: Int[np.ndarray, " N"]
    formats: dict[str, int]
    modes: dict[str, int]
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; minimum, median and maximum of the sizes."""
        return {
            "num_readable": self.num_readable,
            "decode": self.decode,
            "width": _min_median_max(self.widths),
            "height": _min_median_max(self.heights),
            "formats": self.formats,
            "modes": self.modes,
            "num_bytes": self.num_bytes,
        }


@dataclass(frozen=True, eq=False)
class DataReport:
    """What `check_source` found.

    Attributes:
        path: The data set, as it was given.
        layout: What people call its layout; None if it could not be opened.
        notes: What the reader decided and noticed.
        label_names: The labels.
        splits: What the splits hold.
        problems: Errors first; at most 100 of a kind.
        problem_counts: How many there are, by kind and whether it is an error.
        pictures: Some problems with their images.
        images: What the image files are like.
        co_occurrence: Training images that hold both labels, zero diagonal.
        label_counts: Training images that hold a label.
    """

    path: str
    layout: str | None
    notes: tuple[str, ...]
    label_names: tuple[str, ...]
    splits: tuple[SplitSummary, ...]
    problems: tuple[Problem, ...]
    problem_counts: dict[tuple[str, bool], int]
    pictures: tuple[Picture, ...]
    images: ImageSummary
    co_occurrence: Int[np.ndarray, "L L"]
    label_counts: Int[np.ndarray, " L"]

    @property
    def num_errors(self) -> int:
        """What would break training or falsify a test."""
        return sum(count for (_, is_error), count in self.problem_counts.items() if is_error)

    @property
    def num_warnings(self) -> int:
        """What deserves a look."""
        return sum(count for (_, is_error), count in self.problem_counts.items() if not is_error)

    @property
    def verdict(self) -> str:
        """The findings in one sentence."""
        if not self.problem_counts:
            return f"Nothing is wrong with {_count(self.num_images, 'image')}."
        found = f"{_count(self.num_errors, 'error')} and {_count(self.num_warnings, 'warning')}"
        advice = (
            "mend the errors before you train" if self.num_errors else "fit for training; have a look at the warnings"
        )
        return f"{found} in {_count(self.num_images, 'image')}: {advice}."

    @property
    def num_images(self) -> int:
        """Images of all splits."""
        return sum(split.num_images for split in self.splits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.path,
            "layout": self.layout,
            "notes": list(self.notes),
            "num_errors": self.num_errors,
            "num_warnings": self.num_warnings,
            "problem_counts": [
                {"kind": kind, "severity": "error" if is_error else "warning", "count": count}
                for (kind, is_error), count in self.problem_counts.items()
            ],
            "problems": [problem.to_dict() for problem in self.problems],
            "splits": {
                split.name: {
                    "num_images": split.num_images,
                    "split_sha256": split.split_hash,
                    "num_nothing_known": split.num_nothing_known,
                    "labels_an_image": list(split.labels_an_image),
                }
                for split in self.splits
            },
            "labels": {
                name: {
                    split.name: {
                        "positives": int(split.positives[column]),
                        "absent": int(split.absent[column]),
                        "unknown": int(split.unknown[column]),
                    }
                    for split in self.splits
                }
                for column, name in enumerate(self.label_names)
            },
            "label_names": list(self.label_names),
            "label_counts": self.label_counts.tolist(),
            "co_occurrence": self.co_occurrence.tolist(),
            "images": self.images.to_dict(),
        }


def check_source(
    path: str | Path,
    *,
    known_labels: str | Path | Sequence[str] | None = None,
    min_positives: int = 10,
    decode: Decode = "auto",
    num_workers: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> DataReport:
    """Look through a data set and report all that is wrong with it, instead of stopping at the first fault.

    Errors would break training or falsify a test: rows that cannot be read, missing and unreadable images, the same
    image or group in two splits, labels that may not occur. Warnings deserve a look: copies within a split, labels that look
    misspelt, have few training images or none, images of extreme size, images that no row names.

    Memory holds the rows as the reader gives them, about 30 bytes an image besides, and 100 problems of a kind.

    Args:
        path: A folder or file that `open_source` knows.
        known_labels: The only labels that may occur: names, the name of a label set, or a file with a name a line.
        min_positives: Labels with fewer training images than this are named.
        decode: "all" decodes every image, the only way to find each kind of damage. "none" reads headers. "auto"
            decodes up to 20,000 images; above, it looks at header and end marker, which finds files that were cut off.
        num_workers: Threads that read images; by default one a processor.
        progress: Called while images are read.
        options: Options of the layout's reader.

    Raises:
        SourceNotFoundError: No such path, a layout that no reader knows, or no such label file.
        ValueError: `decode`, `min_positives` or `num_workers` is impossible.

    Example:
        `check_source("photos.csv").num_errors`
    """
    if decode not in ("auto", "all", "none"):
        raise ValueError(f"decode is auto, all or none, got '{decode}'. Choose one of these.")
    if min_positives < 0 or (num_workers is not None and num_workers < 1):
        raise ValueError(
            f"min_positives is at least 0 and num_workers at least 1, got {min_positives} and {num_workers}. Raise them."
        )
    if isinstance(known_labels, str | Path):
        from msrn.labels.sets import read_label_names

        known_labels = read_label_names(known_labels)
    log = _Log()
    try:
        source = open_source(path, problems=log, **options)
    except SourceNotFoundError:
        raise
    except DataError as error:
        log.append(Problem("unreadable data set", str(error), Path(path)))
        return _report(path, None, log, _no_images("none"), [], _count_together([], 0))

    parts = _read_splits(source, log)
    try:
        together = _count_together(parts, len(source.label_names))
    except DataError as error:  # so many labels that nothing can be said of them
        log.append(Problem("unreadable data set", str(error), Path(path)))
        return _report(path, None, log, _no_images("none"), [], _count_together([], 0))
    rows = _Rows(source, parts)
    summaries, first_rows = _count_labels(parts, len(source.label_names))
    _check_rows(rows, log)
    _check_groups(rows, log)
    if parts:
        counts = np.sum([summary.positives for summary in summaries], axis=0).tolist()
        label_problems = _LabelProblems(rows, first_rows, log)
        misnamed = _check_names(source.label_names, counts, known_labels, label_problems)
        _check_counts(summaries, min_positives, misnamed, label_problems)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on damaged metadata
        images = _check_images(rows, log, decode, num_workers or os.cpu_count() or 1, progress or (lambda *_: None))
    if source.layout not in _HOLDS_MORE and ("unreadable split", True) not in log.counts:
        _check_unlisted(rows, log)
    return _report(path, source, log, images, summaries, together)


def locate(problem: Problem) -> str:
    """A problem on one line, file and line first.

    Example:
        >>> locate(Problem("missing file", "photos/a.jpg: no such file.", Path("photos.csv"), 7))
        'photos.csv:7: photos/a.jpg: no such file.'
    """
    message = " ".join(problem.message.split())
    if problem.file is None or message.startswith(str(problem.file)):
        return message
    return f"{problem.file}{'' if problem.line is None else f':{problem.line}'}: {message}"


class _Log(list[Problem]):
    """Problems as they are found: the first of each kind are kept, all are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, bool]] = Counter()
        self.pictures: list[Picture] = []
        self._num_pictures: Counter[str] = Counter()

    def append(self, problem: Problem, *images: Path | PackedImage) -> None:
        key = (problem.kind, problem.is_error)
        self.counts[key] += 1
        if self.counts[key] <= NUM_KEPT:
            super().append(problem)
        if images and self._num_pictures[problem.kind] < _NUM_PICTURES:
            self._num_pictures[problem.kind] += 1
            self.pictures.append(Picture(problem, images))


class _Rows:
    """The rows of all splits, numbered through."""

    def __init__(self, source: Source, parts: Sequence[LabelledImages]) -> None:
        self.source = source
        self.parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> tuple[LabelledImages, int]:
        """The split of a row and its index there."""
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[part], row - int(self._starts[part])

    def path(self, row: int) -> Path | PackedImage:
        part, index = self[row]
        return part.paths[index]

    def target(self, row: int) -> Int8[np.ndarray, " L"]:
        part, index = self[row]
        target: Int8[np.ndarray, " L"] = part.target[index]
        return target

    def where(self, row: int) -> tuple[Path, int | None]:
        """The file and line that tell of a row; the image itself where no file does."""
        part, index = self[row]
        file, line = self.source.where(part.split, index)
        return file or Path(os.fspath(part.paths[index])), line

    def may_open(self, path: Path | PackedImage) -> bool:
        """Whether an image lies where a table of somebody else's may lead."""
        return self.source.allow_outside or not is_outside(path, self.source.root)

    def chunks(self) -> Iterator[tuple[Path | PackedImage, ...]]:
        for part in self.parts:
            for start in range(0, len(part), _CHUNK_IMAGES):
                yield part.paths[start : start + _CHUNK_IMAGES]


def _read_splits(source: Source, log: _Log) -> list[LabelledImages]:
    parts = []
    for split in source.splits:
        try:
            parts.append(source.read(split))
        except DataError as error:
            log.append(Problem("unreadable split", str(error), source.root))
    if not any(part.split == "train" for part in parts) and len(parts) == len(source.splits):
        found = ", ".join(part.split for part in parts) or "none"
        log.append(
            Problem(
                "no train split",
                f"expected a split 'train' with images, got: {found}. Add training images, or name the column of splits.",
                source.root,
            )
        )
    if not source.label_names:
        log.append(Problem("no label", "expected at least one label, got none. Fill the label column.", source.root))
    return parts


def _count_labels(
    parts: Sequence[LabelledImages], num_labels: int
) -> tuple[list[SplitSummary], dict[int, tuple[int, int]]]:
    """What each split holds, and for every label the part and index of the first image that bears it."""
    summaries = []
    first_rows: dict[int, tuple[int, int]] = {}
    for number, part in enumerate(parts):
        counts = {value: np.zeros(num_labels, dtype=np.int64) for value in (1, 0, -1)}
        histogram = np.zeros(num_labels + 1, dtype=np.int64)
        num_nothing_known = 0
        for start in range(0, len(part), _CHUNK_ROWS):
            target = part.target[start : start + _CHUNK_ROWS]
            for value, count in counts.items():
                count += (target == value).sum(axis=0)
            is_present = target == 1
            histogram += np.bincount(is_present.sum(axis=1), minlength=num_labels + 1)
            num_nothing_known += int((target == -1).all(axis=1).sum())
            for label in np.flatnonzero(is_present.any(axis=0)):
                first_rows.setdefault(int(label), (number, start + int(is_present[:, label].argmax())))
        labels_an_image = tuple(np.trim_zeros(histogram, "b").tolist())
        values = (counts[1], counts[0], counts[-1], labels_an_image, num_nothing_known)
        summaries.append(SplitSummary(part.split, len(part), split_hash(part), *values))
    return summaries, first_rows


def _count_together(
    parts: Sequence[LabelledImages], num_labels: int
) -> tuple[Int[np.ndarray, "L L"], Int[np.ndarray, " L"]]:
    """Training images that hold two labels, and those that hold each."""
    if not num_labels:
        return np.zeros((0, 0), dtype=np.int64), np.zeros(0, dtype=np.int64)
    import torch

    from msrn.labels.graph import count_co_occurrence

    train = [part.target for part in parts if part.split == "train"] or [new_target(0, num_labels)]
    both, counts = count_co_occurrence(torch.from_numpy(np.require(train[0], requirements="W")))
    return both.numpy(), counts.numpy()


def _check_rows(rows: _Rows, log: _Log) -> None:
    for part in rows.parts:
        for start in range(0, len(part), _CHUNK_ROWS):
            is_unknown = (part.target[start : start + _CHUNK_ROWS] == -1).all(axis=1)
            for index in (start + np.flatnonzero(is_unknown)).tolist():
                path = part.paths[index]
                file, line = rows.source.where(part.split, index)
                message = f"{path}: nothing is known of its labels, so it teaches nothing. Label it, or leave it out."
                log.append(Problem("nothing known", message, file or Path(os.fspath(path)), line, is_error=False))


def _check_groups(rows: _Rows, log: _Log) -> None:
    """Look for groups that are in two splits, where the reader was told of groups."""
    first_in: dict[str, str] = {}
    for part in rows.parts:
        reported = set()
        for index, group in enumerate(rows.source.groups(part.split) or ()):
            first = first_in.setdefault(group, part.split)
            if group and first != part.split and group not in reported:
                reported.add(group)
                message = (
                    f"group '{group}' is in {part.split} and in {first}. Keep it together (msrn data split --group-by)."
                )
                log.append(Problem("group across splits", message, *rows.source.where(part.split, index)))


class _LabelProblems:
    """Reports what is wrong with a label at the first image that bears it."""

    def __init__(self, rows: _Rows, first_rows: dict[int, tuple[int, int]], log: _Log) -> None:
        self._rows = rows
        self._first_rows = first_rows
        self._log = log

    def report(self, kind: str, label: int, message: str, *, is_error: bool) -> None:
        source, parts = self._rows.source, self._rows.parts
        part, index = self._first_rows.get(label, (0, 0))
        file, line = source.where(parts[part].split, index)
        if label not in self._first_rows:  # in no image: only the file is known
            file, line = file or source.root, None
        file = file or Path(os.fspath(parts[part].paths[index]))
        self._log.append(Problem(kind, f"label '{source.label_names[label]}' {message}", file, line, is_error))


def _check_names(
    names: Sequence[str], counts: Sequence[int], label_names: Sequence[str] | None, problems: _LabelProblems
) -> set[int]:
    """Look for labels that should have another name; returns them."""
    for label, name in enumerate(names):
        mark = next((mark for mark in LABEL_SEPARATORS if mark in name), "[" if name.startswith("[") else None)
        if mark:
            message = f"holds a '{mark}': are these several labels? A column has one separator (--label-separator)."
            problems.report("separator in label", label, message, is_error=False)
    if label_names is None:
        misspelt = _find_misspelt(names, counts)
        for rare, frequent in misspelt:
            message = (
                f"({_count(counts[rare], 'image')}) looks like '{names[frequent]}' ({_count(counts[frequent], 'image')}). "
                "Give them one name if they mean the same."
            )
            problems.report("misspelt label", rare, message, is_error=False)
        return {rare for rare, _ in misspelt}
    unknown = set()
    for label, name in enumerate(names):
        if name not in label_names:
            nearest = _nearest(name, label_names)
            hint = f"the nearest one is '{nearest}'" if nearest else "nothing is near it"
            message = f"is not among the known labels; {hint}. Correct it, or add it to them."
            problems.report("unknown label", label, message, is_error=True)
            unknown.add(label)
    return unknown


def _check_counts(
    summaries: Sequence[SplitSummary], min_positives: int, misnamed: set[int], problems: _LabelProblems
) -> None:
    """Look for labels that cannot be learnt or measured; of misnamed ones, only for errors."""
    train = next((summary for summary in summaries if summary.name == "train"), None)
    if train is None:
        return
    others = [summary for summary in summaries if summary is not train]
    for label, positives in enumerate(train.positives.tolist()):
        found_in = [summary.name for summary in others if summary.positives[label]]
        if positives == 0 and found_in:
            message = f"is present in {' and '.join(found_in)}, but in no training image. Move images, or leave the label out."
            problems.report("label not in train", label, message, is_error=False)
        elif positives == 0:
            message = "is present in no image. Add images, or leave the label out."
            problems.report("no positives", label, message, is_error=False)
        if positives == 0 or label in misnamed:
            continue
        if positives < min_positives:
            message = f"is present in {_count(positives, 'training image')}, fewer than {min_positives}. Add images."
            problems.report("few positives", label, message, is_error=False)
        if train.absent[label] == 0:
            message = "is absent from no training image, so there is nothing to tell it from. Add images without it."
            problems.report("always present", label, message, is_error=False)
        for summary in others:
            if summary.name not in found_in:
                message = f"is present in no image of {summary.name}, where it cannot be measured. Split anew (msrn data split)."
                problems.report(f"label not in {summary.name}", label, message, is_error=False)


def _find_misspelt(names: Sequence[str], counts: Sequence[int]) -> list[tuple[int, int]]:
    """Labels that look like another, more frequent one: (misspelt, right).

    Either both are the same but for case, spaces, hyphens, underscores and a plural, or one letter is missing, added,
    swapped or, in long names, another, and the label is rare beside the other. Names that differ in a digit are meant.
    """
    plain = [re.sub(r"[\s_-]+", "", name.casefold()) or name for name in names]
    same: defaultdict[str, list[int]] = defaultdict(list)
    near: defaultdict[str, set[int]] = defaultdict(set)
    for label, text in enumerate(plain):
        for form in {text, re.sub(r"(?<=..)(?:es|s)$", "", text), re.sub(r"(?<=..)s$", "", text)}:
            same[form].append(label)
        # Texts that one letter tells apart have a text with one letter less in common.
        for shorter in {text, *(text[:i] + text[i + 1 :] for i in range(len(text)))}:
            near[shorter].add(label)
    found: dict[int, int] = {}

    def note(one: int, other: int) -> None:
        # Equals stay as they are found first.
        rare, frequent = sorted((one, other), key=lambda label: (counts[label], -label))
        best = found.get(rare)
        if best is None or counts[frequent] > counts[best]:
            found[rare] = frequent

    for labels in same.values():
        for position, label in enumerate(labels):
            for other in labels[position + 1 :]:
                note(label, other)
    for group in near.values():
        for rare in group:
            for frequent in group:
                if 0 < counts[rare] * _RARE <= counts[frequent] and _look_alike(plain[rare], plain[frequent]):
                    note(rare, frequent)
    return sorted(found.items())


def _look_alike(one: str, other: str) -> bool:
    if len(one) == 3 and sorted(one) == sorted(other):  # two letters swapped
        return True
    if min(len(one), len(other)) < 4 or re.sub(r"\D", "", one) != re.sub(r"\D", "", other):
        return False
    return sorted(one) == sorted(other) or SequenceMatcher(None, one, other, autojunk=False).ratio() >= 0.83


def _nearest(name: str, known: Sequence[str]) -> str | None:
    by_text = {text.casefold(): text for text in reversed(known)}
    found = get_close_matches(name.casefold(), by_text, n=1)
    return by_text[found[0]] if found else None


class _Seen(NamedTuple):
    """What one image file is like."""

    num_bytes: int = 0
    fingerprint: int = 0
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    kind: str | None = None  # of the problem
    message: str = ""


def _check_images(rows: _Rows, log: _Log, decode: Decode, num_workers: int, progress: Progress) -> ImageSummary:
    total = len(rows)
    how = {"auto": "all" if total <= _MAX_DECODED else "ends"}.get(decode, decode)
    if not total:
        return _no_images(how)
    sizes = np.zeros((total, 2), dtype=np.int32)  # width, height; 0 where unreadable
    fingerprints = np.zeros(total, dtype=np.uint64)
    num_bytes = 0
    formats: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    row = 0

    def inspect(paths: Sequence[Path | PackedImage]) -> list[_Seen | None]:
        return [_inspect(path, how) if rows.may_open(path) else None for path in paths]

    with ThreadPoolExecutor(num_workers) as pool:
        # Threads: decoding and hashing leave Python's lock. On two cores, processes were no faster, even on tiny files.
        for chunk in _in_order(pool, inspect, rows.chunks(), num_workers):
            for seen in chunk:
                if seen is None:  # it was reported as the split was read
                    row += 1
                    continue
                num_bytes += seen.num_bytes
                if seen.kind is not None:
                    shown = [] if seen.kind == "missing file" else [rows.path(row)]
                    log.append(Problem(seen.kind, seen.message, *rows.where(row)), *shown)
                else:
                    formats[seen.format] += 1
                    modes[seen.mode] += 1
                    sizes[row] = seen.width, seen.height
                    fingerprints[row] = seen.fingerprint
                    _check_size(rows, row, seen, log)
                row += 1
            progress("reading images", row, total)
        is_readable = sizes[:, 0] > 0
        _check_copies(rows, log, _find_copies(rows, fingerprints, is_readable, pool, num_workers, progress))
    readable = sizes[is_readable]
    return ImageSummary(
        int(is_readable.sum()),
        how,
        readable[:, 0],
        readable[:, 1],
        dict(formats.most_common()),
        dict(modes.most_common()),
        num_bytes,
    )


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[Any], list[Any]], chunks: Iterable[Any], num_workers: int
) -> Iterator[list[Any]]:
    """The results in order, with few calls under way at a time."""
    waiting: deque[Future[list[Any]]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(function, chunk))
        if len(waiting) > 2 * num_workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _inspect(path: Path | PackedImage, how: str) -> _Seen:
    """Look at one file as cheaply as finds what `how` asks for."""
    try:
        return _look(path, how)
    except (FileNotFoundError, NotADirectoryError):
        return _Seen(kind="missing file", message=f"{path}: no such file. Put it there, or leave it out.")
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        pass
    try:
        read_image(path)  # training's own view
    except UnreadableImageError as error:
        return _Seen(kind="unreadable image", message=str(error))
    return _look(path, "none")


def _look(path: Path | PackedImage, how: str) -> _Seen:
    with open_file(path) as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        ends = file.read(_END_BYTES)
        if num_bytes > 2 * _END_BYTES:
            file.seek(-_END_BYTES, os.SEEK_END)
        ends += file.read(_END_BYTES)
        fingerprint = int.from_bytes(hashlib.blake2b(ends, digest_size=8).digest(), "little")
        file.seek(0)
        with open_image(file) as image:
            width, height = image.size
            seen = _Seen(num_bytes, fingerprint, width, height, image.format or "", image.mode)
            if how == "all" or (how == "ends" and not _has_end(seen, ends)):
                # At an eighth of its size and without colours, a JPEG is still read to its end.
                image.draft("L", (1, 1))
                image.load()
    return seen


def _has_end(seen: _Seen, ends: bytes) -> bool:
    """Whether a file ends as its format says; of formats that are not asked, none does."""
    match seen.format:
        case "JPEG" | "MPO":
            return ends.rstrip(b"\0").endswith(b"\xff\xd9")
        case "PNG":
            return ends.endswith(b"IEND\xaeB`\x82")
        case "WEBP":
            return int.from_bytes(ends[4:8], "little") + 8 <= seen.num_bytes
    return False


def _check_size(rows: _Rows, row: int, seen: _Seen, log: _Log) -> None:
    short, long = sorted((seen.width, seen.height))
    if short < _MIN_SIDE:
        what = f"a side below {_MIN_SIDE} pixels"
    elif long > _MAX_ASPECT * short:
        what = f"more than {_MAX_ASPECT} times as long as wide"
    elif Image.MAX_IMAGE_PIXELS is not None and short * long > Image.MAX_IMAGE_PIXELS:
        what = "so large that decoding it takes seconds and much memory"
    else:
        return
    path = rows.path(row)
    message = f"{path}: {seen.width} x {seen.height} pixels, {what}. Look whether it is meant."
    log.append(Problem("extreme size", message, *rows.where(row), is_error=False), path)


def _find_copies(
    rows: _Rows,
    fingerprints: UInt64[np.ndarray, " N"],
    is_readable: Bool[np.ndarray, " N"],
    pool: ThreadPoolExecutor,
    num_workers: int,
    progress: Progress,
) -> list[tuple[int, int]]:
    """Rows whose image has the content of an earlier one: (row, first row with this content).

    The fingerprints cover the files' ends, at no cost beside the look at the header; only files whose ends agree are
    read whole.
    """
    readable = np.flatnonzero(is_readable)
    _, inverse, counts = np.unique(fingerprints[readable], return_inverse=True, return_counts=True)
    suspects = readable[counts[inverse] > 1].tolist()
    first_of_digest: dict[bytes, int] = {}
    copies = []
    chunks = (suspects[start : start + _CHUNK_IMAGES] for start in range(0, len(suspects), _CHUNK_IMAGES))
    done = 0
    for digests in _in_order(pool, lambda chunk: [_digest(rows.path(row)) for row in chunk], chunks, num_workers):
        for row, digest in zip(suspects[done : done + len(digests)], digests, strict=True):
            first = row if digest is None else first_of_digest.setdefault(digest, row)
            if first != row:
                copies.append((row, first))
        done += len(digests)
        progress("comparing images", done, len(suspects))
    return copies


def _digest(path: Path | PackedImage) -> bytes | None:
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:  # gone since it was looked at
        return None


def _check_copies(rows: _Rows, log: _Log, copies: Iterable[tuple[int, int]]) -> None:
    for row, first in copies:
        path, first_path = rows.path(row), rows.path(first)
        part, first_part = rows[row][0], rows[first][0]
        file, line = rows.where(first)
        at = f" ({file.name}:{line})" if line is not None else ""
        target, first_target = rows.target(row), rows.target(first)
        different = np.flatnonzero((target != first_target) & (target != -1) & (first_target != -1))
        names = ", ".join(part.label_names[label] for label in different[:3])
        labels = f"; their labels differ: {names}{', ...' if len(different) > 3 else ''}" if len(different) else ""
        if part.split != first_part.split:
            kind = "duplicate across splits"
            message = (
                f"{path}: the same image in {part.split} and, as {first_path}{at}, in {first_part.split}{labels}. "
                "Keep it in one split."
            )
        else:
            kind = "conflicting labels" if labels else "duplicate content"
            message = f"{path}: the same image as {first_path}{at}{labels}. Keep one."
        problem = Problem(kind, message, *rows.where(row), is_error=part.split != first_part.split)
        log.append(problem, first_path, path)


def _check_unlisted(rows: _Rows, log: _Log) -> None:
    """Image files beside the listed ones; looks only below the folder that holds all of these."""
    hashes = np.zeros(len(rows), dtype=np.int64)  # of the paths, for the paths themselves take much memory
    folders = set()
    for row, path in enumerate(path for part in rows.parts for path in part.paths):
        if isinstance(path, PackedImage):
            return
        text = os.path.abspath(path)  # noqa: PTH100  (no look at the disk, many paths)
        hashes[row] = hash(text)
        folders.add(os.path.dirname(text))  # noqa: PTH120
    if not folders:
        return
    hashes.sort()
    top, root = Path(os.path.commonpath(folders)), Path(os.path.abspath(rows.source.root))  # noqa: PTH100
    if not top.is_relative_to(root):
        return
    for parent, inner, names in walk(top):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        files = [
            os.path.join(parent, name)  # noqa: PTH118
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        ]
        found = np.array([hash(file) for file in files], dtype=np.int64)
        positions = np.searchsorted(hashes, found).clip(max=len(hashes) - 1)
        unlisted = np.flatnonzero(hashes[positions] != found)
        if 1 < len(unlisted) == len(files) and parent not in (str(top), str(root)):
            path = rows.source.root / os.path.relpath(parent, root)
            message = (
                f"{path}: a folder of {len(files):,} images, none of which a row names. Leave it if that is meant."
            )
            log.append(Problem("image in no row", message, path, is_error=False))
            continue
        for index in unlisted:
            path = rows.source.root / os.path.relpath(files[index], root)
            message = f"{path}: no row names it. Add a row, or leave it if that is meant."
            log.append(Problem("image in no row", message, path, is_error=False))


def _report(
    path: str | Path,
    source: Source | None,
    log: _Log,
    images: ImageSummary,
    splits: Sequence[SplitSummary],
    together: tuple[Int[np.ndarray, "L L"], Int[np.ndarray, " L"]],
) -> DataReport:
    co_occurrence, label_counts = together
    order = {key: number for number, key in enumerate(sorted(log.counts, key=lambda key: not key[1]))}
    return DataReport(
        path=str(path),
        layout=source.layout if source else None,
        notes=source.notes if source else (),
        label_names=source.label_names if source else (),
        splits=tuple(splits),
        problems=tuple(sorted(log, key=lambda problem: order[problem.kind, problem.is_error])),
        problem_counts={key: log.counts[key] for key in order},
        pictures=tuple(log.pictures),
        images=images,
        co_occurrence=co_occurrence,
        label_counts=label_counts,
    )


def _no_images(how: str) -> ImageSummary:
    nothing = np.zeros(0, dtype=np.int32)
    return ImageSummary(0, how, nothing, nothing, {}, {}, 0)


def _min_median_max(values: Int[np.ndarray, " N"]) -> list[int] | None:
    return [int(values.min()), int(np.median(values)), int(values.max())] if len(values) else None


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
