"""A label graph as a JSON file: what `msrn labels graph --json` writes and `labels.graph` of a recipe reads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from msrn.errors import DataError, SourceNotFoundError
from msrn.files import can_encode, is_utf8, stdout_encoding, write_bytes
from msrn.labels.edges import PUBLISHED_THRESHOLD, sweep_thresholds
from msrn.labels.graph import LabelGraph

MAX_FILE_BYTES = 256 << 20
_MAX_COUNT = 1 << 53
_KEYS = ("labels", "co_occurrence", "label_counts")


@dataclass(frozen=True)
class CountedGraph:
    """A label graph and the images it was counted on, as far as that is known.

    Attributes:
        label_graph: The graph.
        num_images: Images counted.
        split: Name of their split, several joined by " + ".
        split_sha256: Its hash (`msrn.data.split_hash`).
    """

    label_graph: LabelGraph
    num_images: int | None = None
    split: str | None = None
    split_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it by name, for JSON; `edges` are pairs [i, j] of positions in `labels`, from i to j."""
        graph = self.label_graph
        edges = (graph.adjacency > 0).fill_diagonal_(False)
        return {
            "labels": list(graph.label_names),
            "num_images": self.num_images,
            "split": self.split,
            "split_sha256": self.split_sha256,
            "rule": graph.rule,
            "threshold": graph.threshold,
            "labels_alone": graph.num_alone,
            "sweep": [vars(row) for row in sweep_thresholds(graph.co_occurrence, graph.label_counts)],
            "edges": edges.nonzero().tolist(),
            "label_counts": graph.label_counts.tolist(),
            "co_occurrence": graph.co_occurrence.tolist(),
        }


def write_graph(path: str | Path, graph: CountedGraph) -> None:
    """Write a graph as JSON, `-` meaning standard output.

    Raises:
        DataError: It would be larger than what `read_graph` reads.
        MSRNError: The file cannot be written.
    """
    escapes = str(path) == "-" and not can_encode("".join(graph.label_graph.label_names), stdout_encoding())
    entries = [f"  {json.dumps(key)}: {_rows(value, escapes)}" for key, value in graph.to_dict().items()]
    text = "{\n" + ",\n".join(entries) + "\n}\n"
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > MAX_FILE_BYTES:
        raise DataError(
            f"the graph of {len(graph.label_graph.label_names):,} labels takes more than {MAX_FILE_BYTES >> 20} MB as JSON, more "
            "than is read back. Count it on fewer labels, or let recipes count it anew (labels.graph=null)."
        )
    if str(path) == "-":
        print(text, end="", flush=True)
    else:
        write_bytes(path, data)


def _rows(value: Any, escapes: bool) -> str:
    """JSON on one line, or one line for each list or object in it."""
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        rows = (f"    {json.dumps(row, ensure_ascii=escapes, separators=(',', ':'))}" for row in value)
        return "[\n" + ",\n".join(rows) + "\n  ]"
    return json.dumps(value, ensure_ascii=escapes, allow_nan=False)


def read_graph(path: str | Path) -> CountedGraph:
    """Read a graph that `write_graph` wrote, or one made by hand.

    A file made by hand needs `labels`, `co_occurrence` (images holding both labels, zero diagonal) and `label_counts` (images
    holding each label); it may have `threshold` or `edges`. Edges of the file go before those of its threshold.

    Raises:
        SourceNotFoundError: There is no such file.
        DataError: The file is no JSON of this kind, or its numbers are no counts; the message says which.
    """
    path = Path(path).expanduser()
    values = _load(path)
    try:
        return _parse(values)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not a label graph: {str(error).rstrip('.')}. Make it anew with msrn labels graph DATA --json FILE."
        ) from None


def _load(path: Path) -> Any:
    advice = "Give the JSON file that msrn labels graph writes."
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise SourceNotFoundError(f"{path} {what}. {advice}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MB. {advice}")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. {advice}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. {advice}") from None


