"""The network under the head: any timm model that returns features at several stages."""

import argparse
import difflib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import load_state_dict
from torch import Tensor, nn

from msrn.errors import ModelError, is_out_of_memory
from msrn.models.folding import fold_batch_norms
from msrn.torch_files import TorchFileError, load_torch_file, zip_members

# What `Backbone` sets itself; `weights` is the one way to a file, so that a bundle's options cannot read another.
_RESERVED_OPTIONS = (
    *("features_only", "out_indices", "num_classes", "global_pool", "checkpoint_path"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
)
# More than any model of timm has.
_MAX_STAGES = 1000


class Backbone(nn.Module):
    """Feature maps of the last stages of a timm model, channels first, from fine to coarse.

    Attributes:
        name: timm's name of the model.
        channels: Channels of each stage, as in (512, 1024, 2048).
        strides: Pixels of the image a position of each stage stands for, as in (8, 16, 32).

    Args:
        name: Any timm model that supports `features_only` (`timm.list_models()`).
        num_stages: How many stages to return, counted from the last.
        pretrained: Start from pre-trained weights, downloaded by timm unless `weights` is given.
        weights: A local file of pre-trained weights in timm's names.
        keep_last_layers: Keep the pre-trained layers behind the last stage that timm drops with `features_only` (MobileNetV2's
            `conv_head` and `bn2`); the last feature map is theirs.
        freeze_batch_norm: Normalise by the stored statistics in training too, and leave them as they are. Norms of stored
            statistics, here and in frozen stages, run merged with the convolutions ahead of them (`fold_batch_norms`).
        frozen_stages: Leave the stem and the first stages as they are, counted from the first one that timm lists for the model
            (MobileNetV2 lists strides 2, 4, 8, 16 and 32, ResNet its stem at stride 2 as the first). They get no gradient, store
            nothing for a backward pass, and stay in evaluation mode: no dropout, batch norms by their stored statistics.
        **options: Passed on to `timm.create_model`, as in `img_size=448`.

    Raises:
        ModelError: timm does not know the model or an option, the model has fewer stages or does not tell where they end, or the
            weights are missing or do not fit; on a forward pass, images of a size that the model does not take.
    """

    model: Any

    def __init__(
        self,
        name: str,
        *,
        num_stages: int = 3,
        pretrained: bool = False,
        weights: str | Path | None = None,
        keep_last_layers: bool = False,
        freeze_batch_norm: bool = False,
        frozen_stages: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        if ":" in name:  # timm would read the network or a folder, and unpickle what lies in it
            raise ModelError(
                f"'{name}' is no model that comes with timm. Name one that does (timm.list_models()), and give a file of its "
                "weights as weights (model.weights=FILE)."
            )
        if num_stages < 1:
            raise ModelError(f"num_stages is at least 1, got {num_stages}.")
        if num_stages > _MAX_STAGES:
            raise _too_few_stages(name, num_stages)
        if frozen_stages < 0:
            raise ModelError(f"frozen_stages is at least 0, got {frozen_stages}. Use 0 to train all stages.")
        reserved = [option for option in options if option in _RESERVED_OPTIONS]
        if reserved:
            raise ModelError(f"a backbone has no option {', '.join(reserved)}. Use num_stages, pretrained and weights.")
        self.name = name
        self.num_stages = num_stages
        self.keep_last_layers = keep_last_layers
        self.freeze_batch_norm = freeze_batch_norm
        if pretrained or weights is not None:
            options |= _pretrained_options(name, weights)
        if keep_last_layers:
            self.model = _create(name, num_classes=0, global_pool="", **options)
            stages = _stage_info(name, self.model, num_stages)
            channels = [stage["num_chs"] for stage in stages]
            self.channels = (*channels[:-1], int(self.model.num_features))
        else:
            out_indices = tuple(range(-num_stages, 0))
            self.model = _create(name, features_only=True, out_indices=out_indices, **options)
            stages = self.model.feature_info.get_dicts()
            self.channels = tuple(stage["num_chs"] for stage in stages)
        self.strides = tuple(int(stage["reduction"]) for stage in stages)
        self._is_channels_last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
        if weights is not None:
            _check_loaded(name, self.model, Path(weights).expanduser())
        self._frozen_modules = _freeze_stages(name, self.model, frozen_stages)
        if freeze_batch_norm or self._frozen_modules:
            fold_batch_norms(self.model, lambda norm: freeze_batch_norm or self._is_frozen(norm))
        self.train()  # freezes the batch norms of a model that nobody calls train() on, as Lightning does not

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """Feature maps of the stages, finest first."""
        try:
            if self.keep_last_layers:
                last, feature_maps = self.model.forward_intermediates(images, indices=self.num_stages)
                if last.ndim != 4:
                    raise ModelError(
                        f"the last layers of '{self.name}' return tokens, not a feature map. Set keep_last_layers=false."
                    )
                last = last.permute(0, 3, 1, 2) if self._is_channels_last else last  # (B, C, h, w)
                return [*feature_maps[:-1], last]
            feature_maps = self.model(images)
        except AssertionError as error:
            height, width = images.shape[-2:]
            raise ModelError(
                f"'{self.name}' does not take images of {height} x {width}: {error} Use the size it was made for, or give "
                f"its option img_size (model.backbone_options={{img_size: [{height}, {width}]}})."
            ) from error
        if self._is_channels_last:
            feature_maps = [feature_map.permute(0, 3, 1, 2) for feature_map in feature_maps]
        return list(feature_maps)

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode; frozen batch norms and stages stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen_modules:
            self.model.get_submodule(name).eval()
        if self.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _is_frozen(self, module_name: str) -> bool:
        return any(f"{module_name}.".startswith(f"{name}.") for name in self._frozen_modules)


def _create(name: str, **options: Any) -> Any:
    try:
        return timm.create_model(name, **options)
    except TypeError as error:
        raise ModelError(
            f"timm cannot build '{name}' with {_shown(options)}: {error}. Remove the option or choose another backbone."
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if not timm.is_model(name.split(".")[0]):
            close = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise ModelError(f"timm knows no model '{name}'.{hint} See timm.list_models() for all names.") from error
        if "out_indices" in options and isinstance(error, IndexError | AssertionError) and "index" in str(error):
            raise _too_few_stages(name, len(options["out_indices"])) from None
        if options.get("pretrained"):
            raise _weights_error(name, options, error) from error
        raise ModelError(f"timm cannot build '{name}' with {_shown(options)}: {_first_line(error)}") from error


def _pretrained_options(name: str, weights: str | Path | None) -> dict[str, Any]:
    if weights is None:
        return {"pretrained": True}
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(f"no weights file {path}. Give an existing file of {name}'s weights in timm's names.")
    _check_holds_tensors(name, path)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}


def _check_holds_tensors(name: str, path: Path) -> None:
    """Refuse a file that holds more than tensors, before timm opens it: some of its versions unpickle whatever is in there.

    Neither safetensors, which timm knows by this ending, nor an archive of nothing but NumPy's arrays holds code.
    """
    if path.suffix == ".safetensors" or _is_numpy_archive(path):
        return
    try:
        # A namespace holds the settings in checkpoints of timm's own training.
        with torch.serialization.safe_globals([argparse.Namespace]):
            load_torch_file(path, map_location="meta")
    except Exception as error:  # PyTorch has no base class of its errors
        cause = f"{error}." if isinstance(error, TorchFileError) else _first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            cause = "it is no file of tensors only, and nothing in it was run."
        raise ModelError(
            f"{path} does not hold weights of '{name}' in timm's names: {cause} "
            "Give the weights of this backbone, or name the backbone they belong to."
        ) from error


def _is_numpy_archive(path: Path) -> bool:
    names = [member.filename for member in zip_members(path)]
    return bool(names) and all(name.endswith(".npy") for name in names)


def _weights_error(name: str, options: dict[str, Any], error: Exception) -> ModelError:
    overlay = options.get("pretrained_cfg_overlay")
    if overlay is None:
        return ModelError(
            f"the pre-trained weights of '{name}' could not be downloaded. Download {name}'s model.safetensors on a machine "
            "with a network and pass it as weights (model.weights=FILE), or train from scratch (model.pretrained=false)."
        )
    cause = "it is no file of tensors only." if "weights_only" in str(error) else _first_line(error)
    return ModelError(
        f"{overlay['file']} does not hold weights of '{name}' in timm's names: {cause} "
        "Give the weights of this backbone, or name the backbone they belong to."
    )


def _check_loaded(name: str, model: nn.Module, path: Path) -> None:
    """Refuse a file none of whose tensors arrived: timm leaves out, with no error, what has another name."""
    stored = [tensor for tensor in load_state_dict(str(path)).values() if tensor.ndim > 1]
    for weight in model.state_dict().values():
        if any(weight.shape == tensor.shape and weight.equal(tensor.to(weight.dtype)) for tensor in stored):
            return
    raise ModelError(
        f"{path} does not hold weights of '{name}' in timm's names: no tensor fits. Give the weights of this backbone, or "
        "name the backbone they belong to."
    )


def _stage_info(name: str, model: Any, num_stages: int) -> list[dict[str, Any]]:
    if not hasattr(model, "forward_intermediates"):
        raise ModelError(f"timm's '{name}' returns no intermediate features. Choose another backbone.")
    stages = _all_stages(model)
    if len(stages) < num_stages:
        raise _too_few_stages(name, num_stages)
    return stages[-num_stages:]


def _all_stages(model: Any) -> list[dict[str, Any]]:
    """What timm tells of every stage of a model, finest first, whether it is returned or not."""
    info = model.feature_info
    return list(info if isinstance(info, list) else info.info)


def _freeze_stages(name: str, model: Any, num_stages: int) -> list[str]:
    """Take the gradients of the stem and the first stages away; names of the modules that make them up."""
    if num_stages == 0:
        return []
    stages = _all_stages(model)
    if num_stages > len(stages):
        raise ModelError(
            f"'{name}' has {len(stages)} stages, {num_stages} cannot be frozen. Lower frozen_stages to at most {len(stages)}."
        )
    # With `features_only`, timm writes stages.0 as stages_0, or puts the whole model below `model`.
    by_name = {path.removeprefix("model.").replace(".", "_"): path for path, _ in model.named_modules()}
    last = by_name.get(str(stages[num_stages - 1].get("module")).replace(".", "_"))
    if last is None:
        raise ModelError(
            f"timm does not tell where stage {num_stages} of '{name}' ends. Set frozen_stages=0 or choose another backbone."
        )
    modules = list(_modules_up_to(model, last))
    for module in modules:
        model.get_submodule(module).requires_grad_(False)
    parts = last.split(".")
    for depth in range(
        len(parts)
    ):  # what lies beside modules belongs to the stem, as tokens and position embeddings do
        for parameter in model.get_submodule(".".join(parts[:depth])).parameters(recurse=False):
            parameter.requires_grad_(False)
    return modules


def _modules_up_to(module: nn.Module, last: str, prefix: str = "") -> Iterator[str]:
    """Modules from the first to the one named last, in the order of their registration, which timm takes for that of the data."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if last.startswith(f"{path}."):
            yield from _modules_up_to(child, last, f"{path}.")
            return
        yield path
        if path == last:
            return


def _too_few_stages(name: str, num_stages: int) -> ModelError:
    return ModelError(
        f"'{name}' returns features at fewer than {num_stages} stages. Lower num_stages or choose another."
    )


def _shown(options: dict[str, Any]) -> str:
    shown = (f"{key}={value!r}" for key, value in options.items() if key not in _RESERVED_OPTIONS)
    return ", ".join(shown) or "no options"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, frozen ones among them.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())
