"""MSRN with one of its parts left out or exchanged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from msrn.labels import LabelGraph
from msrn.models import ExportableMSRN, InferenceMSRN, LabelGroupEmbedding, build_msrn, group_loss
from msrn.models.attention import attend_by_label, label_attention

SMALL = {"backbone": "mobilenetv2_035", "num_stages": 2, "dim": 16}


@pytest.fixture
def label_graph():
    together = torch.tensor([[0, 8, 1, 0], [8, 0, 0, 0], [1, 0, 0, 2], [0, 0, 2, 0]])
    return LabelGraph(("a", "b", "c", "d"), together, torch.tensor([10, 9, 6, 5]))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_attention_a_label_is_dot_product_attention(num_images, width, height, num_columns, num_labels):
    torch.manual_seed(0)
    feature_map = torch.randn(num_images, width, height, num_columns)
    embeddings = 3 * torch.randn(num_labels, width)
    positions = feature_map.flatten(2).transpose(1, 2)
    expected = F.scaled_dot_product_attention(embeddings.expand(num_images, -1, -1), positions, positions)
    assert torch.allclose(attend_by_label(feature_map, embeddings), expected, atol=1e-5)
    assert torch.allclose(label_attention(feature_map, embeddings).sum(dim=(2, 3)), torch.ones(num_images, num_labels))


@pytest.mark.parametrize(
    "part",
    [{"attention": "label"}, {"has_groups": False}, {"learn_vectors": True}, {"has_groups": False, "bound": None}],
)
@pytest.mark.parametrize("classifier", ["per_label", "joint"])
def test_a_variant_trains_and_predicts(label_graph, part, classifier):
    torch.manual_seed(0)
    model = build_msrn(label_graph, **SMALL, **part, classifier=classifier, residual=None)
    images = torch.randn(2, 3, 64, 64)
    (model(images).square().mean() + model.group_loss()).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for name, parameter in model.named_parameters()
        if not name.startswith("backbone.")
    )
    expected = model.eval()(images)
    assert torch.allclose(InferenceMSRN(model)(images), expected, atol=1e-4)
    for heatmap in model.attention_maps(images, [0, 3]):
        assert heatmap.shape[:2] == (2, 2)
        assert torch.allclose(heatmap.sum(dim=(2, 3)), torch.ones(2, 2))


def test_without_groups_there_is_no_global_semantics(label_graph):
    model = build_msrn(label_graph, **SMALL, has_groups=False)
    assert model.group_embeddings().shape == (0, 16)
    assert model.group_loss() == 0
    assert not any("group_weight" in name or "pool." in name for name in model.state_dict())


def test_learned_vectors_are_parameters_and_those_given_are_not_read(label_graph):
    given_vectors = torch.full((4, 7), 5.0)
    module = LabelGroupEmbedding(given_vectors, label_graph.adjacency, num_groups=2, dim=8, learn_vectors=True)
    assert "word_vectors" in dict(module.named_parameters())
    assert module.word_vectors.shape == given_vectors.shape
    assert module.word_vectors.norm(dim=1).max() < 3
    group_loss(module()).backward()
    assert module.word_vectors.grad.abs().sum() > 0


def test_only_attention_by_channel_is_exported(label_graph):
    model = build_msrn(label_graph, **SMALL, attention="label")
    with pytest.raises(ValueError, match="only attention by channel is exported"):
        ExportableMSRN(InferenceMSRN(model), torch.randn(1, 3, 64, 64))


def test_groupless_network_is_exportable(label_graph):
    model = build_msrn(label_graph, **SMALL, has_groups=False, residual=None).eval()
    torch.nn.init.normal_(model.classifier.label_weight)
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ExportableMSRN(InferenceMSRN(model), images)(images), model(images), atol=1e-3)
