"""A bundle: a folder with everything a trained model needs, and nothing that has to be unpickled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from msrn.bundle.card import model_card
from msrn.data.transforms import Preprocessing
from msrn.errors import BundleError, MSRNError
from msrn.files import replace_folder, share_file
from msrn.labels import LabelGraph
from msrn.models import MSRN, Classifier, build_model

FORMAT_VERSION = 3
# What an architecture meant by leaving a key out, where that was another value than today.
_RESIDUAL_OF_2 = {"residual": "avg", "supervision": "sum"}
_FORMER_DEFAULTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"msrn": {"pooling": "max", "scale": 8.0, **_RESIDUAL_OF_2}},
    2: {"msrn": {"scale": 2.0, **_RESIDUAL_OF_2}},
}
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_GRAPH_PREFIX = "label_graph."
_MODEL_PREFIX = "model."
_CONFIG_KEYS = ("format_version", "architecture", "labels", "graph_threshold", "preprocessing", "threshold")


@dataclass(frozen=True)
class Bundle:
    """A trained model and what is needed to use it.

    Attributes:
        model: The network, in evaluation mode.
        label_graph: Labels and co-occurrence of the training images.
        architecture: Name and arguments for `msrn.models.build_model`, without pre-trained weights.
        preprocessing: How an image becomes the network's input.
        threshold: A label is predicted where its probability is at least this.
        training: How the model was trained: recipe, splits with hashes, epoch chosen, metrics.
    """

    model: MSRN | Classifier
    label_graph: LabelGraph
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    threshold: float = 0.5
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels, in the order of the logits."""
        return self.label_graph.label_names

    def config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        has_edges = self.label_graph.edges is not None
        return {
            "format_version": FORMAT_VERSION,
            "architecture": self.architecture,
            "labels": list(self.label_names),
            "graph_threshold": self.label_graph.threshold,
            **({"graph_rule": self.label_graph.rule} if has_edges else {}),
            "preprocessing": self.preprocessing.to_dict(),
            "threshold": self.threshold,
            "training": self.training,
        }


