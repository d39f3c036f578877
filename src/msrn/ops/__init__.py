"""Operators written for speed, each beside the plain form it is compared with."""

from msrn.ops.semantic_attention import semantic_guided_attention

__all__ = ["semantic_guided_attention"]
