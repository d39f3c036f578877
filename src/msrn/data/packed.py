"""Images that are no files of their own: packed in an archive, or in a column of a table."""

import os
import posixpath
import stat
import tarfile
from abc import abstractmethod
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from msrn.errors import DataError, UnreadableImageError

MAX_IMAGE_BYTES = 200 * 2**20
"""What an image in an archive, in a column of a table or at an address has at most; it is read whole."""

_BLOCK = 512  # bytes; a tar archive is a row of these and ends with two that are zero


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. In a stranger's folder a pipe would never answer, and a device never end: they are refused.

    Raises:
        OSError: The file cannot be opened, or is none.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not os.path.isdir(path):  # noqa: PTH112
        raise OSError("a pipe or a device, expected a file")
    return path.open("rb")


class PackedImage(os.PathLike[str]):
    """One image inside a larger file.

    Its path is that of the archive with the image's name below it, as if the archive were a folder, so that it can be
    printed, compared and hashed like any other path. Instances travel to worker processes.
    """

    __slots__ = ()

    @abstractmethod
    def __fspath__(self) -> str:
        """The archive's path, a slash, and the image's name in it."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The image file's content.

        Raises:
            OSError: The archive cannot be read, or no longer holds the image.
            UnreadableImageError: It has more than `MAX_IMAGE_BYTES`.
        """

    @abstractmethod
    def is_file(self) -> bool:
        """Whether the archive is there."""

    @property
    def place(self) -> Path | None:
        """The file or folder on disk that it lies in, so that one outside of a data set is noticed; None where it lies in none."""
        return None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return os.path.basename(os.fspath(self))  # noqa: PTH119

    def __str__(self) -> str:
        return os.fspath(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({os.fspath(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and os.fspath(other) == os.fspath(self)

    def __hash__(self) -> int:
        return hash(os.fspath(self))


def check_image_size(image: PackedImage, num_bytes: int) -> None:
    """Refuse an image that is too large to be read whole.

    Raises:
        UnreadableImageError: It has more than `MAX_IMAGE_BYTES`.
    """
    if num_bytes > MAX_IMAGE_BYTES:
        raise UnreadableImageError(f"{image}: more than {MAX_IMAGE_BYTES // 2**20} MB. Give a smaller file.")


def is_file(path: Path | PackedImage) -> bool:
    """Whether a file is there; unlike `Path.is_file`, False for a name that is too long for one."""
    return os.path.isfile(path) if isinstance(path, Path) else path.is_file()  # noqa: PTH113


class TarMember(PackedImage):
    """An image in a tar archive that is not compressed, read by seeking to it.

    Args:
        archive: The .tar file.
        member: Name in the archive.
        offset: Where its bytes start; by default it is looked up in the archive, which is read through once a process.
        size: How many bytes there are.
    """

    __slots__ = ("archive", "member", "offset", "size")

    def __init__(self, archive: Path, member: str, offset: int | None = None, size: int = 0) -> None:
        self.archive = archive
        self.member = member
        self.offset = offset
        self.size = size

    def __fspath__(self) -> str:
        return f"{self.archive}/{self.member}"

    @property
    def place(self) -> Path:
        """The archive."""
        return self.archive

    def read_bytes(self) -> bytes:
        """The image file's content.

        Raises:
            OSError: The archive cannot be read, or is shorter than it was.
            UnreadableImageError: It has more than `MAX_IMAGE_BYTES`.
        """
        offset, size = self._find()
        check_image_size(self, size)
        with open_regular(self.archive) as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size:
            raise OSError(f"{self.archive} ends within it")
        return content

    def is_file(self) -> bool:
        """Whether the archive is there, and, where the place is not known yet, holds it."""
        if self.offset is not None:
            return is_file(self.archive)
        try:
            self._find()
        except (OSError, ValueError):  # the second for names that no file can have
            return False
        return True

    def _find(self) -> tuple[int, int]:
        if self.offset is not None:
            return self.offset, self.size
        places = _places_in(self.archive, self.archive.stat().st_mtime_ns)
        if self.member not in places:
            raise FileNotFoundError(f"{self.archive} holds no file of that name")
        return places[self.member]


class TarEntry(NamedTuple):
    """A plain file in a tar archive: its name, where its bytes start, and how many there are."""

    name: str
    offset: int
    size: int

    def read_from(self, file: BinaryIO) -> bytes:
        """Its content."""
        file.seek(self.offset)
        return file.read(self.size)


def walk_tar(archive: Path) -> Iterator[TarEntry]:
    """The plain files of a tar archive, in their order; links, devices and folders are passed over.

    Names are normal: no `./` before them.

    Raises:
        DataError: The archive is missing, compressed, damaged or truncated; the message names it.
    """
    try:
        # Unlike "r", "r:" refuses compressed archives, in which no place can be sought.
        with open_regular(archive) as opened, tarfile.open(archive, "r:", opened) as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else a kilobyte a file stays
                if info.size < 0:  # tarfile would go back, and read the same headers for ever
                    raise DataError(_describe_damage(archive, f"a file of {info.size} bytes"))
                if info.isreg() and not info.issparse():
                    name = posixpath.normpath(info.name)
                    if name.startswith(("/", "../")):
                        raise DataError(
                            f"{archive}: a tar archive with a file '{name[:80]}', which would lie outside of it. "
                            "Pack it again, with names below one folder."
                        )
                    yield TarEntry(name, info.offset_data, info.size)
            end = tar.offset  # type: ignore[attr-defined]
        # tarfile takes a damaged header for the end.
        with archive.open("rb") as file:
            file.seek(end)
            is_whole = file.read(_BLOCK) == bytes(_BLOCK)
    except (tarfile.TarError, MemoryError, OverflowError) as error:  # sizes that no archive has
        raise DataError(_describe_damage(archive, str(error) or type(error).__name__)) from error
    except OSError as error:
        raise DataError(f"{archive}: {error.strerror or error}. Check the file and its permissions.") from error
    if not is_whole:
        raise DataError(_describe_damage(archive, f"no end after byte {end}"))


def _describe_damage(archive: Path, reason: str) -> str:
    with archive.open("rb") as file:
        start = file.read(6)
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        return (
            f"{archive}: a compressed tar archive, in which images cannot be sought. Unpack it to a .tar file, or into a "
            "folder; images do not shrink further anyway."
        )
    return f"{archive}: a damaged or truncated tar archive ({reason}). Copy or pack it again."


# Files whose place in an archive a process remembers, some 300 MB of names: enough for a table that shuffles many archives, in
# which each file would otherwise cost a walk through its archive.
_MOST_PLACES = 1_000_000
_Places = dict[str, tuple[int, int]]
_known_places: dict[tuple[Path, int], _Places] = {}  # the archive that was used last is last


def _places_in(archive: Path, mtime_ns: int) -> _Places:
    """Where each file of an archive lies; `mtime_ns` makes a changed archive another one."""
    key = archive, mtime_ns
    places = _known_places.pop(key, None)
    if places is None:
        places = _read_places(archive)
        while _known_places and len(places) + sum(map(len, list(_known_places.values()))) > _MOST_PLACES:
            _known_places.pop(next(iter(_known_places)), None)
    _known_places[key] = places
    return places


def _read_places(archive: Path) -> _Places:
    try:
        return {entry.name: (entry.offset, entry.size) for entry in walk_tar(archive)}
    except DataError as error:
        raise OSError(str(error)) from error
