"""Files of word vectors, GloVe's and word2vec's, read in one pass: only the words that are looked for are kept."""

import gzip
import zlib
from collections.abc import Collection
from io import BufferedReader
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from msrn.errors import DataError

_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r"))
_MAX_LINE_BYTES = 1 << 20
_MAX_DIM = 1 << 16
_CHUNK_BYTES = 1 << 20


def find_words(path: str | Path, wanted: Collection[str]) -> dict[str, Float32[np.ndarray, " E"]]:
    """The vectors of the words that are looked for, in the order of the file, which is that of frequency as a rule.

    GloVe's text (a word and its numbers a line), word2vec's text (the same below a line of number and width) and word2vec's
    binary form are told apart by their content; each may be packed by gzip. The file is read once and never held. A word that
    comes twice counts as it came first. Numbers of words that are not looked for are counted but not read.

    Args:
        path: The file, of any size.
        wanted: Words as they may be spelled; bytes of the file that are no UTF-8 match none.

    Raises:
        DataError: The file cannot be read, or is broken; the message names the line or the word.
    """
    path = Path(path).expanduser()
    keys = {word.encode("utf-8", "replace") for word in wanted}
    try:
        with path.open("rb") as file:
            start = file.peek(4)[:4]
            if start == _ZIP:
                raise DataError(f"{path} is a zip archive. Unpack it and give one of the text files in it.")
            if not start.startswith(_GZIP):
                found = _find(file, keys, path)
            else:
                with BufferedReader(gzip.GzipFile(fileobj=file)) as unpacked:
                    found = _find(unpacked, keys, path)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}. Download it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Give a file that you may read.") from None
    return {word.decode("utf-8"): vector for word, vector in found.items()}


def _find(file: BufferedReader, wanted: set[bytes], path: Path) -> dict[bytes, Float32[np.ndarray, " E"]]:
    first = file.readline(_MAX_LINE_BYTES)
    header = first.split()
    if len(header) != 2 or not all(part.isdigit() for part in header):
        return _find_in_text(file, first, len(first.split()) - 1, wanted, path, number=1)
    num_words, dim = (int(part.lstrip(b"0")[:20] or b"0") for part in header)  # Python reads no more than 4,300 digits
    if not 1 <= dim <= _MAX_DIM:
        raise DataError(f"{path}, line 1: vectors of width {dim}, expected 1 to {_MAX_DIM}. Download the file again.")
    next_bytes = file.peek(512)[:512]
    if ".bin" in path.suffixes or next_bytes.translate(None, _CONTROL) != next_bytes:
        return _find_in_binary(file, num_words, dim, wanted, path)
    return _find_in_text(file, file.readline(_MAX_LINE_BYTES), dim, wanted, path, number=2)


def _find_in_text(
    file: BufferedReader, line: bytes, dim: int, wanted: set[bytes], path: Path, *, number: int
) -> dict[bytes, Float32[np.ndarray, " E"]]:
    """Look through the lines from `line`, the one of this number, on."""
    if not 1 <= dim <= _MAX_DIM:
        what = f"{dim} numbers" if dim >= 0 else "nothing"
        raise DataError(
            f"{path}, line {number}: {what} after a word, expected 1 to {_MAX_DIM}. Give a text file of GloVe or word2vec."
        )
    found: dict[bytes, Float32[np.ndarray, " E"]] = {}
    while line:
        if len(line) >= _MAX_LINE_BYTES:
            raise DataError(f"{path}, line {number} is longer than 1 MB. Give a text file of GloVe or word2vec.")
        line = line.rstrip()
        num_spaces = line.count(b" ")
        if num_spaces == dim:
            word = line[: line.index(b" ")]
        elif num_spaces > dim and not _is_number(line.split(b" ", 2)[1]):
            word = line.rsplit(b" ", dim)[0]  # GloVe's largest file has words with spaces in them
        elif line:
            raise DataError(
                f"{path}, line {number}: {num_spaces} numbers after a word, expected {dim} as before. Download the file again."
            )
        else:
            word = b""
        if word in wanted and word not in found:
            found[word] = _parse(line.rsplit(b" ", dim)[1:], f"{path}, line {number}")
        line = file.readline(_MAX_LINE_BYTES)
        number += 1
    return found


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(values: list[bytes], where: str) -> Float32[np.ndarray, " E"]:
    try:
        vector = np.array([float(value) for value in values])
    except ValueError as error:
        raise DataError(f"{where} holds something that is not a number: {error}. Download the file again.") from None
    return _finite(vector, where)


def _finite(vector: np.ndarray, where: str) -> Float32[np.ndarray, " E"]:
    with np.errstate(over="ignore"):
        vector = vector.astype(np.float32)
    if not np.isfinite(vector).all():
        raise DataError(f"{where} holds a number that is not finite in float32. Download the file again.")
    return vector


def _find_in_binary(
    file: BufferedReader, num_words: int, dim: int, wanted: set[bytes], path: Path
) -> dict[bytes, Float32[np.ndarray, " E"]]:
    """word2vec's own form: a word, a space, `dim` numbers of 4 bytes, and a line break or none."""
    found: dict[bytes, Float32[np.ndarray, " E"]] = {}
    data, start, size = b"", 0, 4 * dim
    for number in range(1, num_words + 1):
        while (end := data.find(b" ", start)) < 0 or len(data) < end + 1 + size:
            chunk = file.read(_CHUNK_BYTES)
            if not chunk or len(data) - start > _MAX_LINE_BYTES + size:
                raise DataError(f"{path} breaks off at word {number} of {num_words}. Download the file again.")
            data, start = data[start:] + chunk, 0
        word = data[start:end].lstrip(b"\n")
        if word in wanted and word not in found:
            found[word] = _finite(np.frombuffer(data, "<f4", dim, end + 1), f"{path}, word {number}")
        start = end + 1 + size
    return found
