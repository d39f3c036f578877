"""Read the label pickles that ML-GCN and MSRN published, without running anything in them.

A pickle is a program that may call any function. The published graphs (`*_adj.pkl`) and word vectors
(`*_glove_word2vec.pkl`) hold nothing but numbers. So the reader here knows six names of NumPy and the standard library,
has stand-ins of its own for them that hold numbers and call nothing, and refuses every other name and every instruction
that makes other objects.
"""

import io
import math
import pickle
import re
import struct
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from msrn.errors import PublishedFileError

MAX_FILE_BYTES = 1 << 30
_MAX_COUNT = 1 << 53  # float64 holds every whole number below it


def read_published_graph(path: str | Path) -> tuple[Int64[Tensor, "L L"], Int64[Tensor, "L"]]:
    """Read a published label graph, such as `voc_adj.pkl`: a pickled dict of `adj` (L, L) and `nums` (L,).

    Written by Python 2 or 3, NumPy 1 or 2, with integers or floats. Nothing in the file is run.

    Args:
        path: The file, at most 1 GB.

    Returns:
        Images holding both labels, with a zero diagonal, and images holding each label.

    Raises:
        PublishedFileError: The file cannot be read, asks for anything but numbers, or its numbers are no counts; the
            message lists all that is wrong.

    Source: https://github.com/megvii-research/ML-GCN, https://github.com/chehao2628/MSRN.
    """
    path, content, size = _load(path)
    expected = "Expected a dict of adj (L, L) and nums (L,), as in voc_adj.pkl."
    if type(content) is not dict or content.keys() != {"adj", "nums"}:
        keys = ": " + ", ".join(_shown(key) for key in list(content)[:5]) if type(content) is dict else ""
        raise PublishedFileError(
            f"{path} is not a published label graph, it holds a {_kind(content)}{keys}. {expected}"
        )
    problems: list[str] = []
    arrays = {}
    for name, num_dims in (("adj", 2), ("nums", 1)):
        try:
            arrays[name] = _to_array(content[name], size, num_dims)
        except _RefusedError as error:
            problems.append(f"{name} {error}")
    for name, array in arrays.items():
        problems += [f"{name} {problem}" for problem in _count_problems(array, least=1 if name == "nums" else 0)]
    both, counts = arrays.get("adj"), arrays.get("nums")
    if both is not None and both.shape[0] != both.shape[1]:
        problems.append(f"adj is not square: {both.shape[0]} rows of {both.shape[1]}")
    if both is not None and counts is not None and len(both) != len(counts):
        problems.append(f"adj has {len(both)} rows and nums {len(counts)} entries, not one for each label")
    if problems or both is None or counts is None:
        raise PublishedFileError(f"{path} is not a published label graph: {'; '.join(problems)}. {expected}")
    co_occurrence = torch.from_numpy(both.astype(np.int64, order="C")).fill_diagonal_(0)
    return co_occurrence, torch.from_numpy(counts.astype(np.int64))


def read_published_vectors(path: str | Path) -> Float[Tensor, "L E"]:
    """Read published word vectors, such as `voc_glove_word2vec.pkl`: a pickled array or list of lists, one row a label.

    Args:
        path: The file, at most 1 GB. Nothing in it is run.

    Returns:
        The vectors in float32, all finite.

    Raises:
        PublishedFileError: The file cannot be read, asks for anything but numbers, or holds no finite matrix.

    Source: https://github.com/megvii-research/ML-GCN, https://github.com/chehao2628/MSRN.
    """
    path, content, size = _load(path)
    expected = "Expected an array with one vector a label, as in voc_glove_word2vec.pkl."
    try:
        array = _to_array(content, size, 2)
    except _RefusedError as error:
        raise PublishedFileError(f"{path} holds no word vectors: the content {error}. {expected}") from None
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = array.astype(np.float32, order="C")  # (L, E)
    wrong = np.argwhere(~np.isfinite(vectors))
    if len(wrong):
        row, column = wrong[0]
        raise PublishedFileError(
            f"{path} has {len(wrong)} entries that are not finite numbers in float32 (first: {array[row, column]:g} at "
            f"[{row}, {column}]). Make the vectors anew, or give those labels a vector of zeros."
        )
    return torch.from_numpy(vectors)


