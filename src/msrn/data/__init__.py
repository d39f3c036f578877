"""Data: readers behind one interface, splits, transforms and loaders."""

from msrn.data.check import DataReport, check_source
from msrn.data.images import list_images, read_image
from msrn.data.open import open_source
from msrn.data.packed import PackedImage
from msrn.data.source import SPLITS, LabelledImages, Problem, Source
from msrn.data.split import check_disjoint, check_files, hold_out, split_hash, split_images
from msrn.data.split_table import verify_split, write_split

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
    "split_hash",
    "split_images",
    "verify_split",
    "write_split",
]
