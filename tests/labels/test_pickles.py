import codecs
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msrn.errors import PublishedFileError
from msrn.labels import pickles
from msrn.labels.pickles import read_published_graph, read_published_vectors

COUNTS = np.array([238, 243, 330])
BOTH = np.array([[0, 3, 1], [3, 0, 0], [1, 0, 0]])
VECTORS = np.linspace(-1, 1, 900).reshape(3, 300)
ARRAY_DTYPES = ("<i8", "<i4", ">i4", "<u2", "<f8", ">f8", "<f4")

# What Python 2.7 writes (modules pickle and cPickle) for float64 arrays {"adj": [[0, 3], [3, 0]], "nums": [238, 243]}.
PYTHON_2 = {
    "pickle 0": (
        b"(dp0\nS'adj'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n(I1\n"
        b"(I2\nI2\ntp8\ncnumpy\ndtype\np9\n(S'f8'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\n"
        b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x08@\\x00\\x00\\x00\\x00\\x00\\x00\\x08@"
        b"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\np15\ntp16\nbsS'nums'\np17\ng2\n(g3\ng4\ng5\ntp18\nRp19\n(I1\n(I2\ntp20\ng12\n"
        b"I00\nS'\\x00\\x00\\x00\\x00\\x00\\xc0m@\\x00\\x00\\x00\\x00\\x00`n@'\np21\ntp22\nbs."
    ),
    "cPickle 1": (
        b"}q\x01(U\x03adjq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03(cnumpy\nndarray\nq\x04(K\x00tq\x05U\x01btRq\x06(K\x01"
        b"(K\x02K\x02tq\x07cnumpy\ndtype\nq\x08(U\x02f8q\tK\x00K\x01tRq\n(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00"
        b"tq\x0bbI00\nU \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08@\x00\x00\x00\x00\x00\x00\x08@"
        b"\x00\x00\x00\x00\x00\x00\x00\x00q\x0ctbU\x04numsq\rh\x03(h\x04h\x05U\x01btRq\x0e(K\x01(K\x02tq\x0fh\nI00\n"
        b"U\x10\x00\x00\x00\x00\x00\xc0m@\x00\x00\x00\x00\x00`n@q\x10tbu."
    ),
    "cPickle 2": (
        b"\x80\x02}q\x01(U\x03adjq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85q\x05U\x01b\x87R"
        b"q\x06(K\x01K\x02K\x02\x86q\x07cnumpy\ndtype\nq\x08U\x02f8q\tK\x00K\x01\x87Rq\n(K\x03U\x01<NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tq\x0bb\x89U \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08@"
        b"\x00\x00\x00\x00\x00\x00\x08@\x00\x00\x00\x00\x00\x00\x00\x00q\x0ctbU\x04numsq\rh\x03h\x04h\x05U\x01b\x87Rq\x0e"
        b"(K\x01K\x02\x85q\x0fh\n\x89U\x10\x00\x00\x00\x00\x00\xc0m@\x00\x00\x00\x00\x00`n@q\x10tbu."
    ),
}


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def as_numpy_1(data: bytes) -> bytes:
    """The pickle with the module names of NumPy 1; protocols 0 to 3 write them as plain lines."""
    return data.replace(b"numpy._core.", b"numpy.core.")


