"""Writing files so that they are whole or absent: to a temporary name first, then renamed."""

import ctypes
import errno
import glob
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msrn.errors import MSRNError

if sys.platform != "win32":
    import fcntl

# Of Linux, for `renameat2`: names are relative to the folder we are in, and swapped.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

# How what lies beside a name ends: what shall take its place, and a folder that had it before.
_NEW, _OLD = ".msrn", ".old.msrn"


def write_text(path: str | Path, text: str) -> None:
    """Replace a file's content in one step, as UTF-8; missing parent folders are made.

    Names of files that are not UTF-8 are written with the bytes they have.

    Raises:
        MSRNError: The file cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file's content in one step; missing parent folders are made.

    Raises:
        MSRNError: The file cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def json_text(value: Any, *, indent: int | None = None, encoding: str = "utf-8") -> str:
    r"""A value as JSON, its letters as they are; with escapes for all of them where the encoding lacks one of them.

    Names of files that are not UTF-8 hold such letters, and standard output may have another encoding.

    Example:
        >>> json_text("é"), json_text("é\udce9"), json_text("é", encoding="ascii")
        ('"é"', '"\\u00e9\\udce9"', '"\\u00e9"')
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    return text if can_encode(text, encoding) else json.dumps(value, indent=indent, allow_nan=False)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, `-` meaning standard output; see `write_text`."""
    if str(path) == "-":
        sys.stdout.write(json_text(value, indent=2, encoding=stdout_encoding()) + "\n")
        sys.stdout.flush()
    else:
        write_text(path, json_text(value, indent=2) + "\n")


def stdout_encoding() -> str:
    """How standard output writes letters; UTF-8 where it does not say."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path` that takes its place once the block has ended without an error.

    Links are followed. What is no regular file (a device, a pipe) stays what it is: it is given the content at the end.

    Raises:
        MSRNError: The file cannot be written.
    """
    path = Path(path)
    if _is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "content"
            temporary.touch()
            yield temporary
            try:
                with path.open("wb") as target, temporary.open("rb") as content:
                    shutil.copyfileobj(content, target)
            except OSError as error:
                raise _not_written(path, error) from error
        return
    path = _behind_links(path)
    try:
        temporary, lock = _make_beside(path)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield temporary
        share_file(temporary)
        put_in_place(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        _unlock(lock)


def _make_beside(path: Path, suffix: str = _NEW, *, is_folder: bool = False) -> tuple[Path, int | None]:
    """Make an empty temporary file or folder beside `path`, and lock it: what is locked no other process takes for a leftover.

    Raises:
        OSError: It cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        if is_folder:
            name = tempfile.mkdtemp(suffix, f".{path.name}.", path.parent)
        else:
            handle, name = tempfile.mkstemp(suffix, f".{path.name}.", path.parent)
            os.close(handle)
        temporary = Path(name)
        with suppress(BlockingIOError):
            lock = _lock(temporary)
            if temporary.exists():
                return temporary, lock
            _unlock(lock)
        # Another process has taken it for a leftover before it was locked.


def _find_beside(path: Path, suffix: str) -> Iterator[Path]:
    return path.parent.glob(f".{glob.escape(path.name)}.????????{suffix}")


def _lock(temporary: Path) -> int | None:
    """Lock a temporary file or folder until `_unlock` or the end of this process.

    Returns:
        A handle; None where the system or the file system has no locks, or nothing has that name.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(temporary, os.O_RDONLY if temporary.is_dir() else os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a file so that after a power cut its name holds the old content or the new, whole.

    Without this a file system may write the new name before the content.
    """
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Have what a file or a folder holds written to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened on Windows, which needs no more than the rename
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES):  # cannot be asked for here
            raise
    finally:
        os.close(handle)


