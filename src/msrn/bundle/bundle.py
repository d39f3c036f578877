"""A bundle: a folder with everything a trained model needs, and nothing that has to be unpickled."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from msrn.bundle.card import model_card
from msrn.data.source import some
from msrn.data.transforms import Preprocessing
from msrn.errors import BundleError, ModelError, MSRNError
from msrn.files import is_utf8, read_bounded, replace_folder, share_file, write_text
from msrn.labels import LabelGraph
from msrn.metrics import Calibration, Thresholds, calibration_from_dict
from msrn.models import MSRN, Classifier, build_model
from msrn.prediction import MAX_INPUT_PIXELS

FORMAT_VERSION = 4
# What an architecture meant by leaving a key out, where that was another value than today.
_RESIDUAL_OF_2 = {"residual": "avg", "supervision": "sum"}
_FORMER_DEFAULTS: dict[int, dict[str, dict[str, Any]]] = {
    1: {"msrn": {"pooling": "max", "scale": 8.0, **_RESIDUAL_OF_2}},
    2: {"msrn": {"scale": 2.0, **_RESIDUAL_OF_2}},
    3: {},  # without thresholds a label and calibration
}
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
# A configuration with 10,000 labels has 2 MB.
_MAX_CONFIG_BYTES = 64_000_000
# What a number of an architecture can be, far above what any has.
_MAX_NUMBER = 2**20
_GRAPH_PREFIX = "label_graph."
_MODEL_PREFIX = "model."
_DECISION_KEYS = ("threshold", "thresholds", "calibration")
_CONFIG_KEYS = ("format_version", "architecture", "labels", "graph_threshold", "preprocessing", "threshold")


@dataclass(frozen=True)
class Bundle:
    """A trained model and what is needed to use it.

    Attributes:
        model: The network, in evaluation mode.
        label_graph: Labels and co-occurrence of the training images.
        architecture: Name and arguments for `msrn.models.build_model`, without pre-trained weights.
        preprocessing: How an image becomes the network's input.
        threshold: A label is predicted where its probability is at least this, while no thresholds are fitted.
        thresholds: A threshold for each label, fitted on validation images, or None.
        calibration: How logits become probabilities, fitted on validation images; None is the plain sigmoid.
        training: How the model was trained: recipe, splits with hashes, epoch chosen, metrics.
    """

    model: MSRN | Classifier
    label_graph: LabelGraph
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    threshold: float = 0.5
    training: dict[str, Any] = field(default_factory=dict)
    thresholds: Thresholds | None = None
    calibration: Calibration | None = None

    def probs(self, logits: Float[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """The probabilities of logits, calibrated where a calibration is fitted."""
        return logits.sigmoid() if self.calibration is None else self.calibration(logits)

    @property
    def label_thresholds(self) -> Float[Tensor, " L"]:
        """The least probability of each label that is predicted."""
        if self.thresholds is not None:
            return self.thresholds.tensor()
        return torch.full((len(self.label_names),), self.threshold, dtype=torch.float64)

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
            **({} if self.thresholds is None else {"thresholds": self.thresholds.to_dict()}),
            **({} if self.calibration is None else {"calibration": self.calibration.to_dict()}),
            "training": self.training,
        }


def check_bundle_folder(path: str | Path) -> Path:
    """Refuse a folder that holds something else than a bundle, before any work is done for it.

    Raises:
        BundleError: The path holds something that is not a bundle, or a bundle and other things.
    """
    path = Path(path)
    names = {own.name for own in path.iterdir()} if path.is_dir() else set()
    # Other models are kept under these names too.
    is_bundle = CONFIG_FILE in names and _holds_version(path / CONFIG_FILE)
    if path.exists() and not (path.is_dir() and (is_bundle or not names)):
        raise BundleError(f"{path} exists and is not a bundle; it is left alone. Give a new folder.")
    if others := sorted(names - {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE}):
        raise BundleError(
            f"{path} is a bundle that holds other things too, which would be lost: {some(others)}. Move them elsewhere, or give a "
            "new folder."
        )
    return path


def _holds_version(config_file: Path) -> bool:
    try:
        return b'"format_version"' in read_bounded(config_file, _MAX_CONFIG_BYTES)
    except OSError:
        return False


def save_bundle(bundle: Bundle, path: str | Path) -> Path:
    """Write a bundle folder in one step; an older bundle of that name is replaced.

    Raises:
        BundleError: The path holds something that is not a bundle, or a bundle and other things.
        MSRNError: The folder cannot be written.
    """
    path = check_bundle_folder(path)
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
        for name, text in _texts(path, bundle.config()).items():
            (folder / name).write_text(text, encoding="utf-8")
    return path


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle folder.

    Raises:
        BundleError: A file is missing or damaged, or configuration and weights disagree; the message says where.
    """
    path = Path(path).expanduser()
    config = _read_config(path)
    try:
        if (path / WEIGHTS_FILE).exists() and not (path / WEIGHTS_FILE).is_file():
            raise ValueError("it is no regular file")
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
    if vectors is None:  # of a head that looks at no vectors, or the weights lack them and do not fit
        vectors = torch.zeros(len(label_graph.label_names), 1)
    # The weights come from the bundle: a configuration must not make timm read a file or the network.
    plain = {**architecture, "pretrained": False, "weights": None}
    try:
        # First without memory, so that a configuration of a few bytes cannot ask for more than the weights beside it have.
        with torch.device("meta"), _at_most_parameters(2 * len(state) + 1000):
            expected = build_model(plain, label_graph, vectors).state_dict()
        _check_fit(path, expected, state)
        model = build_model(plain, label_graph, vectors)
    except BundleError:
        raise
    except Exception as error:  # values of any kind, from strangers, reach builders of timm and torch
        raise BundleError(
            f"{path / CONFIG_FILE} describes no model that can be built: {str(error) or type(error).__name__}"
        ) from error
    model.load_state_dict(state)
    model.eval()
    thresholds, calibration = _decisions(path, config)
    return Bundle(
        model,
        label_graph,
        architecture,
        preprocessing,
        float(config["threshold"]),
        config.get("training", {}),
        thresholds,
        calibration,
    )


