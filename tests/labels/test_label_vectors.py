import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from msrn.errors import DataError, LabelMismatchError, SourceNotFoundError
from msrn.labels import LabelVectors, VectorOrigin, vectors_from, vectors_from_words
from msrn.labels.label_vectors import split_words
from msrn.labels.sets import LABEL_SETS

# The order is that of frequency, as in GloVe's files.
WORDS = (
    *("the", "person", "plant", "car", "table", "train", "tv", "dog", "chair", "monitor", "bus", "bird", "bottle"),
    *("cat", "horse", "boat", "sheep", "cow", "bicycle", "sofa", "dining", "aeroplane", "motorbike", "pot", "potted"),
    *("hot_dog", "New", "NATO", "cup", "mug", "ted", "plan", "din", "ingtable"),
)


@pytest.fixture
def words(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    vectors = {word: rng.standard_normal(6).astype(np.float32) for word in WORDS}
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, vector.tolist()))}\n" for word, vector in vectors.items()))
    return path, vectors


def check(made: LabelVectors, vectors: dict[str, np.ndarray], expected: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    for name, row, origin in zip(made.label_names, made.vectors, made.origins, strict=True):
        how, used = expected[name]
        assert (origin.how, origin.words) == (how, used), name
        np.testing.assert_allclose(row, np.mean([vectors[word] for word in used], axis=0), rtol=1e-6)


def test_labels_of_voc(words) -> None:
    path, vectors = words
    made = vectors_from_words(LABEL_SETS["voc2007"], path)
    expected = {name: ("as it is", (name,)) for name in LABEL_SETS["voc2007"]}
    # Two more cuts are known, "din" + "ingtable" and none other for the rest; the words that come earliest win.
    expected["diningtable"] = ("compound", ("dining", "table"))
    expected["pottedplant"] = ("compound", ("potted", "plant"))
    expected["tvmonitor"] = ("compound", ("tv", "monitor"))
    check(made, vectors, expected)
    assert made.vectors.shape == (20, 6)
    assert made.vectors.dtype == torch.float32
    assert made.source == "glove.txt"


def test_spellings_phrases_and_words(words) -> None:
    path, vectors = words
    expected = {
        "hot dog": ("spelling", ("hot_dog",)),
        "Hot-Dog": ("spelling", ("hot_dog",)),
        "CAR": ("spelling", ("car",)),
        "nato": ("spelling", ("NATO",)),
        "new": ("spelling", ("New",)),
        "person": ("as it is", ("person",)),
        "dining table": ("words", ("dining", "table")),
        "DiningTable": ("words", ("dining", "table")),
        "cup/mug": ("words", ("cup", "mug")),
        "TVMonitor": ("words", ("tv", "monitor")),
        "red car": ("some words", ("car",)),
        "new tvmonitor": ("compound", ("New", "tv", "monitor")),
    }
    check(vectors_from_words(list(expected), path), vectors, expected)


def test_unknown_labels_get_a_random_vector_of_their_own(words) -> None:
    path, _ = words
    made = vectors_from_words(["cat", "zyzzyva", "qwrtz", "n0123"], path)
    assert [origin.how for origin in made.origins] == ["as it is", "random", "random", "random"]
    norms = made.vectors.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(4))  # the only known one sets the length
    again = vectors_from_words(["qwrtz", "cat"], path)
    assert torch.equal(again.vectors[0], made.vectors[2])
    assert not torch.equal(made.vectors[1], made.vectors[2])


def test_no_known_word_at_all(words) -> None:
    with pytest.raises(
        DataError, match=r"knows no word of any of the 2 labels \(first: 'zzz'\)\. Check that the labels"
    ):
        vectors_from_words(["zzz", "yyy"], words[0])


def test_composed_letters_are_found(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("caf\u00e9 1 2\n", encoding="utf-8")
    made = vectors_from_words(["cafe\u0301"], path)
    assert made.origins[0].words == ("caf\u00e9",)
    assert made.label_names == ("cafe\u0301",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hot dog", ["hot", "dog"]),
        ("HTMLPage", ["HTML", "Page"]),
        ("dog (animal)", ["dog", "animal"]),
        ("__", []),
        ("iPod2", ["i", "Pod2"]),
    ],
)
def test_words_of_a_label(name: str, expected: list[str]) -> None:
    assert split_words(name) == expected


def test_published_pickle_has_a_row_a_label(tmp_path: Path) -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    (tmp_path / "glove.pkl").write_bytes(pickle.dumps(rows))
    (tmp_path / "unnamed").write_bytes(pickle.dumps(rows))
    for name in ("glove.pkl", "unnamed"):
        made = vectors_from(["cat", "dog"], str(tmp_path / name))
        assert made.vectors.tolist() == rows
        assert made.origins == (VectorOrigin("row", ("0",)), VectorOrigin("row", ("1",)))
    with pytest.raises(DataError, match=r"holds 2 word vectors for 1 labels\. Give the labels it was made for"):
        vectors_from(["cat"], str(tmp_path / "glove.pkl"))


def test_vectors_of_some_labels_in_another_order() -> None:
    made = LabelVectors(("cat", "dog"), torch.tensor([[1.0], [2.0]]), (VectorOrigin("random"),) * 2, "x")
    assert made.of(["dog"]).tolist() == [[2.0]]
    assert made.of(["dog", "cat"]).tolist() == [[2.0], [1.0]]
    with pytest.raises(LabelMismatchError, match=r"2 of 3 labels have no word vector: 'owl', 'bat'\. Make vectors"):
        made.of(["owl", "cat", "bat"])


def test_source_that_does_not_exist(tmp_path: Path) -> None:
    for name in ("glove.6B.300d.txt", "vectors.bin.gz", str(tmp_path / "model")):
        with pytest.raises(SourceNotFoundError, match=r"does not exist\. Check the path; relative ones start at"):
            vectors_from(["cat"], name)
    (tmp_path / "v.safetensors").touch()
    with pytest.raises(DataError, match="holds vectors made already"):
        vectors_from(["cat"], str(tmp_path / "v.safetensors"))


def test_name_of_a_model_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        SourceNotFoundError,
        match=r"'all-MiniLM-L6-v2': neither a file here nor a model to be had \(.*\)\. Give a text file of word vectors "
        r"such as glove\.6B\.300d\.txt, a folder that holds a sentence-transformers model with safetensors weights, or "
        r"cooccurrence\.",
    ):
        vectors_from(["cat"], "all-MiniLM-L6-v2")


@pytest.mark.slow  # importing sentence-transformers takes seconds
def test_sentence_model_in_a_folder(tmp_path: Path) -> None:
    importlib.import_module("msrn._torchvision")  # first: transformers imports torchvision
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "potted": 2, "plant": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(tmp_path / "model"))
    made = vectors_from(["cat", "potted_plant"], str(tmp_path / "model"))
    np.testing.assert_allclose(made.vectors, [weights[1], weights[2:].mean(axis=0)], rtol=1e-5)
    assert [origin.words for origin in made.origins] == [("cat",), ("potted plant",)]

    modules = tmp_path / "model" / "modules.json"
    modules.write_text(modules.read_text().replace("sentence_transformers.", "os.path.", 1))
    with pytest.raises(SourceNotFoundError, match="the folder holds no sentence model"):
        vectors_from(["cat"], str(tmp_path / "model"))
