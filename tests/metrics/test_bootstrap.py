import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from msrn.metrics import calibration_error, f1_scores, interval, mean_average_precision, resample_metrics


def case(seed: int, num_images: int, num_labels: int = 3, decimals: int = 1) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    target = (rng.random((num_images, num_labels)) < 0.4).astype(np.int64)
    target[rng.random((num_images, num_labels)) < 0.2] = -1
    return torch.from_numpy(rng.random((num_images, num_labels)).round(decimals)), torch.from_numpy(target)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 20), decimals=st.sampled_from([0, 1, 6]))
def test_every_resample_is_measured_as_its_images_would_be(seed: int, num_images: int, decimals: int) -> None:
    preds, target = case(seed, num_images, decimals=decimals)
    found = resample_metrics(
        preds, target, threshold=torch.tensor([0.3, 0.5, 0.6]).double(), num_resamples=4, seed=seed
    )
    rng = np.random.default_rng(seed)
    for number in range(4):
        drawn = torch.from_numpy(rng.integers(num_images, size=num_images))
        own_preds, own_target = preds[drawn], target[drawn]
        for label in range(3):
            known = own_target[:, label] != -1
            if (own_target[:, label] == 1).any():
                expected = average_precision_score(own_target[known, label], own_preds[known, label])
                assert float(found.average_precision[number, label]) == pytest.approx(expected, abs=1e-5)
            else:
                assert found.average_precision[number, label].isnan()
        assert float(found.mAP[number]) == pytest.approx(
            float(mean_average_precision(own_preds, own_target)), abs=1e-5, nan_ok=True
        )
        if bool((own_target == 1).any()):
            scores = f1_scores(own_preds, own_target, threshold=torch.tensor([0.3, 0.5, 0.6]).double())
            assert float(found.CF1[number]) == pytest.approx(scores.CF1, abs=1e-5)
            assert float(found.OF1[number]) == pytest.approx(scores.OF1, abs=1e-5)
            present = (own_target == 1).any(0)
            predicted = (own_preds >= torch.tensor([0.3, 0.5, 0.6])) & (own_target != -1)
            macro = [
                f1_score(own_target[own_target[:, label] != -1, label], predicted[own_target[:, label] != -1, label])
                for label in range(3)
                if present[label]
            ]
            assert float(found.macro_F1[number]) == pytest.approx(np.mean(macro), abs=1e-5)
        assert float(found.ECE[number]) == pytest.approx(
            calibration_error(own_preds, own_target)["ECE"], abs=1e-9, nan_ok=True
        )


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """95 % intervals of 200 images each, against the value on 50,000."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        target = rng.random((count, 2)) < 0.3
        return torch.from_numpy(rng.normal(size=(count, 2)) + 1.5 * target).sigmoid(), torch.from_numpy(
            target.astype(np.int64)
        )

    truth = float(mean_average_precision(*draw(50_000)))
    held = 0
    for _ in range(100):
        low, high = interval(resample_metrics(*draw(200), num_resamples=200).mAP)
        held += float(low) <= truth <= float(high)
    assert 88 <= held <= 100


def test_intervals_hold_the_estimate_with_many_rare_labels() -> None:
    """Images that are drawn twice move every resample of many labels the same way, further than they spread."""
    rng = np.random.default_rng(0)
    target = rng.random((400, 300)) < np.geomspace(0.2, 0.01, 300)
    target[0] = True
    preds = torch.from_numpy(rng.normal(size=target.shape) + 2.0 * target - 1.5).sigmoid()
    known = torch.from_numpy(target.astype(np.int64))
    found = resample_metrics(preds, known, num_resamples=60)
    f1 = f1_scores(preds, known)
    for values, estimate in (
        (found.mAP, float(mean_average_precision(preds, known))),
        (found.CF1, f1.CF1),
        (found.OF1, f1.OF1),
        (found.ECE, calibration_error(preds, known)["ECE"]),
    ):
        low, high = interval(values, estimate)
        assert float(low) < estimate < float(high)
    raw_low, _ = interval(found.CF1)
    assert float(interval(found.CF1, f1.CF1)[0]) == pytest.approx(float(raw_low) + f1.CF1 - float(found.CF1.mean()))


def test_the_level_is_the_share_that_lies_inside() -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double()
    low, high = interval(values)
    assert float(((values >= low) & (values <= high)).double().mean()) == pytest.approx(0.95, abs=0.001)


def test_resamples_without_positives_say_nothing() -> None:
    preds, target = torch.tensor([[0.9], [0.2]]), torch.tensor([[0], [0]])
    found = resample_metrics(preds, target, num_resamples=5)
    assert bool(found.CF1.isnan().all() and found.OF1.isnan().all() and found.macro_F1.isnan().all())
    assert bool(found.ECE.isfinite().all())


def test_the_same_seed_draws_the_same_images_for_two_models() -> None:
    preds, target = case(0, 50, decimals=6)
    one, other = resample_metrics(preds, target, seed=3), resample_metrics(preds, target, seed=3)
    assert torch.equal(one.mAP, other.mAP)
    # A model that is a little worse everywhere is worse in every resample, though the intervals overlap.
    worse = resample_metrics(torch.where(target == 1, preds * 0.9, preds), target, seed=3)
    assert bool((worse.mAP <= one.mAP).all())
    assert float(interval(worse.mAP)[1]) > float(interval(one.mAP)[0])


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="resampling needs images and a resample, got 0 and 200"):
        resample_metrics(torch.zeros(0, 2), torch.zeros(0, 2, dtype=torch.long))
