"""A trained model as one file for other programs: ONNX, or PyTorch's own export.

Importing the package, and `OnnxPredictor`, need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrn.export.check import Check, check_export
    from msrn.export.onnx_predictor import OnnxPredictor
    from msrn.export.write import PRECISIONS, Export, export_model

_HOMES = {
    "PRECISIONS": "msrn.export.write",
    "Check": "msrn.export.check",
    "Export": "msrn.export.write",
    "OnnxPredictor": "msrn.export.onnx_predictor",
    "check_export": "msrn.export.check",
    "export_model": "msrn.export.write",
}

__all__ = ["PRECISIONS", "Check", "Export", "OnnxPredictor", "check_export", "export_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'msrn.export' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
