"""Bundles: a trained model as a folder that is safe to share."""

from msrn.bundle.bundle import Bundle, load_bundle, save_bundle

__all__ = ["Bundle", "load_bundle", "save_bundle"]
