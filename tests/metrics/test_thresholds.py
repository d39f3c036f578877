import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from msrn.metrics import Objective, Thresholds, fit_calibration, fit_thresholds

PREVALENCE = np.geomspace(0.3, 0.004, 30)
SEPARATION = np.random.default_rng(7).uniform(1.5, 3.5, 30)


def long_tail(seed: int, num_images: int) -> tuple[Tensor, Tensor]:
    """Probabilities of 30 labels, of which the rarest is in 4 of 1,000 images; too sure of themselves, each in its own way."""
    rng = np.random.default_rng(seed)
    present = rng.random((num_images, 30)) < PREVALENCE
    logits = (
        0.8 * np.log(PREVALENCE / (1 - PREVALENCE)) + present * SEPARATION + 1.2 * rng.normal(size=(num_images, 30))
    )
    return torch.from_numpy(1.7 * logits).sigmoid(), torch.from_numpy(present.astype(np.int64))


def f1_of(predicted: np.ndarray, target: np.ndarray) -> float:
    present = target == 1
    return float(2 * (predicted & present).sum() / max(1, (predicted & (target != -1)).sum() + present.sum()))


def macro_f1(preds: Tensor, target: Tensor, thresholds: Thresholds | float) -> float:
    values = thresholds.values if isinstance(thresholds, Thresholds) else (thresholds,) * preds.shape[1]
    columns = zip(preds.T.numpy(), target.T.numpy(), values, strict=True)
    return float(np.mean([f1_of(p >= value, t) for p, t, value in columns if (t == 1).any()]))


def fit_if_in_reach(preds: Tensor, target: Tensor, objective: str) -> Thresholds:
    """The thresholds; on images where no threshold meets the objective the example ends."""
    try:
        return fit_thresholds(preds, target, objective, min_positives=1)
    except ValueError as error:
        assume("no threshold reaches" not in str(error))
        raise


def small_cases() -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    def case(seed: int, num_images: int, num_labels: int, decimals: int, unknown: float) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        target = (rng.random((num_images, num_labels)) < 0.4).astype(np.int64)
        target[rng.random((num_images, num_labels)) < unknown] = -1
        target[0, 0] = 1
        return torch.from_numpy(rng.random((num_images, num_labels)).round(decimals)), torch.from_numpy(target)

    return st.builds(
        case,
        seed=st.integers(0, 2**32 - 1),
        num_images=st.integers(1, 14),
        num_labels=st.integers(1, 4),
        decimals=st.sampled_from([0, 1, 6]),
        unknown=st.sampled_from([0.0, 0.3, 0.9]),
    )


@settings(deadline=None, max_examples=60)
@given(case=small_cases())
def test_unshrunk_f1_thresholds_are_the_best_of_all(case: tuple[Tensor, Tensor]) -> None:
    preds, target = case
    fitted = fit_thresholds(preds, target, min_positives=1, shrinkage=0)
    for label, (p, t) in enumerate(zip(preds.T.numpy(), target.T.numpy(), strict=True)):
        if (t == 1).any():
            best = max(f1_of(p >= value, t) for value in p[t != -1])
            assert f1_of(p >= fitted.values[label], t) == pytest.approx(best)
        else:
            assert fitted.is_shared[label]
            assert fitted.values[label] == fitted.shared


@settings(deadline=None, max_examples=60)
@given(case=small_cases(), recall=st.sampled_from([0.3, 0.5, 0.8]))
def test_recall_threshold_is_the_highest_that_survives_one_more_miss(
    case: tuple[Tensor, Tensor], recall: float
) -> None:
    preds, target = case
    fitted = fit_if_in_reach(preds, target, f"recall={recall}")
    for p, t, value, is_shared in zip(preds.T.numpy(), target.T.numpy(), fitted.values, fitted.is_shared, strict=True):
        positives = np.sort(p[t == 1])[::-1]
        needed = math.ceil(recall * (len(positives) + 1) - 1e-9)
        if needed > len(positives) or not len(positives):
            assert is_shared
            continue
        # Exactly the images from the needed positive upwards.
        np.testing.assert_array_equal((p >= value)[t != -1], (p >= positives[needed - 1])[t != -1])