def reset_decisions(path: str | Path) -> float:
    """Take thresholds and calibration off a bundle folder, also where they are damaged; return the threshold of all labels.

    Raises:
        BundleError: The folder is not a bundle, or its configuration is damaged elsewhere too.
        MSRNError: A file cannot be written.
    """
    path = Path(path)
    config = _read_config(path)
    config = {name: value for name, value in config.items() if name not in ("thresholds", "calibration")}
    config["format_version"] = FORMAT_VERSION
    _preprocessing(path, config["preprocessing"])  # which the card tells of
    _write_config(path, config)
    return float(config["threshold"])


def save_decisions(bundle: Bundle, path: str | Path) -> None:
    """Replace thresholds and calibration of a bundle folder by this bundle's; the weights there are left as they are.

    Raises:
        BundleError: The folder is not a bundle.
        MSRNError: A file cannot be written.
    """
    path = Path(path)
    config = _read_config(path)
    if config["labels"] != list(bundle.label_names):
        raise BundleError(f"{path} has other labels. Save thresholds with the bundle that they were fitted for.")
    own = bundle.config()
    config |= {name: own[name] for name in ("format_version", *_DECISION_KEYS) if name in own}
    config = {name: config[name] for name in {**own, **config} if name in own or name not in _DECISION_KEYS}
    _write_config(path, config)


def _write_config(path: Path, config: dict[str, Any]) -> None:
    for name, text in _texts(path, config).items():  # both are there before either is written
        write_text(path / name, text)


