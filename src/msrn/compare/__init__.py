"""Heads and parts of MSRN compared under one trainer, one data order and one budget."""

import msrn._torchvision  # noqa: F401  (before Lightning, which imports torchvision)
from msrn.compare.execute import Executor
from msrn.compare.folder import ComparisonFolder
from msrn.compare.plan import Plan, Run, drop_repeated
from msrn.compare.report import build_comparison, frame_of, rebuild, write_comparison
from msrn.compare.variants import ABLATIONS, HEADS, Variant, choose_variants, read_variants

__all__ = [
    "ABLATIONS",
    "HEADS",
    "ComparisonFolder",
    "Executor",
    "Plan",
    "Run",
    "Variant",
    "build_comparison",
    "choose_variants",
    "drop_repeated",
    "frame_of",
    "read_variants",
    "rebuild",
    "write_comparison",
]