@settings(deadline=None, max_examples=60)
@given(case=small_cases(), precision=st.sampled_from([0.3, 0.5, 0.7]))
def test_precision_threshold_leaves_room_for_a_false_alarm(case: tuple[Tensor, Tensor], precision: float) -> None:
    preds, target = case
    fitted = fit_if_in_reach(preds, target, f"precision={precision}")
    for p, t, value, is_shared in zip(preds.T.numpy(), target.T.numpy(), fitted.values, fitted.is_shared, strict=True):
        if not is_shared and value <= 1:
            predicted = (p >= value) & (t != -1)
            assert (predicted & (t == 1)).sum() / (predicted.sum() + 1) >= precision - 1e-12


def test_unknown_images_and_their_order_change_nothing() -> None:
    preds, target = long_tail(0, 400)
    fitted = fit_thresholds(preds, target, shrinkage=10)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    more = torch.cat([preds, torch.rand(50, 30).double()])[torch.cat([order, torch.arange(400, 450)])]
    unknown = torch.cat([target, torch.full((50, 30), -1)])[torch.cat([order, torch.arange(400, 450)])]
    again = fit_thresholds(more, unknown, shrinkage=10)
    assert again.values == pytest.approx(fitted.values, abs=1e-9)
    assert again.is_shared == fitted.is_shared


def test_rare_labels_take_the_shared_threshold_and_are_named() -> None:
    preds, target = long_tail(1, 500)
    fitted = fit_thresholds(preds, target, min_positives=20)
    rare = ((target == 1).sum(0) < 20).tolist()
    assert 0 < sum(rare) < 30
    assert list(fitted.is_shared) == rare
    names = [f"label {number}" for number in range(30)]
    assert fitted.shared_labels(names) == [name for name, is_rare in zip(names, rare, strict=True) if is_rare]
    assert all(value == fitted.shared for value, is_rare in zip(fitted.values, rare, strict=True) if is_rare)


@pytest.mark.slow
def test_fitted_beats_fixed_and_naive_on_a_long_tail() -> None:
    """Mean over 20 resamples of 1,000 validation images, measured on 20,000 others."""
    gains_fixed, gains_naive = [], []
    for seed in range(20):
        preds, target = long_tail(100 + seed, 1_000)
        test = long_tail(1_000 + seed, 20_000)
        fitted = macro_f1(*test, fit_thresholds(preds, target))
        gains_fixed.append(fitted - macro_f1(*test, 0.5))
        gains_naive.append(fitted - macro_f1(*test, fit_thresholds(preds, target, min_positives=1, shrinkage=0)))
    assert np.mean(gains_fixed) > 0.02
    assert np.mean(gains_naive) > 0.003
    assert np.mean(np.array(gains_naive) > 0) >= 0.75


def test_precision_and_recall_are_met_on_other_images() -> None:
    precisions: list[float] = []
    recalls: list[float] = []
    crossfits: list[float] = []
    for seed in range(20):
        preds, target = long_tail(200 + seed, 1_000)
        test_preds, test_target = long_tail(2_000 + seed, 20_000)
        precise = fit_thresholds(preds, target, "precision=0.9")
        predicted = test_preds >= precise.tensor()
        precisions.append(float((predicted & (test_target == 1)).sum() / predicted.sum()))
        crossfits.append(precise.crossfit or 0.0)
        complete = test_preds >= fit_thresholds(preds, target, "recall=0.8").tensor()
        recalls.append(float((complete & (test_target == 1)).sum() / (test_target == 1).sum()))
    assert np.mean(precisions) == pytest.approx(0.9, abs=0.02)
    assert np.mean(np.array(precisions) > 0.88) > 0.9
    assert np.mean(crossfits) == pytest.approx(np.mean(precisions), abs=0.01)
    assert np.mean(recalls) == pytest.approx(0.8, abs=0.02)


