"""Labels: the graph of what occurs with what, and word vectors."""

from msrn.labels.edges import (
    EdgeRule,
    conditional_probability,
    edges_by_lift,
    edges_by_threshold,
    edges_by_top_k,
    sweep_thresholds,
)
from msrn.labels.graph import (
    LabelGraph,
    build_adjacency,
    build_attention_mask,
    count_co_occurrence,
    count_known,
    weigh_edges,
)
from msrn.labels.graph_file import CountedGraph, read_graph, write_graph
from msrn.labels.label_vectors import (
    LabelVectors,
    VectorOrigin,
    vectors_from,
    vectors_from_sentence_model,
    vectors_from_words,
)
from msrn.labels.vector_file import read_vectors, write_vectors
from msrn.labels.vectors import vectors_from_co_occurrence

__all__ = [
    "CountedGraph",
    "EdgeRule",
    "LabelGraph",
    "LabelVectors",
    "VectorOrigin",
    "build_adjacency",
    "build_attention_mask",
    "conditional_probability",
    "count_co_occurrence",
    "count_known",
    "edges_by_lift",
    "edges_by_threshold",
    "edges_by_top_k",
    "read_graph",
    "read_vectors",
    "sweep_thresholds",
    "vectors_from",
    "vectors_from_co_occurrence",
    "vectors_from_sentence_model",
    "vectors_from_words",
    "weigh_edges",
    "write_graph",
    "write_vectors",
]
