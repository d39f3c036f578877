import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from msrn.metrics import average_precision, calibration_error, calibration_from_dict, fit_calibration, reliability
from msrn.metrics.calibration import METHODS, PiecewiseLinear, ScaledLogits


def overconfident(seed: int, num_images: int, num_labels: int = 6) -> tuple[Tensor, Tensor]:
    """Logits twice as sure as they should be, and shifted."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(-1.5, 1.5, size=(num_images, num_labels))
    target = rng.random((num_images, num_labels)) < 1 / (1 + np.exp(-true_logits))
    return torch.from_numpy(2 * true_logits + 0.8), torch.from_numpy(target.astype(np.int64))


@pytest.mark.parametrize("method", METHODS)
def test_error_falls_on_other_images(method: str) -> None:
    calibration = fit_calibration(*overconfident(0, 2_000), method)
    logits, target = overconfident(1, 20_000)
    before, after = calibration_error(logits.sigmoid(), target), calibration_error(calibration(logits), target)
    assert after["ECE"] < (0.7 if method == "temperature" else 0.2) * before["ECE"]
    assert after["ECE_by_label"] < (0.7 if method == "temperature" else 0.3) * before["ECE_by_label"]


@pytest.mark.parametrize("method", METHODS)
def test_rankings_stay_as_they_are(method: str) -> None:
    calibration = fit_calibration(*overconfident(0, 300), method)
    logits, target = overconfident(2, 2_000)
    raw, calibrated = average_precision(logits.sigmoid(), target), average_precision(calibration(logits), target)
    torch.testing.assert_close(calibrated, raw, atol=1e-9, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 40),
    method=st.sampled_from(METHODS),
    present=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    unknown=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.sampled_from([0.01, 1.0, 20.0]),
)
def test_any_images_give_probabilities_that_never_fall(
    seed: int, num_images: int, method: str, present: float, unknown: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(scale * rng.normal(size=(num_images, 3)))
    target = torch.from_numpy((rng.random((num_images, 3)) < present).astype(np.int64))
    target[torch.from_numpy(rng.random((num_images, 3)) < unknown)] = -1
    if not bool((target != -1).any()):
        target[0, 0] = 0
    calibration = fit_calibration(logits, target, method)
    rising = torch.linspace(-30, 30, 500).double().unsqueeze(1).expand(-1, 3)
    probs = calibration(rising)
    assert bool(((probs >= 0) & (probs <= 1)).all())
    assert bool(
        (probs.diff(dim=0) >= -torch.finfo(torch.float64).eps).all()
    )  # sigmoids of equal numbers differ by rounding
    # What is stored is what was fitted.
    again = calibration_from_dict(json.loads(json.dumps(calibration.to_dict())), 3)
    assert torch.equal(again(logits), calibration(logits))


def test_platt_is_logistic_regression() -> None:
    logits, target = overconfident(3, 1_000, 2)
    fitted = fit_calibration(logits, target, "platt", prior_strength=1e-9)
    assert isinstance(fitted, ScaledLogits)
    for label in range(2):
        expected = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, [label]].numpy(), target[:, label].numpy())
        assert fitted.scales[label] == pytest.approx(expected.coef_.item(), rel=1e-4)
        assert fitted.offsets[label] == pytest.approx(expected.intercept_.item(), abs=1e-4)


def test_temperature_has_no_offset_and_finds_the_scale() -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0, 2, size=(20_000, 2))
    target = torch.from_numpy((rng.random((20_000, 2)) < 1 / (1 + np.exp(-true_logits))).astype(np.int64))
    fitted = fit_calibration(torch.from_numpy(true_logits * [3.0, 0.5]), target)
    assert isinstance(fitted, ScaledLogits)
    assert fitted.offsets == (0.0, 0.0)
    assert fitted.scales == pytest.approx((1 / 3, 2.0), rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_label_without_images_of_its_own_takes_the_common_calibration(method: str) -> None:
    logits, target = overconfident(4, 3_000, 3)
    target[:, 2] = -1
    fitted = fit_calibration(logits, target, method)
    at = torch.linspace(-4, 4, 9).double().unsqueeze(1).expand(-1, 3)
    probs = fitted(at)
    torch.testing.assert_close(probs[:, 2], probs[:, :2].mean(1), atol=0.05, rtol=0)


def test_knots_are_few_and_rise() -> None:
    fitted = fit_calibration(*overconfident(5, 5_000), "isotonic")
    assert isinstance(fitted, PiecewiseLinear)
    for logits, probs in zip(fitted.logits, fitted.probs, strict=True):
        assert 3 <= len(logits) == len(probs) <= 66
        assert list(logits) == sorted(set(logits))
        assert list(probs) == sorted(set(probs))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 60))
def test_error_is_that_of_torchmetrics(seed: int, num_images: int) -> None:
    rng = np.random.default_rng(seed)
    preds = torch.from_numpy(rng.random((num_images, 2))).float()
    target = torch.from_numpy((rng.random((num_images, 2)) < 0.5).astype(np.int64))
    expected = binary_calibration_error(preds.flatten(), target.flatten(), n_bins=15)
    assert calibration_error(preds, target)["ECE"] == pytest.approx(float(expected), abs=1e-5)


def test_unknown_entries_are_in_no_bin() -> None:
    preds, target = torch.tensor([[0.9, 0.2], [0.8, 0.7]]), torch.tensor([[1, -1], [-1, -1]])
    found = reliability(preds, target, num_bins=10)
    assert found.counts.sum() == 1
    assert found.error == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "magic"}, "'magic' is no calibration; expected temperature, platt, isotonic."),
        ({"method": "platt", "scales": [1.0]}, "scales must be a list of 2 numbers."),
        ({"method": "platt", "scales": [1.0, -1.0], "offsets": [0.0, 0.0]}, "scales must be above 0, got -1.0."),
        (
            {"method": "platt", "scales": [1.0, 1.0], "offsets": [0.0, None]},
            "offsets must hold finite numbers alone.",
        ),
        ({"method": "isotonic", "logits": [[0.0]]}, "logits must hold one list for each of 2 labels."),
        (
            {"method": "isotonic", "logits": [[0.0, 0.0]] * 2, "probs": [[0.0, 1.0]] * 2},
            "the knots of isotonic calibration must rise, and their probabilities lie between 0 and 1.",
        ),
        (
            {"method": "isotonic", "logits": [[0.0, 1.0]] * 2, "probs": [[0.9, 0.9]] * 2},
            "the knots of isotonic calibration must rise, and their probabilities lie between 0 and 1.",
        ),
    ],
)
def test_damaged_calibrations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        calibration_from_dict(values, 2)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"'beta' is no calibration. Take temperature, platt, isotonic."):
        fit_calibration(torch.zeros(2, 1), torch.tensor([[1], [0]]), "beta")
    with pytest.raises(ValueError, match="logits must be finite"):
        fit_calibration(torch.tensor([[float("nan")]]), torch.tensor([[1]]))
