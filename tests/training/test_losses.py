import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from msrn.training.losses import (
    LossSettings,
    MultilabelLoss,
    asymmetric_loss,
    focal_loss,
    multilabel_soft_margin_loss,
    positive_weights,
)

LOSSES = {
    "soft margin": multilabel_soft_margin_loss,
    "focal": focal_loss,
    "focal, plain": lambda logits, target, **weights: focal_loss(logits, target, gamma=0.5, alpha=None, **weights),
    "asymmetric": asymmetric_loss,
    "asymmetric, both": lambda logits, target, **weights: asymmetric_loss(
        logits, target, gamma_neg=0.5, gamma_pos=0.5, clip=0.2, **weights
    ),
    "asymmetric, unclipped": lambda logits, target, **weights: asymmetric_loss(
        logits, target, gamma_pos=1, clip=0, **weights
    ),
    "asymmetric, detached": lambda logits, target, **weights: asymmetric_loss(
        logits, target, gamma_pos=1, has_focus_gradient=False, **weights
    ),
}
any_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def by_loop(one, logits, target, weights):
    """The mean over known labels of `one(probability, is_present)`, in plain Python."""
    losses = []
    for logit_row, target_row in zip(logits.tolist(), target.tolist(), strict=True):
        for logit, label, weight in zip(logit_row, target_row, weights.tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            if label != -1:
                losses.append(label * weight * one(p, True) + (1 - label) * one(p, False))
    return sum(losses) / len(losses) if losses else 0.0


def cross_entropy(p, is_present):
    return -math.log(p if is_present else 1 - p)


def focal(p, is_present):
    right = p if is_present else 1 - p
    return (0.25 if is_present else 0.75) * (1 - right) ** 2 * cross_entropy(p, is_present)


def asymmetric(p, is_present):
    if is_present:
        return (1 - p) * -math.log(p)
    q = max(p - 0.05, 0)
    return q**4 * -math.log(1 - q)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 5), num_labels=st.integers(1, 5), is_mixed=st.booleans()
)
def test_every_loss_equals_a_plain_loop_over_known_labels(
    seed: int, num_images: int, num_labels: int, is_mixed: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_images, num_labels, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, 2, (num_images, num_labels), generator=generator)
    if is_mixed:
        target = torch.where(target < 0, -1.0, torch.rand(num_images, num_labels, generator=generator).double())
    weights = 3 * torch.rand(num_labels, generator=generator).double()
    ones = torch.ones(num_labels)
    for loss, one in (
        (multilabel_soft_margin_loss, cross_entropy),
        (focal_loss, focal),
        (lambda *args, **kwargs: asymmetric_loss(*args, gamma_pos=1, **kwargs), asymmetric),
    ):
        assert loss(logits, target).item() == pytest.approx(by_loop(one, logits, target, ones), abs=1e-12)
        weighed = loss(logits, target, positive_weights=weights).item()
        assert weighed == pytest.approx(by_loop(one, logits, target, weights), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(LOSSES)))
def test_unknown_labels_change_neither_loss_nor_gradient(seed: int, name: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(-1, 2, (4, 3), generator=generator)
    results = []
    for other in (torch.randn(4, 3, generator=generator), torch.full((4, 3), math.inf), torch.full((4, 3), math.nan)):
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        logits = torch.where(target < 0, other, logits).requires_grad_()
        loss = LOSSES[name](logits, target, positive_weights=torch.tensor([0.5, 1.0, 2.0]))
        loss.backward()
        assert not logits.grad[target < 0].any()
        results.append((loss.detach(), logits.grad))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"asymmetric, detached"}))
def test_gradients_are_those_of_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, 2, (4, 3), generator=generator)
    assert torch.autograd.gradcheck(lambda values: LOSSES[name](values, target), logits.requires_grad_())


@any_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_are_finite_with_finite_gradients(loss, dtype: torch.dtype) -> None:
    size = 6e4 if dtype == torch.float16 else 1e30
    row = [0.0, 20.0, 100.0, 1000.0, size]
    logits = torch.tensor([row, [-value for value in row]] * 3, dtype=dtype, requires_grad=True)  # (6, 5)
    target = torch.tensor([[1.0] * 5] * 2 + [[0.0] * 5] * 2 + [[0.3] * 5] * 2)
    total = loss(logits, target)
    total.backward()
    assert total.dtype == torch.float32
    assert total.isfinite()
    assert logits.grad.isfinite().all()


@any_loss
def test_all_unknown_is_zero_with_zero_gradients(loss) -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    total = loss(logits, torch.full((2, 3), -1))
    total.backward()
    assert total == 0
    assert not logits.grad.any()


@any_loss
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_whole_numbers_and_fractions_that_are_whole_are_one(loss, dtype: torch.dtype) -> None:
    logits, target = torch.randn(4, 5), torch.randint(-1, 2, (4, 5))
    assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target.float()))


# Soft margin


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
def test_soft_margin_equals_torch_where_every_label_is_known(dtype: torch.dtype) -> None:
    logits, target = torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    expected = F.multilabel_soft_margin_loss(logits, target.float())
    torch.testing.assert_close(multilabel_soft_margin_loss(logits, target.to(dtype)), expected)
    weights = torch.rand(5)
    expected = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, target.float())
    torch.testing.assert_close(
        multilabel_soft_margin_loss(logits, target.to(dtype), positive_weights=weights), expected
    )


def test_soft_margin_of_large_logits_is_exact() -> None:
    logits = torch.tensor([[1000.0, -1000.0]])
    assert multilabel_soft_margin_loss(logits, torch.tensor([[1, 0]])) == 0
    assert multilabel_soft_margin_loss(logits, torch.tensor([[0, 1]])) == 1000