def save_bundle(bundle: Bundle, path: str | Path) -> Path:
    """Write a bundle folder in one step; an older bundle of that name is replaced.

    Raises:
        BundleError: The path holds something that is not a bundle.
        MSRNError: The folder cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and ((path / CONFIG_FILE).is_file() or not any(path.iterdir()))):
        raise BundleError(f"{path} exists and is not a bundle; it is left alone. Give a new folder.")
    # Tensors of their own memory, as safetensors refuses shared memory; one metadata key, as it shuffles several, and the
    # same bundle should be the same file.
    state = {f"{_MODEL_PREFIX}{name}": _plain(value) for name, value in bundle.model.state_dict().items()}
    state[f"{_GRAPH_PREFIX}co_occurrence"] = _plain(bundle.label_graph.co_occurrence)
    state[f"{_GRAPH_PREFIX}label_counts"] = _plain(bundle.label_graph.label_counts)
    if bundle.label_graph.edges is not None:
        state[f"{_GRAPH_PREFIX}edges"] = _plain(bundle.label_graph.edges)
    with replace_folder(path) as folder:
        try:
            save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
            share_file(folder / WEIGHTS_FILE)
        except SafetensorError as error:  # a full disk, in safetensors' words
            raise MSRNError(f"{path} cannot be written: {error}. Free some space or give another folder.") from error
        text = json.dumps(bundle.config(), indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
        (folder / CARD_FILE).write_text(model_card(bundle.config()), encoding="utf-8")
    return path


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle folder.

    Raises:
        BundleError: A file is missing or damaged, or configuration and weights disagree; the message says where.
    """
    path = Path(path).expanduser()
    config = _read_config(path)
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except FileNotFoundError:
        raise BundleError(
            f"{path} has no {WEIGHTS_FILE}, so it is not a whole bundle. Copy or save it again."
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path / WEIGHTS_FILE} is damaged: {error}. Copy or save the bundle again.") from None
    label_graph = _label_graph(path, config, tensors)
    state = {
        name.removeprefix(_MODEL_PREFIX): value for name, value in tensors.items() if name.startswith(_MODEL_PREFIX)
    }
    # Whoever keeps word vectors, they are part of the state; here only their width counts.
    vectors = next((value for name, value in state.items() if name.endswith(".word_vectors")), None)
    preprocessing = _preprocessing(path, config["preprocessing"])
    architecture: dict[str, Any] = config["architecture"]
    if not isinstance(architecture, dict) or ":" in str(architecture.get("backbone")):
        # "hf-hub:" and "local-dir:" would make timm read the network or this machine's files for a stranger's bundle.
        raise BundleError(
            f"{path / CONFIG_FILE} names no backbone that comes with timm. Save the bundle with one that does."
        )
    try:
        # The weights come from the bundle: a configuration must not make timm read a file or the network.
        model = build_model({**architecture, "pretrained": False, "weights": None}, label_graph, vectors)
    except Exception as error:  # values of any kind, from strangers, reach builders of timm and torch
        raise BundleError(
            f"{path / CONFIG_FILE} describes no model that can be built: {str(error) or type(error).__name__}"
        ) from error
    _load_state(path, model, state)
    model.eval()
    return Bundle(
        model, label_graph, architecture, preprocessing, float(config["threshold"]), config.get("training", {})
    )


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise BundleError(
            f"{path} {what}. A bundle is the folder that training writes ({WEIGHTS_FILE}, {CONFIG_FILE})."
        )
    try:
        config: dict[str, Any] = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(
            f"{path} has no {CONFIG_FILE}, so it is not a bundle. Give the folder that training writes."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / CONFIG_FILE} cannot be read: {error}. Copy or save the bundle again.") from None
    missing = [key for key in _CONFIG_KEYS if not isinstance(config, dict) or key not in config]
    if missing:
        raise BundleError(f"{path / CONFIG_FILE} lacks {', '.join(missing)}. Copy or save the bundle again.")
    version = config["format_version"]
    if version != FORMAT_VERSION and version not in (*_FORMER_DEFAULTS,):
        raise BundleError(f"{path} has format {version}, this msrn reads formats up to {FORMAT_VERSION}. Update msrn.")
    labels = config["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise BundleError(f"{path / CONFIG_FILE}: labels is not a list of names. Copy or save the bundle again.")
    if not _is_number(config["threshold"]) or not 0 <= config["threshold"] <= 1:
        raise BundleError(
            f"{path / CONFIG_FILE}: threshold is a probability, got {config['threshold']!r}. Mend it there."
        )
    for key in ("architecture", "preprocessing", "training"):
        if not isinstance(config.get(key, {}), dict):
            raise BundleError(
                f"{path / CONFIG_FILE}: {key} is not an object of keys and values. Save the bundle again."
            )
    former = _FORMER_DEFAULTS.get(version, {}).get(str(config["architecture"].get("name")), {})
    config["architecture"] = {**former, **config["architecture"]}
    return config


def _preprocessing(path: Path, values: dict[str, Any]) -> Preprocessing:
    try:
        preprocessing = Preprocessing.from_dict(values)
    except TypeError as error:
        raise BundleError(f"{path / CONFIG_FILE}: preprocessing has other keys than expected: {error}.") from error
    size, mean, std = preprocessing.size, preprocessing.mean, preprocessing.std
    is_right = {
        "size": _are_numbers(size, 2) and all(isinstance(side, int) and side > 0 for side in size),
        "mean": _are_numbers(mean, 3),
        "std": _are_numbers(std, 3) and all(value > 0 for value in std),
        "interpolation": preprocessing.interpolation in ("bilinear", "bicubic"),
    }
    wrong = [f"{key} = {values[key]!r}" for key, right in is_right.items() if not right]
    if wrong:
        raise BundleError(
            f"{path / CONFIG_FILE}: preprocessing holds {', '.join(wrong)}. Expected size (height and width), mean and std "
            "(three numbers each) and interpolation (bilinear or bicubic)."
        )
    return preprocessing


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, tuple) and len(values) == count and all(_is_number(value) for value in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _label_graph(path: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> LabelGraph:
    labels = tuple(config["labels"])
    try:
        both, counts = tensors[f"{_GRAPH_PREFIX}co_occurrence"], tensors[f"{_GRAPH_PREFIX}label_counts"]
    except KeyError as error:
        raise BundleError(f"{path / WEIGHTS_FILE} lacks {error}. Copy or save the bundle again.") from None
    if counts.numel() != len(labels):
        raise BundleError(
            f"{path}: {CONFIG_FILE} names {len(labels)} labels, {WEIGHTS_FILE} was trained with {counts.numel()}. "
            "Take both files from the same training run."
        )
    edges, rule = tensors.get(f"{_GRAPH_PREFIX}edges"), config.get("graph_rule", "")
    if not isinstance(rule, str) or (edges is not None and edges.dtype != torch.bool):
        raise BundleError(
            f"{path}: the label graph is damaged: graph_rule is no text, or its edges no truth values. Save the bundle again."
        )
    try:
        return LabelGraph(
            labels, both, counts, float(config["graph_threshold"]), edges, rule if edges is not None else ""
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise BundleError(f"{path}: the label graph is damaged: {error}") from None


def _load_state(path: Path, model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    problems = [
        *(
            f"{len(names)} tensors {what} (first: {names[0]})"
            for names, what in ((missing, "are missing"), (unknown, "are not known"))
            if names
        ),
        *sorted(wrong)[:2],
    ]
    if problems:
        raise BundleError(
            f"{path}: {WEIGHTS_FILE} does not fit the architecture in {CONFIG_FILE}: {'; '.join(problems)}. "
            "Take both files from the same training run."
        )
    model.load_state_dict(state)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
