"""The authors' network returned these numbers; ours must too (shared/reference, rebuilt from names alone)."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from msrn.models import MSRN, published

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference outputs are not at ../shared/reference")

GRADIENTS = {  # authors' name -> ours
    "resnet_101.conv1.weight": "backbone.model.conv1.weight",
    "resnet_101.layer2.3.conv3.weight": "backbone.model.layer2.3.conv3.weight",
    "resnet_101.layer4.2.conv3.weight": "backbone.model.layer4.2.conv3.weight",
    "resnet_101.conv_buffer1.weight": "attention.stages.0.buffer.weight",
    "resnet_101.conv_buffer2.weight": "attention.stages.1.buffer.weight",
    "label_embed.layers.0.W": "label_group.layers.0.projection.weight",
    "label_embed.layers.0.a": "label_group.layers.0.attention",
    "label_embed.layers.1.W": "label_group.layers.1.projection.weight",
    "group_embed.layers.0.embed.W": "label_group.pool.embed.projection.weight",
    "group_embed.layers.0.assign_mat.W": "label_group.pool.assign.projection.weight",
    "group_embed.layers.0.assign_mat.a": "label_group.pool.assign.attention",
    "ProjectM.0.weight": "attention.stages.0.projection.weight",
    "ProjectM.1.weight": "attention.stages.1.projection.weight",
    "ProjectM.2.weight": "attention.stages.2.projection.weight",
    "fc_label.weight": "label_group.projection.weight",
    "fc1.weight": "classifier.fc1.weight",
    "fc2.weight": "classifier.fc2.weight",
}


def load_case(name: str) -> dict:
    spec = importlib.util.spec_from_file_location("reference_weights", REFERENCE / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.case(name)


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request) -> dict:
    return load_case(request.param)


@pytest.fixture(scope="module")
def model(case: dict) -> MSRN:
    """The network of a case, in evaluation mode; drawing and loading its 118 million numbers takes seconds."""
    outputs = case["outputs"]
    return published.from_state_dict(
        case.pop("state_dict"), outputs["cooccurrence"], outputs["label_counts"], outputs["word_vectors"]
    )


def distance(received: torch.Tensor, expected: np.ndarray) -> float:
    return float((received.detach() - torch.as_tensor(expected)).abs().max())


def test_evaluation_returns_the_authors_numbers(case: dict, model: MSRN) -> None:
    outputs = case["outputs"]
    images = torch.as_tensor(case["images"])
    assert np.array_equal(model.label_group.adjacency.numpy(), outputs["adjacency"])
    assert distance(model.label_embeddings(), outputs["label_embedding"]) < 1e-4
    assert distance(model.group_embeddings(), outputs["group_embedding"]) < 1e-4
    assert distance(model.embed().assignment, outputs["assignment"]) < 1e-5
    assert distance(model.group_loss(), outputs["group_loss"]) < 1e-5
    with torch.no_grad():
        stages = model.backbone(images)
        for number, (stage, feature_map) in enumerate(zip(model.attention.stages, stages, strict=True), start=1):
            assert distance(stage.pool(feature_map).mean(dim=(2, 3)), outputs[f"branch{number}"]) < 1e-4
        flattened = torch.cat(model.attention(stages, model.embed()), dim=1).tanh().flatten(1)
        logits = model(images)
    head = outputs["classifier_input_head"]
    assert distance(flattened[:, : head.shape[1]], head) < 1e-4
    assert distance(flattened.norm(dim=1), outputs["classifier_input_norm"]) < 1e-3
    assert distance(logits, outputs["logits"]) < 1e-4


def test_training_step_returns_the_authors_loss_and_gradients(case: dict, model: MSRN) -> None:
    model, outputs = copy.deepcopy(model).train(), case["outputs"]
    label_groups = model.embed()
    logits = model(torch.as_tensor(case["images"]), label_groups)
    loss = torch.nn.functional.multilabel_soft_margin_loss(logits, torch.as_tensor(case["targets"]))
    loss = loss + model.group_loss(label_groups)
    loss.backward()
    assert distance(loss, outputs["train_loss"]) < 1e-4
    parameters = dict(model.named_parameters())
    for theirs, ours in GRADIENTS.items():
        if ours.endswith(".attention"):
            halves = [parameters[f"{ours}_target"].grad, parameters[f"{ours}_source"].grad]
            norm = float(torch.cat(halves).norm())
        else:
            norm = float(parameters[ours].grad.norm())
        assert norm == pytest.approx(case["spec"]["grad_norms"][theirs], rel=0.01), theirs
