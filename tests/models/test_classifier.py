import pytest
import torch
from torch import Tensor

from msrn.models import JointClassifier, PerLabelClassifier, PooledHead, count_parameters


def make_features(num_labels: int = 4, num_groups: int = 2, dim: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, num_labels, dim, generator=generator),
        torch.randn(3, num_groups, dim, generator=generator),
        torch.rand(num_labels, num_groups, generator=generator).softmax(dim=1),
    )


def test_per_label_equals_a_plain_loop() -> None:
    labels, groups, assignment = make_features()
    classifier = PerLabelClassifier(4, 6)
    torch.nn.init.normal_(classifier.bias)
    logits = classifier(labels, groups, assignment)
    for image in range(3):
        for label in range(4):
            shared = sum(assignment[label, group] * groups[image, group] for group in range(2))
            expected = (
                classifier.label_weight[label] @ labels[image, label]
                + classifier.group_weight[label] @ shared
                + classifier.bias[label]
            )
            torch.testing.assert_close(logits[image, label], expected)


def test_per_label_sees_nothing_of_other_labels() -> None:
    labels, groups, assignment = make_features()
    classifier = PerLabelClassifier(4, 6)
    changed = labels.clone()
    changed[:, 1] += 1
    difference = classifier(changed, groups, assignment) != classifier(labels, groups, assignment)
    assert difference.any(dim=0).tolist() == [False, True, False, False]


def test_per_label_that_starts_at_zero() -> None:
    classifier = PerLabelClassifier(4, 6, zero_init=True)
    logits = classifier(*make_features())
    assert not logits.any()
    logits.sum().backward()
    assert classifier.label_weight.grad.any()
    assert classifier.group_weight.grad.any()


def test_per_label_is_linear_in_labels() -> None:
    assert count_parameters(PerLabelClassifier(20, 6)) == 20 * (2 * 6 + 1)


def test_joint_sees_labels_and_groups_but_not_the_assignment() -> None:
    labels, groups, assignment = make_features()
    torch.manual_seed(0)
    classifier = JointClassifier(4, 2, 6, hidden_dim=5)
    logits = classifier(labels, groups, assignment)
    assert logits.shape == (3, 4)
    assert torch.equal(classifier(labels, groups, assignment.flip(1)), logits)
    assert not torch.equal(classifier(labels, groups + 1, assignment), logits)
    joined = torch.cat([labels.flatten(1), groups.flatten(1)], dim=1).tanh()
    expected = classifier.fc2(torch.nn.functional.leaky_relu(classifier.fc1(joined), 0.01))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(("num_labels", "num_groups", "millions"), [(20, 4, 75.5), (80, 4, 264.4), (9605, 480, 31_744)])
def test_joint_grows_with_labels_times_width(num_labels: int, num_groups: int, millions: float) -> None:
    with torch.device("meta"):
        classifier = JointClassifier(num_labels, num_groups, 3 * 512)
    weights = (num_labels + num_groups) * 1536 * 2048 + 2048 * num_labels
    assert count_parameters(classifier) == weights + 2048 + num_labels
    assert count_parameters(classifier) / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooled_head_is_linear_over_pooled_positions(pooling) -> None:
    torch.manual_seed(0)
    head, feature_map = PooledHead(3, 4, pooling=pooling), torch.randn(2, 3, 5, 7)
    positions = feature_map.flatten(2)
    pooled = positions.mean(dim=-1) if pooling == "avg" else positions.max(dim=-1).values
    torch.testing.assert_close(head(feature_map), head.linear(pooled))
