"""One suite for every builder."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msrn.errors import ModelError
from msrn.labels import LabelGraph
from msrn.models import (
    MSRN,
    PUBLISHED,
    Classifier,
    PerLabelClassifier,
    build_model,
    build_msrn,
    build_pooled,
    msrn_resnet101,
    use_channels_last,
)
from msrn.training.losses import multilabel_soft_margin_loss

TINY = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": [8, 16, 24, 32], "stem_width": 8, "zero_init_last": False},
}
TINY_MSRN = {**TINY, "dim": 16, "group_ratio": 0.4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {"name": "msrn", **TINY_MSRN},
    "published": {
        "name": "msrn",
        **PUBLISHED,
        "backbone": "resnet18",
        "classifier_dim": 64,
        "group_ratio": 0.4,
        "backbone_options": {"zero_init_last": False},
    },
    "avg_pool": {"name": "pooled", **TINY, "pooling": "avg"},
    "max_pool": {"name": "pooled", **TINY, "pooling": "max"},
    "csra": {"name": "csra", **TINY, "num_heads": 2},
    "ml_gcn": {"name": "ml_gcn", **TINY, "hidden_dim": 16},
    "ml_decoder": {"name": "ml_decoder", **TINY, "num_groups": 4, "dim": 16, "num_heads": 2, "hidden_dim": 32},
}
HEADS_WITH_EMBEDDINGS = ["default", "published"]


def build(label_graph: LabelGraph, name: str = "default", **options: Any) -> Any:
    """A model whose parts all take part: a per-label classifier starts at zero otherwise."""
    torch.manual_seed(0)
    model = build_model({**ARCHITECTURES[name], **options}, label_graph)
    if isinstance(model, MSRN) and isinstance(model.classifier, PerLabelClassifier):
        nn.init.normal_(model.classifier.label_weight)
        nn.init.normal_(model.classifier.group_weight)
    return model


def make_images(num_images: int = 2, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.rand(num_images, 3, *size, generator=torch.Generator().manual_seed(0))


def predict(model: nn.Module, images: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return model(make_images() if images is None else images)


def training_step(model: nn.Module, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    logits = model(make_images())
    multilabel_soft_margin_loss(logits, torch.eye(2, logits.shape[1]).int()).backward()
    optimizer.step()


class CallCounter:
    """Counts the calls of a module's forward."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        module.register_forward_hook(self._note)

    def _note(self, *args: object) -> None:
        self.count += 1


