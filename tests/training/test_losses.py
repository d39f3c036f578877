import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.training.losses import multilabel_soft_margin_loss


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 5), num_labels=st.integers(1, 5))
def test_equals_a_plain_loop_over_known_labels(seed: int, num_images: int, num_labels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_images, num_labels, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, 2, (num_images, num_labels), generator=generator)
    losses = [
        -math.log(1 / (1 + math.exp(-logit))) if label == 1 else -math.log(1 / (1 + math.exp(logit)))
        for logit, label in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
        if label != -1
    ]
    expected = sum(losses) / len(losses) if losses else 0.0
    assert multilabel_soft_margin_loss(logits, target).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_equals_torch_where_every_label_is_known(dtype: torch.dtype) -> None:
    logits, target = torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    expected = torch.nn.functional.multilabel_soft_margin_loss(logits, target.float())
    torch.testing.assert_close(multilabel_soft_margin_loss(logits, target.to(dtype)), expected)


def test_unknown_labels_get_no_gradient_whatever_their_logit() -> None:
    logits = torch.tensor([[1.0, math.inf], [2.0, -3.0]], requires_grad=True)
    loss = multilabel_soft_margin_loss(logits, torch.tensor([[1, -1], [0, -1]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad[:, 1].tolist() == [0.0, 0.0]
    assert logits.grad[:, 0].all()


def test_all_unknown_is_zero_with_zero_gradients() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = multilabel_soft_margin_loss(logits, torch.full((2, 3), -1))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1000.0, -1000.0]])
    assert multilabel_soft_margin_loss(logits, torch.tensor([[1, 0]])) == 0
    assert multilabel_soft_margin_loss(logits, torch.tensor([[0, 1]])) == 1000


def test_mixed_targets_are_weights_and_unknown_ones_stay_out() -> None:
    logits = torch.tensor([[0.3, -2.0, 5.0]])
    loss = multilabel_soft_margin_loss(logits, torch.tensor([[0.25, 1.0, -1.0]]))
    shown = -torch.nn.functional.logsigmoid(logits[0])
    absent = -torch.nn.functional.logsigmoid(-logits[0])
    torch.testing.assert_close(loss, (0.25 * shown[0] + 0.75 * absent[0] + shown[1]) / 2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_whole_numbers_and_fractions_that_are_whole_are_one(dtype: torch.dtype) -> None:
    logits, target = torch.randn(4, 5), torch.randint(-1, 2, (4, 5))
    assert torch.equal(
        multilabel_soft_margin_loss(logits, target.to(dtype)), multilabel_soft_margin_loss(logits, target.float())
    )
