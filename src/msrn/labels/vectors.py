"""Word vectors of labels made from what the labels occur with, so that nothing has to be downloaded."""

import torch
from jaxtyping import Float
from torch import Tensor

from msrn.labels.graph import LabelGraph

_SUBSPACE_ITERATIONS = 6


def vectors_from_co_occurrence(label_graph: LabelGraph, *, dim: int = 300) -> Float[Tensor, "L E"]:
    """Embed labels so that those which occur with the same labels lie close together.

    The positive pointwise mutual information of label pairs (each label also occurs with itself) is factorised by
    its eigenvectors, scaled by the square root of their eigenvalues, and the rows are brought to length 1.

    Args:
        label_graph: The label graph of the training images.
        dim: Greatest width of the vectors; fewer labels give narrower ones.

    Returns:
        One vector a label, of width min(dim, L) and length 1. The sign of each column is fixed: its largest entry
        is positive.

    Raises:
        ValueError: `dim` is below 1.

    Example:
        >>> target = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
        >>> vectors = vectors_from_co_occurrence(LabelGraph.from_target(target, ["cup", "saucer", "boat"]))
        >>> (vectors @ vectors.T).round().abs()    # a cup is like a saucer and unlike a boat
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])

    Source: Levy and Goldberg, Neural word embedding as implicit matrix factorization, NeurIPS 2014.
    """
    if dim < 1:
        raise ValueError(f"dim is the width of the vectors and at least 1, got {dim}.")
    counts = label_graph.label_counts.to(torch.float64).clamp(min=1)  # (L,)
    joint = label_graph.co_occurrence.to(torch.float64) + torch.diag(counts)  # (L, L)
    total = joint.sum()
    marginal = joint.sum(dim=1)
    information = (joint * total / (marginal[:, None] * marginal[None, :])).clamp(min=1).log()  # PPMI (L, L)
    values, vectors = leading_eigenvectors(information, dim)
    embedding = vectors * values.abs().sqrt()  # (L, E)
    largest = embedding.gather(0, embedding.abs().argmax(dim=0, keepdim=True))  # (1, E)
    embedding = embedding * torch.where(largest < 0, -1.0, 1.0)
    norms = embedding.norm(dim=1, keepdim=True).clamp(min=1e-12)
    vectors_of_length_1: Tensor = embedding / norms
    return vectors_of_length_1.float()


def leading_eigenvectors(
    matrix: Float[Tensor, "L L"], count: int, *, most_exact: int = 2000
) -> tuple[Float[Tensor, "E"], Float[Tensor, "L E"]]:
    """The eigenvalues of greatest size of a symmetric matrix, in that order, with their eigenvectors.

    Args:
        matrix: Symmetric, in double precision.
        count: How many, at most L.
        most_exact: Larger matrices, whose exact solution takes minutes, are left to subspace iteration with a fixed start: leading
            values are found to many digits, the last ones where they are close to those left out only as their mixture. It is fast
            where most entries are 0.

    Source: Halko, Martinsson and Tropp, Finding structure with randomness, SIAM Review 2011.
    """
    num_labels = len(matrix)
    if num_labels <= most_exact:
        values, vectors = torch.linalg.eigh(matrix)
        order = values.abs().argsort(descending=True)[:count]
        return values[order], vectors[:, order]
    sparse = matrix.to_sparse()
    start = torch.randn(
        num_labels, min(num_labels, 2 * count), dtype=matrix.dtype, generator=torch.Generator().manual_seed(0)
    )
    basis, _ = torch.linalg.qr(start)  # (L, K)
    for _ in range(_SUBSPACE_ITERATIONS):
        basis, _ = torch.linalg.qr(torch.sparse.mm(sparse, basis))
    small = basis.T @ torch.sparse.mm(sparse, basis)  # (K, K)
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    order = values.abs().argsort(descending=True)[:count]
    return values[order], basis @ vectors[:, order]
