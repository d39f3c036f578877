"""Label Studio's exports of choices: JSON and JSON-MIN."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from msrn.data.cells import shown
from msrn.data.packed import is_file
from msrn.data.source import SPLIT_OF_NAME, SPLITS, LabelledImages, Problem, Source, new_target
from msrn.data.table import PATH_COLUMNS, SPLIT_COLUMNS
from msrn.errors import DataError, SourceNotFoundError
from msrn.files import walk

_IMAGE_KEYS = ("image", "img", "image_url", "url", *PATH_COLUMNS)
_CHOICE_KEYS = ("choice", "choices")  # what Label Studio's templates call the field
_NUM_LOOKED_AT = 8192  # characters
_LOOKS_EXPORTED = re.compile(r'\s*\[\s*\{.*"(?:annotations|annotation_id|annotator)"\s*:', re.DOTALL)
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
_MAX_REFERENCE = 4096  # characters; no system has longer paths


def find_export(path: Path) -> Path | None:
    """The export at `path`: itself, or the only one in the folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.json")) if path.is_dir() else []
    found = [file for file in files if file.suffix.lower() == ".json" and file.is_file() and _looks_exported(file)]
    return found[0] if len(found) == 1 else None


def _looks_exported(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as opened:
            return _LOOKS_EXPORTED.match(opened.read(_NUM_LOOKED_AT)) is not None
    except OSError:
        return False


@dataclass
class _Task:
    """One image and what each annotator chose for it."""

    name: str
    data: dict[str, Any]
    choices: list[frozenset[str]] = field(default_factory=list)


class LabelStudioSource(Source):
    """Images and choices exported from Label Studio as JSON or JSON-MIN.

    A choice that was made is present, one that was not is absent. Where several people annotated an image, an entry is
    known where they agree and unknown where they do not. Cancelled annotations do not count; a task without any other is
    unknown. Labels are sorted by name. Tasks whose data have a `split` (or `split_name`, `subset`) go there, others to
    train.

    Images are looked for as their reference says, relative to the export's folder, without the eight digits that Label
    Studio puts before an upload's name, and by name anywhere below that folder. Addresses on the web are a problem.

    Args:
        path: The .json file, or a folder with one.
        path_column: Key of the image in a task's data; by default `image` or the like.
        from_name: The field of choices to read; by default all of them. JSON-MIN does not tell a field of single choices from
            other text, unless it is called `choice` or `choices`.
        label_names: The labels to read, in this order. Others are an error.

    Raises:
        SourceNotFoundError: No such path, or no export there.
        DataError: The export cannot be read; the message names the task.
    """

    layout = "a Label Studio export"
    recognised_by = "a .json file with a list of annotated tasks"
    names_every_label = True

    def __init__(
        self,
        path: str | Path,
        *,
        path_column: str | None = None,
        from_name: str | None = None,
        label_names: Sequence[str] | None = None,
        problems: list[Problem] | None = None,
    ) -> None:
        path = Path(path).expanduser()
        self.problems = problems
        file = find_export(path)
        if file is None:
            raise SourceNotFoundError(
                f"{path} is no Label Studio export: expected a .json file with a list of tasks. Export as JSON or JSON-MIN."
            )
        self._file = file
        self.root = file.parent
        self._files_below: dict[str, list[Path]] | None = None
        self._by_split: dict[str, list[tuple[Path, _Task]]] = {}
        try:
            records = self._read_records()
            is_min = all("data" not in record for record in records)
            tasks = self._tasks_of_min(records, from_name) if is_min else self._tasks(records, from_name)
            self._place(tasks, path_column)
        except RecursionError as error:
            raise DataError(
                f"{file} holds values too deep within each other for an export. Export it again."
            ) from error
        self.splits = tuple(split for split in SPLITS if split in self._by_split)

        placed = [task for of_split in self._by_split.values() for _, task in of_split]
        found = {label for task in placed for choices in task.choices for label in choices}
        self.label_names = tuple(label_names or sorted(found))
        if not self.label_names:
            raise DataError(
                f"{file} holds no choice{f' of the field {from_name}' if from_name else ''}: expected results of type "
                "choices. Annotate some tasks, or pass from_name."
            )
        for task in placed:
            for label in sorted(frozenset().union(*task.choices).difference(self.label_names)):
                message = f"{file}: {task.name}: label '{label}' is not in label_names. Correct it, or add it."
                self._report("unknown label", message, file=file)
        self._note_disagreement(placed)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path is an export, or a folder with a single one, by the first lines."""
        return find_export(path) is not None

    def where(self, split: str, index: int) -> tuple[Path | None, int | None]:
        """The export; its lines do not matter."""
        return self._file, None

    def _read_records(self) -> list[dict[str, Any]]:
        try:
            records = json.loads(self._file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise DataError(f"{self._file}: no whole JSON ({error}). Export it again.") from error
        except OSError as error:
            raise DataError(f"{self._file}: {error.strerror}. Check the file and its permissions.") from error
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                message = (
                    f"{self._file}: task number {number}: expected an object, got {shown(str(record))}. Export again."
                )
                self._report("bad value", message, file=self._file)
        return [record for record in records if isinstance(record, dict)]

    def _tasks(self, records: list[dict[str, Any]], from_name: str | None) -> Iterator[_Task]:
        num_cancelled = 0
        for number, record in enumerate(records, start=1):
            data = record.get("data")
            task = _Task(f"task {record.get('id', f'number {number}')}", data if isinstance(data, dict) else {})
            try:
                for annotation in record.get("annotations") or ():
                    if annotation.get("was_cancelled"):
                        num_cancelled += 1
                        continue
                    results = [
                        result["value"]["choices"]
                        for result in annotation.get("result") or ()
                        if result.get("type") == "choices" and from_name in (None, result.get("from_name"))
                    ]
                    task.choices.append(frozenset(str(label).strip() for labels in results for label in labels))
            except (AttributeError, KeyError, TypeError) as error:
                message = (
                    f"{self._file}: {task.name}: annotations in an unknown form ({error!r}). Export as JSON again."
                )
                self._report("bad value", message, file=self._file)
            yield task
        if num_cancelled:
            self.notes += (f"{num_cancelled} cancelled annotations were passed over.",)

    def _tasks_of_min(self, records: list[dict[str, Any]], from_name: str | None) -> Iterator[_Task]:
        """JSON-MIN has a row an annotation, in which data and fields of choices stand side by side."""
        fields = [from_name] if from_name else _fields_of_choices(records)
        tasks: dict[Any, _Task] = {}
        for number, record in enumerate(records, start=1):
            name = f"task {record.get('id', f'number {number}')}"
            task = tasks.setdefault(name, _Task(name, record))
            task.choices.append(frozenset(label for name in fields for label in _choices_in(record.get(name))))
        yield from tasks.values()

    def _place(self, tasks: Iterator[_Task], path_column: str | None) -> None:
        """Find the image and the split of every task."""
        keys = (path_column,) if path_column else _IMAGE_KEYS
        first_of_path: dict[Path, str] = {}
        for task in tasks:
            reference = next((task.data[key] for key in keys if isinstance(task.data.get(key), str)), "")
            if not reference:
                message = (
                    f"{self._file}: {task.name}: expected the image's path under {' or '.join(keys[:2])}, got the keys "
                    f"{', '.join(task.data) or 'none'}. Pass path_column."
                )
                self._report("blank path", message, file=self._file)
                continue
            if len(reference) > _MAX_REFERENCE:
                message = (
                    f"{self._file}: {task.name}: expected the image's path, got {len(reference):,} characters, which no path has: "
                    f"{shown(reference)}. Store the images as files, and export their paths."
                )
                self._report("bad value", message, file=self._file)
                continue
            image = self._find_image(reference)
            if image is None:
                message = (
                    f"{self._file}: {task.name}: {reference} is no local file. Download it, and put the file's path in the "
                    "export; or store the images as local files in Label Studio."
                )
                self._report("remote image", message, file=self._file)
                continue
            named = next((task.data[key] for key in SPLIT_COLUMNS if key in task.data), "train")
            split = SPLIT_OF_NAME.get(str(named).strip().lower())
            if split is None:
                message = f"{self._file}: {task.name}: expected the split to be train, val or test, got '{named}'. Correct it."
                self._report("unknown split", message, file=self._file)
            elif image in first_of_path:
                message = (
                    f"{self._file}: {task.name} repeats the image of {first_of_path[image]}: {reference}. "
                    "Keep one task an image."
                )
                self._report("repeated path", message, file=self._file)
            else:
                first_of_path[image] = task.name
                self._by_split.setdefault(split, []).append((image, task))

    def _find_image(self, reference: str) -> Path | None:
        """The file that a reference means, there or not; None for an address on the web, or what only begins as one."""
        try:
            url = urlsplit(reference)
        except ValueError:  # an address that is none
            return None
        is_upload = url.path.startswith("/data/upload/")
        local = parse_qs(url.query).get("d", [""])[0] if url.path.startswith("/data/local-files") else ""
        if len(url.scheme) > 1 and not (is_upload or local):  # one letter is a drive
            return None
        name = local or (unquote(url.path).removeprefix("/data/upload/") if is_upload else reference)
        parts = name.lstrip("/").split("/")
        stored = _UPLOAD_PREFIX.sub("", parts[-1], count=1) if is_upload else parts[-1]
        candidates = [name, *("/".join(parts[start:]) for start in range(len(parts))), stored]
        paths = [Path(os.path.normpath(self.root / candidate)) for candidate in candidates]
        found = next((path for path in paths if is_file(path)), None)
        if found is None:
            below = self._below(parts[-1]) or self._below(stored)
            found = below[0] if len(below) == 1 else None
        return found or paths[0]

    def _below(self, name: str) -> list[Path]:
        if self._files_below is None:
            self._files_below = {}
            for folder, _, names in walk(self.root):
                for file in names:
                    self._files_below.setdefault(file, []).append(Path(folder, file))
        return self._files_below.get(name, [])

    def _note_disagreement(self, tasks: list[_Task]) -> None:
        disputed = [
            len(frozenset().union(*task.choices) - task.choices[0].intersection(*task.choices[1:]))
            for task in tasks
            if task.choices
        ]
        if any(disputed):
            num_tasks = sum(number > 0 for number in disputed)
            self.notes += (
                f"{sum(disputed)} entries of {num_tasks} images are unknown, since their annotators disagree.",
            )

    def _read(self, split: str) -> LabelledImages:
        of_split = self._by_split[split]
        target = new_target(len(of_split), len(self.label_names), -1)
        for row, (_, task) in zip(target, of_split, strict=True):
            for column, label in enumerate(self.label_names if task.choices else ()):
                votes = {label in choices for choices in task.choices}
                if len(votes) == 1:
                    row[column] = votes.pop()
        return LabelledImages(tuple(image for image, _ in of_split), target, self.label_names, split)


def _fields_of_choices(records: list[dict[str, Any]]) -> list[str]:
    fields = [
        name
        for record in records
        for name, value in record.items()
        if name in _CHOICE_KEYS or (isinstance(value, dict) and "choices" in value)
    ]
    return list(dict.fromkeys(fields))


def _choices_in(value: Any) -> list[str]:
    """What JSON-MIN writes for a field: one choice, {"choices": [...]}, or a list of either."""
    if isinstance(value, dict):
        value = value.get("choices")
    if isinstance(value, list):
        return [label for item in value for label in _choices_in(item)]
    return [] if value is None else [str(value).strip()]