# Focal


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.5, 0.6), (2.0, None), (0.0, None)])
def test_focal_loss_equals_torchvision(gamma: float, alpha: float | None) -> None:
    from torchvision.ops import sigmoid_focal_loss

    logits, target = 3 * torch.randn(4, 5), torch.randint(0, 2, (4, 5))
    given_alpha = -1 if alpha is None else alpha
    expected = sigmoid_focal_loss(logits, target.float(), alpha=given_alpha, gamma=gamma, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, target, gamma=gamma, alpha=alpha), expected)


# Asymmetric


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_asymmetric_loss_without_focus_and_clip_is_the_soft_margin(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(4, 5, generator=generator)
    target = torch.randint(-1, 2, (4, 5), generator=generator)
    gradients = []
    for loss in (
        multilabel_soft_margin_loss,
        lambda *args: asymmetric_loss(*args, gamma_neg=0, gamma_pos=0, clip=0),
        lambda *args: focal_loss(*args, gamma=0, alpha=None),
    ):
        values = logits.clone().requires_grad_()
        total = loss(values, target)
        total.backward()
        gradients.append((total.detach(), values.grad))
    for total, gradient in gradients[1:]:
        torch.testing.assert_close(total, gradients[0][0])
        torch.testing.assert_close(gradient, gradients[0][1])


def test_absent_labels_below_the_clip_are_left_out() -> None:
    logits = torch.logit(torch.tensor([[0.01, 0.049, 0.051, 0.9]])).requires_grad_()
    asymmetric_loss(logits, torch.zeros(1, 4)).backward()
    assert (logits.grad != 0).tolist() == [[False, False, True, True]]


def test_a_detached_focus_only_weighs_the_gradient_of_the_cross_entropy() -> None:
    logits = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    values = logits.clone().requires_grad_()
    options = {"gamma_neg": 2, "gamma_pos": 1, "clip": 0.1}
    loss = asymmetric_loss(values, torch.tensor([[1, 0]]), has_focus_gradient=False, **options)
    torch.testing.assert_close(loss, asymmetric_loss(logits, torch.tensor([[1, 0]]), **options))
    loss.backward()
    p, q = torch.sigmoid(logits[0]).tolist()
    expected = [(1 - p) * -(1 - p) / 2, (q - 0.1) ** 2 * q * (1 - q) / (1 - q + 0.1) / 2]
    assert values.grad[0].tolist() == pytest.approx(expected)


# Weights of labels


def test_weights_follow_known_counts() -> None:
    target = torch.zeros(100, 4, dtype=torch.int8)
    target[:50, 0] = 1
    target[:2, 1] = 1
    target[:, 2] = -1
    target[:2, 2] = torch.tensor([1, 0])  # half of what is known, as often as the first label
    inverse = positive_weights(target, "inverse")
    assert inverse[0] == inverse[2]
    assert (inverse[1] / inverse[0]).item() == pytest.approx(25)
    assert inverse[3] == 1  # never present
    root = positive_weights(target, "sqrt")
    assert (root[1] / root[0]).item() == pytest.approx(5)
    effective = positive_weights(target, "effective", beta=0.9)
    assert (effective[1] / effective[0]).item() == pytest.approx((1 - 0.9**50) / (1 - 0.9**2))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rule=st.sampled_from(["inverse", "sqrt", "effective"]),
    num_images=st.integers(1, 30),
)
def test_present_labels_weigh_as_much_together_as_without(seed: int, rule: str, num_images: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(-1, 2, (num_images, 6), generator=generator)
    weights = positive_weights(target, rule)
    present = (target == 1).sum(dim=0)
    assert (weights > 0).all()
    assert (present * weights).sum().item() == pytest.approx(present.sum().item(), rel=1e-5)
    assert (weights[present == 0] == 1).all()


def test_beta_leads_from_equal_weights_to_the_inverse() -> None:
    target = (
        torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5, 0.2, 0.1, 0.05, 0.02])
    ).int()
    equal = positive_weights(target, "effective", beta=1e-9)
    torch.testing.assert_close(equal, torch.ones(5))
    torch.testing.assert_close(
        positive_weights(target, "effective", beta=1 - 1e-9), positive_weights(target, "inverse")
    )


# Settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (LossSettings(), multilabel_soft_margin_loss),
        (LossSettings("focal", gamma=1, alpha=None), lambda *a, **k: focal_loss(*a, gamma=1, alpha=None, **k)),
        (
            LossSettings("asymmetric", gamma_neg=2, gamma_pos=1, clip=0.1, has_focus_gradient=False),
            lambda *a, **k: asymmetric_loss(*a, gamma_neg=2, gamma_pos=1, clip=0.1, has_focus_gradient=False, **k),
        ),
        (LossSettings(label_weights="effective", beta=0.9), multilabel_soft_margin_loss),
        (LossSettings("asymmetric", label_weights="sqrt"), asymmetric_loss),
    ],
)
def test_settings_reach_the_loss(given: LossSettings, expected) -> None:
    target = torch.randint(-1, 2, (20, 4), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(20, 4, requires_grad=True)
    weights = None
    if given.label_weights != "none":
        weights = positive_weights(target, given.label_weights, beta=given.beta)
    loss = MultilabelLoss(given, target)
    assert not loss.state_dict()  # weights follow from the data, so a checkpoint needs none
    assert loss.to(torch.float64).positive_weights is None or loss.positive_weights.dtype == torch.float64
    loss.float()
    (gradient,) = torch.autograd.grad(loss(logits, target), logits)
    (wanted,) = torch.autograd.grad(expected(logits, target, positive_weights=weights), logits)
    assert torch.equal(gradient, wanted)
