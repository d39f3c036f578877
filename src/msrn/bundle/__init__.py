"""Bundles: a trained model as a folder that is safe to share."""

from msrn.bundle.bundle import Bundle, load_bundle, reset_decisions, save_bundle, save_decisions
from msrn.bundle.transfer import Transfer, find_bundle, start_from

__all__ = [
    "Bundle",
    "Transfer",
    "find_bundle",
    "load_bundle",
    "reset_decisions",
    "save_bundle",
    "save_decisions",
    "start_from",
]
