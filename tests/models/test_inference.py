"""What is computed once for inference changes no logit."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msrn.labels import LabelGraph
from msrn.models import (
    MSRN,
    PUBLISHED,
    ExportableMSRN,
    FoldedClassifier,
    InferenceMSRN,
    PerLabelClassifier,
    StageProjection,
    build_msrn,
)

TINY: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": [8, 16, 24, 32], "stem_width": 8, "zero_init_last": False},
    "dim": 16,
}


@pytest.fixture
def label_graph() -> LabelGraph:
    target = (torch.rand(60, 40, generator=torch.Generator().manual_seed(1)) < 0.3).int()
    return LabelGraph.from_target(target, [f"label {i}" for i in range(40)])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def build(label_graph: LabelGraph, images: Tensor) -> Callable[..., MSRN]:
    """A network whose parts all take part, with the batch norm statistics of the images."""

    def build(**options: Any) -> MSRN:
        torch.manual_seed(0)
        model = build_msrn(label_graph, **{**TINY, "classifier_dim": 32, **options})
        if isinstance(model.classifier, PerLabelClassifier):
            nn.init.normal_(model.classifier.label_weight)
            nn.init.normal_(model.classifier.group_weight)
            nn.init.normal_(model.classifier.bias)
        model.train()
        with torch.no_grad():
            for _ in range(10):
                model(images)
        return model.eval()

    return build


def largest_difference(received: Tensor, expected: Tensor) -> float:
    return float((received - expected).detach().abs().max())


@pytest.mark.parametrize(
    "options", [{}, PUBLISHED, {**PUBLISHED, "pooling": "avg"}, {"bound": None}, {"residual": None}]
)
def test_same_logits(build: Callable[..., MSRN], images: Tensor, options: dict[str, Any]) -> None:
    model = build(**{**options, "dim": 16})
    expected = model(images).detach()
    inference = InferenceMSRN(model)
    for batch, wanted in ((images, expected), (images[:1], expected[:1]), (images.flip(0), expected.flip(0))):
        assert largest_difference(inference(batch), wanted) < 1e-4
    assert expected.std() > 0.1


def test_per_label_classifier_is_folded_and_the_joint_one_is_not(build: Callable[..., MSRN], images: Tensor) -> None:
    for options, is_folded in (({}, True), ({**PUBLISHED, "dim": 16}, False)):
        inference = InferenceMSRN(build(**options))
        inference(images)
        assert (inference.folded is not None) == is_folded


def test_images_that_the_nodes_do_not_resolve_take_the_exact_way(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    inference = InferenceMSRN(model)
    inference(0.01 * images)  # chooses nodes for images with nothing to tell apart
    assert inference.folded is not None
    assert largest_difference(inference(images), model(images).detach()) < 1e-4
    strange = 40 * images  # far beyond any nodes that would pay
    expected = model(strange).detach()
    assert largest_difference(inference(strange), expected) < 1e-4 * float(expected.abs().max())


def test_wide_scores_are_never_folded(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build(bound=None, gain=100.0, normalize=False)
    with torch.no_grad():
        for stage in model.attention.stages:
            assert isinstance(stage, StageProjection)
            stage.projection.weight.mul_(100)
    inference = InferenceMSRN(model)
    expected = model(images).detach()
    assert largest_difference(inference(images), expected) < 1e-5 * float(expected.abs().max())
    assert inference.folded is None


@pytest.mark.parametrize("size", [(64, 64), (33, 97)])
@pytest.mark.parametrize("options", [{"normalize": True}, {"has_buffer": True, "pooling": "avg"}, {"has_buffer": True}])
def test_merged_projection(options: dict[str, Any], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stage = StageProjection(24, 16, **options)
    feature_map = torch.randn(4, 24, *size)
    with torch.no_grad():
        for _ in range(5):
            stage.train()(2 + 3 * feature_map)
        if isinstance(stage.norm, nn.BatchNorm2d):
            nn.init.normal_(stage.norm.weight)
            nn.init.normal_(stage.norm.bias)
        merged = stage.eval().merged()
        torch.testing.assert_close(merged(feature_map), stage(feature_map), rtol=1e-4, atol=1e-4)
    is_merged = isinstance(merged.buffer, nn.Identity)
    assert is_merged == (options.get("pooling") == "avg" or not options.get("has_buffer"))  # max pooling is not linear
    assert isinstance(merged.norm, nn.Identity)


def test_the_trained_network_is_left_as_it_is(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    before, expected = copy.deepcopy(model.state_dict()), model(images).detach()
    InferenceMSRN(model)(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images), expected)


def test_one_strange_image_of_many_keeps_the_fold(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    inference = InferenceMSRN(model)
    inference(0.1 * images)
    folded = inference.folded
    mixed = torch.cat([0.1 * images, 40 * images[:1]])
    expected = model(mixed).detach()
    assert largest_difference(inference(mixed), expected) < 1e-4 * float(expected.abs().max())
    assert inference.folded is folded


def test_autocast_and_half_precision(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    expected = model(images).detach()
    inference = InferenceMSRN(model)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = inference(images), inference(images)
    assert inference.folded is not None
    for received in (first, second):
        assert largest_difference(received.float(), expected) < 0.05 * float(expected.abs().max())
    half = copy.deepcopy(inference).bfloat16()  # after folding
    assert largest_difference(half(images.bfloat16()).float(), expected) < 0.1 * float(expected.abs().max())
    assert InferenceMSRN(copy.deepcopy(model).bfloat16())(images.bfloat16()).isfinite().all()


def test_reduced_precision_of_matrix_products_changes_no_attention(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    projected = [stage.detach() for stage in model.attention.project(model.backbone(images))]
    expected = model.attention.attend(projected, model.embed())[0].detach()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        received = model.attention.attend(projected, model.embed())[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert largest_difference(received, expected) < 1e-5


def test_many_labels_go_block_by_block(
    build: Callable[..., MSRN], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msrn.models.inference._LABEL_BLOCK", 15)
    monkeypatch.setattr("msrn.models.inference._MANY_LABELS", 40)
    model = build()
    expected = model(images).detach()
    inference = InferenceMSRN(model)
    assert largest_difference(inference(images), expected) < 1e-4
    assert inference.folded is None  # the first batch of many labels does not earn it back
    assert largest_difference(inference(images), expected) < 1e-4
    assert inference.folded is not None


def test_too_few_labels_are_not_folded(images: Tensor) -> None:
    graph = LabelGraph.from_target(torch.tensor([[1, 0], [0, 1], [1, 1]]), ["a", "b"])
    inference = InferenceMSRN(build_msrn(graph, **TINY))
    inference(images)
    assert inference.folded is None


def test_threads_agree(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    inference = InferenceMSRN(model)
    batches = [images, 40 * images, 0.01 * images, images.flip(0)] * 4
    with ThreadPoolExecutor(4) as pool:
        received = list(pool.map(inference, batches))
    for logits, batch in zip(received, batches, strict=True):
        expected = model(batch).detach()
        assert largest_difference(logits, expected) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_export_leaves_the_network_as_it_is(build: Callable[..., MSRN], images: Tensor) -> None:
    inference = InferenceMSRN(build())
    inference(images)
    exportable = ExportableMSRN(inference, images)
    assert exportable.is_folded
    assert exportable.plain_stages == ()
    assert inference.folded is not None
    assert not any(stage.use_standard_operators for stage in inference.folded.stages)


def test_empty_batch(build: Callable[..., MSRN], images: Tensor) -> None:
    assert InferenceMSRN(build()).head([torch.zeros(0, c, 4, 4) for c in (16, 24, 32)]).shape == (0, 40)


def test_weights_that_are_not_finite_stay_visible(build: Callable[..., MSRN], images: Tensor) -> None:
    model = build()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    assert InferenceMSRN(model)(images).isnan().all()


def test_too_large_a_fold_is_refused(
    build: Callable[..., MSRN], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msrn.models.inference._MOST_FOLDED_BYTES", 1000)
    model = build()
    with pytest.raises(ValueError, match="folded weights"):
        FoldedClassifier(model.attention.project(model.backbone(images)), model.embed(), model.classifier)
    inference = InferenceMSRN(model)
    assert largest_difference(inference(images), model(images).detach()) < 1e-4
    assert inference.folded is None


@pytest.mark.parametrize("options", [{}, {**PUBLISHED, "dim": 16}, {"bound": None, "gain": 100.0, "normalize": False}])
# PyTorch's exporter warns of its own calls.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_onnx_of_standard_operators(
    build: Callable[..., MSRN], images: Tensor, tmp_path: Path, options: dict[str, Any]
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs msrn[export]")
    runtime = pytest.importorskip("onnxruntime", reason="needs msrn[export]")
    pytest.importorskip("onnxscript", reason="needs msrn[export]")
    model = build(**options)
    exportable = ExportableMSRN(InferenceMSRN(model), images)
    assert largest_difference(exportable(images), model(images).detach()) < 1e-4
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        exportable, (images,), path, dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert {node.domain for node in onnx.load(path).graph.node} <= {""}
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        (received,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        assert largest_difference(torch.from_numpy(received), model(batch).detach()) < 1e-3


@pytest.mark.parametrize("options", [{}, {**PUBLISHED, "dim": 16}])
def test_attention_maps_in_inference_mode(build: Callable[..., MSRN], images: Tensor, options: dict[str, Any]) -> None:
    model = build(**options)
    expected = model.attention_maps(images, [3])
    with torch.inference_mode():
        for received, wanted in zip(model.attention_maps(images, [3]), expected, strict=True):
            torch.testing.assert_close(received, wanted)


@pytest.mark.parametrize("options", [{}, {**PUBLISHED, "dim": 16}])
def test_attention_maps_of_chosen_labels(build: Callable[..., MSRN], images: Tensor, options: dict[str, Any]) -> None:
    model = build(**options)
    maps = model.attention_maps(images, [3, 7])
    projected = model.attention.project(model.backbone(images))
    assert [tuple(own.shape) for own in maps] == [(3, 2, *stage.shape[2:]) for stage in projected]
    for own in maps:
        torch.testing.assert_close(own.sum(dim=(2, 3)), torch.ones(3, 2))
    # By hand, for one label of one image: channels weigh by the size of gradient times entry.
    label_groups = model.embed()
    features, groups = model.attention.attend(projected, label_groups)
    features = features.detach().requires_grad_()
    logits = model.classifier(features, groups, label_groups.assignment)
    adds = (torch.autograd.grad(logits[1, 7], features)[0] * features)[1, 7].abs()  # (S·D,)
    for own, stage, weights in zip(maps, projected, adds.split(16), strict=True):
        attention = (stage[1] * label_groups.label_embeddings[7, :, None, None]).flatten(1).softmax(dim=1)  # (D, P)
        expected = (attention * weights[:, None]).sum(dim=0) / weights.sum()
        torch.testing.assert_close(own[1, 1].flatten(), expected, rtol=1e-4, atol=1e-6)
