"""One job: images in, predictions out, in parts that survive a kill."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import msrn
from msrn.bulk import cluster, local
from msrn.bulk.local import Row
from msrn.bulk.parts import Parts, is_begun
from msrn.bulk.sources import STANDARD_INPUT, check_sources, find_images, list_remote
from msrn.bulk.writers import FORMATS, About, find_format, write_errors
from msrn.errors import MSRNError
from msrn.files import check_can_write, remove_leftovers, walk
from msrn.predict import Predictor

ENGINES = ("local", "ray")

# A part ends with whichever comes first; a kill costs the work since the last one.
PART_SIZE = 8192
_PART_SECONDS = 30.0


@dataclass(frozen=True)
class BulkResult:
    """What a job did.

    Attributes:
        out: The file or folder written.
        num_images: Images tagged, over all times the job was started.
        num_unreadable: Images that could not be read, or whose name is not UTF-8 where the file is a table.
        errors_file: Where those are listed, or None where there are none.
        num_resumed: Images that were done when the job was started this time.
        seconds: Taken this time.
    """

    out: Path | str
    num_images: int
    num_unreadable: int
    errors_file: Path | str | None
    num_resumed: int
    seconds: float


def tag_images(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    format: str | None = None,
    threshold: float | None = None,
    top_k: int | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    part_size: int = PART_SIZE,
    path_column: str | None = None,
    allow_outside: bool = False,
    engine: str = "local",
    restart: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> BulkResult:
    """Predict the labels of any number of images and write them to a file.

    Images are read by worker processes, predictions written in parts to a folder beside `out` (`out` with `.parts` behind).
    Killed at any moment and started again with the same arguments it goes on behind the last part: no image is lost and none comes
    twice. At the end the parts become `out`. What is held at a time are some batches, one part, and the names of one folder.

    Args:
        predictor: The model.
        sources: See `find_images`.
        out: The file, or the folder of sidecars.
        format: One of `FORMATS`; by default what the ending of `out` says.
        threshold: Keep labels with at least this probability; the bundle's own, a label, where neither this nor `top_k` is given.
        top_k: Keep at most this many labels.
        batch_size: Images a pass.
        num_workers: Processes that read images; by default as many as there are processors, at most 8, and half of them where the
            model runs on the processor too. On Ray, processes that read and predict.
        part_size: Most images a part; a part also ends after 30 seconds.
        path_column: Of tables.
        allow_outside: Of tables.
        engine: "local", or "ray" for Ray Data on this machine or the cluster of RAY_ADDRESS.
        restart: Begin anew where an unfinished job lies.
        overwrite: Replace an `out` that exists.
        on_progress: Called after each batch with the images done and those of them that could not be read.

    Raises:
        MSRNError: `out` exists or cannot be written, an unfinished job lies there with other arguments, or the images have changed
            since it began.
        SourceNotFoundError, EmptySplitError, DataError: See `find_images`.
    """
    start = time.monotonic()
    if engine not in ENGINES:
        raise MSRNError(f"there is no engine '{engine}'. Choose one of {', '.join(ENGINES)}.")
    for name, number in (("batch_size", batch_size), ("part_size", part_size), ("num_workers", 1 + (num_workers or 0))):
        if number < 1:
            raise ValueError(f"{name} is too small, got {number}.")
    predictor.least(threshold, top_k)
    remote = _Remote.at(str(out)) if "://" in str(out) else None
    local_out = Path(out) if remote is None else remote.local
    if not local_out.name:
        raise MSRNError(f"--out {out} has no name. Give that of a file, or of a new folder for sidecars.")
    kind = find_format(local_out, format)
    writer = FORMATS[kind]
    digest = model_digest(predictor)
    about = About(predictor.label_names, f"msrn {msrn.__version__}, model {digest[:12]}")
    writer.check(about, local_out, [str(source) for source in sources])
    if _place(out) in map(_place, sources):
        raise MSRNError(f"--out {out} is one of the sources. Give another name.")
    check_sources(sources, path_column=path_column, allow_outside=allow_outside)
    parts_folder = local_out.with_name(f"{local_out.name}.parts")
    errors_file = local_out.with_name(f"{local_out.name}.errors.jsonl")
    if not overwrite and not is_begun(parts_folder):
        existing = (
            [str(path) for path in (local_out, errors_file) if path.exists()] if remote is None else remote.existing()
        )
        if existing:
            raise MSRNError(
                f"{existing[0]} exists; it is left alone. Give another --out, or --overwrite to replace it."
            )
    if remote is not None:
        remote.check(is_folder=kind == "xmp")
    if kind == "xmp":
        _check_sidecars(local_out)
    else:
        check_can_write("--out", local_out)
    job = {
        "model": digest,
        "bf16": predictor.bf16,
        "sources": [str(source) if str(source) == STANDARD_INPUT else _absolute(source) for source in sources],
        "path_column": path_column,
        "threshold": threshold,
        "top_k": top_k,
        "version": msrn.__version__,
    }
    with Parts(parts_folder, job, restart=restart) as parts:
        for file in (local_out, errors_file):
            remove_leftovers(file)  # of a kill while it was written
        refs = find_images(sources, path_column=path_column, allow_outside=allow_outside)
        parts.skip(refs)
        num_resumed = parts.num_images
        if (first := next(refs, None)) is not None:
            options: dict[str, Any] = {"threshold": threshold, "top_k": top_k, "batch_size": batch_size}
            if engine == "local":
                workers = default_workers(predictor.device) if num_workers is None else num_workers
                batches = local.predict(predictor, chain([first], refs), num_workers=workers, **options)
            else:
                batches = cluster.predict(predictor, chain([first], refs), num_workers=num_workers, **options)
            _predict(batches, parts, part_size=part_size, on_progress=on_progress)
        num_rows = sum(1 for _ in parts.rows())
        if num_rows != parts.num_images:
            raise MSRNError(
                f"{parts_folder} holds {num_rows} rows of {parts.num_images} images. Add --restart to begin anew, and report this."
            )
        num_unreadable = write_errors(map(writer.fit, parts.rows()), errors_file)
        writer.write(map(writer.fit, parts.rows()), local_out, about)
        if remote is not None:
            remote.put([errors_file, local_out])
        parts.remove()
    num_images = num_rows - num_unreadable
    if remote is None:
        listed: Path | str | None = errors_file if num_unreadable else None
        return BulkResult(local_out, num_images, num_unreadable, listed, num_resumed, time.monotonic() - start)
    shutil.rmtree(local_out.parent, ignore_errors=True)
    listed = remote.errors if num_unreadable else None
    return BulkResult(str(out), num_images, num_unreadable, listed, num_resumed, time.monotonic() - start)


def _predict(
    batches: Generator[list[Row], None, None],
    parts: Parts,
    *,
    part_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write what an engine predicts to further parts."""
    num_unreadable = sum("error" in row for row in parts.rows())
    written = time.monotonic()
    try:
        with closing(batches):
            for rows in batches:
                parts.add(rows)
                num_unreadable += sum("error" in row for row in rows)
                if parts.num_pending >= part_size or time.monotonic() - written >= _PART_SECONDS:
                    parts.flush()
                    written = time.monotonic()
                if on_progress is not None:
                    on_progress(parts.num_images + parts.num_pending, num_unreadable)
    finally:
        parts.flush()  # also what was done before an error or Ctrl-C


