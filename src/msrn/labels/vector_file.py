"""Word vectors of labels as a safetensors file: what `msrn labels vectors` writes and `labels.vectors` of a recipe reads."""

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from msrn.errors import DataError, SourceNotFoundError
from msrn.files import is_utf8, write_bytes
from msrn.labels.label_vectors import How, LabelVectors, VectorOrigin

MAX_FILE_BYTES = 1 << 30
# One key for all, as safetensors shuffles several, and the same vectors should be the same file.
_METADATA_KEY = "msrn.label_vectors"


def write_vectors(path: str | Path, vectors: LabelVectors) -> None:
    """Write vectors (`vectors`, float32) and, as metadata, which label each is of and where it comes from.

    Raises:
        MSRNError: The file cannot be written.
    """
    metadata = {_METADATA_KEY: json.dumps(vectors.to_dict(), ensure_ascii=False)}
    write_bytes(path, save({"vectors": vectors.vectors.float().contiguous()}, metadata=metadata))


def read_vectors(path: str | Path) -> LabelVectors:
    """Read vectors that `write_vectors` wrote.

    Raises:
        SourceNotFoundError: There is no such file.
        DataError: It is another or a damaged file.
    """
    path = Path(path).expanduser()
    advice = "Give the file that msrn labels vectors writes."
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise SourceNotFoundError(f"{path} {what}. {advice}")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than 1 GB. {advice}")
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})[_METADATA_KEY])
            vectors = file.get_tensor("vectors")
        return _check(vectors, about)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise DataError(f"{path} holds no word vectors of labels: {reason}. {advice}") from None


def _check(vectors: torch.Tensor, about: dict[str, Any]) -> LabelVectors:
    """The vectors with their labels.

    Raises:
        ValueError, TypeError, KeyError: They are not what `write_vectors` writes.
    """
    names = tuple(label["name"] for label in about["labels"])
    origins = tuple(VectorOrigin(label["how"], tuple(label["words"])) for label in about["labels"])
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ValueError("its labels are not different names")
    if not all(map(is_utf8, names)):
        raise ValueError("it names a label that is not UTF-8")
    if any(
        origin.how not in get_args(How) or not all(isinstance(word, str) for word in origin.words) for origin in origins
    ):
        raise ValueError("it tells no origin of each label")
    if vectors.ndim != 2 or len(vectors) != len(names) or 0 in vectors.shape or not vectors.is_floating_point():
        raise ValueError(f"{len(names)} labels with numbers of shape {tuple(vectors.shape)}")
    vectors = vectors.float()
    if not bool(vectors.isfinite().all()):
        raise ValueError("some numbers are not finite")
    return LabelVectors(names, vectors, origins, str(about["source"]))