def test_a_label_that_cannot_reach_the_precision_is_never_predicted_and_lends_nobody_its_threshold() -> None:
    """A label of pure noise with many positives, beside good ones and rare ones."""
    rng = np.random.default_rng(0)
    target = (rng.random((2_000, 12)) < 0.1).astype(np.int64)
    target[:, 10:] = rng.random((2_000, 2)) < 0.002
    logits = torch.from_numpy(8 * target - 4.0 + rng.normal(size=target.shape))
    logits[:, 0] = torch.from_numpy(rng.normal(size=2_000) + 3)
    preds = logits.sigmoid()
    fitted = fit_thresholds(preds, torch.from_numpy(target), "precision=0.9", min_positives=5)
    assert fitted.is_out_of_reach[:10] == (True, *(False,) * 9)
    assert not bool((preds[:, 0] >= fitted.values[0]).any())
    assert not bool((torch.ones(1, dtype=torch.float64) >= fitted.values[0]).any())
    assert fitted.is_shared == ((False,) * 10 + (True,) * 2)
    for label in range(1, 10):
        predicted = (preds[:, label] >= fitted.values[label]).numpy()
        assert target[predicted, label].mean() >= 0.9


def test_precision_is_raised_where_cross_fitting_falls_short() -> None:
    """Labels whose curves are ragged: the lowest threshold that reaches the precision by luck does not reach it elsewhere."""
    achieved, plain = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)

        def draw(count: int, rng: np.random.Generator = rng) -> tuple[Tensor, Tensor]:
            target = rng.random((count, 40)) < 0.25
            return torch.from_numpy(1.6 * target + rng.normal(size=target.shape)).sigmoid(), torch.from_numpy(
                target.astype(np.int64)
            )

        (preds, target), (test_preds, test_target) = draw(120), draw(5_000)
        for collected, margins in ((achieved, None), (plain, (0.0,))):
            with pytest.MonkeyPatch.context() as patch:
                if margins is not None:
                    patch.setattr("msrn.metrics.thresholds._MARGINS", margins)
                fitted = fit_thresholds(preds, target, "precision=0.75")
            predicted = test_preds >= fitted.tensor()
            collected.append(float((predicted & (test_target == 1)).sum() / predicted.sum()))
    assert np.mean(plain) < 0.745
    assert np.mean(achieved) > np.mean(plain) + 0.01


def test_of_strengths_that_do_alike_the_strongest_is_taken() -> None:
    """On images where every strength does alike but for noise, thresholds are those of the probabilities alone."""
    preds, target = long_tail(8, 600)
    chosen, strongest = fit_thresholds(preds, target), fit_thresholds(preds, target, shrinkage=math.inf)
    weakest = fit_thresholds(preds, target, shrinkage=0)

    def distance(one: Thresholds, other: Thresholds) -> float:
        return float((one.tensor().logit() - other.tensor().logit()).abs().mean())

    assert distance(chosen, strongest) < 0.5 * distance(chosen, weakest)


@pytest.mark.slow
@pytest.mark.parametrize("calibration", ["platt", "isotonic"])
def test_cross_fitting_knows_nothing_of_the_images_left_out(calibration: str) -> None:
    """What it says of macro F1 is what other images show, also where probabilities are calibrated on the same images."""
    said, shown, plain = [], [], []
    for seed in range(8):
        preds, target = long_tail(300 + seed, 500)
        test_preds, test_target = long_tail(3_000 + seed, 10_000)
        fitted = fit_thresholds(preds, target, calibration=calibration)
        calibrate = fit_calibration(preds.logit(), target, calibration)
        said.append(fitted.crossfit or 0.0)
        shown.append(macro_f1(calibrate(test_preds.logit()), test_target, fitted))
        plain.append(macro_f1(test_preds, test_target, fit_thresholds(preds, target)))
    assert np.mean(said) < np.mean(shown) + 0.015
    assert np.mean(shown) > np.mean(plain) - 0.01


