"""What to tag: folders, globs, tables, tar shards, lists of names and web addresses, as one stream of images in a fixed order."""

import fnmatch
import glob
import io
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import TextIO

from msrn.data.images import IMAGE_SUFFIXES
from msrn.data.packed import PackedImage, TarMember, is_file, walk_tar
from msrn.data.records import SUFFIXES, read_records
from msrn.data.source import is_outside
from msrn.data.table import PATH_COLUMNS
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError, UnreadableImageError

STANDARD_INPUT = "-"
_SCHEMES = ("http://", "https://")
_TIMEOUT_S = 30.0
_MAX_BYTES = 200 * 2**20

ImageRef = Path | PackedImage


class RemoteImage(PackedImage):
    """An image at an address, fetched when it is read.

    Args:
        address: With its scheme: http://, https://, or one of a file system that fsspec knows (s3://, gs://, memory:// and others).
    """

    __slots__ = ("address",)

    def __init__(self, address: str) -> None:
        self.address = address

    def __fspath__(self) -> str:
        return self.address

    def read_bytes(self) -> bytes:
        """The file's content.

        Raises:
            UnreadableImageError: It cannot be fetched, or has more than 200 MB.
        """
        fetch = _fetch_from_web if self.address.startswith(_SCHEMES) else _fetch_from_file_system
        content = fetch(self.address)
        if len(content) > _MAX_BYTES:
            raise UnreadableImageError(f"{self.address}: more than {_MAX_BYTES // 2**20} MB. Give a smaller file.")
        return content

    def is_file(self) -> bool:
        """Whether it can be fetched is not known before."""
        return True


