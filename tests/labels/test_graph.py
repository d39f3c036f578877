import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from msrn.errors import LabelMismatchError
from msrn.labels import (
    EdgeRule,
    LabelGraph,
    build_adjacency,
    build_attention_mask,
    conditional_probability,
    count_co_occurrence,
)

targets = arrays("int64", array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7), elements=st.integers(-1, 1))


def graph_of(pairs: int, count: int, threshold: float = 0.4) -> torch.Tensor:
    """Adjacency of two labels that share `pairs` images, the first in `count` images, the second in 1,000."""
    return build_adjacency(torch.tensor([[0, pairs], [pairs, 0]]), torch.tensor([count, 1000]), threshold=threshold)


@settings(max_examples=60, deadline=None)
@given(target=targets)
def test_counts_equal_a_plain_loop(target) -> None:
    both, counts = count_co_occurrence(torch.from_numpy(target))
    num_labels = target.shape[1]
    for i in range(num_labels):
        assert counts[i] == sum(row[i] == 1 for row in target)
        for j in range(num_labels):
            expected = 0 if i == j else sum(row[i] == 1 and row[j] == 1 for row in target)
            assert both[i, j] == expected


@settings(max_examples=40, deadline=None)
@given(target=targets)
def test_unknown_counts_no_more_than_absent(target) -> None:
    known = torch.from_numpy(target)
    for received, expected in zip(count_co_occurrence(known), count_co_occurrence(known.clamp(min=0)), strict=True):
        assert torch.equal(received, expected)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_counts_do_not_overflow_a_small_type(dtype) -> None:
    both, counts = count_co_occurrence(torch.ones(300, 2, dtype=dtype))
    assert counts.tolist() == [300, 300]
    assert both.tolist() == [[0, 300], [300, 0]]


@settings(max_examples=40, deadline=None)
@given(target=targets, threshold=st.floats(0.01, 1))
def test_adjacency_is_the_published_formula_in_float64_stored_in_float32(target, threshold: float) -> None:
    both, counts = count_co_occurrence(torch.from_numpy(target))
    num_labels = len(counts)
    pairs, images = both.tolist(), counts.tolist()
    edges = [
        [images[i] > 0 and pairs[i][j] / images[i] >= threshold for j in range(num_labels)] for i in range(num_labels)
    ]
    expected = [
        [
            edges[i][j] * 0.25 / (sum(edges[k][j] for k in range(num_labels)) + 1e-6) + (i == j)
            for j in range(num_labels)
        ]
        for i in range(num_labels)
    ]
    adjacency = build_adjacency(both, counts, threshold=threshold)
    assert adjacency.dtype == torch.float32
    assert torch.equal(adjacency, torch.tensor(expected, dtype=torch.float64).float())


def test_threshold_is_inclusive_at_exactly_the_published_one() -> None:
    assert graph_of(2, 5)[0, 1] > 0  # 2 / 5 is the very 0.4 of float64
    assert graph_of(40, 100)[0, 1] > 0
    assert graph_of(399, 1000)[0, 1] == 0
    assert graph_of(5, 5, threshold=1.0)[0, 1] > 0


def test_every_label_has_an_edge_of_weight_one_to_itself() -> None:
    assert graph_of(2, 5).diagonal().tolist() == [1.0, 1.0]


def test_edges_into_a_label_share_a_quarter() -> None:
    both = torch.tensor([[0, 0, 4], [0, 0, 4], [4, 4, 0]])
    adjacency = build_adjacency(both, torch.tensor([4, 4, 100]))
    assert adjacency[:2, 2].tolist() == pytest.approx([0.125, 0.125], rel=1e-5)


def test_label_that_never_occurs_has_only_itself() -> None:
    both, counts = torch.tensor([[0, 0], [0, 0]]), torch.tensor([0, 3])
    assert conditional_probability(both, counts).tolist() == [[0, 0], [0, 0]]
    assert torch.equal(build_adjacency(both, counts), torch.eye(2))
    graph = LabelGraph.from_target(torch.tensor([[-1, 0], [0, 0]]), ["cat", "dog"])
    assert graph.num_edges == 0
    assert graph.adjacency.isfinite().all()


def test_a_label_attends_to_the_labels_it_follows() -> None:
    graph = LabelGraph.from_target(torch.tensor([[1, 1], [1, 0], [1, 0]]), ["person", "horse"])
    assert graph.adjacency[1, 0] > 0  # person follows horse
    assert build_attention_mask(graph.adjacency).tolist() == [[True, True], [False, True]]


