"""The head beside the attended stages, against a plain loop."""

import pytest
import torch

from msrn.models.baselines import PooledHead
from msrn.models.residual import AttendedHead, build_residual


def test_attended_head_is_the_plain_loop() -> None:
    torch.manual_seed(0)
    head = AttendedHead(5, 3, weight=0.7).eval()
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
            expected = 0.3 * sum(scores) / 12 + 0.7 * attended + head.linear.bias[label]
            torch.testing.assert_close(logits[image, label], expected)


@pytest.mark.parametrize(("weight", "is_training"), [(0.0, False), (0.7, True)])
def test_in_training_and_without_attention_it_is_average_pooling(weight: float, is_training: bool) -> None:
    head, pooled = AttendedHead(5, 3, weight=weight).train(is_training), PooledHead(5, 3)
    pooled.load_state_dict(head.state_dict())
    feature_map = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(head(feature_map), pooled(feature_map))


@pytest.mark.parametrize(("name", "kind"), [("attended", AttendedHead), ("avg", PooledHead), ("max", PooledHead)])
def test_residuals_by_name(name: str, kind: type) -> None:
    head = build_residual(name, 5, 3, attention=0.2)
    assert type(head) is kind
    assert head(torch.randn(2, 5, 3, 4)).shape == (2, 3)


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_weight_out_of_range(weight: float) -> None:
    with pytest.raises(ValueError, match="residual_attention is the weight of a mean, 0 to 1"):
        AttendedHead(5, 3, weight=weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_meet_a_softmax_of_single_precision(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """As under autocast on a GPU, where a linear layer computes in half precision and softmax does not."""
    head = AttendedHead(5, 3).eval()
    feature_map = torch.randn(2, 5, 3, 4)
    expected = head(feature_map)
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda tensor, dim: softmax(tensor.float(), dim))
    torch.testing.assert_close(head.to(dtype)(feature_map.to(dtype)).float(), expected, atol=0.03, rtol=0.03)