def _parse(values: Any) -> CountedGraph:
    """The graph in a JSON value.

    Raises:
        ValueError: There is none; the message follows "is not a label graph: ".
    """
    if not isinstance(values, dict):
        raise ValueError(f"it holds a {type(values).__name__}, expected an object with {', '.join(_KEYS)}")
    missing = [key for key in _KEYS if key not in values]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    names = values["labels"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError("labels is not a list of names")
    bad = [name for name in names if not is_utf8(name)]
    if bad:
        raise ValueError(f"it names a label that is not UTF-8: {bad[0]!r}")
    num_labels = len(names)
    both = _counts("co_occurrence", values["co_occurrence"], (num_labels, num_labels))
    counts = _counts("label_counts", values["label_counts"], (num_labels,))
    if both.diagonal().any() or not torch.equal(both, both.T):
        raise ValueError("co_occurrence is not symmetric with a zero diagonal")
    if (both > torch.minimum(counts[:, None], counts)).any():
        raise ValueError("co_occurrence has more images of two labels than label_counts has of one")
    num_images, threshold = values.get("num_images"), values.get("threshold", PUBLISHED_THRESHOLD)
    if num_images is not None and (type(num_images) is not int or not int(counts.max()) <= num_images <= _MAX_COUNT):
        raise ValueError(f"num_images is {_shown(num_images)}, fewer than a label's images or not a number")
    if type(threshold) not in (int, float):
        raise ValueError(f"threshold is {_shown(threshold)}, not a probability")
    texts = {key: values.get(key) for key in ("split", "split_sha256", "rule")}
    for key, text in texts.items():
        if text is not None and not (isinstance(text, str) and is_utf8(text)):
            raise ValueError(f"{key} is {_shown(text)}, not text")
    graph = LabelGraph(tuple(names), both, counts, threshold=threshold)
    if "edges" in values:
        edges = _edges(values["edges"], num_labels)
        is_of_threshold = torch.equal(edges, (graph.adjacency > 0).fill_diagonal_(False))
        if not is_of_threshold or texts["rule"] not in (None, graph.rule):
            graph = LabelGraph(tuple(names), both, counts, threshold, edges, texts["rule"] or "")
    return CountedGraph(graph, num_images, texts["split"], texts["split_sha256"])


def _counts(key: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """Numbers of images as int64."""
    counts = _whole_numbers([value] if len(shape) == 1 else value, shape[-1], _MAX_COUNT)
    if counts is None or counts.size != np.prod(shape):
        raise ValueError(f"{key} is not made of {' x '.join(map(str, shape))} whole numbers from 0 on")
    return torch.from_numpy(counts.reshape(shape))


def _edges(value: Any, num_labels: int) -> Bool[Tensor, "L L"]:
    pairs = _whole_numbers(value, 2, num_labels - 1)
    if pairs is None:
        raise ValueError(f"edges is not a list of pairs of positions from 0 to {num_labels - 1}")
    if (pairs[:, 0] == pairs[:, 1]).any():
        raise ValueError("edges joins a label to itself")
    edges = torch.zeros(num_labels, num_labels, dtype=torch.bool)
    edges[pairs[:, 0], pairs[:, 1]] = True
    return edges


def _whole_numbers(rows: Any, width: int, most: int) -> np.ndarray | None:
    """Lists of `width` whole numbers from 0 to `most` as an array of them; None for all else, `True` among it."""
    # Ahead of NumPy, which takes the room of the longest text for every value where there is one.
    if not isinstance(rows, list) or not all(
        isinstance(row, list) and len(row) == width and set(map(type, row)) == {int} for row in rows
    ):
        return None
    try:
        numbers = np.array(rows, dtype=np.int64).reshape(len(rows), width)
    except OverflowError:
        return None
    is_within = ((numbers >= 0) & (numbers <= most)).all()
    return numbers if is_within else None


def _shown(value: Any) -> str:
    return repr(value)[:40]
