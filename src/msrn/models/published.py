"""The authors' weights under our names."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from msrn.errors import PublishedFileError
from msrn.labels import LabelGraph
from msrn.models.builders import PUBLISHED, build_model
from msrn.models.msrn import MSRN
from msrn.torch_files import TorchFileError, load_torch_file

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
_INPUT_DIM = 256
_STAGES = ("ProjectM.0", "ProjectM.1", "ProjectM.2")
_NUMPY_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
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
    architecture = published_architecture(state_dict)
    num_labels, width = published_sizes(state_dict)
    state = _strip(state_dict)
    names = tuple(label_names or (f"label {index}" for index in range(num_labels)))
    vectors = torch.as_tensor(word_vectors).float()
    counts = torch.as_tensor(np.asarray(label_counts)).round().long()
    both = torch.as_tensor(np.asarray(co_occurrence)).round().long()
    _check_label_count("labels", len(names), num_labels)
    _check_label_count("rows of word_vectors", len(vectors), num_labels)
    _check_label_count("label_counts", len(counts), num_labels)
    _check_label_count("rows of co_occurrence", len(both), num_labels)
    if vectors.shape[1] != width:
        raise PublishedFileError(
            f"the checkpoint takes word vectors of width {width}, these have {vectors.shape[1]}. "
            "Give those it was trained with."
        )
    model = build_model(architecture, LabelGraph(names, both, counts), vectors)
    assert isinstance(model, MSRN)
    try:
        loaded = model.load_state_dict(dict(_rename(state)), strict=False)
    except RuntimeError as error:
        raise PublishedFileError(f"the checkpoint's shapes are not the published network's. {error}") from error
    absent = [name for name in loaded.missing_keys if name not in ("label_group.word_vectors", "label_group.adjacency")]
    if absent or loaded.unexpected_keys:
        raise PublishedFileError(
            f"the checkpoint lacks {absent[:3]} and has unknown {loaded.unexpected_keys[:3]}. Expected a ResNet-101 "
            "backbone in torchvision's names under 'resnet_101.'."
        )
    return model.eval()


def published_architecture(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture behind the authors' weights, for `msrn.models.build_model` and a bundle.

    Args:
        state_dict: Tensors or arrays under the authors' names, with or without "module." ahead.

    Raises:
        PublishedFileError: Names are missing, or the last layers' shapes are not those of one network.
    """
    state = _strip(state_dict)
    missing = [name for name in _REQUIRED if name not in state]
    if missing:
        raise PublishedFileError(
            f"not a checkpoint of the published MSRN: {len(missing)} names are missing (first: {missing[0]}). Give a "
            "state_dict with the authors' names (resnet_101.*, label_embed.*, group_embed.*, ProjectM.*, fc1, fc2)."
        )
    assignment = state["group_embed.layers.0.assign_mat.W"]
    num_groups = assignment.shape[-1] if assignment.ndim else 0
    num_labels, hidden_dim = state["fc2.bias"].numel(), state["fc1.bias"].numel()
    width = len(_STAGES) * PUBLISHED["dim"]
    expected = {
        "fc1.weight": (hidden_dim, (num_labels + num_groups) * width),
        "fc1.bias": (hidden_dim,),
        "fc2.weight": (num_labels, hidden_dim),
        "fc2.bias": (num_labels,),
        "fc_label.weight": (_INPUT_DIM, state["fc_label.weight"].shape[-1] if state["fc_label.weight"].ndim else 0),
        "group_embed.layers.0.assign_mat.W": (PUBLISHED["dim"], num_groups),
    }
    received = {name: tuple(state[name].shape) for name in expected}
    wrong = [f"{name} is {received[name]}, not {shape}" for name, shape in expected.items() if received[name] != shape]
    if wrong or num_labels == 0 or num_groups == 0 or num_groups > num_labels:
        raise PublishedFileError(
            f"the checkpoint's shapes are not the published network's with {num_labels} labels and {num_groups} "
            f"groups: {'; '.join(wrong) or 'expected 1 label or more and at most as many groups'}. "
            "Give the authors' checkpoint."
        )
    # The ratio lies in the middle of those that floor to this number of groups.
    group_ratio = min(1.0, (num_groups + 0.5) / num_labels)
    return {
        "name": "msrn",
        "backbone": "resnet101",
        **PUBLISHED,
        "group_ratio": group_ratio,
        "classifier_dim": hidden_dim,
    }


def published_sizes(state_dict: Mapping[str, Any]) -> tuple[int, int]:
    """How many labels the authors' weights know, and the width of the word vectors they take.

    Raises:
        PublishedFileError: See `published_architecture`.
    """
    published_architecture(state_dict)
    state = _strip(state_dict)
    return len(state["fc2.bias"]), state["fc_label.weight"].shape[1]


def read_published_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a checkpoint of the authors, `.pth.tar` or `.pth`, without running anything in it.

    Args:
        path: A file of `torch.save`, in its old or new format: a state_dict, or a dict with one under "state_dict"
            (beside epoch, arch and best_score).

    Returns:
        Tensors under the authors' names, on the CPU.

    Raises:
        PublishedFileError: The file cannot be read, asks for anything but tensors and numbers, or holds no state_dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise PublishedFileError(f"{path} {what}. Give a checkpoint of the authors, such as model_best.pth.tar.")
    # best_score may be a NumPy scalar. It is not used, so its names become a stand-in that keeps nothing.
    ignored: list[Any] = [(_Ignored, name) for name in _NUMPY_SCALAR_NAMES]
    try:
        with torch.serialization.safe_globals(ignored), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = load_torch_file(path, map_location="cpu", encoding="latin-1")
    except OSError as error:
        raise PublishedFileError(f"{path} cannot be read: {error.strerror or error}. Give a readable file.") from None
    except Exception as error:  # a damaged file can fail in any way
        refused = re.search(r"(?:GLOBAL|global) ([\w.]*\w) (?:was not|whose module)", str(error))
        if refused:
            raise PublishedFileError(
                f"{path} asks for {refused[1][:80]}. A checkpoint holds tensors and numbers only; nothing in this file "
                "was run. Take it from the authors, and do not open this one with torch.load(weights_only=False)."
            ) from None
        reason = error if isinstance(error, TorchFileError) else type(error).__name__
        raise PublishedFileError(
            f"{path} is not a checkpoint that can be read safely ({reason}). Expected a whole file of "
            "torch.save with a state_dict; download it again."
        ) from None
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state_dict, dict) or not state_dict:
        raise PublishedFileError(
            f"{path} holds {'an empty' if state_dict == {} else 'a'} {type(state_dict).__name__}, not a state_dict of "
            "named tensors. Give the authors' checkpoint."
        )
    wrong = [name for name, value in state_dict.items() if not isinstance(name, str) or not _is_whole(value)]
    if wrong:
        raise PublishedFileError(
            f"{path} holds {len(wrong)} entries that are not named tensors (first: {str(wrong[0])[:80]!r}), so it is "
            "no state_dict. Give the authors' checkpoint."
        )
    return {name: value.detach() for name, value in state_dict.items()}


class _Ignored:
    """What a NumPy scalar in a checkpoint becomes."""

    def __init__(self, *arguments: Any) -> None:
        """Keep nothing."""

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def _is_whole(value: Any) -> bool:
    """Whether this is a plain tensor with its own memory, rather than a large shape that looks at a few numbers."""
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return bool(value.untyped_storage().nbytes() >= value.numel() * value.element_size())


def _strip(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    state = {name.removeprefix("module."): torch.as_tensor(value) for name, value in state_dict.items()}
    return {name: value for name, value in state.items() if not _is_unused(name)}


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