@dataclass(frozen=True)
class _Remote:
    """Where fsspec finds a file or folder. The job works on this machine, in the cache, and copies what it wrote at the end."""

    address: str
    files: Any
    path: str
    local: Path

    @classmethod
    def at(cls, address: str) -> "_Remote":
        """Where an address leads; tries to write there.

        Raises:
            MSRNError: It cannot be reached or written.
        """
        import fsspec

        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msrn" / "jobs"
        try:
            files, path = fsspec.core.url_to_fs(address)
            path = path.rstrip("/")
            folder, _, name = path.rpartition("/")
            files.makedirs(folder or "/", exist_ok=True)
            files.pipe_file(f"{path}.trial", b"")
            files.rm_file(f"{path}.trial")
        except Exception as error:  # every file system has its own
            raise MSRNError(
                f"{address} cannot be written ({error}). Check the address, and install what it needs."
            ) from error
        return cls(address, files, path, cache / hashlib.sha256(address.encode()).hexdigest()[:16] / name)

    @property
    def errors(self) -> str:
        """The address of the list of images that could not be read."""
        return f"{self.address.rstrip('/')}.errors.jsonl"

    def existing(self) -> list[str]:
        """What of the results is there already."""
        places = {self.address: self.path, self.errors: f"{self.path}.errors.jsonl"}
        return [address for address, path in places.items() if self.files.exists(path)]

    def check(self, *, is_folder: bool) -> None:
        """Refuse to replace a folder by a file, or anything but sidecars by a folder of them.

        Raises:
            MSRNError: It would be replaced, or cannot be looked at.
        """
        try:
            if self.files.isdir(self.path):
                is_ours = is_folder and all(map(_is_sidecar, _files_below(self.files, self.path)))
            else:
                is_ours = not (is_folder and self.files.exists(self.path))
        except Exception as error:  # every file system has its own
            raise MSRNError(f"{self.address} cannot be read ({error}). Check the address.") from error
        if not is_ours:
            what = "holds other things than XMP sidecars" if is_folder else "is a folder"
            raise MSRNError(f"{self.address} {what}; it is left alone. Give another --out.")

    def put(self, written: Sequence[Path]) -> None:
        """Copy files or folders beside each other, the last one last: to another name first. What was not written is removed there.

        Raises:
            MSRNError: They cannot be written; the parts stay.
        """
        folder = self.path.rpartition("/")[0]
        try:
            for own in written:
                place = f"{folder}/{own.name}"
                half = f"{place}.uploading"
                if self.files.exists(half):
                    self.files.rm(half, recursive=True)
                if own.is_dir():
                    self.files.put(f"{own}/", f"{half}/", recursive=True)
                    self.check(is_folder=True)  # the job may have taken days
                elif own.exists():
                    self.files.put_file(str(own), half)
                if self.files.exists(place):
                    self.files.rm(place, recursive=own.is_dir())
                if own.exists():
                    self.files.mv(half, place, recursive=own.is_dir())
        except Exception as error:
            raise MSRNError(
                f"{self.address} cannot be written ({error}). The same command tries again; the results lie in {written[-1]}."
            ) from error