def check_can_write(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written at the end, before the work is done for it; `-` is standard output.

    Raises:
        MSRNError: It is a folder, or its folder cannot be written; the message names the option.
    """
    if path is None or str(path) == "-":
        return
    if path.is_dir():
        raise MSRNError(f"{option} {path} is a folder. Give the name of a file.")
    if not _is_special(path):
        path = _behind_links(path)
        check_parent(path)
        remove_leftovers(path)
    elif not os.access(path, os.W_OK):
        raise MSRNError(f"{option} {path} may not be written. Choose another name.")


def _is_special(path: Path) -> bool:
    """Whether something is there that is neither a file nor a folder: a device, a pipe, a socket."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _not_written(path, error) from error
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _behind_links(path: Path) -> Path:
    """Where a link leads, also to nothing yet; else the path itself."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_parent(path: Path) -> None:
    """Refuse a file or folder that could not be put where it shall be.

    Raises:
        MSRNError: The folder it lies in cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _not_written(path, error) from error


@contextmanager
def replace_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` that takes its place once the block has ended without an error.

    At every moment the name has the old folder or the new one. Where a system cannot swap two names (Linux can), it has neither
    between two renames; what a kill leaves there, `remove_leftovers` or the next call puts back.

    Raises:
        MSRNError: The folder cannot be written.
    """
    path = _behind_links(Path(path))
    remove_leftovers(path)
    with folder_beside(path) as temporary:
        yield temporary
        for folder, _, names in walk(temporary):  # unlike `rglob`, which remembers every path
            for name in names:
                _flush(Path(folder, name))
            _flush(Path(folder))
        if path.exists():
            if not _swap(temporary, path):
                _replace_by_way_of(temporary, path)
        else:
            temporary.replace(path)
        _flush(path.parent)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`, which is removed at the end.

    Raises:
        MSRNError: It cannot be made, or what is written in the block cannot.
    """
    try:
        temporary, lock = _make_beside(path, is_folder=True)
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        temporary.chmod(0o777 & ~_umask())
        yield temporary
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unlock(lock)


def _swap(one: Path, other: Path) -> bool:
    """Let two names change places in one step, so that neither is absent at any moment; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0  # otherwise a file system that cannot, or an error that plain renames will say


def _replace_by_way_of(temporary: Path, path: Path) -> None:
    """Replace a folder by two renames; `remove_leftovers` puts back what a kill between them leaves."""
    old, lock = _make_beside(path, _OLD, is_folder=True)
    try:
        path.replace(old / "old")
        temporary.replace(path)
    except BaseException:
        _put_back(old, path)
        raise
    finally:
        if path.exists():  # else the old folder is all there is
            shutil.rmtree(old, ignore_errors=True)
        _unlock(lock)


def _put_back(old: Path, path: Path) -> None:
    """Give a folder that was moved out of the way its name again, if nothing has it."""
    if not path.exists() and (old / "old").exists():
        (old / "old").replace(path)


def remove_leftovers(path: Path) -> None:
    """Remove what `replace_file` and `replace_folder` left beside a name where their process was killed.

    A folder that was moved out of the way, and that no new one has followed, gets its name back. What a process is still writing is
    left alone, and so is all else where that cannot be told: where there are no locks, or another user wrote it.
    """
    for left in (*_find_beside(path, _OLD), *_find_beside(path, _NEW)):
        try:
            lock = _lock(left)
        except BlockingIOError:
            continue
        with suppress(OSError):
            if left.name.endswith(_OLD):
                _put_back(left, path)
            if lock is None:
                continue
            if not left.is_dir():
                left.unlink(missing_ok=True)
            elif path.exists() or not (left / "old").exists():
                shutil.rmtree(left, ignore_errors=True)
        _unlock(lock)


def is_leftover(path: Path, names: Iterable[str]) -> bool:
    """Whether a file is what a process that was killed left beside one of these names, which may be patterns."""
    return any(path.match(f".{name}.????????{_NEW}") for name in names)


def walk(
    top: str | Path, on_error: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """A folder and all below it, as `os.walk` gives them from the top down, however deep they lie.

    Before Python 3.12 `os.walk` calls itself for each folder within another, and a thousand of these are too many for it.
    """
    coming = [os.fspath(top)]
    while coming:
        for parent, folders, names in os.walk(coming.pop(), onerror=on_error):
            yield parent, folders, names
            below = [os.path.join(parent, name) for name in reversed(folders)]  # noqa: PTH118
            coming += [folder for folder in below if not os.path.islink(folder)]  # noqa: PTH114
            break  # not what lies further down


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a file that is known to be small.

    Raises:
        OSError: It is no regular file (a pipe would be waited for, a device has no end), larger, or cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"it has more than {max_bytes:,} bytes")
    return content


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; the names of some files cannot."""
    return can_encode(text, "utf-8")


def can_encode(text: str, encoding: str) -> bool:
    """Whether an encoding has every letter of a text."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def share_file(path: Path) -> None:
    """Give a file the access that a new file of this user has; temporary files start closed to others."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class JSONLinesWriter:
    """Writes one JSON object a line: to standard output for `-`, to a file that appears whole at the end, or nowhere for None.

    Devices and pipes are given each line as it is written.

    Example:
        `with JSONLinesWriter("tags.jsonl") as writer: writer.write({"path": "photo.jpg"})`
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None or str(path) == "-" else Path(path)
        self.is_stdout = str(path) == "-"
        self._temporary: Path | None = None
        self._lock: int | None = None
        self._file: Any = None

    def __enter__(self) -> "JSONLinesWriter":
        if self.path is not None and _is_special(self.path):
            try:
                self._file = self.path.open("w", encoding="utf-8", newline="", buffering=1)
            except OSError as error:
                raise _not_written(self.path, error) from error
        elif self.path is not None:
            self.path = _behind_links(self.path)
            try:
                self._temporary, self._lock = _make_beside(self.path)
                self._file = self._temporary.open("w", encoding="utf-8", newline="")
            except OSError as error:
                raise _not_written(self.path, error) from error
            share_file(self._temporary)
        return self

    def write(self, value: Any) -> None:
        """Write one object."""
        if self.is_stdout:
            sys.stdout.write(json_text(value, encoding=stdout_encoding()) + "\n")
        elif self._file is not None:
            try:
                self._file.write(json_text(value) + "\n")
            except OSError as error:
                raise _not_written(self.path, error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.is_stdout:
            sys.stdout.flush()
        if self._file is None or self.path is None:
            return
        try:
            self._file.close()
            if kind is None and self._temporary is not None:
                put_in_place(self._temporary, self.path)
        except OSError as failure:
            raise _not_written(self.path, failure) from failure
        finally:
            if self._temporary is not None:
                self._temporary.unlink(missing_ok=True)
            _unlock(self._lock)


def _not_written(path: Path | None, error: OSError) -> MSRNError:
    return MSRNError(
        f"{path} cannot be written: {error.strerror or error}. Free some space or give a path in a folder you own."
    )
