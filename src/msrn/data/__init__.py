"""Data: readers behind one interface, splits, transforms and loaders.

Importing the package loads none of them: reading an image needs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrn.data.check import DataReport, check_source
    from msrn.data.images import list_images, read_image
    from msrn.data.open import open_source, register_source
    from msrn.data.packed import PackedImage
    from msrn.data.source import SPLITS, LabelledImages, Problem, Source
    from msrn.data.split import check_disjoint, check_files, hold_out, split_hash, split_images
    from msrn.data.split_table import verify_split, write_split

_HOMES = {
    "SPLITS": "msrn.data.source",
    "DataReport": "msrn.data.check",
    "LabelledImages": "msrn.data.source",
    "PackedImage": "msrn.data.packed",
    "Problem": "msrn.data.source",
    "Source": "msrn.data.source",
    "check_disjoint": "msrn.data.split",
    "check_files": "msrn.data.split",
    "check_source": "msrn.data.check",
    "hold_out": "msrn.data.split",
    "list_images": "msrn.data.images",
    "open_source": "msrn.data.open",
    "read_image": "msrn.data.images",
    "register_source": "msrn.data.open",
    "split_hash": "msrn.data.split",
    "split_images": "msrn.data.split",
    "verify_split": "msrn.data.split_table",
    "write_split": "msrn.data.split_table",
}

__all__ = [
    "SPLITS",
    "DataReport",
    "LabelledImages",
    "PackedImage",
    "Problem",
    "Source",
    "check_disjoint",
    "check_files",
    "check_source",
    "hold_out",
    "list_images",
    "open_source",
    "read_image",
    "register_source",
    "split_hash",
    "split_images",
    "verify_split",
    "write_split",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'msrn.data' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