def _texts(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """What a bundle's configuration and card hold, by the file's name.

    Raises:
        BundleError: A stranger wrote values into it that lie too deep within each other.
    """
    try:
        text, card = json.dumps(config, indent=2, ensure_ascii=False), model_card(config)
        if not is_utf8(text):  # halves of letters, which JSON can write otherwise
            text = json.dumps(config, indent=2)
    except RecursionError:
        raise BundleError(f"{path / CONFIG_FILE} holds values too deep within each other. Mend it there.") from None
    return {CONFIG_FILE: f"{text}\n", CARD_FILE: card.encode("utf-8", "replace").decode()}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise BundleError(
            f"{path} {what}. A bundle is the folder that training writes ({WEIGHTS_FILE}, {CONFIG_FILE})."
        )
    try:
        config: dict[str, Any] = json.loads(read_bounded(path / CONFIG_FILE, _MAX_CONFIG_BYTES).decode("utf-8"))
        if isinstance(config, dict) and "training" in config:
            # NaN and infinity, which JSON has not, become null, so that whoever tells of the training can write it.
            config["training"] = json.loads(json.dumps(config["training"]), parse_constant=lambda _: None)
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
    if isinstance(version, bool) or version not in (FORMAT_VERSION, *_FORMER_DEFAULTS):  # True is 1
        raise BundleError(f"{path} has format {version}, this msrn reads formats up to {FORMAT_VERSION}. Update msrn.")
    labels = config["labels"]
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise BundleError(f"{path / CONFIG_FILE}: labels is not a list of names. Copy or save the bundle again.")
    if halves := [label for label in labels if not is_utf8(label)]:
        raise BundleError(
            f"{path / CONFIG_FILE}: the label {halves[0]!r} is no text that can be written. Mend it there."
        )
    if not _is_number(config["threshold"]) or not 0 <= config["threshold"] <= 1:
        raise BundleError(
            f"{path / CONFIG_FILE}: threshold is a probability, got {config['threshold']!r}. Mend it there."
        )
    for key in ("architecture", "preprocessing", "training"):
        if not isinstance(config.get(key, {}), dict):
            raise BundleError(
                f"{path / CONFIG_FILE}: {key} is not an object of keys and values. Save the bundle again."
            )
    if _holds_large_number(config["architecture"]):
        raise BundleError(
            f"{path / CONFIG_FILE}: architecture holds a number above {_MAX_NUMBER:,}, which no model has. Save the bundle again."
        )
    former = _FORMER_DEFAULTS.get(version, {}).get(str(config["architecture"].get("name")), {})
    config["architecture"] = {**former, **config["architecture"]}
    return config


def _holds_large_number(value: Any) -> bool:
    pending = [value]
    while pending:
        own = pending.pop()
        if isinstance(own, dict | list):
            pending.extend(own.values() if isinstance(own, dict) else own)
        elif isinstance(own, int | float) and abs(own) > _MAX_NUMBER:
            return True
    return False


def _decisions(path: Path, config: dict[str, Any]) -> tuple[Thresholds | None, Calibration | None]:
    """What was fitted on validation images."""
    found: list[Any] = []
    readers: dict[str, Any] = {"thresholds": Thresholds.from_dict, "calibration": calibration_from_dict}
    for name, read in readers.items():
        values = config.get(name)
        try:
            if values is not None and not isinstance(values, dict):
                raise ValueError("it must be an object of keys and values.")
            found.append(None if values is None else read(values, len(config["labels"])))
        except ValueError as error:
            raise BundleError(
                f"{path / CONFIG_FILE}: {name} is damaged: {error} Take it off by msrn thresholds {path} --reset, and fit it again."
            ) from None
    return found[0], found[1]


def _preprocessing(path: Path, values: dict[str, Any]) -> Preprocessing:
    try:
        preprocessing = Preprocessing.from_dict(values)
    except TypeError as error:
        raise BundleError(f"{path / CONFIG_FILE}: preprocessing has other keys than expected: {error}.") from error
    size, mean, std = preprocessing.size, preprocessing.mean, preprocessing.std
    is_right = {
        "size": _are_numbers(size, 2)
        and all(isinstance(side, int) and side > 0 for side in size)
        and size[0] * size[1] <= MAX_INPUT_PIXELS,
        "mean": _are_numbers(mean, 3),
        "std": _are_numbers(std, 3) and all(value > 0 for value in std),
        "interpolation": preprocessing.interpolation in ("bilinear", "bicubic"),
    }
    wrong = [f"{key} = {values[key]!r}" for key, right in is_right.items() if not right]
    if wrong:
        raise BundleError(
            f"{path / CONFIG_FILE}: preprocessing holds {', '.join(wrong)}. Expected size (height and width), mean and std "
            f"(three numbers each) and interpolation (bilinear or bicubic); a size has at most {MAX_INPUT_PIXELS:,} pixels."
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


@contextmanager
def _at_most_parameters(most: int) -> Iterator[None]:
    """Stop this thread where it makes a model of more tensors, as one of a billion layers has."""
    thread, count = threading.get_ident(), 0

    def check(*_: Any) -> None:
        nonlocal count
        if threading.get_ident() == thread:
            count += 1
            if count > most:
                raise ModelError("it has far more layers than there are weights for.")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _check_fit(path: Path, expected: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
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


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
