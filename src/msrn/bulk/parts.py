"""The results of an unfinished job: parts that are whole or absent, and what they were made of."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from msrn.errors import MSRNError
from msrn.files import is_leftover, is_utf8, json_text, write_json, write_text

_JOB_FILE = "job.json"
_LOCK_FILE = "lock"
_PARTS = "[0-9]" * 6 + ".jsonl"


@dataclass(frozen=True)
class _Part:
    """A part, and what identifies the stream of images up to its end: how many there were, and a digest of their names."""

    path: Path
    count: int
    digest: str


@dataclass(frozen=True)
class _State:
    """All that changes, so that it changes at once: Ctrl-C may come between any two steps."""

    parts: tuple[_Part, ...] = ()
    pending: tuple[dict[str, Any], ...] = ()


def is_begun(folder: Path) -> bool:
    """Whether a folder holds parts: a job that failed or was stopped before its first has nothing that can be gone on with."""
    return any(folder.glob(_PARTS))


class Parts:
    """A folder of numbered parts, each written to a temporary name and renamed, that a killed job goes on from.

    One job at a time holds it: `with Parts(folder, job) as parts`.

    Args:
        folder: Where; made if it is missing.
        job: Plain values that tell one job from another: model, sources, thresholds.
        restart: Remove what an earlier job left.

    Raises:
        MSRNError: Another job left parts there, or is at work in it, or it holds other things.
    """

    def __init__(self, folder: Path, job: dict[str, Any], *, restart: bool = False) -> None:
        self.folder = folder
        self.job = job
        self.restart = restart
        self._state = _State()
        self._digest = hashlib.sha256()  # of the names in the parts
        self._lock = FileLock(folder / _LOCK_FILE)

    def __enter__(self) -> "Parts":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise MSRNError(
                f"another process is at work in {self.folder}. Wait for it, or give another --out."
            ) from None
        except OSError as error:
            raise MSRNError(
                f"{self.folder} cannot be written: {error.strerror or error}. Free some space or give a path in a folder you own."
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _open(self) -> None:
        job_file = self.folder / _JOB_FILE
        own = self._own()
        others = [path.name for path in self.folder.iterdir() if path not in own or not path.is_file()]
        if others:
            raise MSRNError(f"{self.folder} holds other things ({others[0]}); it is left alone. Give another --out.")
        if self.restart or not is_begun(self.folder):
            self._empty()
            write_json(job_file, self.job)
            return
        try:
            left = json.loads(job_file.read_text(encoding="utf-8"))
            differing = [key for key in self.job if left.get(key) != self.job[key]]
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise _damaged(job_file) from error
        if differing:
            raise MSRNError(
                f"{self.folder} holds an unfinished job that differs in {differing[0]}. Give what that job was given to go on with "
                "it, another --out, or --restart to begin anew."
            )
        found: list[_Part] = []
        before = 0
        for number in range(len(list(self.folder.glob(_PARTS)))):
            path = self._path(number)
            try:
                with path.open(encoding="utf-8") as file:
                    head = json.loads(file.readline())
                count, listing = head["images"], head["listing"]
                # A row is longer than a letter.
                is_head = type(count) is int and isinstance(listing, str) and 0 < count - before < path.stat().st_size
            except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
                raise _damaged(path) from error
            if not is_head:
                raise _damaged(path)
            found.append(_Part(path, count, listing))
            before = count
        self._state = _State(tuple(found))

    @property
    def num_images(self) -> int:
        """Images in the parts that are there."""
        return self._state.parts[-1].count if self._state.parts else 0

    @property
    def num_pending(self) -> int:
        """Rows that no part holds yet."""
        return len(self._state.pending)

    def skip(self, refs: Iterator[Any]) -> None:
        """Take from a stream what the parts already hold.

        Raises:
            MSRNError: The stream begins with other images than those of the parts.
        """
        if not self._state.parts:
            return
        count = 0
        for ref in islice(refs, self.num_images):
            self._digest.update(_named(str(ref)))
            count += 1
        if (count, self._digest.hexdigest()) != (self.num_images, self._state.parts[-1].digest):
            raise MSRNError(
                f"the images are no longer those that the unfinished job in {self.folder} began with: files came, went or were "
                "renamed. Add --restart to begin anew."
            )

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take the rows of the images that come next; `flush` writes them."""
        self._state = replace(self._state, pending=(*self._state.pending, *rows))

    def flush(self) -> None:
        """Write the rows that were added since the last time to a part; without any nothing happens.

        Interrupted at any point and called again it writes the same part.
        """
        parts, pending = self._state.parts, self._state.pending
        if not pending:
            return
        digest = self._digest.copy()
        for row in pending:
            digest.update(_named(row["path"]))
        part = _Part(self._path(len(parts)), self.num_images + len(pending), digest.hexdigest())
        head = {"images": part.count, "listing": part.digest}
        write_text(part.path, "".join(f"{json_text(row)}\n" for row in (head, *pending)))
        self._digest, self._state = digest, _State((*parts, part))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows of all parts, in order, one at a time.

        Raises:
            MSRNError: A part is damaged.
        """
        count = 0
        for part in self._state.parts:
            try:
                with part.path.open(encoding="utf-8", errors="surrogateescape") as file:
                    file.readline()
                    for line in file:
                        row = json.loads(line)
                        if not _is_row(row):
                            raise _damaged(part.path)
                        count += 1
                        yield row
            except (OSError, ValueError, RecursionError) as error:
                raise _damaged(part.path) from error
            if count != part.count:
                raise _damaged(part.path)

    def remove(self) -> None:
        """Remove the parts and their folder, once what was made of them is in place."""
        self._empty()
        self._lock.release()
        (self.folder / _LOCK_FILE).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _own(self) -> list[Path]:
        """What a job makes here, the job itself last: without parts it is a job that has just begun."""
        parts = sorted(self.folder.glob(_PARTS), reverse=True)
        halves = [path for path in self.folder.iterdir() if is_leftover(path, (_PARTS, _JOB_FILE))]
        return [*parts, *halves, self.folder / _LOCK_FILE, self.folder / _JOB_FILE]

    def _empty(self) -> None:
        for path in self._own():
            if path.name != _LOCK_FILE:
                path.unlink(missing_ok=True)
        self._state, self._digest = _State(), hashlib.sha256()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"


def _damaged(path: Path) -> MSRNError:
    return MSRNError(f"{path} is damaged or missing. Add --restart to begin anew.")


def _is_row(row: Any) -> bool:
    """Whether a line of a part is what `Prediction.to_dict` gives."""
    if not isinstance(row, dict) or not row.keys() <= {"path", "labels", "error"}:
        return False
    path, labels, error = row.get("path"), row.get("labels"), row.get("error", "")
    return isinstance(path, str) and isinstance(labels, list) and isinstance(error, str) and all(map(_is_label, labels))


def _is_label(label: Any) -> bool:
    if not isinstance(label, dict) or label.keys() != {"name", "probability"}:
        return False
    name, probability = label["name"], label["probability"]
    return isinstance(name, str) and is_utf8(name) and type(probability) is float and 0 <= probability <= 1


def _named(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape") + b"\0"
    except UnicodeEncodeError:  # JSON can hold halves of letters, which no file's name does
        return name.encode("utf-8", "surrogatepass") + b"\0"
