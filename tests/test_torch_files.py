"""Files of `torch.save`: what is refused before PyTorch reads it, and that nothing else is."""

import codecs
import copy
import functools
import io
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msrn.errors import ModelError, PublishedFileError, TrainingError
from msrn.models.backbone import Backbone
from msrn.models.published import read_published_checkpoint
from msrn.torch_files import check_torch_file, load_torch_file, zip_members
from msrn.training.fit import read_checkpoint

STATE = {"state_dict": {"a": torch.zeros(64, 1024)}}


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def save(path: Path, *more: Any, is_new: bool = True) -> None:
    torch.save({**STATE, "more": more}, path, _use_new_zipfile_serialization=is_new)


def save_value(path: Path, value: Any) -> None:
    save(path, value)


def doubled(times: int) -> Any:
    """Bytes that are twice as long after each call, which a pickle writes as `_codecs.encode`."""
    return Calls(codecs.encode, doubled(times - 1) if times else b"x", "hex")


def compress(path: Path) -> None:
    save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def overlap(path: Path) -> None:
    """Many members that are the same bytes of the file."""
    save(path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.filelist, key=lambda member: member.file_size)
        for number in range(100):
            other = copy.copy(largest)
            other.filename = largest.filename + str(number)
            archive.filelist.append(other)
        archive.writestr("last", b"")  # so that the list is written


def hide(path: Path) -> None:
    """A second list of members: PyTorch would read the first."""
    save(path)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    path.write_bytes(data[:start] + data[start:].partition(b"PK\x06\x06")[0] + data[start:])


MANY = torch.zeros(1).expand(4, 75_000_000)  # of one number, in a file of a few bytes
PAIRS = torch.zeros(1).expand(75_000_000, 2)
GREEDY: dict[str, tuple[Callable[[Path], None], str]] = {
    "bytearray": (lambda path: save(path, Calls(bytearray, 5 * 10**10)), "it asks for bytearray"),
    "bytearray, old format": (
        lambda path: save(path, Calls(bytearray, 5 * 10**10), is_new=False),
        "it asks for bytearray",
    ),
    "a codec": (lambda path: save(path, doubled(36)), "it asks for the codec 'hex'"),
    "a codec, old format": (lambda path: save(path, doubled(36), is_new=False), "it asks for the codec 'hex'"),
    **{
        what: (functools.partial(save_value, value=value), "it (asks for|makes an object of|gives something)")
        for what, value in {
            "a tensor that is moved": Calls(
                torch._utils._rebuild_device_tensor_from_cpu_tensor, MANY, torch.float64, "cpu", False
            ),
            "the same, of another call": Calls(
                torch._tensor._rebuild_from_type_v2,
                torch._utils._rebuild_device_tensor_from_cpu_tensor,
                torch.Tensor,
                (MANY, torch.float64, "cpu", False),
                None,
            ),
            "a set of a tensor's rows": Calls(set, PAIRS),
            "a table of a tensor's rows": Calls(OrderedDict, PAIRS),
            "a count of a tensor's rows": Calls(Counter, PAIRS),
            "a size of a tensor's rows": Calls(torch.Size, PAIRS),
            "a new tensor": Calls(torch.FloatTensor, 10**11),
            "a new storage": Calls(torch.UntypedStorage, 10**11),
            "attributes of a tensor's rows": Calls(OrderedDict, (), PAIRS),
            "a tensor with such attributes": Calls(
                torch._utils._rebuild_parameter_with_state, torch.zeros(1), False, OrderedDict(), PAIRS
            ),
        }.items()
    },
    "compressed members": (compress, "its members are compressed"),
    "members that overlap": (overlap, "one lies in another"),
    "a hidden list of members": (hide, "it is no whole archive of torch.save"),
}
READERS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "run": (lambda path: read_checkpoint(path, {}), TrainingError),
    "published": (read_published_checkpoint, PublishedFileError),
    "weights": (lambda path: Backbone("resnet10t", weights=path), ModelError),
}


@pytest.mark.fault("a checkpoint that asks for any amount of memory")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", GREEDY)
def test_what_asks_for_any_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lost: Callable[[Any, Any, str], None], what: str, reader: str
) -> None:
    """PyTorch, which would take it, is not given the file."""
    path = tmp_path / "evil.pth"
    make, message = GREEDY[what]
    make(path)
    before = [path.read_bytes()]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("PyTorch was given the file"))
    read, error = READERS[reader]
    with pytest.raises(error, match=rf"evil\.pth .*{message}"):
        read(path)
    lost(before, [path.read_bytes()], "files")


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("with_checksum", [True, False])
def test_what_pytorch_writes_is_read(tmp_path: Path, is_new: bool, with_checksum: bool) -> None:
    path = tmp_path / "x.pth"
    more = ["bytearray", "encode", b"bytes", {"hexagon": 1}, torch.Size([1]), torch.arange(3), 1e-3, None]
    more += [
        {1, 2},
        Counter({3: 1}),
        OrderedDict(a=1),
        torch.device("cpu"),
        torch.float16,
        1 + 2j,
        {(1, "a"): 2},
        "é" * 300,
    ]
    more += [
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2).to_sparse().to_dense(),
    ]
    more.append(torch.ones(3))
    more[-1].note = "an attribute"
    torch.serialization.set_crc32_options(with_checksum)
    try:
        save(path, *more, is_new=is_new)
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = load_torch_file(path)
    assert torch.equal(loaded["state_dict"]["a"], STATE["state_dict"]["a"])
    assert loaded["more"][:5] == tuple(more[:5])
    assert loaded["more"][8:16] == tuple(more[8:16])
    assert loaded["more"][-1].note == "an attribute"


def test_tensors_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    class Counting(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    large = {str(number): torch.zeros(1 << 20) for number in range(4)}
    for is_new in (True, False):
        torch.save(large, tmp_path / "x.pth", _use_new_zipfile_serialization=is_new)
        monkeypatch.setattr(Path, "open", lambda path, mode: Counting(io.FileIO(path, mode)))
        check_torch_file(tmp_path / "x.pth")
        monkeypatch.undo()
    assert 0 < sum(read) < 10_000


@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_members_of_numpys_archives(tmp_path: Path, save_arrays: Callable[..., None]) -> None:
    path = tmp_path / "x.npz"
    save_arrays(path, a=np.zeros(3), b=np.ones((2, 2)))
    assert [member.filename for member in zip_members(path)] == ["a.npy", "b.npy"]
    whole = path.read_bytes()
    list_at = whole.index(b"PK\x01\x02")
    for changed in (
        b"x" + whole,  # Python's reader takes it nevertheless
        whole + b"x",
        whole[:list_at] + b"x" + whole[list_at:],
        whole[:-2] + b"\x01\x00x",  # a comment
        whole[:-1],
        b"PK\x05\x06" + bytes(18),  # an archive of nothing
        b"",
    ):
        path.write_bytes(changed)
        assert zip_members(path) == []
