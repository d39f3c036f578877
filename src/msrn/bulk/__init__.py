"""Tagging any number of images into a file: bounded memory, resumable, nothing twice."""

from msrn.bulk.job import BulkResult, tag_images
from msrn.bulk.sources import find_images
from msrn.bulk.writers import FORMATS, find_format

__all__ = ["FORMATS", "BulkResult", "find_format", "find_images", "tag_images"]
