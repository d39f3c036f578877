import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from msrn.errors import DataError, SourceNotFoundError
from msrn.labels import LabelVectors, VectorOrigin, read_vectors, write_vectors

KEY = "msrn.label_vectors"
ABOUT = {"source": "x", "dim": 2, "labels": [{"name": "cat", "how": "words", "words": ["cat"]}]}


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, max_size=5, unique=True),
    dim=st.integers(1, 4),
)
def test_what_is_written_is_read_back(tmp_path_factory, names, dim) -> None:
    path = tmp_path_factory.mktemp("vectors") / "vectors.safetensors"
    origins = tuple(VectorOrigin("words", (name, "b")) for name in names)
    made = LabelVectors(tuple(names), torch.randn(len(names), dim), origins, "glove.txt")
    write_vectors(path, made)
    read = read_vectors(path)
    assert torch.equal(read.vectors, made.vectors)
    assert (read.label_names, read.origins, read.source) == (made.label_names, origins, "glove.txt")
    first = path.read_bytes()
    write_vectors(path, made)
    assert path.read_bytes() == first


@pytest.mark.usefixtures("typing_off")
@pytest.mark.parametrize(
    ("tensor", "about", "message"),
    [
        (torch.ones(2, 2), ABOUT, "1 labels with numbers of shape (2, 2)"),
        (torch.ones(1), ABOUT, "1 labels with numbers of shape (1,)"),
        (torch.ones(1, 0), ABOUT, "shape (1, 0)"),
        (torch.ones(1, 2).long(), ABOUT, "1 labels with numbers"),
        (torch.tensor([[1.0, torch.nan]]), ABOUT, "some numbers are not finite"),
        (torch.ones(1, 2), {**ABOUT, "labels": [{"name": 3, "how": "words", "words": []}]}, "not different names"),
        (torch.ones(1, 2), {**ABOUT, "labels": [{"name": "\ud800", "how": "words", "words": []}]}, "that is not UTF-8"),
        (torch.ones(1, 2), {**ABOUT, "labels": [{"name": "a", "how": "?", "words": []}]}, "no origin of each label"),
        (torch.ones(1, 2), {**ABOUT, "labels": [{"name": "a"}]}, "it has no 'how'"),
        (torch.ones(1, 2), {**ABOUT, "labels": 3}, "holds no word vectors of labels"),
        (torch.ones(1, 2), [], "holds no word vectors of labels"),
        (torch.ones(1, 2), None, "it has no 'msrn.label_vectors'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, tensor, about, message: str) -> None:
    path = tmp_path / "vectors.safetensors"
    save_file({"vectors": tensor}, path, metadata=None if about is None else {KEY: json.dumps(about)})
    with pytest.raises(DataError) as caught:
        read_vectors(path)
    assert message in str(caught.value)
    assert str(caught.value).endswith("Give the file that msrn labels vectors writes.")


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(b"cat 1 2\n")
    with pytest.raises(DataError, match="holds no word vectors of labels"):
        read_vectors(path)
    save_file({"weights": torch.ones(1, 2)}, path, metadata={KEY: json.dumps(ABOUT)})
    with pytest.raises(DataError, match="holds no word vectors of labels"):
        read_vectors(path)
    with pytest.raises(SourceNotFoundError, match="does not exist"):
        read_vectors(tmp_path / "none.safetensors")