def model_digest(predictor: Predictor) -> str:
    """A digest of all that a prediction depends on: weights, labels, preprocessing, calibration and thresholds."""
    bundle = predictor.bundle
    digest = hashlib.sha256(json.dumps(bundle.config(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(bundle.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def default_workers(device: torch.device) -> int:
    """Processes that read images beside a model on this device."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, count if device.type != "cpu" else count // 2))


def _check_sidecars(out: Path) -> None:
    """Refuse to replace a folder that holds more than sidecars."""
    found = (name for _, _, names in walk(out) for name in names)
    if out.exists() and not (out.is_dir() and all(map(_is_sidecar, found))):
        raise MSRNError(f"{out} holds other things than XMP sidecars; it is left alone. Give a new folder.")


def _is_sidecar(name: str) -> bool:
    return name.endswith(".xmp")


def _files_below(files: Any, folder: str) -> Iterator[str]:
    """The files of a folder of another file system, folder by folder."""
    for name, is_folder in list_remote(files, folder):
        if is_folder:
            yield from _files_below(files, name)
        else:
            yield name


def _absolute(source: str | Path) -> str:
    return str(source) if "://" in str(source) else os.path.abspath(source)  # noqa: PTH100


def _place(source: str | Path) -> str:
    """Where a source or a file lies, however its path or address is written."""
    text = str(source)
    if "://" not in text:
        return os.path.realpath(text)
    if text.startswith(("http://", "https://")):
        return text
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(text)
    except Exception:  # is said where it is read
        return text
    address: str = files.unstrip_protocol(path.rstrip("/"))
    return os.path.realpath(path) if address.startswith("file://") else address
