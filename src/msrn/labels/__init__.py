"""Labels: the graph of what occurs with what, and word vectors."""

from msrn.labels.graph import (
    LabelGraph,
    build_adjacency,
    build_attention_mask,
    conditional_probability,
    count_co_occurrence,
)
from msrn.labels.vectors import vectors_from_co_occurrence

__all__ = [
    "LabelGraph",
    "build_adjacency",
    "build_attention_mask",
    "conditional_probability",
    "count_co_occurrence",
    "vectors_from_co_occurrence",
]
