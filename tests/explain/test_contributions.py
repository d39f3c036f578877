"""What adds up to a logit, against the network and against a plain loop."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msrn.explain import explain_logits
from msrn.labels import LabelGraph
from msrn.models import MSRN, PUBLISHED, build_msrn

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without groups": {"has_groups": False},
    "without residual": {"residual": None},
    "average pooling": {"residual": "avg"},
    "max pooling": {"residual": "max"},
    "one loss": {"supervision": "sum", "scale": 2.0},
    "one stage": {"num_stages": 1},
    "attention a label": {"attention": "label"},
    "unbounded": {"bound": None, "normalize": False},
    "MobileNetV2": {
        "backbone": "mobilenetv2_035",
        "backbone_options": {},
        "keep_last_layers": True,
    },
    "Swin": {
        "backbone": "swin_tiny_patch4_window7_224",
        "backbone_options": {
            "embed_dim": 8,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 2,
            "img_size": 64,
        },
    },
    "DINOv2": {
        "backbone": "vit_small_patch14_dinov2",
        "backbone_options": {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 64, "patch_size": 16},
    },
    "transformer": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_options": {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 64},
    },
}


def make(label_graph: LabelGraph, **options: Any) -> MSRN:
    torch.manual_seed(0)
    model = build_msrn(label_graph, **{**TINY, **options})
    model.train()(torch.randn(4, 3, 64, 64))  # batch norms that have seen something
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.numbers = max(
            self.numbers, *(own.numel() for own in tree_leaves(made) if isinstance(own, torch.Tensor)), 0
        )
        return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_shares_sum_to_the_logit(label_graph: LabelGraph, variant: str) -> None:
    model = make(label_graph, **VARIANTS[variant])
    images = torch.randn(3, 3, 64, 64)
    found = explain_logits(model, images, [4, 0, 2])
    with torch.no_grad():
        expected = model(images)[:, [4, 0, 2]]
    assert found.is_exact
    torch.testing.assert_close(found.logits, expected)
    total = found.constant + sum(part.sum(dim=(2, 3)) for part in found.stage_maps())
    if found.residual is not None:
        total = total + found.residual.sum(dim=(2, 3))
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert float(found.rest.abs().max()) <= 1e-4 * float(expected.abs().max())
    if found.by_group:
        by_stage = sum(part.sum(dim=(2, 3)) for part in found.by_group)
        torch.testing.assert_close(found.groups.sum(-1), by_stage, rtol=1e-4, atol=1e-4)


def test_the_combined_map_keeps_about_the_sum(label_graph: LabelGraph) -> None:
    found = explain_logits(make(label_graph), torch.randn(2, 3, 64, 64), [0, 3])
    combined = found.combined((128, 96))
    assert combined.shape == (2, 2, 128, 96)
    total = (found.logits - found.constant).flatten()
    assert torch.corrcoef(torch.stack([combined.sum(dim=(2, 3)).flatten(), total]))[0, 1] > 0.99


def test_a_map_is_that_of_a_plain_loop(label_graph: LabelGraph) -> None:
    model = make(label_graph, residual=None)
    images = torch.randn(1, 3, 64, 64)
    found = explain_logits(model, images, [1])
    with torch.no_grad():
        values = model.attention.project(model.backbone(images))[0][0].flatten(1)  # (D, P)
        groups = model.embed()
    weight = model.classifier.scale * model.classifier.label_weight[1]
    for position in range(values.shape[1]):
        expected = sum(
            float(
                weight[d].detach()
                * (values[d] * groups.label_embeddings[1, d]).softmax(0)[position]
                * values[d, position]
            )
            for d in range(len(values))
        )
        assert float(found.own[0][0, 0].flatten()[position]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_labels_block_by_block_are_labels_at_once(label_graph: LabelGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = make(label_graph), torch.randn(2, 3, 64, 64)
    at_once = explain_logits(model, images, range(6))
    monkeypatch.setattr("msrn.explain.shares.BLOCK_SIZE", 1)
    for one, other in zip(explain_logits(model, images, range(6)).own, at_once.own, strict=True):
        torch.testing.assert_close(one, other)


def test_the_joint_classifiers_shares_are_those_of_a_plain_loop(label_graph: LabelGraph) -> None:
    model = make(label_graph, **PUBLISHED, backbone="resnet18", backbone_options={}, classifier_dim=16)
    images = torch.randn(1, 3, 96, 96)
    found = explain_logits(model, images, [0, 5])
    assert not found.is_exact
    assert float(found.rest.abs().max()) <= 1e-4 * float(found.logits.abs().max())
    total = sum(part.sum(dim=(2, 3)) for part in found.stage_maps()) + found.constant
    torch.testing.assert_close(total, found.logits, rtol=1e-4, atol=1e-4)
    # What the linear function of the image gives to one label's own features, by the weights of the units that are on.
    classifier = model.classifier
    with torch.no_grad():
        groups = model.embed()
        features = torch.cat(model.attention(model.backbone(images), groups), dim=1)[0]  # (L + G, S·D)
        hidden = classifier.fc1(features.tanh().flatten())
        width = features.shape[1]
        own = 0.0
        for unit in range(len(hidden)):
            side = 1.0 if hidden[unit] > 0 else classifier.activation.negative_slope
            weight = classifier.fc1.weight[unit, 5 * width : 6 * width]
            own += float(classifier.fc2.weight[5, unit]) * side * float((weight * features[5].tanh()).sum())
    assert float(sum(part[0, 1].sum() for part in found.own)) == pytest.approx(own, rel=1e-3, abs=1e-4)
    assert any(float(part.abs().max()) > 0 for part in found.by_others)


def test_the_joint_classifiers_slopes_are_never_whole(label_graph: LabelGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(label_graph, **{**PUBLISHED, **TINY, "dim": 32, "classifier_dim": 2})
    images = torch.randn(3, 3, 32, 32)
    explain_logits(model, images, [0])  # measures where cells are
    monkeypatch.setattr("msrn.explain.shares.BLOCK_SIZE", 1)
    with torch.no_grad():
        maps = model.backbone(images)
        logits = model.head(maps)
        with Largest() as largest:
            explain_logits(model, images, range(6), feature_maps=maps, logits=logits)
    embeddings = model.embed()
    features = len(embeddings.label_embeddings) + len(embeddings.group_embeddings)
    assert largest.numbers < 3 * 6 * features * 3 * 32  # images x labels x all labels and groups x channels


def test_maps_of_groups_add_up_to_the_groups(label_graph: LabelGraph) -> None:
    model, images = make(label_graph), torch.randn(2, 3, 64, 64)
    found = explain_logits(model, images, [0, 3])
    for each, together in zip(found.group_maps, found.by_group, strict=True):
        torch.testing.assert_close(each.sum(dim=2), together)
    torch.testing.assert_close(sum(each.sum(dim=(3, 4)) for each in found.group_maps), found.groups)


def test_training_mode_is_refused(label_graph: LabelGraph) -> None:
    with pytest.raises(ValueError, match=r"in training mode.*Call model\.eval\(\) first"):
        explain_logits(make(label_graph).train(), torch.randn(2, 3, 64, 64), [0])


@pytest.mark.parametrize("classifier", ["per-label", "published"])
def test_groups_apart_and_together_are_the_same(
    label_graph: LabelGraph, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(label_graph, **(PUBLISHED if classifier == "published" else {}))
    images = torch.randn(2, 3, 64, 64)
    apart = explain_logits(model, images, [1, 3])
    monkeypatch.setattr("msrn.explain.contributions._MOST_OF_GROUPS", 0)
    together = explain_logits(model, images, [1, 3])
    assert apart.group_maps
    assert not together.group_maps
    torch.testing.assert_close(together.groups, apart.groups, rtol=1e-4, atol=1e-4)
    for one, other in zip(together.by_group, apart.by_group, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