def test_number_of_edges_leaves_out_the_edges_to_itself() -> None:
    graph = LabelGraph.from_target(torch.tensor([[1, 1, 0], [0, 0, 1]]), ["cup", "saucer", "boat"])
    assert (graph.num_labels, graph.num_edges) == (3, 2)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1, float("nan")])
def test_threshold_outside_of_zero_to_one(threshold: float) -> None:
    with pytest.raises(ValueError, match=rf"above 0 and at most 1, got {threshold}\. The published one is 0\.4"):
        LabelGraph.from_target(torch.tensor([[1, 0]]), ["cat", "dog"], threshold=threshold)


@pytest.mark.usefixtures("typing_off")
def test_shapes_that_disagree() -> None:
    with pytest.raises(
        ValueError, match=r"2 labels need .* \(2, 2\) and .*\(2,\), got \(3, 3\) and \(3,\)\. Build both"
    ):
        LabelGraph(("cat", "dog"), torch.zeros(3, 3).int(), torch.zeros(3).int())
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(1,\)"):
        LabelGraph(("cat", "dog"), torch.zeros(2, 2).int(), torch.zeros(1).int())


def test_negative_counts() -> None:
    with pytest.raises(ValueError, match=r"numbers of images, got negative ones\. Count them anew"):
        LabelGraph(("cat",), torch.tensor([[0]]), torch.tensor([-1]))


def test_counts_of_many_rows_equal_those_of_one_product() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(-1, 2, (70_000, 5), generator=generator, dtype=torch.int8)  # more rows than a chunk
    both, counts = count_co_occurrence(target)
    present = (target == 1).double()
    assert torch.equal(both, (present.T @ present).long().fill_diagonal_(0))
    assert torch.equal(counts, present.sum(dim=0).long())
    assert both.dtype == counts.dtype == torch.int64


def test_given_edges_are_weighed_like_those_of_a_threshold(label_graph: LabelGraph) -> None:
    edges = (label_graph.adjacency > 0).fill_diagonal_(False)
    graph = LabelGraph(
        label_graph.label_names, label_graph.co_occurrence, label_graph.label_counts, edges=edges, rule="mine"
    )
    assert torch.equal(graph.adjacency, label_graph.adjacency)
    assert graph.rule == "mine"
    assert label_graph.rule == "P(j | i) >= 0.4"
    assert label_graph.edges is None


@pytest.mark.usefixtures("typing_off")
def test_edges_of_another_shape_or_to_itself() -> None:
    arguments = (("cat", "dog"), torch.zeros(2, 2).int(), torch.ones(2).int())
    with pytest.raises(ValueError, match=r"different labels and have shape \(2, 2\), got \(3, 3\)\. Make them"):
        LabelGraph(*arguments, edges=torch.zeros(3, 3).bool())
    with pytest.raises(ValueError, match=r"got \(2, 2\) with a label joined to itself"):
        LabelGraph(*arguments, edges=torch.eye(2).bool())


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(6)), rule=st.sampled_from(["threshold", "top-k"]))
def test_reordered_graph_is_the_graph_of_reordered_columns(order, rule) -> None:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(60, 6, generator=generator) < 0.4).int()
    names = list("abcdef")
    # Ties of top-k go by order, so the edges are those of the first graph.
    graph = LabelGraph.from_target(target, names, rule=EdgeRule(rule))
    moved = graph.reorder([names[i] for i in order])
    assert torch.equal(moved.co_occurrence, count_co_occurrence(target[:, order])[0])
    assert torch.equal(moved.label_counts, count_co_occurrence(target[:, order])[1])
    assert torch.equal(moved.adjacency > 0, graph.adjacency[order][:, order] > 0)
    assert moved.reorder(names).rule == graph.rule


def test_reordering_to_other_labels_names_them(label_graph: LabelGraph) -> None:
    with pytest.raises(
        LabelMismatchError,
        match=r"knows 6 labels, the data has 2\. It lacks 'owl'\. It has 'bird', 'boat', 'cup', 'dog', 'tree' beside them\.",
    ):
        label_graph.reorder(["cat", "owl"])
    with pytest.raises(LabelMismatchError, match=r"the data has 7\."):
        label_graph.reorder([*label_graph.label_names, "cat"])
