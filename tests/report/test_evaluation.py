"""What the evaluation page shows, against plain computations."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from msrn.errors import LabelMismatchError
from msrn.metrics import calibration_error, co_errors, reliability
from msrn.metrics.thresholds import NEVER
from msrn.report import Scores, compare_scores, evaluate_scores
from msrn.report.evaluation import in_order, shown_images

NAMES = ("cat", "dog", "boat", "moon")


def make_scores(seed: int = 0, num_images: int = 300, noise: float = 1.0, name: str = "ours") -> Scores:
    rng = np.random.default_rng(7)
    target = (rng.random((num_images, 4)) < [0.3, 0.2, 0.1, 0.0]).astype(np.int64)
    logits = 3 * target - 1.5 + noise * np.random.default_rng(seed).normal(size=target.shape)
    target[:20, 1] = -1
    thresholds = torch.tensor([0.5, 0.4, 0.6, 0.5], dtype=torch.float64)
    return Scores(
        name,
        NAMES,
        torch.from_numpy(logits).sigmoid(),
        torch.from_numpy(target),
        thresholds,
        {"split": "test"},
        (False,) * 4,
    )


@pytest.fixture(scope="module")
def scores() -> Scores:
    return make_scores()


def test_every_number_of_a_label_is_that_of_scikit_learn(scores: Scores) -> None:
    report = evaluate_scores(scores)
    for column, row in enumerate(report["labels"][:3]):
        known = scores.target[:, column] != -1
        present, probs = scores.target[known, column].numpy(), scores.preds[known, column].numpy()
        predicted = probs >= float(scores.thresholds[column])
        assert row["known"] == int(known.sum())
        assert row["AP"] == pytest.approx(average_precision_score(present, probs))
        assert row["precision"] == pytest.approx(precision_score(present, predicted))
        assert row["recall"] == pytest.approx(recall_score(present, predicted))
        assert row["AP_interval"][0] < row["AP"] < row["AP_interval"][1]
        for kind, total in (("precision", predicted.sum()), ("recall", present.sum())):
            bounds = binomtest(row["correct"], int(total)).proportion_ci(method="wilson")
            assert row[f"{kind}_interval"] == pytest.approx([bounds.low, bounds.high], abs=1e-4)
        bins = reliability(scores.preds[:, [column]], scores.target[:, [column]])
        assert row["reliability"] == bins.to_dict()
        assert sum(row["reliability"]["counts"]) == row["known"]
        for threshold, correct, count in zip(*row["curve"].values(), strict=True):
            assert correct == (present[probs >= threshold] == 1).sum()
            assert count == (probs >= threshold).sum()
        assert row["threshold"] in row["curve"]["thresholds"]
        for kind, wanted in (("misses", 1), ("false_alarms", 0)):
            for image, probability in row[kind]:
                assert int(scores.target[image, column]) == wanted
                assert probability == pytest.approx(float(scores.preds[image, column]))
                assert (probability >= row["threshold"]) == (kind == "false_alarms")
        missed = sorted(probs[(present == 1) & ~predicted])[:6]
        assert [probability for _, probability in row["misses"]] == pytest.approx(missed)
    for name in ("mAP", "CF1", "OF1", "macro_F1", "ECE"):
        assert report["intervals"][name][0] < report["metrics"][name] < report["intervals"][name][1]
    predicted = (scores.preds >= scores.thresholds) & (scores.target != -1)
    f1 = [f1_score(scores.target[:, column] == 1, predicted[:, column]) for column in range(3)]
    assert report["metrics"]["macro_F1"] == pytest.approx(np.mean(f1))
    assert report["ECE"] == calibration_error(scores.preds, scores.target)["ECE"]
    matrix = report["co_error_matrix"]
    counts = co_errors(scores.preds, scores.target, threshold=scores.thresholds)
    order = [NAMES.index(name) for name in matrix["labels"]]
    assert matrix["images"] == counts[order][:, order].tolist()
    totals = (counts.sum(0) + counts.sum(1))[order].tolist()
    assert totals == sorted(totals, reverse=True)
    for pair in report["co_errors"]:
        assert pair["images"] == int(counts[NAMES.index(pair["said"]), NAMES.index(pair["missed"])])
    for suspect in report["suspects"]:
        column = NAMES.index(suspect["label"])
        assert suspect["is_present"] == bool(scores.target[suspect["image"], column] == 1)
        assert suspect["probability"] == pytest.approx(float(scores.preds[suspect["image"], column]))
    json.dumps(report, allow_nan=False)


def test_a_label_without_positives_has_what_can_be_measured(scores: Scores) -> None:
    row = evaluate_scores(scores)["labels"][3]
    assert (row["AP"], row["AP_interval"], row["recall"], row["F1"], row["positives"]) == (None, None, None, None, 0)
    assert row["false_alarms"]


def test_pairs_of_errors_stand_in_order_of_surprise() -> None:
    """Dogs that are taken for cats come before pairs that happen as often by chance."""
    rng = np.random.default_rng(0)
    target = (rng.random((500, 4)) < 0.3).astype(np.int64)
    preds = np.where(target == 1, 0.9, 0.1)
    swapped = (target[:, 1] == 1) & (target[:, 0] == 0) & (rng.random(500) < 0.5)
    preds[swapped, 1], preds[swapped, 0] = 0.1, 0.9
    for column in (2, 3):  # errors that have nothing to do with one another
        wrong = rng.random(500) < 0.3
        preds[wrong, column] = 1 - preds[wrong, column]
    report = evaluate_scores(
        Scores(
            "m",
            NAMES,
            torch.from_numpy(preds),
            torch.from_numpy(target),
            torch.full((4,), 0.5).double(),
            {},
            (False,) * 4,
        )
    )
    first = report["co_errors"][0]
    assert (first["said"], first["missed"], first["images"]) == ("cat", "dog", int(swapped.sum()))
    assert first["expected"] < first["images"] / 2


def test_a_better_model_is_told_from_a_worse_one_on_the_same_images() -> None:
    ours, theirs = make_scores(0, 400, 0.8), make_scores(1, 400, 2.5, "theirs")
    other = compare_scores(ours, theirs)
    difference = other["differences"]["mAP"]
    assert difference["value"] > 0
    assert difference["interval"][0] > 0
    back = compare_scores(theirs, ours)["differences"]["mAP"]
    assert back["value"] == pytest.approx(-difference["value"])
    assert back["interval"] == pytest.approx([-bound for bound in reversed(difference["interval"])])
    assert (other["labels"][3]["difference"], other["labels"][3]["difference_interval"]) == (None, None)
    alone = evaluate_scores(theirs)
    assert other["metrics"] == alone["metrics"]
    for row, own in zip(other["labels"][:3], evaluate_scores(ours)["labels"], strict=False):
        assert row["difference"] == pytest.approx(own["AP"] - row["AP"])
        assert row["difference_interval"][0] < row["difference"] < row["difference_interval"][1]
    assert other["differences"]["CF1"]["value"] == pytest.approx(
        evaluate_scores(ours)["metrics"]["CF1"] - alone["metrics"]["CF1"]
    )


def test_models_are_compared_label_by_label_whatever_their_order(scores: Scores) -> None:
    turned = in_order(scores, NAMES[::-1])
    assert turned.preds[:, 0].equal(scores.preds[:, 3])
    same = compare_scores(scores, in_order(turned, NAMES))
    assert same["differences"]["mAP"] == {"value": 0.0, "interval": [0.0, 0.0]}
    with pytest.raises(LabelMismatchError, match="ours and the other model know different labels, such as 'moon'"):
        in_order(scores, ("cat", "dog", "boat", "sun"))
    with pytest.raises(ValueError, match="on the same images and labels"):
        compare_scores(scores, turned)


def test_many_labels_show_fewer_images_each() -> None:
    rng = np.random.default_rng(0)
    target = torch.from_numpy((rng.random((60, 500)) < 0.2).astype(np.int64))
    preds = torch.from_numpy(rng.random((60, 500)))
    names = tuple(f"label {number}" for number in range(500))
    report = evaluate_scores(Scores("m", names, preds, target, torch.full((500,), 0.5).double(), {}, (False,) * 500))
    assert {len(row["misses"]) for row in report["labels"]} <= {0, 1}
    assert len(report["co_errors"]) == 300
    assert len(shown_images(report)) <= 60


def test_intervals_of_shares_end_at_one_and_single_precision_is_enough() -> None:
    perfect = make_scores(noise=0.01, num_images=40)
    for low, high in evaluate_scores(perfect)["intervals"].values():
        assert 0 <= low <= high <= 1
    single = replace(
        perfect, preds=torch.ones_like(perfect.preds).float(), thresholds=torch.full((4,), NEVER, dtype=torch.float64)
    )
    report = evaluate_scores(single)
    assert [row["predicted"] for row in report["labels"]] == [0, 0, 0, 0]


def test_what_cannot_be_measured_has_no_interval() -> None:
    nothing = make_scores(num_images=30)
    nothing.target[:] = 0
    report = evaluate_scores(nothing)
    assert (report["metrics"]["CF1"], report["intervals"]["CF1"], report["intervals"]["mAP"]) == (None, None, None)
    nothing.target[:] = -1
    report = evaluate_scores(nothing)
    assert (report["ECE"], report["ECE_by_label"], report["intervals"]["ECE"]) == (None, None, None)
    one = make_scores(num_images=21)
    one = replace(one, preds=one.preds[20:], target=torch.ones_like(one.target[20:]))
    assert evaluate_scores(one)["intervals"]["mAP"] is None
    few = make_scores(num_images=60)
    few.target[:, 2] = 0
    few.target[20:24, 2] = 1
    row = evaluate_scores(few)["labels"][2]
    assert row["AP"] is not None
    assert row["AP_interval"] is None  # four positives
