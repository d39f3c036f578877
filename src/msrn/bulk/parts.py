"""The results of an unfinished job: parts that are whole or absent, and what they were made of."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from msrn.errors import MSRNError
from msrn.files import is_utf8, write_json, write_text

_JOB_FILE = "job.json"
_LOCK_FILE = "lock"


class Listing:
    """What identifies a stream of images up to here: how many there were, and a digest of their names."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.sha256()

    def add(self, name: str) -> None:
        """Take one more name."""
        self.count += 1
        self._digest.update(name.encode("utf-8", "surrogateescape") + b"\0")

    @property
    def digest(self) -> str:
        """Hexadecimal."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class _Part:
    path: Path
    count: int
    digest: str


class Parts:
    """A folder of numbered parts, each written to a temporary name and renamed, that a killed job goes on from.

    One job at a time holds it: `with Parts(folder, job) as parts`.

    Args:
        folder: Where; made if it is missing.
        job: Plain values that tell one job from another: model, sources, thresholds.
        restart: Remove what an earlier job left.

    Raises:
        MSRNError: Another job left it unfinished, or is at work in it.
    """

    def __init__(self, folder: Path, job: dict[str, Any], *, restart: bool = False) -> None:
        self.folder = folder
        self.job = job
        self.restart = restart
        self._parts: list[_Part] = []
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
        if self.restart:
            self._empty()
        job_file = self.folder / _JOB_FILE
        if not job_file.is_file():
            self._empty()
            write_json(job_file, self.job)
            return
        try:
            left = json.loads(job_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise MSRNError(f"{job_file} is damaged. Add --restart to begin anew.") from error
        differing = [key for key in self.job if left.get(key) != self.job[key]]
        if differing:
            raise MSRNError(
                f"{self.folder} holds an unfinished job with another {differing[0]}. Give what that job was given to go on with "
                "it, another --out, or --restart to begin anew."
            )
        for number in range(len(list(self.folder.glob("*.jsonl")))):
            path = self._path(number)
            try:
                with path.open(encoding="utf-8") as file:
                    head = json.loads(file.readline())
                self._parts.append(_Part(path, head["images"], head["listing"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise MSRNError(f"{path} is damaged or missing. Add --restart to begin anew.") from error

    @property
    def num_images(self) -> int:
        """Images in the parts that are there."""
        return self._parts[-1].count if self._parts else 0

    def skip(self, names: Iterator[Any]) -> Listing:
        """Take from a stream what the parts already hold, and return the listing so far.

        Raises:
            MSRNError: The stream begins with other images than those of the parts.
        """
        listing = Listing()
        for ref in names if self._parts else ():
            listing.add(str(ref))
            if listing.count == self.num_images:
                break
        if self._parts and (listing.count, listing.digest) != (self.num_images, self._parts[-1].digest):
            raise MSRNError(
                f"the images are no longer those that the unfinished job in {self.folder} began with: files came, went or were "
                "renamed. Add --restart to begin anew."
            )
        return listing

    def write(self, rows: Iterable[dict[str, Any]], listing: Listing) -> None:
        """Add a part: the rows of all images of the listing that no part holds yet."""
        head = {"images": listing.count, "listing": listing.digest}
        path = self._path(len(self._parts))
        write_text(path, "".join(f"{_json(row)}\n" for row in (head, *rows)))
        self._parts.append(_Part(path, listing.count, listing.digest))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows of all parts, in order, one at a time."""
        for part in self._parts:
            with part.path.open(encoding="utf-8", errors="surrogateescape") as file:
                file.readline()
                yield from map(json.loads, file)

    def remove(self) -> None:
        """Remove the parts and their folder, once what was made of them is in place."""
        self._empty()
        self._lock.release()
        (self.folder / _LOCK_FILE).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _empty(self) -> None:
        # The job last: without parts it is a job that has just begun.
        for path in (*sorted(self.folder.glob("*.jsonl"), reverse=True), *self.folder.glob(".*.jsonl.????????")):
            path.unlink()
        (self.folder / _JOB_FILE).unlink(missing_ok=True)
        self._parts = []

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"


def _json(row: dict[str, Any]) -> str:
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return line if is_utf8(line) else json.dumps(row, allow_nan=False)  # a file name in another encoding
