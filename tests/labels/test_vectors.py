import pytest
import torch

from msrn.labels import LabelGraph, vectors_from_co_occurrence
from msrn.labels.vectors import leading_eigenvectors


def test_vectors_have_length_one_and_are_finite(label_graph: LabelGraph) -> None:
    vectors = vectors_from_co_occurrence(label_graph)
    assert vectors.shape == (6, 6)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))


@pytest.mark.parametrize(("dim", "width"), [(1, 1), (4, 4), (300, 6)])
def test_width_is_at_most_the_number_of_labels(label_graph: LabelGraph, dim: int, width: int) -> None:
    vectors = vectors_from_co_occurrence(label_graph, dim=dim)
    assert vectors.shape == (6, width)
    assert vectors.isfinite().all()


def test_same_graph_gives_the_same_vectors(label_graph: LabelGraph) -> None:
    assert torch.equal(vectors_from_co_occurrence(label_graph), vectors_from_co_occurrence(label_graph))


def test_sign_of_every_column_is_fixed(label_graph: LabelGraph) -> None:
    vectors = vectors_from_co_occurrence(label_graph)
    # The rows are scaled after the signs are set, which keeps the sign of the largest entry.
    assert (vectors.amax(dim=0) > 0).all()


def test_labels_that_occur_with_the_same_labels_lie_closer() -> None:
    #         fork knife boat sail   fork and knife share a table, boat and sail the sea
    target = [[1, 1, 0, 0]] * 8 + [[0, 0, 1, 1]] * 8 + [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]
    graph = LabelGraph.from_target(torch.tensor(target), ["fork", "knife", "boat", "sail"])
    likeness = vectors_from_co_occurrence(graph)
    likeness = likeness @ likeness.T
    assert likeness[0, 1] > likeness[0, 2]
    assert likeness[0, 1] > likeness[0, 3]
    assert likeness[2, 3] > likeness[2, 0]


def test_labels_that_never_occur_get_a_vector_too() -> None:
    graph = LabelGraph.from_target(torch.tensor([[1, 0, 0], [1, 0, -1]]), ["cat", "dog", "owl"])
    vectors = vectors_from_co_occurrence(graph)
    assert vectors.isfinite().all()
    assert not torch.equal(vectors[1], vectors[2])


def test_one_label() -> None:
    graph = LabelGraph.from_target(torch.tensor([[1], [0]]), ["cat"])
    assert vectors_from_co_occurrence(graph).isfinite().all()


def test_width_below_one(label_graph: LabelGraph) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        vectors_from_co_occurrence(label_graph, dim=0)


def test_many_labels_are_left_to_subspace_iteration() -> None:
    """Groups of labels that occur together: the leading eigenvectors span what the exact ones span."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.randint(0, 12, (400,), generator=generator)
    matrix = torch.zeros(120, 120, dtype=torch.float64)
    for number in range(12):
        group = slice(10 * number, 10 * number + 10)
        matrix[group, group] = 0.5 + number + 0.1 * torch.rand(10, 10, generator=generator, dtype=torch.float64)
    matrix += 0.01 * (scene[:120, None] == scene[None, :120])
    matrix = (matrix + matrix.T) / 2
    exact_values, exact = leading_eigenvectors(matrix, 12)
    values, vectors = leading_eigenvectors(matrix, 12, most_exact=50)
    torch.testing.assert_close(values, exact_values, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(vectors @ vectors.T, exact @ exact.T, rtol=0, atol=1e-6)
    assert torch.equal(vectors, leading_eigenvectors(matrix, 12, most_exact=50)[1])
