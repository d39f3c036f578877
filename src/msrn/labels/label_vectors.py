"""Word vectors of labels from elsewhere: looked up in a file of words, read from a pickle, or made by a sentence model."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from msrn.errors import DataError, LabelMismatchError, MissingDependencyError, SourceNotFoundError
from msrn.hub import download
from msrn.labels.pickles import read_published_vectors
from msrn.labels.word_file import find_words

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

How = Literal[
    "as it is", "spelling", "words", "compound", "some words", "random", "row", "co-occurrence", "sentence model"
]

# Word boundaries inside "DiningTable" and "TVMonitor", and whatever is no letter or digit.
_BOUNDARY = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+")
_LEAST_PART = 2
_FILE_SUFFIXES = frozenset({".txt", ".vec", ".bin", ".gz", ".pkl", ".pickle", ".zip", ".json", ".safetensors"})


@dataclass(frozen=True)
class VectorOrigin:
    """Where the vector of a label comes from.

    Attributes:
        how: "as it is": the label is a word of the file; "spelling": it is one with other case or separators; "words": the
            mean of its words; "compound": also of the two words that one of them is made of; "some words": other words of
            the label are not known; "random": none is. "row", "co-occurrence" and "sentence model" tell other sources.
        words: What was looked up.
    """

    how: How
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelVectors:
    """One vector a label.

    Attributes:
        label_names: The labels.
        vectors: Their vectors.
        origins: Where each comes from.
        source: Name of the file or model.
    """

    label_names: tuple[str, ...]
    vectors: Float[Tensor, "L E"]
    origins: tuple[VectorOrigin, ...]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """All but the numbers, for JSON."""
        labels = [
            {"name": name, "how": origin.how, "words": list(origin.words)}
            for name, origin in zip(self.label_names, self.origins, strict=True)
        ]
        return {"source": self.source, "dim": self.vectors.shape[1], "labels": labels}

    def of(self, label_names: Sequence[str]) -> Float[Tensor, "L E"]:
        """The vectors of these labels, in their order.

        Raises:
            LabelMismatchError: Some have none; the message names them.
        """
        index = {name: number for number, name in enumerate(self.label_names)}
        missing = [name for name in label_names if name not in index]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            names = ", ".join(f"'{name}'" for name in missing[:10])
            raise LabelMismatchError(
                f"{len(missing)} of {len(label_names)} labels have no word vector: {names}{more}. "
                "Make vectors of these labels with msrn labels vectors."
            )
        return self.vectors[torch.tensor([index[name] for name in label_names])]


def split_words(name: str) -> list[str]:
    """The words of a label.

    Example:
        >>> split_words("dining_table"), split_words("TVMonitor"), split_words("cup/mug")
        (['dining', 'table'], ['TV', 'Monitor'], ['cup', 'mug'])
    """
    return [word for word in _BOUNDARY.split(name) if word]


def vectors_from_words(label_names: Sequence[str], path: str | Path) -> LabelVectors:
    """Look labels up in a text file of GloVe or word2vec, or a binary one of word2vec.

    A label is looked for as it is; then in lower case, title and capitals, and with its words joined by an underscore, a
    hyphen, a space or nothing. Otherwise it gets the mean of its words, of which one that is not known may be cut into two that
    are ("diningtable": the most frequent pair, those that come earliest in the file). A label without any known word gets
    a random vector that depends on its name only, as long as the others are on average.

    Args:
        label_names: The labels.
        path: The file, read in one pass and never held.

    Raises:
        DataError: The file cannot be read or is broken, or knows no word of any label.
    """
    label_names = tuple(label_names)
    path = Path(path).expanduser()
    plain_names = [unicodedata.normalize("NFC", name) for name in label_names]
    found = find_words(path, {word for name in plain_names for word in _candidates(name)})
    rank = {word: number for number, word in enumerate(found)}
    origins = tuple(_look_up(name, rank) for name in plain_names)
    known = [np.mean([found[word] for word in origin.words], axis=0) if origin.words else None for origin in origins]
    norms = [float(np.linalg.norm(vector)) for vector in known if vector is not None]
    if not norms:
        raise DataError(
            f"{path} knows no word of any of the {len(label_names)} labels (first: '{label_names[0]}'). "
            "Check that the labels are words of the file's language, or use --from cooccurrence."
        )
    rows = [
        vector if vector is not None else _random_vector(name, len(next(iter(found.values()))), float(np.mean(norms)))
        for name, vector in zip(label_names, known, strict=True)
    ]
    return LabelVectors(label_names, torch.from_numpy(np.stack(rows).astype(np.float32)), origins, path.name)


def _spellings(name: str) -> list[str]:
    """How a label or word may be written in a file, likest first."""
    words = split_words(name)
    joined = (name, *(separator.join(words) for separator in ("_", "-", " ", "")))
    return list(dict.fromkeys(form for text in joined for form in (text, text.lower(), text.title(), text.upper())))


def _cuts(word: str) -> list[tuple[str, str]]:
    """The ways to cut a word into two."""
    text = word.lower()
    return (
        [(text[:cut], text[cut:]) for cut in range(_LEAST_PART, len(text) - _LEAST_PART + 1)] if text.isalpha() else []
    )


def _candidates(name: str) -> Iterable[str]:
    """Everything that may be looked up for a label."""
    yield from _spellings(name)
    for word in split_words(name):
        yield from _spellings(word)
        for cut in _cuts(word):
            yield from cut


def _look_up(name: str, rank: Mapping[str, int]) -> VectorOrigin:
    """What stands for a label, given the words that were found with their places in the file."""
    for spelling in _spellings(name):
        if spelling in rank:
            return VectorOrigin("as it is" if spelling == name else "spelling", (spelling,))
    words: list[str] = []
    how: How = "words"
    is_partial = False
    for word in split_words(name):
        spelling = next((spelling for spelling in _spellings(word) if spelling in rank), "")
        cuts = [cut for cut in _cuts(word) if all(part in rank for part in cut)]
        if spelling:
            words.append(spelling)
        elif cuts:
            words += min(cuts, key=lambda cut: max(rank[part] for part in cut))
            how = "compound"
        else:
            is_partial = True
    if not words:
        return VectorOrigin("random")
    return VectorOrigin("some words" if is_partial else how, tuple(words))


def _random_vector(name: str, dim: int, norm: float) -> Float32[np.ndarray, " E"]:
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dim)
    return (vector * norm / np.linalg.norm(vector)).astype(np.float32)


def vectors_from_sentence_model(label_names: Sequence[str], model: str | Path) -> LabelVectors:
    """Encode labels, as plain words, by a model of sentence-transformers.

    Weights come from safetensors only, and no code that a model brings is run.

    Args:
        label_names: The labels.
        model: Name of a model on the Hugging Face hub, or a folder that holds one.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        SourceNotFoundError: The model cannot be had or loaded.
    """
    if find_spec("sentence_transformers") is None:
        raise MissingDependencyError("a sentence model needs sentence-transformers: pip install 'msrn[vectors]'.")
    try:
        folder = model if Path(model).is_dir() else _download(str(model))
        encoder = _load_encoder(folder)
    except Exception as error:  # the network, the hub and half a dozen libraries fail in their own ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        is_folder = Path(model).is_dir()
        what = "the folder holds no sentence model" if is_folder else "neither a file here nor a model to be had"
        raise SourceNotFoundError(
            f"'{model}': {what} ({reason}). Give a text file of word vectors such as glove.6B.300d.txt, a folder that "
            "holds a sentence-transformers model with safetensors weights, or cooccurrence."
        ) from error
    label_names = tuple(label_names)
    texts = [" ".join(split_words(name)) or name for name in label_names]
    vectors = torch.from_numpy(np.asarray(encoder.encode(texts, show_progress_bar=False), dtype=np.float32))  # (L, E)
    if not bool(vectors.isfinite().all()):
        raise DataError(f"'{model}' gives vectors that are not finite. Use another model.")
    origins = tuple(VectorOrigin("sentence model", (text,)) for text in texts)
    return LabelVectors(label_names, vectors, origins, Path(model).name)


def _load_encoder(folder: str | Path) -> "SentenceTransformer":
    import msrn._torchvision  # noqa: F401, I001  (first: transformers imports torchvision)
    from sentence_transformers import SentenceTransformer

    options = {"use_safetensors": True}
    return SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=False, local_files_only=True, model_kwargs=options
    )


def _download(name: str) -> Path:
    """The folder of a model of the hub, without pickles and code."""
    name = name if "/" in name else f"sentence-transformers/{name}"
    patterns = ("*.json", "*.txt", "*.model", "*.safetensors")
    return download(name, patterns, except_patterns=("onnx/*", "openvino/*"))


def vectors_from(label_names: Sequence[str], source: str) -> LabelVectors:
    """Word vectors of labels from a file of words, a published pickle, or a sentence model; what exists on disk goes first.

    Args:
        label_names: The labels.
        source: A text file of GloVe or word2vec (also packed by gzip, or binary), a pickle of ML-GCN or MSRN with a row for
            each label in their order, a folder with a sentence model, or the name of one.

    Raises:
        SourceNotFoundError: There is nothing of that name.
        DataError: The file is broken, or a pickle has another number of rows.
        PublishedFileError: The pickle holds more than numbers.
        MissingDependencyError: A sentence model needs a package that is not installed.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix == ".safetensors":
            raise DataError(f"{path} holds vectors made already. Give it to a recipe as labels.vectors.")
        return _vectors_from_pickle(label_names, path) if _is_pickle(path) else vectors_from_words(label_names, path)
    if not path.is_dir() and (suffix in _FILE_SUFFIXES or path.is_absolute()):
        raise SourceNotFoundError(f"{source} does not exist. Check the path; relative ones start at {Path.cwd()}.")
    return vectors_from_sentence_model(label_names, path if path.is_dir() else source)


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\x80"  # a pickle of protocol 2 or later
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Give a file that you may read.") from None


def _vectors_from_pickle(label_names: Sequence[str], path: Path) -> LabelVectors:
    vectors = read_published_vectors(path)
    if len(vectors) != len(label_names):
        raise DataError(
            f"{path} holds {len(vectors)} word vectors for {len(label_names)} labels. "
            "Give the labels it was made for, in its order."
        )
    origins = tuple(VectorOrigin("row", (str(number),)) for number in range(len(vectors)))
    return LabelVectors(tuple(label_names), vectors, origins, path.name)
