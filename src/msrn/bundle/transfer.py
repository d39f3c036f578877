"""Start a model from a bundle with other labels: what is bound to labels starts anew, all else is kept."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from msrn.bundle.bundle import Bundle
from msrn.errors import ModelError
from msrn.labels import LabelGraph
from msrn.models import build_model, build_msrn

_MISSING = object()


@dataclass(frozen=True)
class Transfer:
    """What a model took from a bundle.

    Attributes:
        num_labels: Labels of the bundle's model.
        kept: Tensors that were taken whole.
        by_label: Tensors of which the rows of `labels` were taken.
        labels: Labels whose rows were taken.
        new: Tensors that start anew.
        kept_numbers: How many numbers the parameters in `kept` hold.
        all_numbers: How many numbers all parameters hold.
    """

    num_labels: int
    kept: tuple[str, ...]
    by_label: tuple[str, ...]
    labels: tuple[str, ...]
    new: tuple[str, ...]
    kept_numbers: int
    all_numbers: int

    def to_dict(self) -> dict[str, Any]:
        """What a bundle records of it; kept whole is all that is not named."""
        return {
            "labels_there": self.num_labels,
            "parameters_kept": self.kept_numbers,
            "labels_kept": list(self.labels),
            "kept_by_label": list(self.by_label),
            "new": list(self.new),
        }

    def __str__(self) -> str:
        kept = f"{self.kept_numbers / 1e6:.2f} of {self.all_numbers / 1e6:.2f} M parameters kept"
        rows = f"; of {', '.join(self.by_label)} the rows of {len(self.labels)} labels" if self.by_label else ""
        new = f"; new: {', '.join(self.new)}" if self.new else ""
        return f"{kept}{rows}{new}"


class _Bond(NamedTuple):
    """What the sizes of a tensor follow.

    Attributes:
        to_labels: The number of labels.
        to_vectors: The width of word vectors.
        axis: The one axis that follows the number of labels, a place each; None where more follows.
        is_graph: It relates labels to labels.
    """

    to_labels: bool
    to_vectors: bool
    axis: int | None
    is_graph: bool


@torch.no_grad()
def start_from(
    bundle: Bundle,
    model: nn.Module,
    architecture: Mapping[str, Any],
    label_graph: LabelGraph,
    word_vectors: Float[Tensor, "L E"],
    *,
    has_given_vectors: bool = False,
) -> Transfer:
    """Copy into a new model what a bundle's model of the same architecture knows apart from its labels.

    Kept is every tensor whose size does not follow the number of labels. Those with a row a label take the rows of the labels that
    both models have ("diningtable" is "dining table"), where all that is bound to labels in that part of the model (classifier,
    residual, head) has such rows. What is left starts anew: the assignment to groups, which are groups of the old labels; the
    published joint classifier; the projection of word vectors, unless both models had them from a file, of one width. No layer is
    half new. Word vectors and label graph are those of the new model. With the same labels in the same order nothing else is new.

    Args:
        bundle: The model to start from; its `group_ratio` may differ.
        model: The new model, changed in place.
        architecture: What it was built from (`build_model`).
        label_graph: Its labels.
        word_vectors: Its word vectors.
        has_given_vectors: The vectors come from a file, so other labels can have theirs in the same space; not from co-occurrence.

    Raises:
        ModelError: The bundle's model has another architecture; the message names what differs.
    """
    old, new = bundle.model.state_dict(), model.state_dict()
    _check_architecture(bundle, architecture, new, label_graph, word_vectors)
    bonds = _find_bonds(architecture, new, word_vectors.shape[1], label_graph.num_labels)
    has_same_labels = bundle.label_names == label_graph.label_names
    has_same_vectors = (has_given_vectors and _has_given_vectors(bundle)) or all(
        old[name].shape == value.shape and old[name].equal(value)
        for name, value in new.items()
        if name.endswith("word_vectors")
    )
    rows_old, rows_new = _shared_labels(bundle.label_names, label_graph.label_names)

    def has_rows(name: str) -> bool:
        """Whether both models have a row a label here, and rows of one size."""
        axis, sizes = bonds[name].axis, list(new[name].shape)
        if axis is not None:
            sizes[axis] = len(bundle.label_names)
        return axis is not None and list(old[name].shape) == sizes

    def is_kept(name: str) -> bool:
        """Whether this parameter, looked at by itself, means the same in both models."""
        bond = bonds[name]
        is_free = has_same_vectors if bond.to_vectors else has_same_labels or not bond.to_labels
        return is_free and old[name].shape == new[name].shape

    parameters = dict(model.named_parameters())
    # Word vectors and graph, which are buffers, stay those of the new labels.
    given = {name for name in new if name not in parameters and (bonds[name].to_vectors or bonds[name].is_graph)}
    names = [name for name in new if name not in given]
    parts_without_rows = {_part(name) for name in names if bonds[name].to_labels and not has_rows(name)}
    by_label = [
        name for name in names if not is_kept(name) and has_rows(name) and _part(name) not in parts_without_rows
    ]
    new_layers = {_layer(name) for name in names if not is_kept(name) and name not in by_label}
    kept = [name for name in names if name not in by_label and _layer(name) not in new_layers]
    for name in kept:
        new[name].copy_(old[name])
    for name in by_label:
        axis = bonds[name].axis or 0
        new[name].index_copy_(axis, rows_new, old[name].index_select(axis, rows_old).to(new[name]))
    return Transfer(
        num_labels=len(bundle.label_names),
        kept=tuple(kept),
        by_label=tuple(by_label),
        labels=tuple(label_graph.label_names[row] for row in rows_new.tolist()) if by_label else (),
        new=tuple(name for name in names if name not in kept and name not in by_label),
        kept_numbers=sum(parameters[name].numel() for name in kept if name in parameters),
        all_numbers=sum(parameter.numel() for parameter in parameters.values()),
    )


def _check_architecture(
    bundle: Bundle,
    architecture: Mapping[str, Any],
    state: Mapping[str, Tensor],
    label_graph: LabelGraph,
    word_vectors: Float[Tensor, "L E"],
) -> None:
    """Compare with what the bundle's architecture would be for the new labels."""
    theirs = {**bundle.architecture}
    if "group_ratio" in theirs and "group_ratio" in architecture:
        theirs["group_ratio"] = architecture["group_ratio"]
    expected = _sizes(theirs, label_graph, word_vectors)
    if expected == {name: tuple(value.shape) for name, value in state.items()} and _scales(theirs) == _scales(
        architecture
    ):
        return
    both = [json.loads(json.dumps(dict(values))) for values in (theirs, architecture)]  # tuples are lists in a bundle
    # Another head has other keys altogether; how stages are trained changes no weight's meaning.
    keys = ["name"] if both[0].get("name") != both[1].get("name") else {**both[0], **both[1]}.keys() - {"detach_stages"}
    keys = [
        key
        for key in {**both[0], **both[1]}
        if key in keys and both[0].get(key, _MISSING) != both[1].get(key, _MISSING)
    ]
    listed = ", ".join(
        f"{'head' if key == 'name' else key} is {both[0].get(key)!r} there and {both[1].get(key)!r} here"
        for key in keys
    )
    raise ModelError(
        f"the bundle to start from has another architecture: {listed or 'it was built by another version'}. "
        "Set these keys of the model as they are there, or leave init_from out."
    )