def _load(path: str | Path) -> tuple[Path, Any, int]:
    """The path, what the pickle holds (numbers, strings, lists, tuples, dicts, our stand-ins), its size in bytes."""
    path = Path(path).expanduser()
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise PublishedFileError(f"{path} {what}. Give a pickle of ML-GCN or MSRN, such as voc_adj.pkl.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PublishedFileError(
                f"{path} is larger than 1 GB, which no published label pickle is. Give another file."
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PublishedFileError(f"{path} cannot be read: {reason}. Give a file that you may read.") from None
    if not data:
        raise PublishedFileError(f"{path} is empty. Download it again.")
    try:
        return path, _NumbersUnpickler(data).load(), len(data)
    except _RefusedError as error:
        raise PublishedFileError(
            f"{path} {error}. Published label pickles hold numbers only; nothing in this file was run. "
            "Take the file from the authors' repository, and do not open this one with pickle."
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise PublishedFileError(
            f"{path} is not a whole pickle ({type(error).__name__}). Download it again; a Git LFS pointer or a web "
            "page is not the file itself."
        ) from None


class _RefusedError(Exception):
    """What a pickle holds or asks for, worded to follow its path."""


class _StandIn(Enum):
    """What a pickled name becomes: a word for `_NumbersUnpickler.load_reduce`, never a function."""

    RECONSTRUCT = auto()
    FROM_BUFFER = auto()
    SCALAR = auto()
    NDARRAY = auto()
    DTYPE = auto()
    ENCODE = auto()


_GLOBALS = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _StandIn.RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _StandIn.SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _StandIn.FROM_BUFFER for core in ("core", "_core")},
    ("numpy", "ndarray"): _StandIn.NDARRAY,
    ("numpy", "dtype"): _StandIn.DTYPE,
    ("_codecs", "encode"): _StandIn.ENCODE,
}


class _Dtype:
    """A number's type: a truth (0 or 1), an integer or a float."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise _RefusedError(f"holds an array of dtype {_shown(code)}, which is no number")
        self.numpy = np.dtype("u1" if code == "b1" else code).newbyteorder("<")


class _Array:
    """An array, empty until its state arrives."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.numpy = np.empty(0) if array is None else array


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array that looks at the file's own bytes, so that no shape can ask for more memory than came."""
    if not isinstance(data, bytes) or not isinstance(dtype, _Dtype):
        raise _RefusedError("holds an array of objects, which are more than numbers")
    if not isinstance(shape, tuple) or not all(type(size) is int and 0 <= size <= MAX_FILE_BYTES for size in shape):
        raise _RefusedError("holds an array of impossible shape")
    if len(shape) > 8 or math.prod(shape) * dtype.numpy.itemsize != len(data):
        raise _RefusedError(f"holds an array whose shape does not fit its {len(data)} bytes")
    if order not in ("C", "F"):
        raise _RefusedError("holds an array of unknown memory order")
    return np.frombuffer(data, dtype.numpy).reshape(shape, order=order)


# The instructions that a pickle of numbers is made of, protocols 0 to 5. Without those for objects (INST, OBJ, NEWOBJ,
# NEWOBJ_EX), persistent ids, extension codes, sets and out-of-band buffers.
_ALLOWED = b"(.012FIJKLMNRSTUVXabcdeghjlpqrstu])}GBC\x80\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x93\x94\x95\x96"
_REFUSED = {
    pickle.OBJ: "makes an object of a class (OBJ)",
    pickle.NEWOBJ: "makes an object of a class (NEWOBJ)",
    pickle.NEWOBJ_EX: "makes an object of a class (NEWOBJ_EX)",
    pickle.PERSID: "refers to an object outside the file (a persistent id)",
    pickle.BINPERSID: "refers to an object outside the file (a persistent id)",
    **dict.fromkeys((pickle.EXT1, pickle.EXT2, pickle.EXT4), "uses an extension registry code"),
    **dict.fromkeys((pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET), "holds a set"),
    **dict.fromkeys((pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), "refers to a buffer outside the file"),
}