@pytest.mark.parametrize("name", ARCHITECTURES)
class TestEveryBuilder:
    @pytest.mark.parametrize("size", [(64, 64), (97, 65), (65, 128)])
    def test_one_logit_a_label_for_images_of_any_size(self, label_graph: LabelGraph, name: str, size) -> None:
        model = build(label_graph, name)
        for mode in (True, False):
            logits = model.train(mode)(make_images(2, size))
            assert logits.shape == (2, 6)
            assert logits.isfinite().all()

    def test_an_image_is_judged_alone_in_evaluation(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        both = predict(model)
        torch.testing.assert_close(predict(model, make_images()[:1]), both[:1], rtol=1e-4, atol=1e-5)

    def test_backward_reaches_every_parameter(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).train()
        logits = model(make_images(3))
        loss = multilabel_soft_margin_loss(logits, torch.eye(3, 6).int())
        if isinstance(model, MSRN):
            loss = loss + model.group_loss()
        loss.backward()
        untouched = [
            parameter_name
            for parameter_name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all()
        ]
        # The batch norm behind these takes any bias away again.
        biases = [f"attention.stages.{number}.projection.bias" for number in range(3)] if name == "default" else []
        assert set(untouched) <= set(biases)

    def test_same_seed_gives_the_same_model(self, label_graph: LabelGraph, name: str) -> None:
        assert torch.equal(predict(build(label_graph, name).eval()), predict(build(label_graph, name).eval()))

    def test_saved_state_gives_the_same_logits(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name)
        training_step(model)
        other = build_model(ARCHITECTURES[name], label_graph)
        other.load_state_dict(model.state_dict())
        assert torch.equal(predict(model.eval()), predict(other.eval()))

    def test_channels_last_equals_contiguous(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        expected = predict(model)
        fast = use_channels_last(copy.deepcopy(model))
        received = predict(fast, make_images().contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-4)

    def test_training_goes_on_after_evaluation_under_inference_mode(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name)
        for _ in range(2):
            before = predict(model.eval())
            training_step(model)
            assert not torch.equal(predict(model.eval()), before)

    def test_autocast_leaves_nothing_behind(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        expected = predict(model)
        fresh = build(label_graph, name).eval()
        with torch.autocast("cpu", torch.bfloat16):
            half = predict(fresh)
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)
        assert torch.equal(predict(fresh), expected)

    def test_deep_copies_are_independent(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        before = predict(model)
        training_step(copy.deepcopy(model))
        assert torch.equal(predict(model), before)


@pytest.mark.parametrize("name", HEADS_WITH_EMBEDDINGS)
class TestEmbeddings:
    def test_computed_once_a_training_step(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).train()
        calls = CallCounter(model.label_group)
        model(make_images())
        assert calls.count == 1
        label_groups = model.embed()
        (model(make_images(), label_groups).sum() + model.group_loss(label_groups)).backward()
        assert calls.count == 2

    def test_computed_once_over_many_evaluations(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        calls = CallCounter(model.label_group)
        for _ in range(3):
            predict(model)
            model(make_images())
            model.group_loss()
        assert (model.label_embeddings().shape, model.group_embeddings().shape) == (
            (6, model_dim(name)),
            (2, model_dim(name)),
        )
        assert calls.count == 1

    def test_constants_equal_those_of_training(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name)
        trained = model.train().embed()
        constants = model.eval().embed()
        for received, expected in zip(constants, trained, strict=True):
            assert torch.equal(received, expected)
            assert not received.requires_grad
            assert not received.is_inference()

    def test_computed_anew_after_an_optimizer_step_in_evaluation(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        before = model.label_embeddings()
        optimizer = torch.optim.SGD(model.label_group.parameters(), lr=0.1)
        model.label_group().label_embeddings.sum().backward()
        optimizer.step()
        assert not torch.equal(model.label_embeddings(), before)
        assert torch.equal(model.label_embeddings(), model.label_group().label_embeddings)

    def test_computed_anew_after_load_state_dict(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        before, state = predict(model), model.state_dict()
        state["label_group.word_vectors"] = state["label_group.word_vectors"].flip(0)
        for assign in (False, True):
            other = build(label_graph, name).eval()
            predict(other)
            other.load_state_dict(state, assign=assign)
            assert not torch.allclose(predict(other), before)

    def test_computed_anew_after_a_change_under_inference_mode(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        before = predict(model)
        with torch.inference_mode():
            model.label_group.projection.weight.mul_(2)
        assert not torch.allclose(predict(model), before)

    def test_computed_anew_after_train_and_eval(self, label_graph: LabelGraph, name: str) -> None:
        # A change through `.data`, as old averaging code makes, is not seen otherwise.
        model = build(label_graph, name).eval()
        before = predict(model)
        model.label_group.projection.weight.data.mul_(2)
        assert not torch.allclose(predict(model.train().eval()), before)

    def test_follow_a_change_of_type(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval()
        expected = predict(model)
        received = predict(model.double(), make_images().double())
        assert received.dtype == torch.float64
        torch.testing.assert_close(received.float(), expected, rtol=1e-3, atol=1e-4)

    def test_a_model_built_under_inference_mode_predicts(self, label_graph: LabelGraph, name: str) -> None:
        with torch.inference_mode():
            model = build(label_graph, name).eval()
        assert torch.equal(predict(model), predict(build(label_graph, name).eval()))

    def test_parameters_can_be_counted_on_the_meta_device(self, label_graph: LabelGraph, name: str) -> None:
        model = build(label_graph, name).eval().to("meta")
        assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 6)


def model_dim(name: str) -> int:
    return ARCHITECTURES[name]["dim"]


@pytest.mark.parametrize("pooling", ["max", "avg", "none"])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_every_number_of_stages_and_pooling(label_graph: LabelGraph, num_stages: int, pooling: str) -> None:
    model = build(label_graph, num_stages=num_stages, pooling=pooling)
    assert len(model.attention.stages) == num_stages
    assert model.classifier.label_weight.shape == (6, 16 * num_stages)
    assert model(make_images()).shape == (2, 6)


def test_a_pooling_and_a_buffer_a_stage(label_graph: LabelGraph) -> None:
    model = build(label_graph, pooling=["none", "avg", "max"], has_buffers=[True, False, True])
    assert model(make_images(2, (97, 65))).shape == (2, 6)


@pytest.mark.parametrize(("ratio", "num_groups"), [(0.05, 1), (0.2, 1), (0.5, 3), (1.0, 6), (1 / 3, 2)])
def test_number_of_groups(label_graph: LabelGraph, ratio: float, num_groups: int) -> None:
    assert build(label_graph, group_ratio=ratio).embed().assignment.shape == (6, num_groups)


def without_message_passing(model: MSRN) -> None:
    model.label_group.adjacency.copy_(torch.eye(6))


def without_word_vectors(model: MSRN) -> None:
    model.label_group.word_vectors.zero_()


def without_label_part(model: MSRN) -> None:
    model.classifier.label_weight.data.zero_()


def without_group_part(model: MSRN) -> None:
    model.classifier.group_weight.data.zero_()


def without_stage(model: MSRN, number: int) -> None:
    stage = model.attention.stages[number]
    stage.projection.weight.data.zero_()


def without_residual(model: MSRN) -> None:
    model.residual = None


@pytest.mark.parametrize(
    "remove",
    [
        without_message_passing,
        without_word_vectors,
        without_label_part,
        without_group_part,
        without_residual,
        *(lambda model, number=number: without_stage(model, number) for number in range(3)),
    ],
)
def test_removing_any_part_changes_predictions(label_graph: LabelGraph, remove) -> None:
    model = build(label_graph)
    training_step(model)  # batch norms that have seen an image
    before = predict(model.eval())
    with torch.no_grad():
        remove(model)
    assert (predict(model.train().eval()) - before).abs().max() > 1e-4


def test_with_one_loss_it_starts_as_its_residual(label_graph: LabelGraph) -> None:
    model = build_msrn(label_graph, **TINY_MSRN, supervision="sum").eval()
    with torch.no_grad():
        expected = model.residual(model.backbone(make_images())[-1])
    torch.testing.assert_close(predict(model), expected)


def test_paths_are_averaged_and_each_has_its_loss(label_graph: LabelGraph) -> None:
    model = build_msrn(label_graph, **TINY_MSRN).eval()
    images = make_images()
    with torch.no_grad():
        stages, residual = model.supervised(images)
    torch.testing.assert_close(predict(model), (stages + residual) / 2)
    assert (stages - residual).abs().max() > 1e-3
    one = build_msrn(label_graph, **TINY_MSRN, supervision="sum").eval()
    assert [logits.shape for logits in one.supervised(images)] == [(len(images), 6)]
    alone = build_msrn(label_graph, **TINY_MSRN, residual=None).eval()
    assert [logits.shape for logits in alone.supervised(images)] == [(len(images), 6)]


def test_detached_stages_leave_the_backbone_to_the_residual(label_graph: LabelGraph) -> None:
    gradients = {}
    for detach_stages in (False, True):
        torch.manual_seed(0)
        model = build_msrn(label_graph, **TINY_MSRN, detach_stages=detach_stages)
        stages, residual = model.supervised(make_images())
        stages.sum().backward(retain_graph=True)
        own = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.backbone.parameters()]
        assert any(own) is not detach_stages
        assert all(bool(parameter.grad.any()) for parameter in model.attention.stages[0].projection.parameters())
        residual.sum().backward()
        gradients[detach_stages] = next(model.backbone.parameters()).grad
    assert gradients[True].abs().max() > 0
    assert not torch.allclose(gradients[True], gradients[False])


def test_word_vectors_of_the_caller_are_used(label_graph: LabelGraph) -> None:
    vectors = torch.rand(6, 50)
    assert torch.equal(build_msrn(label_graph, vectors, **TINY_MSRN).label_group.word_vectors, vectors)


def test_published_network_has_the_published_parts(label_graph: LabelGraph) -> None:
    model = msrn_resnet101(label_graph, backbone="resnet18", classifier_dim=8)
    assert [isinstance(stage.buffer, nn.Conv2d) for stage in model.attention.stages] == [True, True, False]
    assert [stage.pooling for stage in model.attention.stages] == ["max"] * 3
    assert isinstance(model.attention.stages[0].norm, nn.Identity)
    assert model.residual is None
    assert model.label_group.bound is None
    assert model.classifier.fc1.in_features == (6 + 1) * 3 * 512


def test_pooled_model_has_one_stage() -> None:
    model = build_pooled(4, **TINY)
    assert isinstance(model, Classifier)
    assert model.backbone.strides == (32,)


@pytest.mark.usefixtures("typing_off")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_ratio": 0.0}, r"group_ratio is above 0 and at most 1, got 0\.0\. The published one is 0\.2"),
        ({"group_ratio": 1.5}, "group_ratio .* got 1.5"),
        ({"classifier": "mlp"}, "classifier is 'per_label' or 'joint', got 'mlp'"),
        ({"pooling": ["max"]}, "pooling has 1 entries for 3 stages"),
        ({"residual": "atended"}, r"residual is one of attended, avg, max, or None; got 'atended'"),
        ({"residual_attention": 2.0}, "residual_attention is the weight of a mean, 0 to 1, got 2.0"),
        ({"supervision": "summ"}, "supervision is 'each' or 'sum', got 'summ'"),
        ({"attention": "labels"}, "attention is a 'channel' or a 'label', got 'labels'"),
        ({"residual": None, "detach_stages": True}, "detach_stages needs a residual, from which the backbone learns"),
        ({"colour": "red"}, "the architecture 'msrn' does not fit its builder: .*colour"),
        (
            {"name": "transformer"},
            "an architecture is named 'msrn', 'pooled', 'csra', 'ml_gcn' or 'ml_decoder', got 'transformer'",
        ),
        ({"name": None}, "got None"),
    ],
)
def test_impossible_architectures_are_refused(label_graph: LabelGraph, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model({**ARCHITECTURES["default"], **options}, label_graph)


@pytest.mark.usefixtures("typing_off")
def test_word_vectors_of_other_labels(label_graph: LabelGraph) -> None:
    with pytest.raises(ModelError, match="5 word vectors and a label graph of 6 labels"):
        build_msrn(label_graph, torch.rand(5, 8), **TINY_MSRN)
