import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.errors import DataError
from msrn.labels.word_file import find_words

WORDS = {"the": [1.0, 2.0, 3.0], "cat": [0.5, -1.0, 0.25], "dog": [4.0, 5.0, 6.0]}

# Printable, and without the space that ends a word.
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=8)
numbers = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


def write_text(path: Path, rows: dict[str, list[float]], *, has_header: bool = False) -> Path:
    lines = [f"{word} {' '.join(map(str, values))}\n" for word, values in rows.items()]
    header = f"{len(rows)} {len(next(iter(rows.values())))}\n" if has_header else ""
    path.write_bytes((header + "".join(lines)).encode())
    return path


def write_binary(path: Path, rows: dict[str, list[float]], *, end: bytes = b"\n") -> Path:
    dim = len(next(iter(rows.values())))
    body = b"".join(word.encode() + b" " + struct.pack(f"<{dim}f", *values) + end for word, values in rows.items())
    path.write_bytes(f"{len(rows)} {dim}\n".encode() + body)
    return path


def pack(path: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    return packed


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 5).flatmap(
        lambda dim: st.dictionaries(words, st.lists(numbers, min_size=dim, max_size=dim), min_size=1, max_size=6)
    ),
    kind=st.sampled_from(["glove", "word2vec", "binary", "binary without line breaks"]),
    is_packed=st.booleans(),
)
def test_every_form_gives_the_same_vectors_in_the_order_of_the_file(tmp_path_factory, rows, kind, is_packed) -> None:
    folder = tmp_path_factory.mktemp("words")
    if kind.startswith("binary"):
        path = write_binary(folder / "vectors.bin", rows, end=b"" if "without" in kind else b"\n")
    else:
        path = write_text(folder / "vectors.txt", rows, has_header=kind == "word2vec")
    found = find_words(pack(path) if is_packed else path, {*rows, "not there"})
    assert list(found) == list(rows)
    for word, values in rows.items():
        np.testing.assert_array_equal(found[word], np.array(values, dtype=np.float32))


def test_only_what_is_wanted_is_kept(tmp_path: Path) -> None:
    assert list(find_words(write_text(tmp_path / "a.txt", WORDS), {"dog", "owl"})) == ["dog"]
    assert list(find_words(write_binary(tmp_path / "b.dat", WORDS), {"dog", "owl"})) == ["dog"]


def test_first_of_two_wins(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    path.write_text("cat 1 2\ncat 3 4\n")
    assert find_words(path, {"cat"})["cat"].tolist() == [1, 2]


def test_what_real_files_have(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    # Words with spaces, as in GloVe's largest; a space at the end, as fastText's; other encodings; Windows; an empty last line.
    path.write_bytes(b"the 1 2\n. . . 3 4\ncat 5 6 \n\xff\xe9 7 8\ndog 9 1e-2\r\n\n")
    found = find_words(path, {"the", ". . .", "cat", "dog"})
    assert {word: vector.tolist() for word, vector in found.items()} == {
        "the": [1, 2],
        ". . .": [3, 4],
        "cat": [5, 6],
        "dog": [9, pytest.approx(0.01)],
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 1 2\ncat 3\n", "line 2: 1 numbers after a word, expected 2 as before. Download the file again."),
        (b"the 1 2\ncat 3 4 5\n", "line 2: 3 numbers after a word, expected 2 as before."),
        (b"2 2\nthe 1 2\ncat 3\n", "line 3: 1 numbers after a word, expected 2"),
        (b"the 1 2\ncat 3 x\n", "line 2 holds something that is not a number: "),
        (b"the 1 2\ncat 3 nan\n", "line 2 holds a number that is not finite"),
        (b"the 1 2\ncat 3 1e99\n", "line 2 holds a number that is not finite in float32"),
        (b"the\ncat\n", "line 1: 0 numbers after a word, expected 1 to 65536. Give a text file of GloVe or word2vec."),
        (b"", "line 1: nothing after a word"),
        (b"3 0\nthe\n", "line 1: vectors of width 0"),
        (b"3 " + b"9" * 5000 + b"\nthe\n", "line 1: vectors of width 99999999999999999999, expected 1 to 65536"),
        (b"9" * 5000 + b" 2\n\x00cat " + b"\0" * 8, "breaks off at word 2 of 99999999999999999999"),
        (b"3 9999999\nthe\n", "line 1: vectors of width 9999999"),
        (b"the 1 2\n" + b"x" * (2 << 20), "line 2 is longer than 1 MB"),
        (b"2 2\n\x00cat " + b"\0" * 8, "breaks off at word 2 of 2"),
        (b"2 2\n" + b"\0" * (9 << 20), "breaks off at word 1 of 2"),
        (b"PK\x03\x04...", "is a zip archive. Unpack it and give one of the text files in it."),
        (b"\x1f\x8b" + b"\0" * 20, "is not a whole gzip file"),
        (gzip.compress(b"cat 1 2\n" * 500)[:-12], "is not a whole gzip file"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_broken_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "vectors.dat"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        find_words(path, {"cat"})
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_binary_word_that_is_not_finite(tmp_path: Path) -> None:
    path = write_binary(tmp_path / "a.bin", {"the": [1.0], "cat": [float("inf")]})
    with pytest.raises(DataError, match=r"word 2 holds a number that is not finite"):
        find_words(path, {"cat"})
    assert find_words(path, {"the"})["the"].tolist() == [1.0]


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt cannot be read: No such file"):
        find_words(tmp_path / "none.txt", {"cat"})
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        find_words(tmp_path, {"cat"})


@pytest.mark.parametrize("kind", ["text", "packed", "binary"])
def test_the_file_is_never_held(tmp_path: Path, kind: str) -> None:
    rows = {f"word{number}": [0.5] * 100 for number in range(40_000)}
    path = write_binary(tmp_path / "a.bin", rows) if kind == "binary" else write_text(tmp_path / "a.txt", rows)
    assert path.stat().st_size > 16_000_000
    path = pack(path) if kind == "packed" else path
    del rows
    tracemalloc.start()
    try:
        assert list(find_words(path, {"word39999"})) == ["word39999"]
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
