"""What the evaluation page shows, against plain computations."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score

from msrn.errors import LabelMismatchError
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
        assert row["precision_interval"][0] < row["precision"] < row["precision_interval"][1]
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
    assert report["intervals"]["mAP"][0] < report["metrics"]["mAP"] < report["intervals"]["mAP"][1]
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
    assert other["labels"][3] == {"AP": None, "difference": None, "interval": None}


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
