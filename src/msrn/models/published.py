"""The authors' weights under our names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from msrn.errors import PublishedFileError
from msrn.labels import LabelGraph
from msrn.models.builders import msrn_resnet101
from msrn.models.msrn import MSRN

# The authors' name -> ours, for everything behind the backbone ("resnet_101." becomes "backbone.model.").
_NAMES = {
    "resnet_101.conv_buffer1.weight": "attention.stages.0.buffer.weight",
    "resnet_101.conv_buffer1.bias": "attention.stages.0.buffer.bias",
    "resnet_101.conv_buffer2.weight": "attention.stages.1.buffer.weight",
    "resnet_101.conv_buffer2.bias": "attention.stages.1.buffer.bias",
    "ProjectM.0.weight": "attention.stages.0.projection.weight",
    "ProjectM.0.bias": "attention.stages.0.projection.bias",
    "ProjectM.1.weight": "attention.stages.1.projection.weight",
    "ProjectM.1.bias": "attention.stages.1.projection.bias",
    "ProjectM.2.weight": "attention.stages.2.projection.weight",
    "ProjectM.2.bias": "attention.stages.2.projection.bias",
    "fc_label.weight": "label_group.projection.weight",
    "fc_label.bias": "label_group.projection.bias",
    "fc1.weight": "classifier.fc1.weight",
    "fc1.bias": "classifier.fc1.bias",
    "fc2.weight": "classifier.fc2.weight",
    "fc2.bias": "classifier.fc2.bias",
}
# A graph layer's W (in, out) is our projection transposed; its a (2 · out, 1) is our target and source in turn.
_GRAPH_LAYERS = {
    "label_embed.layers.0": "label_group.layers.0",
    "label_embed.layers.1": "label_group.layers.1",
    "group_embed.layers.0.embed": "label_group.pool.embed",
    "group_embed.layers.0.assign_mat": "label_group.pool.assign",
}
# In the authors' state, but not in their forward pass.
_UNUSED = ("W", "B", "resnet_101.conv_buffer0.weight", "resnet_101.conv_buffer0.bias", "resnet_101.fc.")
_REQUIRED = (*_NAMES, *(f"{layer}.{leaf}" for layer in _GRAPH_LAYERS for leaf in ("W", "a")))

Array = Tensor | np.ndarray


def from_state_dict(
    state_dict: Mapping[str, Any],
    co_occurrence: Num[Array, "L L"],
    label_counts: Num[Array, "L"],
    word_vectors: Num[Array, "L E"],
    *,
    label_names: Sequence[str] | None = None,
) -> MSRN:
    """Build the authors' network from their weights.

    Args:
        state_dict: Tensors or arrays under the authors' names, with or without "module." ahead.
        co_occurrence: Images holding both labels.
        label_counts: Images holding each label.
        word_vectors: One vector a label.
        label_names: The labels; "label 0", "label 1" and so on where not given.

    Returns:
        The published preset in evaluation mode; its `adjacency` is bit-equal to the authors'.

    Raises:
        PublishedFileError: Names are missing or unknown, or shapes disagree.
    """
    state = {name.removeprefix("module."): torch.as_tensor(value) for name, value in state_dict.items()}
    state = {name: value for name, value in state.items() if not _is_unused(name)}
    missing = [name for name in _REQUIRED if name not in state]
    if missing:
        raise PublishedFileError(
            f"not a checkpoint of the published MSRN: {', '.join(missing[:3])} and {len(missing)} names in all are missing. "
            "Give a state_dict with the authors' names (resnet_101.*, label_embed.*, group_embed.*, ProjectM.*, fc1, fc2)."
        )
    num_labels, num_groups = len(state["fc2.bias"]), state["group_embed.layers.0.assign_mat.W"].shape[1]
    names = tuple(label_names or (f"label {index}" for index in range(num_labels)))
    vectors = torch.as_tensor(word_vectors).float()
    counts = torch.as_tensor(np.asarray(label_counts)).round().long()
    both = torch.as_tensor(np.asarray(co_occurrence)).round().long()
    _check_label_count("labels", len(names), num_labels)
    _check_label_count("rows of word_vectors", len(vectors), num_labels)
    _check_label_count("label_counts", len(counts), num_labels)
    _check_label_count("rows of co_occurrence", len(both), num_labels)
    # The ratio lies in the middle of those that floor to this number of groups.
    model = msrn_resnet101(
        LabelGraph(names, both, counts),
        vectors,
        group_ratio=min(1.0, (num_groups + 0.5) / num_labels),
        classifier_dim=len(state["fc1.bias"]),
    )
    try:
        loaded = model.load_state_dict(dict(_rename(state)), strict=False)
    except RuntimeError as error:
        raise PublishedFileError(f"the checkpoint's shapes are not the published network's. {error}") from error
    absent = [name for name in loaded.missing_keys if name not in ("label_group.word_vectors", "label_group.adjacency")]
    if absent or loaded.unexpected_keys:
        raise PublishedFileError(
            f"the checkpoint lacks {absent[:3]} and has unknown {loaded.unexpected_keys[:3]}. Expected a ResNet-101 backbone "
            "in torchvision's names under 'resnet_101.'."
        )
    return model.eval()


def _is_unused(name: str) -> bool:
    return name in _UNUSED or name.startswith("resnet_101.fc.")


def _check_label_count(what: str, received: int, expected: int) -> None:
    if received != expected:
        raise PublishedFileError(
            f"the checkpoint knows {expected} labels, but there are {received} {what}. Give those it was trained with."
        )


def _rename(state: Mapping[str, Tensor]) -> "list[tuple[str, Tensor]]":
    renamed: list[tuple[str, Tensor]] = []
    for name, value in state.items():
        layer, _, leaf = name.rpartition(".")
        if name in _NAMES:
            renamed.append((_NAMES[name], value))
        elif layer in _GRAPH_LAYERS and leaf == "W":
            renamed.append((f"{_GRAPH_LAYERS[layer]}.projection.weight", value.T))
        elif layer in _GRAPH_LAYERS and leaf == "a":
            target, source = value.flatten().chunk(2)
            renamed += [
                (f"{_GRAPH_LAYERS[layer]}.attention_target", target),
                (f"{_GRAPH_LAYERS[layer]}.attention_source", source),
            ]
        elif name.startswith("resnet_101."):
            renamed.append((name.replace("resnet_101.", "backbone.model.", 1), value))
        else:
            renamed.append((name, value))
    return renamed
