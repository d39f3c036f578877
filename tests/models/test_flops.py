"""FLOPs: worked out by hand, known from papers, and those of the data-free pass equal to those of a real one."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msrn.errors import ModelError
from msrn.labels import LabelGraph
from msrn.models import PUBLISHED, build_msrn, build_pooled, count_flops
from msrn.ops import semantic_guided_attention

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}


def flops_of(model: torch.nn.Module, size: tuple[int, int]) -> int:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, *size))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, *size))
    return counter.get_total_flops()


@pytest.mark.parametrize("options", [{"dim": 8}, {**PUBLISHED, "dim": 8, "classifier_dim": 16}])
def test_count_is_that_of_a_pass_with_data(label_graph: LabelGraph, options: dict[str, Any]) -> None:
    model = build_msrn(label_graph, **TINY, **options)
    assert count_flops(model, (64, 96)) == flops_of(model, (64, 96)) > 10**6


def test_the_head_adds_projections_attention_and_classifier(label_graph: LabelGraph) -> None:
    dim, channels, positions = 8, (8, 16, 16), (64, 16, 4)  # 64 px, stage strides 8, 16 and 32, no 2x2 pooling
    model = build_msrn(label_graph, **TINY, dim=dim, pooling="none", residual=None)
    num_labels, num_groups = 6, 1
    projections = sum(2 * width * dim * place for width, place in zip(channels, positions, strict=True))
    attention = 5 * dim * sum(positions) * (num_labels + num_groups)
    classifier = 2 * 3 * dim * num_labels * (1 + num_groups) + 2 * num_labels * num_groups
    pooled = build_pooled(6, **TINY)
    linear = 2 * channels[-1] * num_labels
    added = count_flops(model, (64, 64)) - (count_flops(pooled, (64, 64)) - linear)
    assert added == pytest.approx(projections + attention + classifier, abs=4 * num_labels * num_groups)


def test_resnet50_takes_what_its_paper_says() -> None:
    """3.8 billion multiply-adds at 224 px in the paper; 4.1 with the stride in the 3x3 convolution, as timm has it."""
    model = build_pooled(1000, backbone="resnet50")
    assert count_flops(model, (224, 224)) == pytest.approx(2 * 4.1e9, rel=0.01)


def test_a_training_step_counts_attention_both_ways() -> None:
    feature_map = torch.randn(2, 8, 3, 3, requires_grad=True)
    embeddings = torch.randn(5, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        semantic_guided_attention(feature_map, embeddings).sum().backward()
    assert counter.get_total_flops() == (5 + 11) * 2 * 8 * 9 * 5


def test_the_model_stays_as_it_is(label_graph: LabelGraph) -> None:
    model = build_msrn(label_graph, **TINY, dim=8).train()
    before = copy.deepcopy(model.state_dict())
    count_flops(model, (64, 64))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_other_backbones_are_counted(label_graph: LabelGraph, backbone: str) -> None:
    options = {} if backbone == "convnext_atto" else {"img_size": 64}
    assert count_flops(build_msrn(label_graph, backbone=backbone, backbone_options=options, dim=8), (64, 64)) > 10**7


def test_size_that_the_backbone_does_not_take_is_named(label_graph: LabelGraph) -> None:
    with pytest.raises(ModelError, match="does not take images of 64 x 64"):
        count_flops(build_msrn(label_graph, backbone="vit_tiny_patch16_224", dim=8), (64, 64))
