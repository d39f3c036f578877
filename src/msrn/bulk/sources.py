"""What to tag: folders, globs, tables, tar shards, lists of names and web addresses, as one stream of images in a fixed order."""

import fnmatch
import glob
import http.client
import io
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, TextIO

from msrn.data.cells import is_plain, shown
from msrn.data.images import IMAGE_SUFFIXES
from msrn.data.packed import MAX_IMAGE_BYTES, PackedImage, TarMember, check_image_size, is_file, walk_tar
from msrn.data.records import SUFFIXES, read_records
from msrn.data.source import is_outside
from msrn.data.table import PATH_COLUMNS
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError, UnreadableImageError

STANDARD_INPUT = "-"
_SCHEMES = ("http://", "https://")
_TIMEOUT_S = 30.0  # for the next bytes
_MOST_S = 300.0  # for all of an image
_PART_BYTES = 1 << 20

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
        check_image_size(self, len(content))
        return content

    def is_file(self) -> bool:
        """Whether it can be fetched is not known before."""
        return True


def _fetch_from_web(address: str) -> bytes:
    try:
        request = urllib.request.Request(_quoted(address), headers={"User-Agent": "msrn"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return _read_in_time(answer)
    except urllib.error.HTTPError as error:
        error.close()
        raise UnreadableImageError(
            f"{address}: the server answers {error.code} {error.reason}. Check the address, or give the file itself."
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise UnreadableImageError(
            f"{address}: cannot be fetched ({reason}). Check the address and the network, or give the file itself."
        ) from error


def _quoted(address: str) -> str:
    """An address with the blanks and letters in its path written as a server expects them."""
    parts = urllib.parse.urlsplit(address)
    path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    return parts._replace(path=path, query=query).geturl()


def _read_in_time(answer: http.client.HTTPResponse) -> bytes:
    """At most `MAX_IMAGE_BYTES` and one more; a server that sends a byte now and then is given up."""
    end_s = time.monotonic() + _MOST_S
    content = bytearray()
    while len(content) <= MAX_IMAGE_BYTES and (part := answer.read1(_PART_BYTES)):
        content += part
        if time.monotonic() > end_s:
            raise TimeoutError(f"it took more than {_MOST_S:.0f} seconds")
    return bytes(content[: MAX_IMAGE_BYTES + 1])


def _fetch_from_file_system(address: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            content: bytes = file.read(MAX_IMAGE_BYTES + 1)
    except Exception as error:  # every file system has its own
        raise UnreadableImageError(f"{address}: cannot be read ({error}). Check the address.") from error
    return content


class ClosedFolder(PackedImage):
    """A folder that could not be listed: it takes the place of its images, and reads as an error.

    Args:
        folder: Its path or address.
        reason: Why.
    """

    __slots__ = ("folder", "reason")

    def __init__(self, folder: Path | str, reason: str) -> None:
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

    Only the names of one folder are held at a time; of several sources, also those that globs and names gave; of a glob at an
    address, all that it finds. Hidden files and folders and links to folders are passed over, unless they are named themselves; a
    file that is named itself is kept whatever its suffix. A file, table or archive of several folders, globs and names comes
    once; rows of tables, lines of standard input and addresses are taken as they are.

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
        DataError: A table or archive cannot be read, or lies at an address.
    """
    table_options = _TableOptions(path_column, allow_outside)
    earlier = _Earlier()
    for number, source in enumerate(map(str, sources)):
        is_empty = True
        if source == STANDARD_INPUT or "://" in source:
            for image in _listed(source, lines):
                is_empty = False
                yield image
        else:
            for place in _places(source):
                walk = _Walk(place) if isinstance(place, Path) and place.is_dir() else None
                if walk is None and earlier.has(place):
                    is_empty = False
                    continue
                images: Iterable[ImageRef] = _images_in(place, table_options) if walk is None else walk
                for image in images:
                    is_empty = False
                    if walk is None or not earlier.has(image):
                        yield image
                if number < len(sources) - 1:  # nothing comes after the last
                    earlier.add(place, walk)
        if is_empty:
            raise EmptySplitError(
                f"{'standard input' if source == STANDARD_INPUT else source} holds no images: expected files such as "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}. Name what to read."
            )


def check_sources(
    sources: Sequence[str | Path], *, path_column: str | None = None, allow_outside: bool = False
) -> None:
    """Refuse sources that do not exist, hold no images or cannot be read, before any work is done.

    Looks for the first image of each. What needs a network, and standard input, is left for later.

    Raises:
        SourceNotFoundError: A source does not exist.
        EmptySplitError: No source was given, or one holds no images.
        DataError: A table or archive cannot be read, or lies at an address.
    """
    if not sources:
        raise EmptySplitError("expected at least one image, folder, table or archive, got none. Name what to read.")
    for source in map(str, sources):
        if "://" in source:
            _check_address(source)
        elif source != STANDARD_INPUT:
            next(find_images([source], path_column=path_column, allow_outside=allow_outside))


@dataclass(frozen=True)
class _TableOptions:
    path_column: str | None
    allow_outside: bool


class _Walk:
    """The images below a folder, and which files were among them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = os.path.abspath(folder)  # noqa: PTH100
        self._closed: set[str] = set()
        self._last = ("", False)  # files come folder by folder

    def __iter__(self) -> Iterator[ImageRef]:
        for image in _images_below(self.folder):
            if isinstance(image, ClosedFolder):
                self._closed.add(os.path.abspath(image))  # noqa: PTH100
            yield image

    def has(self, path: str) -> bool:
        """Whether an absolute path was among them: hidden files, other endings and what lies behind a link to a folder were not."""
        if path in self._closed:
            return True
        folder, name = os.path.split(path)
        if name.startswith(".") or not _is_image(name):
            return False
        if folder != self._last[0]:
            self._last = folder, self._has_listed(folder)
        return self._last[1]

    def _has_listed(self, folder: str) -> bool:
        while folder not in self._closed:
            if folder == self._root:
                return True
            above, name = os.path.split(folder)
            if name == "" or name.startswith(".") or os.path.islink(folder):  # noqa: PTH114
                return False
            folder = above
        return False


class _Earlier:
    """What came already, so that a file, table or archive of several folders, globs and names comes once."""

    def __init__(self) -> None:
        self._walks: list[_Walk] = []
        self._named: set[str] = set()

    def has(self, place: ImageRef) -> bool:
        """Whether a file, table or archive came."""
        if not self._walks and not self._named:
            return False
        path = os.path.abspath(place)  # noqa: PTH100
        return path in self._named or any(walk.has(path) for walk in self._walks)

    def add(self, place: ImageRef, walk: _Walk | None) -> None:
        """Note that all of a place came; of a folder, by its walk."""
        if walk is not None:
            self._walks.append(walk)
        else:
            self._named.add(os.path.abspath(place))  # noqa: PTH100


def _listed(source: str, lines: Iterable[str] | None) -> Iterator[ImageRef]:
    """The images of standard input, or at an address."""
    if source == STANDARD_INPUT:
        for line in _standard_input() if lines is None else lines:
            if name := line.rstrip("\r\n"):
                yield _named(name)
        return
    _check_address(source)
    if source.startswith(_SCHEMES):
        yield RemoteImage(source)
    else:
        yield from _remote_images(source)


def _places(source: str) -> Iterator[Path | ClosedFolder]:
    """The path of a source; of a glob the files that it matches, and the folders that it could not look into."""
    path = _expanded(source)
    if path.exists():
        yield path
        return
    matches = _matches(str(path)) if glob.has_magic(source) else iter(())
    if (first := next(matches, None)) is None:
        what = "matches no file" if glob.has_magic(source) else "does not exist"
        raise SourceNotFoundError(f"{source} {what}. Check the path; relative ones start at {Path.cwd()}.")
    yield from chain([first], matches)


def _images_in(place: Path | ClosedFolder, table_options: _TableOptions) -> Iterator[ImageRef]:
    """The images of a table or archive, or the file itself."""
    suffix = place.suffix.lower() if isinstance(place, Path) else ""
    if isinstance(place, Path) and suffix in SUFFIXES:
        yield from _images_of_table(place, table_options)
    elif isinstance(place, Path) and suffix == ".tar":
        for entry in walk_tar(place):
            if _is_image(entry.name):
                yield TarMember(place, entry.name, entry.offset, entry.size)
    else:
        yield place


def _check_address(address: str) -> None:
    """Refuse a table or archive that would have to be fetched: read as an image it would be one that is damaged."""
    path = urllib.parse.urlsplit(address).path if address.startswith(_SCHEMES) else address
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    if suffix in (*SUFFIXES, ".tar"):
        what = "an archive" if suffix == ".tar" else "a table"
        raise DataError(f"{address}: {what} is read from this machine only. Download it, and name the file.")


def _remote_images(source: str) -> Iterator[ImageRef]:
    """The images of a file, folder or glob on another file system, sorted by name."""
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(source)
        if glob.has_magic(path):
            found: list[tuple[str, bool]] | None = [(name, False) for name in sorted(files.glob(path))]
        elif files.isdir(path):
            found = list_remote(files, path)
        elif files.exists(path):
            found = None  # the image itself
        else:
            raise SourceNotFoundError(f"{source} does not exist. Check the address.")
    except SourceNotFoundError:
        raise
    except Exception as error:  # every file system has its own
        raise SourceNotFoundError(
            f"{source} cannot be read ({error}). Check the address, and install what it needs (for s3://, s3fs)."
        ) from error
    if found is None:
        yield RemoteImage(files.unstrip_protocol(path))
    else:
        yield from _remote_below(files, found)


def list_remote(files: Any, folder: str) -> list[tuple[str, bool]]:
    """What lies in a folder of another file system, by name, and what of it are folders. Its own errors come through."""
    found = []
    for entry in files.ls(folder, detail=True):
        name = entry["name"].rstrip("/")
        if name != folder.rstrip("/"):  # object stores have an entry for the folder itself
            found.append((name, entry["type"] == "directory"))
    files.invalidate_cache(folder)  # which would keep the names of all folders
    return sorted(found, key=lambda entry: f"{entry[0]}/" if entry[1] else entry[0])  # as whole paths are sorted


def _remote_below(files: Any, found: list[tuple[str, bool]]) -> Iterator[ImageRef]:
    coming = found[::-1]
    while coming:
        name, is_folder = coming.pop()
        if not is_folder:
            if _is_image(name):
                yield RemoteImage(files.unstrip_protocol(name))
            continue
        try:
            coming += list_remote(files, name)[::-1]
        except FileNotFoundError:  # went, or is a folder without anything in it
            continue
        except Exception as error:  # every file system has its own
            yield ClosedFolder(files.unstrip_protocol(name), str(error) or type(error).__name__)


def _images_below(top: Path) -> Iterator[ImageRef]:
    """Files first, then folder by folder, each sorted by name."""
    coming = [top]  # and no calls within calls: folders may lie thousands deep
    while coming:
        folder = coming.pop()
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
        except OSError as error:
            yield ClosedFolder(folder, error.strerror or str(error))
            continue
        visible = [(name, is_folder) for name, is_folder in found if not name.startswith(".")]
        for name, is_folder in visible:
            if not is_folder and _is_image(name):
                yield folder / name
        coming += [folder / name for name, is_folder in reversed(visible) if is_folder]


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
        if not is_plain(name):
            raise DataError(
                f"{table}:{line}: expected a path in the column '{names[column]}', got {shown(name)}. Give one path, or name "
                "another column by --path-column."
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


def _is_image(name: str) -> bool:
    """Whether a name ends as images' names do."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _standard_input() -> TextIO:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the names of some files are not UTF-8
    return sys.stdin


def _matches(pattern: str) -> Iterator[Path | ClosedFolder]:
    """The files of a glob, folder by folder, each sorted by name; no links to folders are followed."""
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts))
    found = _below(Path(*fixed), parts[len(fixed) :])
    if parts.count("**") > 1:  # one file may match in several ways
        yield from dict.fromkeys(found)
        return
    closed: set[ClosedFolder] = set()  # a ** and what follows it look into the same folder
    for match in found:
        if isinstance(match, ClosedFolder):
            if match in closed:
                continue
            closed.add(match)
        yield match


def _below(folder: Path, parts: Sequence[str]) -> Iterator[Path | ClosedFolder]:
    """What matches the parts of a glob below a folder. Only the names of the folders on the way are held."""
    levels = [_look(folder, parts)]  # and no calls within calls: folders may lie thousands deep
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
        elif isinstance(found, tuple):
            levels.append(_look(*found))
        else:
            yield found


def _look(folder: Path, parts: Sequence[str]) -> Iterator[Path | ClosedFolder | tuple[Path, Sequence[str]]]:
    """What matches in a folder itself, and where to look further, with the parts that then are to be matched."""
    first, *rest = parts
    if first == "**":
        while rest and rest[0] == "**":  # as one of them
            rest = rest[1:]
        yield folder, rest or ["*"]
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False), _is_plain(entry)) for entry in entries)
    except (FileNotFoundError, NotADirectoryError):  # matches nothing
        return
    except OSError as error:
        yield ClosedFolder(folder, error.strerror or str(error))
        return
    for name, is_folder, is_own_file in found:
        if name.startswith(".") and not first.startswith("."):
            continue
        if first == "**":
            if is_folder:
                yield folder / name, parts
        elif fnmatch.fnmatchcase(name, first):
            if rest and is_folder:
                yield folder / name, rest
            elif not rest and is_own_file:
                yield folder / name


def _is_plain(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry of a folder is a file; unlike `entry.is_file`, False for a link that leads to itself."""
    try:
        return entry.is_file()
    except OSError:
        return False
