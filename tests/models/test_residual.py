"""The head beside the attended stages, against a plain loop."""

import pytest
import torch

from msrn.models.baselines import PooledHead
from msrn.models.residual import AttendedHead, build_residual


def test_attended_head_is_the_plain_loop() -> None:
    torch.manual_seed(0)
    head = AttendedHead(5, 3, weight=0.7)
    feature_map = torch.randn(2, 5, 3, 4)
    logits = head(feature_map)
    for image in range(2):
        for label in range(3):
            scores = [
                head.linear.weight[label] @ feature_map[image, :, row, column]
                for row in range(3)
                for column in range(4)
            ]
            weights = torch.stack(scores).softmax(dim=0)
            attended = sum(weight * score for weight, score in zip(weights, scores, strict=True))
            expected = sum(scores) / 12 + 0.7 * attended + head.linear.bias[label]
            torch.testing.assert_close(logits[image, label], expected)


def test_without_attention_it_is_average_pooling() -> None:
    head, pooled = AttendedHead(5, 3, weight=0.0), PooledHead(5, 3)
    pooled.load_state_dict(head.state_dict())
    feature_map = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(head(feature_map), pooled(feature_map))


@pytest.mark.parametrize(("name", "kind"), [("attended", AttendedHead), ("avg", PooledHead), ("max", PooledHead)])
def test_residuals_by_name(name: str, kind: type) -> None:
    head = build_residual(name, 5, 3, attention=0.2)
    assert type(head) is kind
    assert head(torch.randn(2, 5, 3, 4)).shape == (2, 3)