def _scales(architecture: Mapping[str, Any]) -> list[Any]:
    """What decides which size an MSRN's weights have, though no tensor's shape shows it."""
    if architecture.get("name") != "msrn":
        return []
    defaults = inspect.signature(build_msrn).parameters
    return [architecture.get(key, defaults[key].default) for key in ("scale", "supervision", "attention")]


def _find_bonds(
    architecture: Mapping[str, Any], state: Mapping[str, Tensor], width: int, num_labels: int
) -> dict[str, _Bond]:
    """What each tensor is bound to: seen by building the architecture for other labels, and vectors of another width."""
    other_labels, other_width = 3 if num_labels == 2 else 2, width + 7
    co_occurrence = torch.zeros(other_labels, other_labels, dtype=torch.long)
    names = tuple(f"label {number}" for number in range(other_labels))
    other = LabelGraph(names, co_occurrence, torch.zeros(other_labels, dtype=torch.long))
    sizes = _sizes(architecture, other, torch.zeros(other_labels, other_width))
    bonds = {}
    for name, value in state.items():
        changed = [
            (axis, *pair) for axis, pair in enumerate(zip(value.shape, sizes[name], strict=True)) if pair[0] != pair[1]
        ]
        to_vectors = [there for there in changed if there[1:] == (width, other_width)]
        by_row = [axis for axis, *pair in changed if pair == [num_labels, other_labels]]
        bonds[name] = _Bond(
            to_labels=len(changed) > len(to_vectors),
            to_vectors=bool(to_vectors),
            axis=by_row[0] if len(changed) == len(by_row) == 1 else None,
            is_graph=len(by_row) > 1,
        )
    return bonds


def _sizes(
    architecture: Mapping[str, Any], label_graph: LabelGraph, word_vectors: Float[Tensor, "L E"]
) -> dict[str, tuple[int, ...]]:
    """The sizes of all that an architecture holds, without memory for it."""
    with torch.device("meta"):
        model = build_model({**architecture, "pretrained": False, "weights": None}, label_graph, word_vectors)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _has_given_vectors(bundle: Bundle) -> bool:
    """Whether the bundle's vectors come from a file, as they do in published models, which have no recipe of ours."""
    recipe = bundle.training.get("recipe")
    labels = recipe.get("labels") if isinstance(recipe, dict) else None
    return not isinstance(labels, dict) or labels.get("vectors") is not None


def _shared_labels(old: Sequence[str], new: Sequence[str]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Positions of the labels that are in both, by letters and digits alone."""
    there, here = ({_plain(name): row for row, name in enumerate(names)} for names in (old, new))
    shared = [(there[name], row) for name, row in here.items() if name in there]
    rows = torch.tensor(shared, dtype=torch.long).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())) or name


def _part(name: str) -> str:
    return name.partition(".")[0]


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
