"""The heads MSRN is compared with: each against its paper's formulas in plain loops."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from msrn.errors import ModelError
from msrn.labels import LabelGraph, vectors_from_co_occurrence
from msrn.models import (
    CSRAHead,
    MLDecoderHead,
    MLGCNHead,
    PooledHead,
    build_csra,
    build_ml_decoder,
    build_ml_gcn,
    correlation_matrix,
    count_flops,
    count_parameters,
)
from msrn.models.baselines.csra import TEMPERATURES
from msrn.training.losses import multilabel_soft_margin_loss

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 8, 8], "stem_width": 8}}
SMALL_DECODER = {"dim": 16, "num_heads": 2, "hidden_dim": 32}
CHANNELS = 5


def make_features(num_images: int = 2, channels: int = CHANNELS, seed: int = 0) -> Tensor:
    return torch.randn(num_images, channels, 2, 3, generator=torch.Generator().manual_seed(seed))


def edges_of(label_graph: LabelGraph) -> Tensor:
    return (label_graph.adjacency > 0).fill_diagonal_(False)


def make_head(name: str, label_graph: LabelGraph, channels: int = CHANNELS) -> nn.Module:
    torch.manual_seed(0)
    if name == "csra":
        return CSRAHead(channels, 6, num_heads=4)
    if name == "ml_gcn":
        return MLGCNHead(channels, vectors_from_co_occurrence(label_graph), edges_of(label_graph), hidden_dim=32)
    return MLDecoderHead(channels, 6, num_groups=4, **SMALL_DECODER)


HEADS = ["csra", "ml_gcn", "ml_decoder"]


@pytest.mark.parametrize("name", HEADS)
def test_overfits_a_few_images(label_graph: LabelGraph, name: str) -> None:
    head = make_head(name, label_graph, channels=32)
    feature_maps = 3 * make_features(8, 32).relu()
    target = (torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.4).int()
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0)
    for _ in range(150):
        optimizer.zero_grad()
        multilabel_soft_margin_loss(head(feature_maps), target).backward()
        optimizer.step()
    assert torch.equal(head.eval()(feature_maps) > 0, target == 1)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_those_of_the_numbers(label_graph: LabelGraph, name: str) -> None:
    head = make_head(name, label_graph).double().eval()
    feature_map = make_features().double().requires_grad_()
    assert torch.autograd.gradcheck(head, (feature_map,), fast_mode=True)


@pytest.mark.parametrize("name", HEADS)
def test_order_of_the_positions_does_not_matter(label_graph: LabelGraph, name: str) -> None:
    head, feature_map = make_head(name, label_graph).eval(), make_features()
    torch.testing.assert_close(head(feature_map.flip(2, 3)), head(feature_map))


# CSRA


@pytest.mark.parametrize("num_heads", TEMPERATURES)
@pytest.mark.parametrize("normalize", [True, False])
def test_csra_is_its_formula(num_heads: int, normalize: bool) -> None:
    torch.manual_seed(0)
    head, feature_map = CSRAHead(CHANNELS, 3, num_heads=num_heads, lam=0.3, normalize=normalize), make_features()
    weights = head.classifiers.weight.detach().reshape(num_heads, 3, CHANNELS)
    expected = torch.zeros(2, 3)
    for image, label in ((image, label) for image in range(2) for label in range(3)):
        positions = feature_map[image].flatten(1).T  # (P, C)
        mean = positions.mean(dim=0)
        for number, temperature in enumerate(TEMPERATURES[num_heads]):
            weight = weights[number, label] / (weights[number, label].norm() if normalize else 1)
            scores = [float(weight @ position) for position in positions]
            if temperature == math.inf:
                attended = positions[scores.index(max(scores))]
            else:
                total = sum(math.exp(temperature * score) for score in scores)
                attended = sum(
                    math.exp(temperature * score) / total * position
                    for score, position in zip(scores, positions, strict=True)
                )
            expected[image, label] += weight @ (mean + 0.3 * attended)
    torch.testing.assert_close(head(feature_map), expected)


def test_csra_without_attention_is_average_pooling() -> None:
    head, pooled = CSRAHead(CHANNELS, 4, lam=0, normalize=False), PooledHead(CHANNELS, 4)
    pooled.load_state_dict(
        {"linear.weight": head.classifiers.weight.detach()[..., 0, 0], "linear.bias": torch.zeros(4)}
    )
    torch.testing.assert_close(head(make_features()), pooled(make_features()))


def test_heads_of_csra_have_the_published_temperatures() -> None:
    assert [TEMPERATURES[number][:-1] for number in (2, 4, 6, 8)] == [
        (1,),
        (1, 2, 4),
        (1, 2, 3, 4, 5),
        tuple(range(1, 8)),
    ]
    assert all(len(temperatures) == number for number, temperatures in TEMPERATURES.items())


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 10**6))
def test_attended_score_lies_between_mean_and_maximum(temperature: float, seed: int) -> None:
    from msrn.models.baselines.csra import _attend

    scores = 5 * torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed))
    attended = _attend(scores, temperature)
    assert (attended >= scores.mean(dim=2) - 1e-5).all()
    assert (attended <= _attend(scores, math.inf) + 1e-5).all()


# ML-GCN


def test_correlation_matrix_made_by_hand() -> None:
    """Label 0 goes with 1 and 2, label 2 with 1, label 1 with none; equation 8 with p = 0.2, then the sums 1, 0.8, 1."""
    edges = torch.tensor([[0, 1, 1], [0, 0, 0], [0, 1, 0]]).bool()
    root = 0.8**-0.5
    expected = torch.tensor([[0.8, 0.1 * root, 0.1], [0.0, 1.0, 0.0], [0.0, 0.2 * root, 0.8]])
    torch.testing.assert_close(correlation_matrix(edges), expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.floats(0, 1), st.floats(0, 0.99), st.integers(0, 10**6))
def test_correlation_matrix_is_its_formula(num_labels: int, density: float, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edges = (torch.rand(num_labels, num_labels, generator=generator) < density).fill_diagonal_(False)
    weights = [
        [1 - share if i == j else share * float(edges[i, j]) / max(1, int(edges[i].sum())) for j in range(num_labels)]
        for i in range(num_labels)
    ]
    sums = [sum(row) for row in weights]
    expected = torch.tensor(
        [[weights[i][j] / math.sqrt(sums[i] * sums[j]) for j in range(num_labels)] for i in range(num_labels)]
    )
    torch.testing.assert_close(correlation_matrix(edges, neighbour_share=share), expected)


def test_graph_without_edges_is_an_identity() -> None:
    torch.testing.assert_close(correlation_matrix(torch.zeros(4, 4).bool()), torch.eye(4))


def test_ml_gcn_is_its_formula(label_graph: LabelGraph) -> None:
    head, feature_map = make_head("ml_gcn", label_graph), make_features()
    first = head.correlation @ head.word_vectors @ head.weight1
    hidden = torch.where(first > 0, first, 0.2 * first)
    weights = head.correlation @ hidden @ head.weight2  # (L, C)
    expected = torch.stack([weights @ image.flatten(1).max(dim=1).values for image in feature_map])
    torch.testing.assert_close(head(feature_map), expected)


def test_ml_gcn_uses_the_edges_of_any_rule(label_graph: LabelGraph) -> None:
    edges = torch.zeros(6, 6).bool()
    edges[0, 3] = True
    graph = LabelGraph(label_graph.label_names, label_graph.co_occurrence, label_graph.label_counts, edges=edges)
    model = build_ml_gcn(graph, **TINY)
    assert torch.equal(model.head.correlation, correlation_matrix(edges))
    other = build_ml_gcn(label_graph, **TINY)
    assert torch.equal(other.head.correlation, correlation_matrix(edges_of(label_graph)))


@pytest.mark.parametrize("factor", [0.01, 1.0, 50.0])
def test_word_vectors_of_any_length_start_alike(label_graph: LabelGraph, factor: float) -> None:
    vectors = factor * torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    head = MLGCNHead(CHANNELS, vectors, edges_of(label_graph))
    assert head.word_vectors.norm(dim=1).mean() == pytest.approx(6, rel=1e-5)
    torch.testing.assert_close(head.word_vectors / head.word_vectors[0, 0], vectors / vectors[0, 0])


# ML-Decoder


@pytest.mark.parametrize(("num_labels", "num_groups"), [(6, 100), (6, 6), (6, 4), (7, 3), (5, 1)])
def test_ml_decoder_is_its_formula(num_labels: int, num_groups: int) -> None:
    torch.manual_seed(0)
    head = MLDecoderHead(CHANNELS, num_labels, num_groups=num_groups, **SMALL_DECODER).eval()
    nn.init.normal_(head.bias)
    for norm in (head.query_norm, head.attention_norm, head.feed_forward_norm):
        nn.init.normal_(norm.weight)
    feature_map = make_features()
    query_weight, key_weight, value_weight = head.attention.in_proj_weight.chunk(3)
    expected = torch.zeros(2, num_labels)
    for image in range(2):
        positions = head.projection(feature_map[image].flatten(1).T).relu()  # (P, dim)
        for label in range(num_labels):
            group, place = divmod(label, head.weight.shape[2])
            query = head.query_norm(head.queries[group])
            attended = []
            for part in (slice(0, 8), slice(8, 16)):  # two heads of width 8
                keys, values = positions @ key_weight[part].T, positions @ value_weight[part].T
                weights = (keys @ (query_weight[part] @ query) / math.sqrt(8)).softmax(dim=0)
                attended.append(weights @ values)
            decoded = head.attention_norm(query + head.attention.out_proj(torch.cat(attended)))
            first, _, _, second = head.feed_forward
            decoded = head.feed_forward_norm(decoded + second(first(decoded).relu()))
            expected[image, label] = decoded @ head.weight[group, :, place] + head.bias[label]
    torch.testing.assert_close(head(feature_map), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 50))
def test_every_query_has_labels_and_every_label_a_query(num_labels: int, num_groups: int) -> None:
    head = MLDecoderHead(3, num_labels, num_groups=num_groups, dim=2, num_heads=1, hidden_dim=2)
    queries, _, group_size = head.weight.shape
    assert queries <= min(num_groups, num_labels)
    assert (queries - 1) * group_size < num_labels <= queries * group_size
    assert head(torch.randn(1, 3, 1, 1)).shape == (1, num_labels)


def test_a_label_depends_on_its_own_query_alone() -> None:
    torch.manual_seed(0)
    head = MLDecoderHead(CHANNELS, 6, num_groups=3, **SMALL_DECODER).eval()
    before = head(make_features())
    head.queries[1] = torch.randn(16)
    changed = (head(make_features()) - before).abs().amax(dim=0) > 1e-4
    assert changed.tolist() == [False, False, True, True, False, False]


def test_queries_are_kept_but_not_learnt() -> None:
    head = MLDecoderHead(CHANNELS, 6, **SMALL_DECODER)
    assert "queries" in head.state_dict()
    assert "queries" not in dict(head.named_parameters())


def test_published_sizes_of_ml_decoder() -> None:
    head = MLDecoderHead(2048, 80)
    assert head.weight.shape == (80, 768, 1)
    assert (head.attention.num_heads, head.feed_forward[0].out_features, head.dropout.p) == (8, 2048, 0.1)
    assert MLDecoderHead(8, 9605, **SMALL_DECODER).weight.shape == (100, 16, 97)


# All of them


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda graph: build_csra(6, num_heads=3, **TINY), "CSRA has 1, 2, 4, 6, 8 heads, got 3"),
        (lambda graph: build_csra(6, lam=-1.0, **TINY), "lam is the weight of CSRA's attention and at least 0, got -1"),
        (lambda graph: build_ml_gcn(graph, torch.rand(5, 8), **TINY), "5 word vectors and a label graph of 6 labels"),
        (lambda graph: build_ml_gcn(graph, neighbour_share=1.0, **TINY), "neighbour_share is at least 0 and below 1"),
        (lambda graph: build_ml_decoder(6, num_groups=0, **TINY), "num_groups is at least 1, got 0"),
    ],
)
@pytest.mark.usefixtures("typing_off")
def test_impossible_heads_are_refused(label_graph: LabelGraph, build: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(label_graph)


def test_every_head_counts_its_flops(label_graph: LabelGraph) -> None:
    positions, channels = 4, 8  # 64 px at stride 32
    backbone = count_flops(build_csra(6, **TINY), (64, 64)) - 2 * positions * channels * 6
    decoder = count_flops(build_ml_decoder(6, **SMALL_DECODER, **TINY), (64, 64)) - backbone
    projection, attention = (
        2 * positions * channels * 16,
        2 * (2 * positions + 2 * 6) * 16 * 16 + 2 * 2 * 6 * positions * 16,
    )
    assert decoder == projection + attention + 2 * 2 * 6 * 16 * 32 + 2 * 6 * 16
    graph = count_flops(build_ml_gcn(label_graph, **TINY, hidden_dim=10), (64, 64)) - backbone
    assert graph == 2 * 6 * (6 * 10 + 6 * 10 + 10 * channels + 6 * channels + channels)


@pytest.mark.parametrize(
    ("num_labels", "expected"), [(20, (40_960, 2_404_352, 7_104_532)), (80, (163_840, 2_404_352, 7_150_672))]
)
def test_parameters_told_in_the_docs(num_labels: int, expected: tuple[int, int, int]) -> None:
    csra, decoder = CSRAHead(2048, num_labels), MLDecoderHead(2048, num_labels)
    gcn = MLGCNHead(2048, torch.rand(num_labels, 300), torch.zeros(num_labels, num_labels).bool())
    assert (count_parameters(csra), count_parameters(gcn), count_parameters(decoder)) == expected
