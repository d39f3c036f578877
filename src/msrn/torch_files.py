"""Files of `torch.save`, looked through before PyTorch reads them: they may come from strangers."""

import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

_FIRST_MEMBER, _LIST_END, _LIST_END_64, _LOCATOR_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# Bytes: of the end alone, and with the two that archives of any size have before it.
_SIZE_OF_END, _SIZE_OF_ENDS = 22, 98
# Before PyTorch 1.6: a magic number, a version, facts about the system, what was saved, and the keys of its tensors.
_NUM_PICKLES = 5
# Codecs that make bytes of bytes, mostly more of them: called again and again they fill any memory.
_CODECS_OF_BYTES = re.compile("(base64|bz2|hex|quopri|uu|zlib)(codec)?|quotedprintable|zip")


class TorchFileError(Exception):
    """Why a file of `torch.save` is not read, in words that follow a colon."""


def load_torch_file(path: Path, **options: Any) -> Any:
    """Tensors, numbers, text and containers of a file of `torch.save`; nothing in it is run.

    Args:
        path: The file.
        options: Of `torch.load`, such as `map_location`.

    Raises:
        TorchFileError: It asks for more memory than the file is long.
        Exception: PyTorch cannot read it; a damaged file can fail in any way.
    """
    check_torch_file(path)
    return torch.load(path, weights_only=True, **options)


def check_torch_file(path: Path) -> None:
    """Refuse a file that makes PyTorch take any amount of memory. Of a file of gigabytes little is read: not its tensors.

    PyTorch's own reader allows `bytearray`, which takes a size, and inflates members that are compressed.

    Raises:
        TorchFileError: The file does either, or is no whole archive.
        OSError: It cannot be opened.
    """
    with path.open("rb") as file:
        if file.read(len(_FIRST_MEMBER)) != _FIRST_MEMBER:
            file.seek(0)
            _check_pickles(file, _NUM_PICKLES)
            return
        members = zip_members(path)
        if not members:
            raise TorchFileError("it is no whole archive of torch.save")
        is_packed = any(
            own.compress_type != zipfile.ZIP_STORED or own.file_size != own.compress_size for own in members
        )
        if is_packed or sum(own.file_size for own in members) > path.stat().st_size:
            raise TorchFileError("its members are compressed, or one lies in another, which torch.save never does")
        for member in members:
            if member.filename.lower().endswith(".pkl"):
                # Not by `zipfile`, which also compares a checksum that torch.save can be told to leave out.
                file.seek(member.header_offset + 26)
                file.seek(sum(struct.unpack("<HH", file.read(4).ljust(4, b"\0"))), os.SEEK_CUR)
                _check_pickles(file, 1)


def _check_pickles(file: IO[bytes], count: int) -> None:
    """Look through so many pickles that follow each other, up to the first that is damaged; PyTorch gets no further."""
    has_encode, codec = False, None
    try:
        for name, argument in _operations(file, count):
            if name == "GLOBAL":
                asked = argument.rpartition(" ")[2]
                if asked == "bytearray":
                    raise TorchFileError("it asks for bytearray, which takes any amount of memory")
                has_encode = has_encode or asked == "encode"
            elif name in ("BINUNICODE", "SHORT_BINSTRING") and _is_codec_of_bytes(argument):
                codec = argument
            if has_encode and codec is not None:
                raise TorchFileError(f"it asks for the codec {codec!r}, which can take any amount of memory")
    except (ValueError, OverflowError, MemoryError):
        return


def _is_codec_of_bytes(text: str) -> bool:
    """Whether Python takes a text for the name of such a codec; it passes over signs and the size of letters."""
    return len(text) <= 40 and _CODECS_OF_BYTES.fullmatch(re.sub("[^a-z0-9]", "", text.lower())) is not None


def _operations(file: IO[bytes], count: int) -> Iterator[tuple[str, Any]]:
    """Name and argument of each operation of so many pickles."""
    for _ in range(count):
        yield from ((operation.name, argument) for operation, argument, _ in pickletools.genops(file))


def zip_members(path: Path) -> list[zipfile.ZipInfo]:
    """The members of a zip archive; none where a file is no archive from its first byte to its last.

    Readers find the list of members in different ways, Python right before the end, PyTorch where the end says: where these are
    two places, one of them would read what the other never saw.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_FIRST_MEMBER)) != _FIRST_MEMBER or not _has_one_list(file):
                return []
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (OSError, ValueError, NotImplementedError, struct.error, zipfile.BadZipFile):
        return []


def _has_one_list(file: IO[bytes]) -> bool:
    """Whether the list of members ends where the end of an archive begins, and that end is the file's."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _SIZE_OF_ENDS))
    tail = file.read(_SIZE_OF_ENDS)
    end = tail[-_SIZE_OF_END:]
    if (
        len(end) < _SIZE_OF_END or not end.startswith(_LIST_END) or end[-2:] != bytes(2)
    ):  # the last are a comment's length
        return False
    place = length - _SIZE_OF_END
    size, start = struct.unpack("<LL", end[12:20])
    if len(tail) == _SIZE_OF_ENDS and tail[56:60] == _LOCATOR_64:
        place = length - _SIZE_OF_ENDS
        if not tail.startswith(_LIST_END_64) or struct.unpack("<Q", tail[64:72]) != (place,):
            return False
        size, start = struct.unpack("<QQ", tail[40:56])
    return bool(start + size == place)
