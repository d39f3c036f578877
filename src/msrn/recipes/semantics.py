"""The label graph and the word vectors that a recipe names."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from msrn.errors import DataError
from msrn.labels import CountedGraph, EdgeRule, LabelGraph, read_graph, read_vectors, vectors_from_co_occurrence
from msrn.labels.pickles import read_published_graph, read_published_vectors
from msrn.recipes.schema import Recipe
from msrn.recipes.splits import Splits


def read_label_graph(recipe: Recipe, splits: Splits) -> CountedGraph:
    """The label graph that the recipe names, or that of the training images."""
    labels, train = recipe.labels, splits.train
    if labels.graph is None:
        rule = EdgeRule(labels.rule, labels.threshold, labels.top_k, labels.significance)
        label_graph = LabelGraph.from_target(torch.from_numpy(train.target), train.label_names, rule=rule)
        return CountedGraph(label_graph, len(train), train.split, splits.hashes["train"])
    if Path(labels.graph).suffix.lower() in (".pkl", ".pickle"):
        both, counts = read_published_graph(labels.graph)
        if len(counts) != len(train.label_names):
            raise DataError(
                f"{labels.graph} is a graph of {len(counts)} labels, the data has {len(train.label_names)}. "
                "Give the graph of these labels, in the data's order, or leave labels.graph out."
            )
        return CountedGraph(LabelGraph(train.label_names, both, counts, threshold=labels.threshold))
    graph = read_graph(labels.graph)
    if graph.split_sha256 is not None and graph.split_sha256 == splits.hashes.get("test"):
        raise DataError(
            f"{labels.graph} was counted on the test images of this run, so that it knows their labels. "
            "Count it on training images: msrn labels graph DATA --json FILE."
        )
    return replace(graph, label_graph=graph.label_graph.reorder(train.label_names))


def read_word_vectors(recipe: Recipe, label_graph: LabelGraph) -> Float[Tensor, "L E"]:
    """The word vectors that the recipe names, or those of the co-occurrence."""
    path = recipe.labels.vectors
    if path is None:
        return vectors_from_co_occurrence(label_graph, dim=recipe.labels.vector_dim)
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        return read_vectors(path).of(label_graph.label_names)
    if suffix in (".txt", ".vec", ".bin", ".gz"):
        raise DataError(
            f"{path} is a file of many words, labels.vectors takes one vector a label. "
            f"Make them: msrn labels vectors DATA --from {path} --out vectors.safetensors."
        )
    vectors = read_published_vectors(path)
    if len(vectors) != label_graph.num_labels:
        raise DataError(
            f"{path} holds {len(vectors)} word vectors, the data has {label_graph.num_labels} labels. "
            "Give one vector a label, in the data's order, or leave labels.vectors out."
        )
    return vectors


def semantics_hash(label_graph: LabelGraph, vectors: Float[Tensor, "L E"] | None) -> str:
    """Fingerprint of the graph, and of vectors from a file; others follow from the graph."""
    digest = hashlib.sha256()
    tensors = [label_graph.co_occurrence, label_graph.label_counts, label_graph.adjacency > 0]
    if vectors is not None:
        tensors.append(vectors)
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