def _fetch_from_web(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"User-Agent": "msrn"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read(_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise UnreadableImageError(
            f"{address}: the server answers {error.code} {error.reason}. Check the address, or give the file itself."
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UnreadableImageError(
            f"{address}: cannot be fetched ({reason}). Check the address and the network, or give the file itself."
        ) from error
    return content


def _fetch_from_file_system(address: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            content: bytes = file.read(_MAX_BYTES + 1)
    except Exception as error:  # every file system has its own
        raise UnreadableImageError(f"{address}: cannot be read ({error}). Check the address.") from error
    return content


class ClosedFolder(PackedImage):
    """A folder that could not be listed: it takes the place of its images, and reads as an error.

    Args:
        folder: The folder.
        reason: Why.
    """

    __slots__ = ("folder", "reason")

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder = folder
        self.reason = reason

    def __fspath__(self) -> str:
        return str(self.folder)

    def read_bytes(self) -> bytes:
        """Nothing.

        Raises:
            UnreadableImageError: Always.
        """
        raise UnreadableImageError(
            f"{self.folder}: the folder cannot be listed ({self.reason}), so its images are missing. Change its permissions."
        )

    def is_file(self) -> bool:
        """It is none."""
        return False


def find_images(
    sources: Sequence[str | Path],
    *,
    path_column: str | None = None,
    allow_outside: bool = False,
    lines: Iterable[str] | None = None,
) -> Iterator[ImageRef]:
    """The images of all sources, one by one, in an order that depends on names alone.

    Only the names of one folder are held at a time; of several sources, also those that globs and names gave. Hidden files and
    folders and links to folders are passed over; a file that is named itself is kept whatever its suffix. A file of several
    folders, globs and names comes once.

    Args:
        sources: Folders, image files, globs (`photos/**/*.jpg`), tables with a column of paths (.csv, .tsv, .jsonl, .parquet;
            relative paths start at the table's folder), tar archives, http(s) addresses, files, folders and globs of file systems
            that fsspec knows (`s3://bucket/photos`), and `-` for names on standard input, one a line.
        path_column: The tables' column of paths; by default one of the usual names.
        allow_outside: Let tables name files outside of their folders, and addresses.
        lines: Read in place of standard input.

    Raises:
        SourceNotFoundError: A source does not exist; nothing was yielded of it.
        EmptySplitError: A source holds no images.
        DataError: A table or archive cannot be read.
    """
    table_options = _TableOptions(path_column, allow_outside)
    folders: list[str] = []  # that were walked
    seen: set[str] = set()  # what globs and names gave
    for number, source in enumerate(map(str, sources)):
        is_list = source == STANDARD_INPUT or "://" in source or Path(source).suffix.lower() in (*SUFFIXES, ".tar")
        is_empty = True
        for image in _images_of(source, table_options, _standard_input() if lines is None else lines):
            is_empty = False
            if not is_list and len(sources) > 1:
                place = os.path.abspath(image)  # noqa: PTH100
                if place in seen or any(place.startswith(folder) for folder in folders):
                    continue
                if number < len(sources) - 1 and not _is_folder(source):
                    seen.add(place)
            yield image
        if is_empty:
            raise EmptySplitError(
                f"{'standard input' if source == STANDARD_INPUT else source} holds no images: expected files such as "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}. Name what to read."
            )
        if not is_list and _is_folder(source):
            folders.append(os.path.join(os.path.abspath(_expanded(source)), ""))  # noqa: PTH100, PTH118


def check_sources(
    sources: Sequence[str | Path], *, path_column: str | None = None, allow_outside: bool = False
) -> None:
    """Refuse sources that do not exist, hold no images or cannot be read, before any work is done.

    Looks for the first image of each. What needs a network, and standard input, is left for later.

    Raises:
        SourceNotFoundError: A source does not exist.
        EmptySplitError: No source was given, or one holds no images.
        DataError: A table or archive cannot be read.
    """
    if not sources:
        raise EmptySplitError("expected at least one image, folder, table or archive, got none. Name what to read.")
    for source in map(str, sources):
        if source != STANDARD_INPUT and "://" not in source:
            next(find_images([source], path_column=path_column, allow_outside=allow_outside))


@dataclass(frozen=True)
class _TableOptions:
    path_column: str | None
    allow_outside: bool


def _images_of(source: str, table_options: _TableOptions, lines: TextIO | Iterable[str]) -> Iterator[ImageRef]:
    if source == STANDARD_INPUT:
        for line in lines:
            if name := line.rstrip("\r\n"):
                yield _named(name)
        return
    if source.startswith(_SCHEMES):
        yield RemoteImage(source)
        return
    if "://" in source:
        yield from _remote_images(source)
        return
    path = _expanded(source)
    if path.exists():
        yield from _images_in(path, table_options)
        return
    matches = _matches(str(path)) if glob.has_magic(source) else iter(())
    if (first := next(matches, None)) is None:
        what = "matches no file" if glob.has_magic(source) else "does not exist"
        raise SourceNotFoundError(f"{source} {what}. Check the path; relative ones start at {Path.cwd()}.")
    for match in chain([first], matches):
        yield from _images_in(match, table_options)


def _images_in(path: Path, table_options: _TableOptions) -> Iterator[ImageRef]:
    """The images of a folder, table, archive or file that exists."""
    if path.is_dir():
        yield from _images_below(path)
    elif path.suffix.lower() in SUFFIXES:
        yield from _images_of_table(path, table_options)
    elif path.suffix.lower() == ".tar":
        for entry in walk_tar(path):
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                yield TarMember(path, entry.name, entry.offset, entry.size)
    else:
        yield path


def _remote_images(source: str) -> Iterator[RemoteImage]:
    """The images of a file, folder or glob on another file system, sorted by name."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(source)
        list_files = files.glob if glob.has_magic(path) else files.find if files.isdir(path) else lambda name: [name]
        found = list_files(path)
        is_named = found == [path]
        if is_named and not files.exists(path):
            raise SourceNotFoundError(f"{source} does not exist. Check the address.")
    except SourceNotFoundError:
        raise
    except Exception as error:  # every file system has its own
        raise SourceNotFoundError(
            f"{source} cannot be read ({error}). Check the address, and install what it needs (for s3://, s3fs)."
        ) from error
    for name in sorted(found):
        if is_named or os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
            yield RemoteImage(files.unstrip_protocol(name))


def _images_below(folder: Path) -> Iterator[ImageRef]:
    """Files first, then folder by folder, each sorted by name."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        yield ClosedFolder(folder, error.strerror or str(error))
        return
    visible = [(name, is_folder) for name, is_folder in found if not name.startswith(".")]
    for name, is_folder in visible:
        if not is_folder and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
            yield folder / name
    for name in [name for name, is_folder in visible if is_folder]:
        yield from _images_below(folder / name)


def _images_of_table(table: Path, options: _TableOptions) -> Iterator[ImageRef]:
    path_column = options.path_column

    def refuse(_: str, message: str, __: int) -> None:
        raise DataError(message)

    records = read_records(table, refuse)
    line, header = next(records, (0, []))
    names = [name.strip() for name in header]
    lowered = [name.lower() for name in names]
    known = next((name for name in PATH_COLUMNS if name in lowered), None)
    if path_column is not None and path_column not in names:
        raise DataError(f"{table}: no column '{path_column}', only: {', '.join(names)}. Choose one of these.")
    if path_column is None and known is None:
        raise DataError(
            f"{table}: expected a column of paths ({', '.join(PATH_COLUMNS)}), got: {', '.join(names) or 'no header'}. Name one by "
            "--path-column."
        )
    column = names.index(path_column) if path_column is not None else lowered.index(known or "")
    for line, cells in records:
        name = cells[column].strip() if column < len(cells) else ""
        if not name:
            raise DataError(
                f"{table}:{line}: no path in the column '{names[column]}'. Fill it in, or leave the row out."
            )
        image = _named(name, table.parent)
        if not options.allow_outside and (isinstance(image, RemoteImage) or is_outside(image, table.parent)):
            what = " and would be fetched" if isinstance(image, RemoteImage) else ""
            raise DataError(
                f"{table}:{line}: {name} lies outside of {table.parent}{what}. If these are the images you mean, allow it by "
                "--allow-outside."
            )
        yield image


def _named(name: str, folder: Path | None = None) -> ImageRef:
    """What a line or a cell names."""
    if "://" in name:
        return RemoteImage(name)
    path = _expanded(name)
    if folder is not None and not path.is_absolute():
        path = folder / path
    archive, suffix, member = str(path).partition(f".tar{os.sep}")
    return TarMember(Path(f"{archive}.tar"), member) if suffix and is_file(Path(f"{archive}.tar")) else path


def _expanded(name: str) -> Path:
    """A path, with the user's own `~/`; other names may begin with a `~`."""
    return Path(name).expanduser() if name == "~" or name.startswith("~/") else Path(name)


def _is_folder(source: str) -> bool:
    return _expanded(source).is_dir()


def _standard_input() -> TextIO:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the names of some files are not UTF-8
    return sys.stdin


def _matches(pattern: str) -> Iterator[Path]:
    """The files of a glob, folder by folder, each sorted by name; no links to folders are followed."""
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
    found = _below(Path(*fixed), parts[len(fixed) :])
    return found if parts.count("**") < 2 else iter(dict.fromkeys(found))  # one file may match in several ways


def _below(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What matches the parts of a glob below a folder. Only the names of the folders on the way are held."""
    first, *rest = parts
    if first == "**":
        while rest and rest[0] == "**":  # as one of them
            rest = rest[1:]
        yield from _below(folder, rest or ["*"])
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in entries)
    except OSError:
        return
    for name, is_folder, is_plain in found:
        if name.startswith(".") and not first.startswith("."):
            continue
        if first == "**":
            if is_folder:
                yield from _below(folder / name, parts)
        elif fnmatch.fnmatchcase(name, first):
            if rest and is_folder:
                yield from _below(folder / name, rest)
            elif not rest and is_plain:
                yield folder / name
