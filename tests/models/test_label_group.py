import math

import pytest
import torch
from torch.nn import functional as F

from msrn.labels import LabelGraph, build_attention_mask, vectors_from_co_occurrence
from msrn.models import DiffPool, GraphAttention, LabelGroupEmbedding, LabelGroups, count_parameters, group_loss


def make(label_graph: LabelGraph, **options) -> LabelGroupEmbedding:
    torch.manual_seed(0)
    vectors = vectors_from_co_occurrence(label_graph)
    return LabelGroupEmbedding(vectors, label_graph.adjacency, **{"num_groups": 2, "dim": 8, **options})


def test_graph_attention_equals_a_plain_loop_over_nodes() -> None:
    torch.manual_seed(0)
    layer = GraphAttention(4, 3).double()
    nodes = torch.randn(5, 4, dtype=torch.float64)
    mask = torch.eye(5, dtype=torch.bool) | (torch.rand(5, 5) < 0.4)
    projected = [layer.projection.weight @ node for node in nodes]
    for i, received in enumerate(layer(nodes, mask)):
        neighbours = [j for j in range(5) if mask[i, j]]
        scores = [
            (layer.attention_target @ projected[i] + layer.attention_source @ projected[j]).item() for j in neighbours
        ]
        weights = [math.exp(score if score > 0 else 0.2 * score) for score in scores]
        mixed = sum(weight / sum(weights) * projected[j] for weight, j in zip(weights, neighbours, strict=True))
        torch.testing.assert_close(received, F.elu(mixed + projected[i]))


def test_a_node_sees_only_those_it_attends_to() -> None:
    layer = GraphAttention(4, 3)
    nodes, mask = torch.randn(3, 4), torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 1]]).bool()
    changed = nodes.clone()
    changed[1] += 1
    before, after = layer(nodes, mask), layer(changed, mask)
    assert not torch.allclose(before[0], after[0])
    changed = nodes.clone()
    changed[2] += 1
    assert torch.equal(layer(changed, mask)[:2], before[:2])


def test_assignment_rows_sum_to_one_and_groups_are_their_mixture() -> None:
    torch.manual_seed(0)
    pool, mask = DiffPool(8, 3), torch.eye(5, dtype=torch.bool)
    labels = torch.randn(5, 8)
    groups, assignment = pool(labels, mask)
    assert (groups.shape, assignment.shape) == ((3, 8), (5, 3))
    torch.testing.assert_close(assignment.sum(dim=1), torch.ones(5))
    embedded = pool.embed(labels, mask)
    for group in range(3):
        expected = sum(assignment[label, group] * embedded[label] for label in range(5))
        torch.testing.assert_close(groups[group], expected)


def test_shapes(label_graph: LabelGraph) -> None:
    labels, groups, assignment = make(label_graph, num_groups=3)()
    assert (labels.shape, groups.shape, assignment.shape) == ((6, 8), (3, 8), (6, 3))


@pytest.mark.parametrize("bound", [0.5, 1.0])
def test_bound_keeps_every_entry_within(label_graph: LabelGraph, bound: float) -> None:
    label_group = make(label_graph, bound=bound)
    with torch.no_grad():
        label_group.layers[-1].projection.weight.mul_(100)
        label_group.pool.embed.projection.weight.mul_(100)
    labels, groups, _ = label_group()
    for embeddings in (labels, groups):
        assert 0.9 * bound < embeddings.abs().max() <= bound


def test_bound_hardly_touches_small_entries(label_graph: LabelGraph) -> None:
    free, bounded = make(label_graph)(), make(label_graph, bound=1e3)()
    torch.testing.assert_close(free.label_embeddings, bounded.label_embeddings, rtol=1e-4, atol=1e-6)


def test_message_passing_follows_the_graph(label_graph: LabelGraph) -> None:
    label_group = make(label_graph)
    before = label_group().label_embeddings
    label_group.word_vectors[0] += 1  # the cat
    changed = (label_group().label_embeddings != before).any(dim=1)
    steps = build_attention_mask(label_graph.adjacency).float()
    reachable = (steps @ steps)[:, 0] > 0  # two layers: within two steps
    assert torch.equal(changed, reachable)
    assert 0 < int(changed.sum()) < label_graph.num_labels


def test_graph_and_vectors_are_saved_and_not_trained(label_graph: LabelGraph) -> None:
    label_group = make(label_graph)
    assert {"word_vectors", "adjacency"} <= set(label_group.state_dict())
    assert {"word_vectors", "adjacency"}.isdisjoint(dict(label_group.named_parameters()))


def test_inputs_are_copied(label_graph: LabelGraph) -> None:
    vectors = vectors_from_co_occurrence(label_graph)
    label_group = LabelGroupEmbedding(vectors, label_graph.adjacency, num_groups=1, dim=8)
    vectors.zero_()
    assert label_group.word_vectors.any()


def test_size_does_not_depend_on_the_number_of_labels(label_graph: LabelGraph) -> None:
    graph = LabelGraph.from_target(torch.eye(9).int(), [str(label) for label in range(9)])
    vectors = vectors_from_co_occurrence(label_graph, dim=6)
    small = LabelGroupEmbedding(vectors, label_graph.adjacency, num_groups=2, dim=8)
    large = LabelGroupEmbedding(torch.rand(9, 6), graph.adjacency, num_groups=2, dim=8)
    assert count_parameters(small) == count_parameters(large)


@pytest.mark.usefixtures("typing_off")
def test_errors_name_both_numbers(label_graph: LabelGraph) -> None:
    with pytest.raises(ValueError, match=r"5 word vectors and a label graph of 6 labels. Give one vector a label"):
        LabelGroupEmbedding(torch.rand(5, 4), label_graph.adjacency, num_groups=2)
    with pytest.raises(ValueError, match="num_groups is 0 or more, got -1"):
        make(label_graph, num_groups=-1)


def test_group_loss_by_hand() -> None:
    labels = torch.tensor([[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]])
    groups = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assignment = torch.tensor([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    # Distances to the most likely group: 5 to the first, 1 to the second, 2 to the first.
    label_groups = LabelGroups(labels, groups, assignment)
    assert group_loss(label_groups, weight=1.0).item() == pytest.approx(8.0)
    assert group_loss(label_groups).item() == pytest.approx(8e-4)


def test_group_loss_of_a_label_on_its_group_has_finite_gradients() -> None:
    labels, groups = torch.ones(2, 3, requires_grad=True), torch.ones(1, 3, requires_grad=True)
    group_loss(LabelGroups(labels, groups, torch.ones(2, 1))).backward()
    assert labels.grad.isfinite().all()
    assert groups.grad.isfinite().all()