def array_pickle(shape: bytes, data: bytes, code: bytes = b"f8") -> bytes:
    """An array as Python 2 writes it in protocol 0, with any shape and data."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'" + code + b"'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    return array + b"(I1\n" + shape + dtype + b"I00\n" + data + b"tb."


def refusal(path: Path, data: bytes) -> str:
    """The message with which both readers refuse the same file."""
    path.write_bytes(data)
    messages = []
    for read in (read_published_graph, read_published_vectors):
        with pytest.raises(PublishedFileError) as caught:
            read(path)
        messages.append(str(caught.value))
        assert "\n" not in messages[-1]
        assert str(path) in messages[-1]
    return messages[0]


@pytest.mark.parametrize("dtype", ARRAY_DTYPES)
@pytest.mark.parametrize("protocol", range(6))
def test_graph_of_numpy_arrays(tmp_path, protocol, dtype):
    content = {"nums": COUNTS.astype(dtype), "adj": BOTH.astype(dtype)}
    both, counts = read_published_graph(write(tmp_path / "g.pkl", content, protocol))
    assert both.dtype == counts.dtype == torch.int64
    assert both.tolist() == BOTH.tolist()
    assert counts.tolist() == COUNTS.tolist()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("layout", ["C", "F", "strided", "read-only", "list", "tuple", "rows", "scalars"])
def test_vectors_however_stored(tmp_path, protocol, layout):
    frozen = VECTORS.copy()
    frozen.setflags(write=False)
    contents = {
        "C": VECTORS,
        "F": np.asfortranarray(VECTORS),
        "strided": np.repeat(VECTORS, 2, axis=1)[:, ::2],
        "read-only": frozen,
        "list": VECTORS.tolist(),
        "tuple": tuple(map(tuple, VECTORS.tolist())),
        "rows": list(VECTORS),
        "scalars": [list(row) for row in VECTORS],
    }
    data = pickle.dumps(contents[layout], protocol)
    for name, text in (("2", data), ("1", as_numpy_1(data) if protocol < 4 else data)):
        path = tmp_path / f"numpy{name}.pkl"
        path.write_bytes(text)
        vectors = read_published_vectors(path)
        assert vectors.dtype == torch.float32
        assert vectors.is_contiguous()
        assert np.array_equal(vectors.numpy(), VECTORS.astype(np.float32))


@pytest.mark.parametrize("protocol", range(4))
def test_graph_of_numpy_1(tmp_path, protocol):
    data = as_numpy_1(pickle.dumps({"nums": COUNTS, "adj": BOTH}, protocol))
    assert b"numpy.core.multiarray" in data
    (tmp_path / "g.pkl").write_bytes(data)
    assert read_published_graph(tmp_path / "g.pkl")[0].tolist() == BOTH.tolist()


@pytest.mark.parametrize("writer", PYTHON_2)
def test_graph_of_python_2(tmp_path, writer):
    (tmp_path / "g.pkl").write_bytes(PYTHON_2[writer])
    both, counts = read_published_graph(tmp_path / "g.pkl")
    assert both.tolist() == [[0, 3], [3, 0]]
    assert counts.tolist() == [238, 243]


def test_python_2_strings_are_latin_1(tmp_path):
    """Protocol 0 may hold bytes above 127 as they are; -1.0 ends in 0xf0 0xbf."""
    data = array_pickle(b"(I1\nI1\nt", b"S'\\x00\\x00\\x00\\x00\\x00\\x00\xf0\xbf'\n")
    (tmp_path / "v.pkl").write_bytes(data)
    assert read_published_vectors(tmp_path / "v.pkl").tolist() == [[-1.0]]


def test_lists_and_truths_are_counts_too(tmp_path):
    content = {"nums": [2, 3.0], "adj": np.array([[False, True], [True, False]])}
    both, counts = read_published_graph(write(tmp_path / "g.pkl", content))
    assert both.tolist() == [[0, 1], [1, 0]]
    assert counts.tolist() == [2, 3]


def test_diagonal_becomes_zero(tmp_path):
    path = write(tmp_path / "g.pkl", {"nums": COUNTS, "adj": BOTH + np.diag(COUNTS)})
    assert read_published_graph(path)[0].tolist() == BOTH.tolist()


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ({"nums": COUNTS, "adj": BOTH[:2]}, ["not square: 2 rows of 3", "2 rows and nums 3 entries"]),
        ({"nums": COUNTS[:2], "adj": BOTH}, ["3 rows and nums 2 entries"]),
        ({"nums": COUNTS - 238, "adj": -BOTH}, ["adj has 4 entries that are negative (first: -3 at [0, 1])"]),
        ({"nums": COUNTS - 238, "adj": -BOTH}, ["nums has 1 entries that are 0, so that the label never occurs"]),
        ({"nums": COUNTS, "adj": BOTH / 2}, ["4 entries that are not whole (first: 1.5 at [0, 1])"]),
        ({"nums": COUNTS * np.nan, "adj": BOTH + np.inf}, ["nums has 3 entries that are not", "adj has 9 entries"]),
        ({"nums": COUNTS * 1e30, "adj": BOTH}, ["beyond 2^53"]),
        ({"nums": COUNTS.astype("<u8") + 2**63, "adj": BOTH}, ["beyond 2^53"]),
        ({"nums": BOTH, "adj": COUNTS}, ["nums has shape (3, 3)", "adj has shape (3)"]),
        ({"nums": COUNTS, "adj": [[0, 1], [1]]}, ["rows of 1 to 2 numbers"]),
        ({"nums": ["many", 1], "adj": [[0, None], [1, 2]]}, ["nums holds a str", "adj holds a NoneType"]),
        ({"nums": [10**400], "adj": 7}, ["nums holds a number too large", "adj is a int, not a matrix"]),
        ({"nums": [], "adj": []}, ["at least one label"]),
        ({"nums": COUNTS}, ["holds a dict: nums. Expected a dict of adj (L, L) and nums (L,)"]),
        ({"nums": COUNTS, "adj": BOTH, "names": []}, ["holds a dict: nums, adj, names."]),
        (BOTH, ["holds a array of shape (3, 3)"]),
        (None, ["holds a NoneType"]),
    ],
)  # fmt: skip
def test_all_problems_of_a_graph_are_named(tmp_path, content, messages):
    path = write(tmp_path / "g.pkl", content)
    with pytest.raises(PublishedFileError) as caught:
        read_published_graph(path)
    for message in [*messages, str(path)]:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            np.array([[1.0, np.nan], [np.inf, 0]]),
            "2 entries that are not finite numbers in float32 (first: nan at [0, 1])",
        ),
        (np.array([[1e300]]), "1 entries that are not finite numbers in float32 (first: 1e+300"),
        (np.zeros(3), "the content has shape (3), not that of a matrix"),
        (np.zeros((2, 3, 4)), "has shape (2, 3, 4)"),
        ([[1.0, 2.0], 3.0], "holds a float where a row"),
        ([np.zeros(2), np.zeros((2, 2))], "holds a array of shape (2, 2) where a row"),
        ({"adj": BOTH}, "the content is a dict"),
        ("text", "the content is a str"),
    ],
)
def test_what_is_no_matrix_of_vectors_is_named(tmp_path, content, message):
    path = write(tmp_path / "v.pkl", content)
    with pytest.raises(PublishedFileError) as caught:
        read_published_vectors(path)
    assert message in str(caught.value)


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class Stateful:
    def __setstate__(self, state):
        raise AssertionError("run")

    def __reduce__(self):
        return Stateful, (), {"a": 1}


def payloads(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that would write the marker file, and what the refusal has to name."""
    touch = f"open({str(marker)!r}, 'w').close()"
    shell = f"touch {marker}"
    call = Calls(os.system, shell)
    nested = Calls(getattr, Calls(__import__, "os"), "system")
    multiarray = np._core.multiarray
    objects = np.array([call], dtype=object)
    posix = "posix.system"
    return {
        **{f"os.system {n}": (pickle.dumps(call, n), posix) for n in range(6)},
        "exec": (pickle.dumps(Calls(exec, touch)), "builtins.exec"),
        "python 2 exec": (pickle.dumps(Calls(exec, touch), 2), "exec"),
        "eval": (pickle.dumps(Calls(eval, touch)), "builtins.eval"),
        "subprocess": (pickle.dumps(Calls(subprocess.call, ["touch", str(marker)])), "subprocess.call"),
        "nested": (pickle.dumps({"nums": [1], "adj": [[nested]]}), "builtins."),
        "nested loads": (pickle.dumps(Calls(pickle.loads, pickle.dumps(call))), "pickle.loads"),
        "in a dict": (pickle.dumps({"nums": COUNTS, "adj": call}), posix),
        "object array": (pickle.dumps(objects, 4), "O8"),
        "object array 5": (pickle.dumps(objects, 5), "O8"),
        "state": (pickle.dumps(Calls(multiarray._reconstruct, np.ndarray, (0,), b"b", state=call)), posix),
        "dtype argument": (pickle.dumps(Calls(np.dtype, call)), posix),
        "dtype with fields": (pickle.dumps(np.zeros(2, dtype=[("a", "f8")])), "V8"),
        "dtype of objects": (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "O8"),
        "scalar of objects": (pickle.dumps(Calls(multiarray.scalar, np.dtype("O"), call)), "O8"),
        "codec": (pickle.dumps(Calls(codecs.encode, "a", "rot13")), "calls encode"),
        "decode": (pickle.dumps(Calls(codecs.decode, b"a", "zlib")), "_codecs.decode"),
        "setstate": (pickle.dumps(Stateful(), 2), "Stateful"),
        "build on a list": (b"](S'a'\nI1\ndb.", "sets the state"),
        "build on a name": (b"cnumpy\nndarray\n}b.", "sets the state"),
        "call of a list": (b"](tR.", "calls something"),
        "inst": (f"(S'{shell}'\nios\nsystem\n.".encode(), "os.system"),
        "inst of numpy": (b"(S'f8'\ninumpy\ndtype\n.", "numpy.dtype"),
        "obj": (f"(cos\nsystem\nS'{shell}'\no.".encode(), "os.system"),
        "obj of numpy": (b"(cnumpy\ndtype\nS'f8'\no.", "OBJ"),
        "newobj": (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        "newobj_ex": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        "stack global": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0frandom.mtrand.x\x93.", "numpy.random.mtrand.x"),
        "a numpy function": (b"cnumpy\nfromfile\n.", "numpy.fromfile"),
        "f2py": (b"cnumpy.f2py\ncompile\n.", "numpy.f2py.compile"),
        "memmap": (b"cnumpy\nmemmap\n.", "numpy.memmap"),
        "persistent id": (b"Pmarker\n.", "persistent id"),
        "binary persistent id": (b"I1\nQ.", "persistent id"),
        "extension 1": (b"\x82\x01.", "extension"),
        "extension 2": (b"\x83\x01\x00.", "extension"),
        "extension 4": (b"\x84\x01\x00\x00\x00.", "extension"),
        "set": (pickle.dumps({1, 2}, 4), "set"),
        "out-of-band buffer": (b"\x80\x05\x97.", "buffer"),
        "tuple as key": (pickle.dumps({(1, 2): 3}), "keys are not strings"),
        "number as key": (pickle.dumps({1: 3}, 0), "keys are not strings"),
        "unprintable name": (b"cos\x07\x1b[31m\nsystem\n.", "os??[31m.system"),
    }  # fmt: skip


@pytest.mark.parametrize("name", payloads(Path("marker")))
def test_nothing_is_run(tmp_path, name):
    marker = tmp_path / "marker"
    data, named = payloads(marker)[name]
    message = refusal(tmp_path / "bad.pkl", data)
    assert named in message
    assert "nothing in this file was run" in message
    assert not marker.exists()


def test_the_payloads_are_real(tmp_path):
    for name in ("os.system 2", "exec", "inst"):
        marker = tmp_path / name.replace(" ", "-")
        pickle.loads(payloads(marker)[name][0])
        assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        array_pickle(b"(I100000\nI100000\nt", b"S'12345678'\n"),
        array_pickle(b"(I-1\nI-1\nt", b"S'12345678'\n"),
        array_pickle(b"(I01\nI01\nt", b"S'12345678'\n"),
        array_pickle(b"(L999999999999999999999999L\nI0\nt", b"S''\n"),
        array_pickle(b"S'shape'\n", b"S'12345678'\n"),
        array_pickle(b"(I1\nI1\nt", b"](I1\na"),
        array_pickle(b"(I1\nI1\nt", b"V\\u1234aaaaaaa\n"),
        array_pickle(b"(I1\nI1\nt", b"S'12345678'\n", code=b"f16"),
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
        b"\x80\x04\x8d" + struct.pack("<Q", (1 << 64) - 1) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"K\x01.",
        b"B\xff\xff\xff\xffabc.",
        b"K\x01r\xff\xff\xff\xff.",
        b"K\x01p4294967295\n.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"(" * 100_000 + b".",
        b"]" + b"]a" * 100_000 + b".",
        b")" + b"\x85" * 100_000 + b".",
        b")q\x00" + b"\x86q\x00h\x00" * 1000 + b".",
        b"]q\x00" + b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00lq\x00" * 64 + b".",
        b"}" + b")" + b"(h\x00" * 10 + b"K\x01s.",
        b"(lq\x00(" + b"I1\n" * 3000 + b"lq\x010h\x00(" + b"h\x01" * 100_000 + b"e.",
    ],
)
def test_small_files_take_little_memory(tmp_path, data):
    tracemalloc.start()
    try:
        refusal(tmp_path / "bad.pkl", data)
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()


