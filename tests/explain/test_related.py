"""What an edge of the label graph does, against a network that never had it."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from msrn.explain import EdgeRemovals, related, related_effects
from msrn.labels import LabelGraph
from msrn.models import PUBLISHED, build_msrn

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without groups": {"has_groups": False},
    "without residual": {"residual": None},
    "one loss": {"supervision": "sum", "scale": 2.0},
    "attention a label": {"attention": "label"},
    "joint": {**PUBLISHED, "backbone": "resnet18", "backbone_options": {}, "dim": 8, "classifier_dim": 16},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_effect_is_the_change_of_a_network_without_the_edge(label_graph: LabelGraph, variant: str) -> None:
    torch.manual_seed(0)
    edges = torch.zeros(6, 6, dtype=torch.bool)
    edges[1, 0] = edges[4, 0] = edges[0, 2] = True  # label 0 follows 1 and 4, label 2 follows 0
    graph = replace(label_graph, edges=edges, rule="given")
    model = build_msrn(graph, **{**TINY, **VARIANTS[variant]})
    model.train()(torch.randn(4, 3, 96, 96))
    for name, parameter in model.named_parameters():
        if not name.startswith("label_group"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.double().eval()  # some effects are smaller than the rounding of float32
    images = torch.randn(3, 3, 96, 96, dtype=torch.float64)
    found = related_effects(model, images, [2, 0, 3])
    assert (found[0].label, found[0].other) == (2, 0)
    assert {(edge.label, edge.other) for edge in found} == {(2, 0), (0, 1), (0, 4)}  # a label of no other has none
    sizes = [float(edge.effects.abs().mean()) for edge in found[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) > 1e-7
    with torch.no_grad():
        logits = model(images)
        for edge in found:
            fewer = edges.clone()
            fewer[edge.other, edge.label] = False
            other = build_msrn(replace(graph, edges=fewer), **{**TINY, **VARIANTS[variant]}).double()
            state = {name: value for name, value in model.state_dict().items() if not name.endswith("adjacency")}
            other.load_state_dict({**other.state_dict(), **state})
            expected = logits - other.eval()(images)
            torch.testing.assert_close(edge.effects, expected[:, edge.label], rtol=1e-5, atol=1e-10)


def test_training_mode_is_refused(label_graph: LabelGraph) -> None:
    with pytest.raises(ValueError, match="in training mode"):
        related_effects(build_msrn(label_graph, **TINY), torch.randn(1, 3, 64, 64), [0])


def test_labels_a_few_at_a_time_have_the_same_effects(label_graph: LabelGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_msrn(label_graph, **TINY).eval()
    images = torch.randn(2, 3, 64, 64)
    at_once = related_effects(model, images, range(6))
    monkeypatch.setattr(related, "_MOST_BYTES", 1)
    for edge, alone in zip(at_once, related_effects(model, images, range(6)), strict=True):
        assert (edge.label, edge.other) == (alone.label, alone.other)
        torch.testing.assert_close(edge.effects, alone.effects)


def test_the_graph_without_an_edge_is_read_once(label_graph: LabelGraph) -> None:
    model = build_msrn(label_graph, **TINY).eval()
    removals = EdgeRemovals(model)
    for _ in range(2):
        related_effects(model, torch.randn(1, 3, 64, 64), range(6), removals=removals)
    assert removals.of.cache_info().misses == 6
    assert EdgeRemovals(model, most_bytes=1).of.cache_info().maxsize == 1
