"""One job: images in, predictions out, in parts that survive a kill."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

import msrn
from msrn.bulk import cluster, local
from msrn.bulk.local import Row
from msrn.bulk.parts import Listing, Parts
from msrn.bulk.sources import STANDARD_INPUT, check_sources, find_images
from msrn.bulk.writers import FORMATS, About, find_format, write_errors
from msrn.errors import MSRNError
from msrn.files import check_can_write
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
        num_unreadable: Images that could not be read.
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
    engine: str = "local",
    restart: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> BulkResult:
    """Predict the labels of any number of images and write them to a file.

    Images are read by worker processes, predictions written in parts to a folder beside `out` (`out` with `.parts` behind).
    Killed at any moment and started again with the same arguments it goes on behind the last part: no image is lost and none comes
    twice. At the end the parts become `out`. Memory does not grow with the number of images.

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
    if "://" in str(out):
        return _tag_to_remote(
            str(out),
            partial(
                tag_images,
                predictor,
                sources,
                format=format,
                threshold=threshold,
                top_k=top_k,
                batch_size=batch_size,
                num_workers=num_workers,
                part_size=part_size,
                path_column=path_column,
                engine=engine,
                restart=restart,
                overwrite=True,
                on_progress=on_progress,
            ),
            overwrite=overwrite,
        )
    out = Path(out)
    kind = find_format(out, format)
    check_sources(sources)
    parts_folder = out.with_name(f"{out.name}.parts")
    errors_file = out.with_name(f"{out.name}.errors.jsonl")
    if out.exists() and not overwrite and not parts_folder.exists():
        raise MSRNError(f"{out} exists; it is left alone. Give another --out, or --overwrite to replace it.")
    if kind == "xmp":
        _check_sidecars(out)
    else:
        check_can_write("--out", out)
    if _absolute(out) in map(_absolute, sources):
        raise MSRNError(f"--out {out} is one of the sources. Give another name.")
    digest = model_digest(predictor)
    job = {
        "model": digest,
        "sources": [str(source) if str(source) == STANDARD_INPUT else _absolute(source) for source in sources],
        "path_column": path_column,
        "threshold": threshold,
        "top_k": top_k,
        "version": msrn.__version__,
    }
    about = About(predictor.label_names, f"msrn {msrn.__version__}, model {digest[:12]}")
    with Parts(parts_folder, job, restart=restart) as parts:
        refs = find_images(sources, path_column=path_column)
        listing = parts.skip(refs)
        num_resumed = listing.count
        if (first := next(refs, None)) is not None:
            options: dict[str, Any] = {"threshold": threshold, "top_k": top_k, "batch_size": batch_size}
            if engine == "local":
                workers = default_workers(predictor.device) if num_workers is None else num_workers
                batches = local.predict(predictor, chain([first], refs), num_workers=workers, **options)
            else:
                batches = cluster.predict(predictor, chain([first], refs), num_workers=num_workers, **options)
            _predict(batches, parts, listing, part_size=part_size, on_progress=on_progress)
        num_unreadable = write_errors(parts.rows(), errors_file)
        FORMATS[kind](parts.rows(), out, about)
        parts.remove()
    return BulkResult(
        out,
        listing.count - num_unreadable,
        num_unreadable,
        errors_file if num_unreadable else None,
        num_resumed,
        time.monotonic() - start,
    )


def _predict(
    batches: Generator[list[Row], None, None],
    parts: Parts,
    listing: Listing,
    *,
    part_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Write what an engine predicts to further parts."""
    rows: list[Row] = []
    num_unreadable = sum("error" in row for row in parts.rows())
    written = time.monotonic()
    try:
        with closing(batches):
            for done in batches:
                for row in done:
                    listing.add(row["path"])
                    num_unreadable += "error" in row
                rows += done
                if len(rows) >= part_size or time.monotonic() - written >= _PART_SECONDS:
                    parts.write(rows, listing)
                    rows, written = [], time.monotonic()
                if on_progress is not None:
                    on_progress(listing.count, num_unreadable)
    finally:
        # Also what was done before an error or Ctrl-C.
        if rows:
            parts.write(rows, listing)


def _tag_to_remote(out: str, tag: Callable[[Path], BulkResult], *, overwrite: bool) -> BulkResult:
    """Do the job on this machine, in the cache, and copy what it wrote to where fsspec finds it."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(out)
        exists = files.exists(path)
    except Exception as error:  # every file system has its own
        raise MSRNError(f"{out} cannot be reached ({error}). Check the address, and install what it needs.") from error
    if exists and not overwrite:
        raise MSRNError(f"{out} exists; it is left alone. Give another --out, or --overwrite to replace it.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msrn" / "jobs"
    folder = cache / hashlib.sha256(out.encode()).hexdigest()[:16]
    result = tag(folder / path.rstrip("/").rpartition("/")[2])
    try:
        for name in (result.errors_file, result.out):  # the results last: once they are there all is
            if name is not None:
                written = Path(name)
                files.put(
                    str(written), f"{path.rstrip('/').rpartition('/')[0]}/{written.name}", recursive=written.is_dir()
                )
    except Exception as error:
        raise MSRNError(f"{out} cannot be written ({error}). The results lie in {result.out}.") from error
    shutil.rmtree(folder, ignore_errors=True)
    return replace(result, out=out, errors_file=None if result.errors_file is None else f"{out}.errors.jsonl")


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
    if out.exists() and not (out.is_dir() and all(path.suffix == ".xmp" or path.is_dir() for path in out.rglob("*"))):
        raise MSRNError(f"{out} holds other things than XMP sidecars; it is left alone. Give a new folder.")


def _absolute(source: str | Path) -> str:
    return str(source) if "://" in str(source) else os.path.abspath(source)  # noqa: PTH100
