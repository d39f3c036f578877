"""Bundles: a trained model as a folder that is safe to share."""

from msrn.bundle.bundle import Bundle, load_bundle, reset_decisions, save_bundle, save_decisions
from msrn.bundle.sharing import HUB_PREFIX, find_bundle, push_bundle
from msrn.bundle.transfer import Transfer, start_from

__all__ = [
    "HUB_PREFIX",
    "Bundle",
    "Transfer",
    "find_bundle",
    "load_bundle",
    "push_bundle",
    "reset_decisions",
    "save_bundle",
    "save_decisions",
    "start_from",
]
