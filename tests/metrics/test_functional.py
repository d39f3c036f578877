import json
import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from msrn.metrics import functional
from msrn.metrics.functional import (
    average_precision,
    coverage_error,
    evaluate_predictions,
    f1_scores,
    label_ranking_average_precision,
    mean_average_precision,
    ranking_loss,
)

ALL_METRICS = [
    average_precision,
    mean_average_precision,
    f1_scores,
    coverage_error,
    label_ranking_average_precision,
    ranking_loss,
]


def random_case(
    seed: int, num_images: int, num_labels: int, *, decimals: int = 1, present: float = 0.4, unknown: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Probabilities rounded until they tie, and targets of which a share is unknown."""
    rng = np.random.default_rng(seed)
    preds = rng.random((num_images, num_labels)).round(decimals)
    target = (rng.random((num_images, num_labels)) < present).astype(np.int64)
    target[rng.random((num_images, num_labels)) < unknown] = -1
    return torch.from_numpy(preds), torch.from_numpy(target)


def cases() -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    return st.builds(
        random_case,
        seed=st.integers(0, 2**32 - 1),
        num_images=st.integers(1, 12),
        num_labels=st.integers(1, 8),
        decimals=st.sampled_from([0, 1, 6]),
        present=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        unknown=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    )


def average_precision_by_sklearn(preds: Tensor, target: Tensor) -> list[float]:
    result = []
    for p, t in zip(preds.T.numpy(), target.T.numpy(), strict=True):
        has_positives = bool((t == 1).any())
        result.append(sklearn_metrics.average_precision_score(t[t >= 0], p[t >= 0]) if has_positives else math.nan)
    return result


def ranking_by_sklearn(name: str, preds: Tensor, target: Tensor) -> float:
    """Row by row, without the unknown labels; scikit-learn refuses fewer than two labels, so those are spelled out."""
    values = []
    for p, t in zip(preds.numpy(), target.numpy(), strict=True):
        p, t = p[t >= 0], t[t >= 0]
        if len(t) == 1:
            values.append({"coverage_error": float(t[0]), "label_ranking_loss": 0.0}.get(name, 1.0))
        elif len(t):
            values.append(getattr(sklearn_metrics, name)(t[None], p[None]))
    return float(np.mean(values)) if values else math.nan


@settings(max_examples=80, deadline=None)
@given(case=cases())
def test_average_precision_equals_sklearn_label_by_label(case: tuple[Tensor, Tensor]) -> None:
    expected = average_precision_by_sklearn(*case)
    np.testing.assert_allclose(average_precision(*case), expected, atol=1e-12)
    known = [value for value in expected if not math.isnan(value)]
    mean = float(np.mean(known)) if known else math.nan
    np.testing.assert_allclose(mean_average_precision(*case), mean, atol=1e-12)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (coverage_error, "coverage_error"),
        (label_ranking_average_precision, "label_ranking_average_precision_score"),
        (ranking_loss, "label_ranking_loss"),
    ],
)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_rankings_equal_sklearn_row_by_row(metric, name: str, case: tuple[Tensor, Tensor]) -> None:
    np.testing.assert_allclose(metric(*case), ranking_by_sklearn(name, *case), atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(case=cases(), threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_f1_equals_sklearn(case: tuple[Tensor, Tensor], threshold: float) -> None:
    preds, target = case
    scores = f1_scores(preds, target, threshold=threshold)
    labels = [label for label in range(target.shape[1]) if (target[:, label] == 1).any()]
    if not labels:
        assert all(math.isnan(value) for value in scores)
        return
    known = (target >= 0).numpy()
    predicted = (preds >= threshold).numpy()
    overall = sklearn_metrics.precision_recall_fscore_support(
        target.numpy()[known], predicted[known], average="binary", zero_division=0
    )
    by_label = [
        sklearn_metrics.precision_recall_fscore_support(
            target.numpy()[known[:, i], i], predicted[known[:, i], i], average="binary", zero_division=0
        )[:2]
        for i in labels
    ]
    CP, CR = np.mean(by_label, axis=0)
    CF1 = 2 * CP * CR / (CP + CR) if CP + CR else 0.0
    np.testing.assert_allclose(scores, [CP, CR, CF1, *overall[:3]], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(case=cases(), top_k=st.integers(1, 9))
def test_top_k_predicts_the_highest_known_labels_in_label_order(case: tuple[Tensor, Tensor], top_k: int) -> None:
    preds, target = case
    predicted = torch.zeros_like(preds)
    for image in range(len(preds)):
        known = [label for label in range(preds.shape[1]) if target[image, label] != -1]
        for label in sorted(known, key=lambda label, image=image: -preds[image, label])[:top_k]:
            predicted[image, label] = 1
    np.testing.assert_equal(f1_scores(preds, target, top_k=top_k), f1_scores(predicted, target))


def test_top3_of_fewer_than_three_labels_predicts_all() -> None:
    scores = f1_scores(torch.tensor([[0.1, 0.2], [0.3, 0.0]]), torch.tensor([[1, 0], [1, -1]]), top_k=3)
    assert (scores.OP, scores.OR, scores.CP, scores.CR) == (2 / 3, 1.0, 1.0, 1.0)


def test_thresholds_per_label() -> None:
    preds, target = torch.tensor([[0.3, 0.6], [0.1, 0.4]]), torch.tensor([[1, 0], [0, 1]])
    scores = f1_scores(preds, target, threshold=torch.tensor([0.2, 0.4]))
    assert (scores.OP, scores.OR) == (2 / 3, 1.0)
    with pytest.raises(ValueError, match=r"2 numbers, one per label, got shape \(3,\)"), TypingOff():
        f1_scores(preds, target, threshold=torch.zeros(3))


def test_CF1_is_the_harmonic_mean_of_CP_and_CR() -> None:
    # Label 0: precision 1, recall 1/2. Label 1: precision 1/2, recall 1. The mean of their F1 would be 2/3.
    preds = torch.tensor([[0.9, 0.9], [0.1, 0.9]])
    scores = f1_scores(preds, torch.tensor([[1, 1], [1, 0]]))
    assert (scores.CP, scores.CR, scores.CF1) == (0.75, 0.75, 0.75)


def test_nothing_predicted_is_zero_precision() -> None:
    assert f1_scores(torch.tensor([[0.1, 0.2]]), torch.tensor([[1, 0]])) == (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_all_present() -> None:
    preds, target = torch.rand(5, 4), torch.ones(5, 4, dtype=torch.int8)
    assert average_precision(preds, target).tolist() == [1.0] * 4
    assert coverage_error(preds, target) == 4
    assert label_ranking_average_precision(preds, target) == 1
    assert ranking_loss(preds, target) == 0


def test_none_present() -> None:
    preds, target = torch.rand(5, 4), torch.zeros(5, 4, dtype=torch.int8)
    assert average_precision(preds, target).isnan().all()
    assert mean_average_precision(preds, target).isnan()
    assert coverage_error(preds, target) == 0
    assert label_ranking_average_precision(preds, target) == 1
    assert ranking_loss(preds, target) == 0


def test_one_image_with_a_single_label() -> None:
    preds, target = torch.tensor([[0.3]]), torch.tensor([[1]])
    assert average_precision(preds, target).tolist() == [1.0]
    assert coverage_error(preds, target) == 1


def test_images_without_a_known_label_are_left_out_of_rankings() -> None:
    preds, target = torch.tensor([[0.2, 0.8], [0.9, 0.1]]), torch.tensor([[1, 0], [-1, -1]])
    assert coverage_error(preds, target) == 2
    assert label_ranking_average_precision(preds, target) == 0.5
    assert ranking_loss(preds, target) == 1


def test_no_images() -> None:
    preds, target = torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int8)
    assert average_precision(preds, target).isnan().tolist() == [True] * 3
    for metric in ALL_METRICS[1:]:
        assert np.isnan(np.asarray(metric(preds, target))).all()


def test_perfect_ranking_is_exactly_one() -> None:
    # In float32, as torchmetrics computes it, some of these give 1.0000001 and some 0.9999999.
    for num_positive in range(1, 60):
        preds = torch.linspace(1, 0, num_positive + 5)[:, None]
        target = (torch.arange(num_positive + 5) < num_positive).long()[:, None]
        assert average_precision(preds, target).tolist() == [1.0]


def test_half_precision_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    preds, target = random_case(3, 50, 7)
    whole = [metric(preds, target) for metric in ALL_METRICS]
    monkeypatch.setattr(functional, "BLOCK_SIZE", 16)
    for expected, metric in zip(whole, ALL_METRICS, strict=True):
        np.testing.assert_allclose(metric(preds, target), expected, atol=1e-12)
        assert np.isfinite(np.asarray(metric(preds.half(), target.to(torch.int8)))).all()


def test_large_inputs() -> None:
    """A loop over pairs of labels would take minutes."""
    for num_images, num_labels in ((5_000, 80), (500, 1_000)):
        preds = torch.rand(num_images, num_labels)
        target = (torch.rand(num_images, num_labels) < 0.05).to(torch.int8)
        found = evaluate_predictions(preds, target, [str(label) for label in range(num_labels)])
        assert 0.04 < found["mAP"] < 0.08


def test_report_is_valid_json_without_nan() -> None:
    preds = torch.tensor([[0.9, 0.3, 0.2], [0.8, 0.2, 0.6]])
    target = torch.tensor([[1, 0, 0], [0, -1, 1]])
    report = evaluate_predictions(preds, target, ["cat", "dog", "owl"])
    assert list(report) == [
        *("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"),
        *("CP_top3", "CR_top3", "CF1_top3", "OP_top3", "OR_top3", "OF1_top3"),
        *("coverage_error", "label_ranking_average_precision", "ranking_loss"),
        *("labels", "labels_without_positives", "num_images", "num_unknown"),
    ]
    assert report["labels"] == {"cat": 1.0, "dog": None, "owl": 1.0}
    assert report["labels_without_positives"] == ["dog"]
    assert (report["num_images"], report["num_unknown"], report["mAP"]) == (2, 1, 1.0)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_report_of_unknown_targets_is_all_none() -> None:
    report = evaluate_predictions(torch.rand(2, 2), torch.full((2, 2), -1), ["cat", "dog"])
    assert json.dumps(report, allow_nan=False)
    assert {report[key] for key in ("mAP", "CF1", "OF1_top3", "coverage_error", "ranking_loss")} == {None}


def test_report_uses_thresholds_but_not_for_the_top3() -> None:
    preds, target = torch.tensor([[0.3, 0.6]]), torch.tensor([[1, 0]])
    low = evaluate_predictions(preds, target, ["cat", "dog"], threshold=torch.tensor([0.2, 0.7]))
    assert (low["OF1"], low["OF1_top3"]) == (1.0, 2 / 3)


def test_label_names_must_fit() -> None:
    with pytest.raises(ValueError, match=r"one distinct name per column of preds \(2\), got 1 names"):
        evaluate_predictions(torch.rand(2, 2), torch.ones(2, 2, dtype=torch.int64), ["cat"])
    with pytest.raises(ValueError, match="got 2 names, 1 of them distinct"):
        evaluate_predictions(torch.rand(2, 2), torch.ones(2, 2, dtype=torch.int64), ["cat", "cat"])


class TypingOff:
    """The errors users see: jaxtyping's checks, which only the tests switch on, would come first."""

    def __enter__(self) -> None:
        jaxtyping.config.update("jaxtyping_disable", True)

    def __exit__(self, *args: object) -> None:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("metric", ALL_METRICS)
def test_errors_say_what_came_and_what_to_do(metric) -> None:
    preds, target = torch.full((3, 2), 0.5), torch.ones(3, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"same shape \(N, L\), got \(3, 2\) and \(2, 3\). Give both"), TypingOff():
        metric(preds, target.T)
    with pytest.raises(ValueError, match=r"floating point, got torch.int64. Pass probabilities"), TypingOff():
        metric(target, target)
    with pytest.raises(ValueError, match=r"1 \(present\), 0 \(absent\) or -1 \(unknown\), got 2. Map"):
        metric(preds, target * 2)
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from -0.5 to 0.5. Apply torch.sigmoid"):
        metric(preds - torch.tensor([0.0, 1.0]), target)
    preds[1, 0] = preds[2, 1] = math.nan
    with pytest.raises(ValueError, match=r"got NaN in 2 rows, the first is row 1\. Look"):
        metric(preds, target)


def test_top_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        f1_scores(torch.rand(1, 2), torch.ones(1, 2, dtype=torch.int64), top_k=0)
