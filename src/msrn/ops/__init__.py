"""Operators written for speed, each beside the plain form it is compared with."""

from msrn.ops.semantic_attention import FixedNodes, attention_maps, semantic_guided_attention

__all__ = ["FixedNodes", "attention_maps", "semantic_guided_attention"]