def test_few_images_believe_the_probabilities() -> None:
    preds, target = long_tail(5, 4)
    target[0, :] = 1
    few = fit_thresholds(preds, target, min_positives=1)
    assert few.crossfit is None
    assert few.values == fit_thresholds(preds, target, min_positives=1, shrinkage=math.inf).values


def test_labels_objective_gives_that_many_labels_each_in_proportion() -> None:
    preds, target = long_tail(3, 4_000)
    predicted = preds >= fit_thresholds(preds, target, "labels=2").tensor()
    assert float(predicted.sum() / 4_000) == pytest.approx(2, abs=0.02)
    share = (predicted.sum(0) / target.sum(0)).numpy()
    np.testing.assert_allclose(share, 2 / (float(target.sum()) / 4_000), rtol=0.1)


@pytest.mark.parametrize("labels", [3, 10, 25, 30])
def test_labels_objective_gives_that_many_also_where_some_are_on_every_image(labels: int) -> None:
    preds, target = long_tail(3, 1_000)
    predicted = preds >= fit_thresholds(preds, target, f"labels={labels}", min_positives=1).tensor()
    assert float(predicted.sum() / 1_000) == pytest.approx(labels, rel=0.02)


def test_more_shrinkage_means_less_noise() -> None:
    preds, target = long_tail(4, 600)
    halves = [(preds[part], target[part]) for part in (slice(0, 300), slice(300, 600))]

    def distance(shrinkage: float) -> float:
        first, second = (
            fit_thresholds(*half, min_positives=2, shrinkage=shrinkage).tensor().logit() for half in halves
        )
        return float((first - second).abs().mean())

    assert distance(math.inf) < 0.85 * distance(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f2", "'f2' is no objective. Take f1, precision=0.9, recall=0.8 or labels=3."),
        ("f1=0.9", "f1 takes no value, got 0.9. Write f1 alone."),
        ("precision", "precision needs a number above 0, such as precision=0.9."),
        ("precision=1", "precision is a fraction below 1, got 1. Write precision=0.9."),
        ("recall=80", "recall is a fraction below 1, got 80. Write recall=0.8."),
        ("recall=most", "'most' is no number. Write recall=0.8."),
        ("labels=-1", "labels needs a number above 0, such as labels=3."),
        ("labels=nan", "labels needs a number above 0, such as labels=3."),
    ],
)
def test_wrong_objectives_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Objective.parse(text)


def test_what_cannot_be_fitted_is_said() -> None:
    preds = torch.tensor([[0.9], [0.1]])
    with pytest.raises(ValueError, match="no label is present in any image"):
        fit_thresholds(preds, torch.tensor([[0], [-1]]))
    with pytest.raises(ValueError, match=r"no threshold reaches precision 0.9 on these 2 images\. Ask for less"):
        fit_thresholds(preds, torch.tensor([[1], [0]]), "precision=0.9")
    with pytest.raises(
        ValueError, match=r"no threshold reaches labels 0\.0001 on these 2 images\. Ask for more labels"
    ):
        fit_thresholds(preds, torch.tensor([[1], [0]]), "labels=0.0001")
    with pytest.raises(ValueError, match=r"an image cannot have 3 of 1 labels"):
        fit_thresholds(preds, torch.tensor([[1], [0]]), "labels=3")
    with pytest.raises(ValueError, match="shrinkage is a number of positives"):
        fit_thresholds(preds, torch.tensor([[1], [0]]), shrinkage=-1)
    with pytest.raises(ValueError, match="min_positives is at least 1"):
        fit_thresholds(preds, torch.tensor([[1], [0]]), min_positives=0)
