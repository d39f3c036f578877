import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import chi2_contingency

from msrn.labels import (
    EdgeRule,
    LabelGraph,
    build_attention_mask,
    conditional_probability,
    count_co_occurrence,
    count_known,
    edges_by_lift,
    edges_by_threshold,
    edges_by_top_k,
    sweep_thresholds,
)
from msrn.labels.edges import SWEEP, num_alone

targets = arrays("int8", array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8), elements=st.integers(-1, 1))


def counts_of(target: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return count_co_occurrence(torch.from_numpy(target))


@settings(max_examples=50, deadline=None)
@given(target=targets, k=st.integers(1, 9))
def test_top_k_equals_a_sort_of_each_row(target, k: int) -> None:
    both, counts = counts_of(target)
    probability = conditional_probability(both, counts)
    num_labels = len(counts)
    expected = torch.zeros(num_labels, num_labels, dtype=torch.bool)
    for i in range(num_labels):
        followers = [j for j in range(num_labels) if both[i, j] > 0]
        followers.sort(key=lambda j: (-float(probability[i, j]), int(counts[j]), j))
        expected[i, followers[:k]] = True
    assert torch.equal(edges_by_top_k(both, counts, k=k), expected)


def test_top_k_prefers_the_rarer_of_two_equals() -> None:
    both = torch.tensor([[0, 2, 2], [2, 0, 0], [2, 0, 0]])
    assert edges_by_top_k(both, torch.tensor([4, 9, 3]), k=1)[0].tolist() == [False, False, True]
    assert edges_by_top_k(both, torch.tensor([4, 3, 3]), k=1)[0].tolist() == [False, True, False]


def test_lift_is_the_likelihood_ratio_test_of_the_table_of_two_labels() -> None:
    rng = np.random.default_rng(0)
    target = (rng.random((300, 8)) < rng.uniform(0.05, 0.6, 8)).astype(np.int8)
    target[:, 1] |= target[:, 0] & (rng.random(300) < 0.6)
    both, counts = counts_of(target)
    p_values = {}
    for i in range(8):
        for j in range(i):
            n11, n_i, n_j = int(both[i, j]), int(counts[i]), int(counts[j])
            table = [[n11, n_i - n11], [n_j - n11, 300 - n_i - n_j + n11]]
            has_lift = n11 * 300 > n_i * n_j
            test = chi2_contingency(table, correction=False, lambda_="log-likelihood")
            p_values[i, j] = test.pvalue if has_lift else 1.0
    for significance in (0.001, 0.05, 0.5):
        ordered = sorted(p_values.values())
        passing = [p for rank, p in enumerate(ordered, start=1) if p <= significance * rank / len(ordered)]
        edges = edges_by_lift(both, counts, num_images=300, significance=significance)
        assert torch.equal(edges, edges.T)
        assert {pair for pair in p_values if edges[pair]} == {
            pair for pair, p in p_values.items() if passing and p <= passing[-1] * (1 + 1e-9)
        }
    assert edges_by_lift(both, counts, num_images=300)[0, 1]


def test_lift_finds_few_edges_among_independent_labels() -> None:
    rng = np.random.default_rng(1)
    both, counts = counts_of((rng.random((2000, 60)) < 0.2).astype(np.int8))
    assert int(edges_by_lift(both, counts, num_images=2000).sum()) <= 2


def test_labels_that_shun_each_other_have_no_lift() -> None:
    both = torch.tensor([[0, 1], [1, 0]])
    assert not edges_by_lift(both, torch.tensor([500, 500]), num_images=1000).any()


@settings(max_examples=40, deadline=None)
@given(target=targets)
def test_every_rule_is_without_edges_to_itself_and_between_labels_that_never_meet(target) -> None:
    both, counts = counts_of(target)
    for rule in (EdgeRule(), EdgeRule("top-k"), EdgeRule("lift", significance=0.9)):
        graph = LabelGraph.from_target(torch.from_numpy(target), [str(i) for i in range(len(counts))], rule=rule)
        edges = (graph.adjacency > 0).fill_diagonal_(False)
        assert not edges[both == 0].any()
        assert graph.num_edges == int(edges.sum())
        assert graph.num_alone == int((build_attention_mask(graph.adjacency).sum(dim=1) == 1).sum())
        assert graph.rule == str(rule)


@settings(max_examples=40, deadline=None)
@given(target=targets)
def test_sweep_equals_a_graph_a_threshold(target) -> None:
    both, counts = counts_of(target)
    rows = sweep_thresholds(both, counts)
    assert tuple(row.threshold for row in rows) == SWEEP
    for row in rows:
        graph = LabelGraph.from_target(
            torch.from_numpy(target), [str(i) for i in range(len(counts))], threshold=row.threshold
        )
        edges = (graph.adjacency > 0).fill_diagonal_(False)
        assert (row.edges, row.labels_alone) == (graph.num_edges, graph.num_alone)
        assert row.labels_without_edge == sum(not (edges[i].any() or edges[:, i].any()) for i in range(len(counts)))


def test_a_label_is_alone_when_nothing_enters_it() -> None:
    # Every horse comes with a person: the person attends to the horse, the horse to itself only.
    graph = LabelGraph.from_target(torch.tensor([[1, 1], [1, 0], [1, 0]]), ["person", "horse"])
    assert graph.num_alone == num_alone(torch.tensor([[False, False], [True, False]])) == 1


def test_sweep_has_the_published_threshold() -> None:
    assert 0.4 in SWEEP
    both, counts = torch.tensor([[0, 2], [2, 0]]), torch.tensor([5, 100])
    assert torch.equal(edges_by_threshold(both, counts), edges_by_threshold(both, counts, threshold=SWEEP[7]))


def test_settings_out_of_range() -> None:
    both, counts = torch.tensor([[0, 1], [1, 0]]), torch.tensor([2, 3])
    with pytest.raises(ValueError, match=r"at least 1, got 0\. 3 is a good start"):
        edges_by_top_k(both, counts, k=0)
    for significance in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="a share between 0 and 1"):
            edges_by_lift(both, counts, num_images=9, significance=significance)
    with pytest.raises(ValueError, match="num_images is 2, but a label is in 3 images"):
        edges_by_lift(both, counts, num_images=2)


def test_unknown_entries_make_no_edges_by_lift():
    """Six independent labels, once alone and once beside images of which nothing, or not all, is known."""
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(400, 6, generator=generator) < 0.3).int()
    unknown = torch.full((3600, 6), -1, dtype=torch.int32)
    partly = (torch.rand(3600, 6, generator=generator) < 0.3).int()
    partly[:, :3] = -1
    names = tuple("abcdef")
    for more in (target[:0], unknown, partly):
        graph = LabelGraph.from_target(torch.cat([target, more]), names, rule=EdgeRule("lift"))
        assert graph.num_edges == 0


def test_known_counts_equal_a_plain_loop():
    target = torch.randint(-1, 2, (50, 4), generator=torch.Generator().manual_seed(1))
    counts, num_images = count_known(target)
    for i in range(4):
        for j in range(4):
            both_known = (target[:, i] >= 0) & (target[:, j] >= 0)
            assert num_images[i, j] == both_known.sum()
            assert counts[i, j] == ((target[:, i] == 1) & (target[:, j] >= 0)).sum()


def test_identity_has_no_edges():
    rule = EdgeRule("identity")
    together, counts = torch.tensor([[0, 3], [3, 0]]), torch.tensor([4, 3])
    arguments = rule.arguments(together, counts, 10)
    assert not arguments["edges"].any()
    assert arguments["rule"] == str(rule) == "no edges"
