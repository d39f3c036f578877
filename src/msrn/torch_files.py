"""Files of `torch.save`, looked through before PyTorch reads them: they may come from strangers."""

import _compat_pickle
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

_FIRST_MEMBER, _LIST_END, _LIST_END_64, _LOCATOR_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
# Bytes: of the end alone, and with the two that archives of any size have before it.
_SIZE_OF_END, _SIZE_OF_ENDS = 22, 98
# Before PyTorch 1.6: a magic number, a version, facts about the system, what was saved, and the keys of its tensors.
_NUM_PICKLES = 5


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

    PyTorch's own reader allows calls that take any memory, such as of `bytearray`, and inflates members that are compressed.

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
    num_bytes = os.fstat(file.fileno()).st_size
    try:
        for _ in range(count):
            _Look(file, num_bytes).load()
    except TorchFileError:
        raise
    except Exception:  # a damaged pickle can fail in any way
        return


class _Name(str):
    """What a pickle names, which is not imported."""


class _Made:
    """In place of what a call makes."""


_TENSORS = (
    "_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_parameter_with_state",
)  # fmt: skip
_MAKES_TENSOR = {f"torch._utils.{name}" for name in _TENSORS}
_NUMPY_OR_SETTINGS = re.compile(r"numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\.\w+)|argparse\.Namespace")
# The instructions that PyTorch's reader knows.
_KNOWN = b"c\x81RbaesutNQ(.]}G)JKMXUhjqr\x80\x85\x86\x87\x88\x89\x8a\x8f"


# Python's own unpickler rather than the C one, as for label pickles: its instructions can be replaced one by one.
class _Look(pickle._Unpickler):
    """Goes through a pickle as PyTorch's reader would, and makes nothing of it: of a call only its form is looked at.

    Calls that PyTorch allows can take any memory: of `bytearray`, of a codec, of a function that moves a tensor, and of a set or a
    table that is made of the rows of a tensor, which may all be one number.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: IO[bytes], num_bytes: int) -> None:
        super().__init__(file, fix_imports=False, encoding="latin-1")
        self.bytes_left = num_bytes

    def find_class(self, module: str, name: str) -> Any:
        """The name; PyTorch takes those of Python 2 for their new ones, and stops at one that it does not know."""
        new_module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (new_module, name))
        if not re.fullmatch(
            r"(torch|collections|_codecs|numpy|argparse)\b.*|builtins\.(bytearray|complex|set)", f"{module}.{name}"
        ):
            raise EOFError
        return _Name(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        """In place of the numbers of a tensor."""
        return _Made()

    def load_reduce(self) -> None:
        """Look at a call."""
        arguments = self.stack.pop()
        self.append(self._call(self.stack.pop(), arguments))

    def _call(self, name: Any, arguments: Any) -> Any:
        if type(name) is not _Name or type(arguments) is not tuple:
            raise TorchFileError("it calls what is no function")
        match name, arguments:
            case "collections.OrderedDict", ():
                return OrderedDict()
            case ("collections.Counter", (dict(),)) | ("builtins.set", (list(),)) | ("torch.Size", (tuple() | list(),)):
                return _Made()
            case "torch.device", (str(), *_):
                return _Made()
            case "builtins.complex", (int() | float(), int() | float()):
                return _Made()
            case "_codecs.encode", (str() as text, "latin1" | "latin-1"):  # how bytes are written
                self.bytes_left -= len(text)
                if self.bytes_left < 0:
                    raise TorchFileError("it asks for more bytes than it has")
                return _Made()
            case "torch._tensor._rebuild_from_type_v2", (_Name() as function, _, tuple() as inner, state):
                if function in _MAKES_TENSOR and _is_state(state):
                    return self._call(function, inner)
            case "torch._utils._rebuild_parameter_with_state", (_, _, _, state) if not _is_state(state):
                pass
            case _ if name in _MAKES_TENSOR or _NUMPY_OR_SETTINGS.fullmatch(name):
                return _Made()
        is_codec = name == "_codecs.encode" and len(arguments) > 1
        asked = f"the codec {arguments[1]!r:.40}" if is_codec else f"{name.removeprefix('builtins.'):.80}"
        raise TorchFileError(f"it asks for {asked}, which can take any amount of memory")

    def load_newobj(self) -> None:
        """Look at an object that is made of a class."""
        arguments = self.stack.pop()
        name = self.stack.pop()
        is_known = name == "torch.nn.parameter.Parameter" or (name == "collections.OrderedDict" and arguments == ())
        if (
            type(name) is not _Name
            or type(arguments) is not tuple
            or not (is_known or _NUMPY_OR_SETTINGS.fullmatch(name))
        ):
            raise TorchFileError(f"it makes an object of {name!s:.80}, which can take any amount of memory")
        self.append(OrderedDict() if name == "collections.OrderedDict" else _Made())

    def load_build(self) -> None:
        """Look at the state that something is given."""
        if not _is_state(self.stack.pop()):
            raise TorchFileError("it gives something a state that is none")

    def load_append(self) -> None:
        """Drop what goes into a list."""
        self.stack.pop()

    def load_appends(self) -> None:
        """Drop what goes into a list."""
        self.pop_mark()

    def load_setitem(self) -> None:
        """Drop what goes into a table."""
        self.stack.pop()
        self._check_keys([self.stack.pop()])

    def load_setitems(self) -> None:
        """Drop what goes into a table."""
        self._check_keys(self.pop_mark()[::2])

    def _check_keys(self, keys: list[Any]) -> None:
        if any(type(key) is tuple and tuple in map(type, key) for key in keys):
            raise TorchFileError("it has keys that lie within each other, which can be looked up for ever")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: load for code, load in pickle._Unpickler.dispatch.items() if code in _KNOWN
    }
    for _code, _load in (
        (pickle.REDUCE, load_reduce), (pickle.NEWOBJ, load_newobj), (pickle.BUILD, load_build), (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends), (pickle.SETITEM, load_setitem), (pickle.SETITEMS, load_setitems),
    ):  # fmt: skip
        dispatch[_code[0]] = _load


def _is_state(state: Any) -> bool:
    """Whether a state is a table of attributes, or two, or a tuple of plain parts, which are taken as they are."""
    return state is None or type(state) in (dict, OrderedDict, tuple)


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