def test_strings_used_again_make_no_more_bytes_than_the_file_has(tmp_path):
    text = b"V" + b"a" * 10_000 + b"\np0\n0"
    encode = b"c_codecs\nencode\np1\n(g0\nVlatin1\ntR"
    assert "more bytes in its arrays" in refusal(tmp_path / "bad.pkl", text + b"(" + encode * 200 + b"l.")


def test_self_reference_is_refused(tmp_path):
    rows: list = []
    rows.append(rows)
    refusal(tmp_path / "bad.pkl", pickle.dumps(rows))


@pytest.mark.parametrize("protocol", range(6))
def test_every_truncation_is_refused(tmp_path, protocol):
    data = pickle.dumps({"nums": COUNTS, "adj": BOTH}, protocol)
    path = tmp_path / "short.pkl"
    for length in range(1, len(data), 1 if protocol == 2 else 7):
        path.write_bytes(data[:length])
        with pytest.raises(PublishedFileError, match="not a whole pickle"):
            read_published_graph(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(PublishedFileError, match=r"absent.pkl does not exist\. Give a pickle"):
        read_published_graph(tmp_path / "absent.pkl")
    with pytest.raises(PublishedFileError, match="is not a file"):
        read_published_vectors(tmp_path)
    (tmp_path / "empty.pkl").touch()
    with pytest.raises(PublishedFileError, match="is empty"):
        read_published_graph(tmp_path / "empty.pkl")
    assert "Git LFS pointer" in refusal(
        tmp_path / "lfs.pkl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    refusal(tmp_path / "page.pkl", b"<!DOCTYPE html><html></html>")
    refusal(tmp_path / "arrays.npz", b"PK\x03\x04 and so on")


def test_files_beyond_the_limit_are_not_read(tmp_path, monkeypatch):
    path = write(tmp_path / "v.pkl", VECTORS)
    monkeypatch.setattr(pickles, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(PublishedFileError, match="larger than 1 GB"):
        read_published_vectors(path)


SEEDS = [
    *(pickle.dumps({"nums": COUNTS, "adj": BOTH}, protocol) for protocol in range(6)),
    *(pickle.dumps(VECTORS[:, :4], protocol) for protocol in range(6)),
    pickle.dumps([[1.0, 2.0], [3.0, 4.0]], 2),
    *PYTHON_2.values(),
]


def check_file(path: Path, data: bytes) -> None:
    """Whatever the bytes, valid arrays or our error come out."""
    path.write_bytes(data)
    with suppress(PublishedFileError):
        both, counts = read_published_graph(path)
        assert both.shape == (len(counts), len(counts))
        assert bool((both >= 0).all())
        assert bool((counts > 0).all())
        assert not both.diagonal().any()
    with suppress(PublishedFileError):
        vectors = read_published_vectors(path)
        assert vectors.ndim == 2
        assert bool(vectors.isfinite().all())


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.binary(min_size=1, max_size=200))
def test_random_bytes(tmp_path, data):
    check_file(tmp_path / "fuzz.pkl", data)


@fuzz
@given(opcodes=st.lists(st.sampled_from([code.code.encode("latin-1") for code in pickletools.opcodes]), max_size=60))
def test_random_instructions(tmp_path, opcodes):
    check_file(tmp_path / "fuzz.pkl", b"(" * 4 + b"K\x01" * 4 + b"".join(opcodes) + b".")


@fuzz
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(0, 2), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
    ),
)
def test_changed_pickles(tmp_path, seed, edits):
    data = bytearray(seed)
    for place, kind, value in edits:
        start = place % len(data)
        data[start : start + (0, len(value), 2 * len(value))[kind]] = value
    check_file(tmp_path / "fuzz.pkl", bytes(data))


def test_reading_imports_no_module_that_the_file_names(tmp_path):
    """As the C unpickler would, which imports before it looks the name up."""
    sys.modules.pop("antigravity", None)
    refusal(tmp_path / "bad.pkl", b"cantigravity\nfly\n.")
    assert "antigravity" not in sys.modules
