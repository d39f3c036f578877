"""Multi-label image classification that knows how labels relate.

    import msrn

    predictor = msrn.load("msrn-demo/bundle")
    print(predictor.predict("photo.jpg"))

Importing msrn loads neither PyTorch nor Lightning nor timm: a name brings its module in when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrn.bundle import Bundle, load_bundle, save_bundle
    from msrn.data import LabelledImages, Source, open_source
    from msrn.errors import MSRNError
    from msrn.labels import LabelGraph
    from msrn.models import MSRN, build_msrn, msrn_resnet101
    from msrn.predict import Predictor, load
    from msrn.prediction import Prediction

__version__ = "0.1.0"

_HOMES = {
    "MSRN": "msrn.models",
    "Bundle": "msrn.bundle",
    "LabelGraph": "msrn.labels",
    "LabelledImages": "msrn.data",
    "MSRNError": "msrn.errors",
    "Prediction": "msrn.prediction",
    "Predictor": "msrn.predict",
    "Source": "msrn.data",
    "build_msrn": "msrn.models",
    "load": "msrn.predict",
    "load_bundle": "msrn.bundle",
    "msrn_resnet101": "msrn.models",
    "open_source": "msrn.data",
    "save_bundle": "msrn.bundle",
}

_SUBPACKAGES = (
    "bulk",
    "bundle",
    "data",
    "errors",
    "explain",
    "export",
    "labels",
    "metrics",
    "models",
    "ops",
    "predict",
    "recipes",
    "report",
    "training",
)

__all__ = [
    "MSRN",
    "Bundle",
    "LabelGraph",
    "LabelledImages",
    "MSRNError",
    "Prediction",
    "Predictor",
    "Source",
    "__version__",
    "build_msrn",
    "load",
    "load_bundle",
    "msrn_resnet101",
    "open_source",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"msrn.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'msrn' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
