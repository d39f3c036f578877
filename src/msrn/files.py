"""Writing files so that they are whole or absent: to a temporary name first, then renamed."""

import errno
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msrn.errors import MSRNError


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


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, `-` meaning standard output; see `write_text`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if not is_utf8(text):  # a file name in another encoding
        text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(path, text)


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path` that takes its place once the block has ended without an error.

    Raises:
        MSRNError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise _not_written(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        share_file(temporary)
        put_in_place(temporary, path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


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
    check_parent(path)


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

    Raises:
        MSRNError: The folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        temporary.chmod(0o777 & ~_umask())
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _flush(written)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            path.replace(old / "old")
            try:
                temporary.replace(path)
            except OSError:
                (old / "old").replace(path)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove what `replace_file` and `replace_folder` left beside these names in a folder where their process was killed."""
    for name in names:
        for pattern in (f".{glob.escape(name)}.????????", f".{glob.escape(name)}.old.????????"):
            for path in folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; the names of some files cannot."""
    try:
        text.encode("utf-8")
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

    Example:
        `with JSONLinesWriter("tags.jsonl") as writer: writer.write({"path": "photo.jpg"})`
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None or str(path) == "-" else Path(path)
        self.is_stdout = str(path) == "-"
        self._temporary: Path | None = None
        self._file: Any = None

    def __enter__(self) -> "JSONLinesWriter":
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            except OSError as error:
                raise _not_written(self.path, error) from error
            self._temporary = Path(name)
            share_file(self._temporary)
            self._file = os.fdopen(handle, "w", encoding="utf-8", newline="")
        return self

    def write(self, value: Any) -> None:
        """Write one object."""
        line = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
        if not is_utf8(line):  # a file name in another encoding
            line = json.dumps(value, allow_nan=False) + "\n"
        if self.is_stdout:
            sys.stdout.write(line)
        elif self._file is not None:
            try:
                self._file.write(line)
            except OSError as error:
                raise _not_written(self.path, error) from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.is_stdout:
            sys.stdout.flush()
        if self._file is None or self._temporary is None or self.path is None:
            return
        try:
            self._file.close()
            if kind is None:
                put_in_place(self._temporary, self.path)
        except OSError as failure:
            raise _not_written(self.path, failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)


def _not_written(path: Path | None, error: OSError) -> MSRNError:
    return MSRNError(
        f"{path} cannot be written: {error.strerror or error}. Free some space or give a path in a folder you own."
    )