def _refuse(what: str) -> Callable[[Any], None]:
    def refuse(_: Any) -> None:
        raise _RefusedError(what)

    return refuse


# Python's own unpickler rather than the C one: its instructions can be replaced one by one. The C unpickler takes
# gigabytes for a memo index of 4 billion or for a byte array that only claims to be long, and hashes any key, which for
# nested tuples can take for ever or overflow the stack.
class _NumbersUnpickler(pickle._Unpickler):
    """An unpickler of numbers, strings, lists, tuples, dicts with strings as keys, and NumPy arrays of numbers."""

    stack: list[Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False, encoding="latin-1")
        self.bytes_left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        """Our stand-in for a name; no module is imported."""
        if (module, name) not in _GLOBALS:
            raise _RefusedError(f"asks for {_shown(f'{module}.{name}')}")
        return _GLOBALS[module, name]

    def load_reduce(self) -> None:
        """What a call of one of the six names would make, if it is numbers."""
        arguments = self.stack.pop()
        function = self.stack.pop()
        if not isinstance(function, _StandIn) or not isinstance(arguments, tuple):
            raise _RefusedError("calls something that is not a function")
        self.append(self._reduce(function, arguments))

    def _reduce(self, function: _StandIn, arguments: tuple[Any, ...]) -> Any:
        match function, arguments:
            case _StandIn.RECONSTRUCT, (_StandIn.NDARRAY, *_):
                return _Array()
            case _StandIn.DTYPE, (code, *_):
                return _Dtype(code)
            case _StandIn.FROM_BUFFER, (data, dtype, shape, order, *rest) if all(part is None for part in rest):
                return _Array(_from_bytes(data, dtype, shape, order))
            case _StandIn.SCALAR, (dtype, data):
                return _from_bytes(self._to_bytes(data), dtype, (), "C").item()
            case _StandIn.ENCODE, (str(text), "latin1" | "latin-1"):  # how Python 3 writes bytes in protocols 0 to 2
                return self._to_bytes(text)
        raise _RefusedError(f"calls {function.name.lower()} in a way that NumPy does not")

    def _to_bytes(self, data: Any) -> Any:
        """The bytes that a string stands for, as all do in Python 2; in all no more than the file has."""
        if not isinstance(data, str):
            return data
        self.bytes_left -= len(data)
        if self.bytes_left < 0:
            raise _RefusedError("has more bytes in its arrays than in all")
        return data.encode("latin-1")

    def load_build(self) -> None:
        """Give an array or a dtype its state; nothing else has one."""
        state = self.stack.pop()
        target = self.stack[-1]
        match target, state:
            case _Array(), (_, shape, dtype, is_fortran, data):
                target.numpy = _from_bytes(self._to_bytes(data), dtype, shape, "F" if is_fortran else "C")
            case _Dtype(), (_, byte_order, None, None, None, *_):  # sub-array, names and fields are None
                target.numpy = target.numpy.newbyteorder(">" if byte_order == ">" else "<")
            case _Dtype(), _:
                raise _RefusedError("holds a structured array, which is more than numbers")
            case _:
                raise _RefusedError("sets the state of something that is no array of numbers")

    def load_global(self) -> None:
        """Our stand-in for a name."""
        self.append(self.find_class(self._read_word(), self._read_word()))

    def load_inst(self) -> None:
        """Name what an INST instruction asks for, and refuse it."""
        raise _RefusedError(f"asks for an object of {_shown(f'{self._read_word()}.{self._read_word()}')}")

    def _read_word(self) -> str:
        line = self.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line[:-1].decode("latin-1")

    def load_dict(self) -> None:
        """A dict of what lies above the mark."""
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitem(self) -> None:
        """One key and value."""
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        """Keys and values above the mark."""
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        # Before anything is hashed: the hash of a nested tuple can take for ever.
        if type(target) is not dict or not all(type(key) is str for key in items[::2]):
            raise _RefusedError("holds a dict whose keys are not strings")
        target.update(zip(items[::2], items[1::2], strict=True))

    def load_bytearray8(self) -> None:
        """Bytes, of which no more memory is taken than came."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code[0]: _refuse(what) for code, what in _REFUSED.items()},
        **{code: pickle._Unpickler.dispatch[code] for code in _ALLOWED},
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.GLOBAL[0]: load_global,
        pickle.INST[0]: load_inst,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def _to_array(value: Any, limit: int, num_dims: int) -> np.ndarray:
    """A vector or matrix from an array or from numbers in lists; at most `limit` entries, so that no reused row grows.

    Raises:
        _RefusedError: It is anything else; the message is worded to follow its name.
    """
    shape = {1: "a vector", 2: "a matrix"}[num_dims]
    if isinstance(value, _Array):
        array = value.numpy
    elif not isinstance(value, list | tuple):
        raise _RefusedError(f"is a {_kind(value)}, not {shape} of numbers")
    elif num_dims == 1:
        array = _row(value)
    else:
        widths = {len(row) if isinstance(row, list | tuple) else _width(row) for row in value}
        if len(widths) > 1:
            raise _RefusedError(f"has rows of {min(widths)} to {max(widths)} numbers, not {shape}")
        if len(value) * sum(widths) > limit:
            raise _RefusedError("has more numbers than its file has bytes")
        array = np.stack([_row(row) for row in value]) if value else np.empty((0, 0))
    if array.ndim != num_dims or 0 in array.shape:
        raise _RefusedError(f"has shape {_shape(array)}, not that of {shape} with at least one label")
    return array


def _width(row: Any) -> int:
    if not isinstance(row, _Array) or row.numpy.ndim != 1:
        raise _RefusedError(f"holds a {_kind(row)} where a row of numbers was expected")
    return len(row.numpy)


def _row(row: Any) -> np.ndarray:
    """A vector of float64 from a list of numbers, or an array of one dimension."""
    if isinstance(row, _Array):
        return row.numpy
    wrong = [number for number in row if type(number) not in (bool, int, float)]
    if wrong:
        raise _RefusedError(f"holds a {_kind(wrong[0])} where a number was expected")
    try:
        return np.array(row, dtype=np.float64)
    except OverflowError:
        raise _RefusedError("holds a number too large for a float") from None


def _count_problems(array: np.ndarray, *, least: int) -> list[str]:
    """What keeps numbers from being counts."""
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    kinds = {
        "are not finite": ~finite,
        "are not whole": finite & (values != np.floor(values)),
        "are negative": finite & (values < 0),
        "are beyond 2^53": finite & (values >= _MAX_COUNT),
    }
    if least > 0:
        kinds["are 0, so that the label never occurs"] = values == 0
    problems = []
    for what, wrong in kinds.items():
        if wrong.any():
            index = tuple(int(i) for i in np.argwhere(wrong)[0])
            problems.append(f"has {int(wrong.sum())} entries that {what} (first: {values[index]:g} at {list(index)})")
    return problems


def _shape(array: np.ndarray) -> str:
    return "(" + ", ".join(map(str, array.shape)) + ")"


def _kind(value: Any) -> str:
    if isinstance(value, _Array):
        return f"array of shape {_shape(value.numpy)}"
    return "NumPy name" if isinstance(value, _StandIn | _Dtype) else type(value).__name__


def _shown(text: Any) -> str:
    """A word from the file, safe to print."""
    word = text if isinstance(text, str) else type(text).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in word[:80])
