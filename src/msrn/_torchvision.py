"""Lets torchvision be imported beside a CPU-only PyTorch.

A torchvision wheel from PyPI is compiled against a CUDA PyTorch; beside a CPU build its compiled operators are missing and
its import stops with "operator torchvision::nms does not exist". Nothing in msrn calls those operators, so declaring
their schemas is enough. Import this module before torchvision or timm; it does nothing where the operators exist.
"""

from importlib.machinery import PathFinder

import torch
from torch.library import define

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _has_compiled_operators() -> bool:
    package = PathFinder.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return True  # torchvision is missing: its own import error says it best
    library = PathFinder.find_spec("_C", list(package.submodule_search_locations))
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except OSError:
        return False
    return True


def declare_operators() -> None:
    """Declare torchvision's operator schemas where its compiled library cannot be loaded."""
    if _has_compiled_operators():
        return
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            define(f"torchvision::{name}", schema)


declare_operators()
