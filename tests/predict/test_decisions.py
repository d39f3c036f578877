"""Thresholds and calibration fitted on a split, and what predicts with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from msrn.bundle import Bundle
from msrn.data import LabelledImages, split_hash
from msrn.data.transforms import Preprocessing
from msrn.errors import DataError
from msrn.labels import LabelGraph
from msrn.metrics import fit_calibration
from msrn.models import build_pooled
from msrn.predict import Predictor, evaluate, evaluation_protocol, fit_decisions

TINY = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}


@pytest.fixture(scope="module")
def predictor(label_graph: LabelGraph) -> Predictor:
    torch.manual_seed(0)
    model = build_pooled(6, **TINY)
    return Predictor(Bundle(model, label_graph, {"name": "pooled", **TINY}, Preprocessing((32, 32))))


@pytest.fixture(scope="module")
def images(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> LabelledImages:
    """Pictures whose labels follow the model's own scores, at another scale and level."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(80):
        paths.append(folder / f"{number}.png")
        pixels = rng.integers(0, 255, (32, 32, 3)) * rng.random(3)
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    names = predictor.label_names
    unknown = LabelledImages(tuple(paths), np.full((80, 6), -1, dtype=np.int8), names, "val")
    logits = torch.cat([logits for logits, _ in predictor.logits_of_split(unknown)]).numpy()
    scaled = 4 * (logits - logits.mean(0)) / logits.std(0) - 1.5
    target = (rng.random((80, 6)) < 1 / (1 + np.exp(-scaled))).astype(np.int8)
    target[:, 5] = 0
    target[:2, 5] = 1
    return LabelledImages(tuple(paths), target, names, "val")


@pytest.mark.parametrize("calibration", ["auto", "none", "temperature", "isotonic"])
def test_fitted_thresholds_are_what_predicts_and_evaluates(
    predictor: Predictor, images: LabelledImages, calibration: str
) -> None:
    seen: list[int] = []
    bundle, report = fit_decisions(predictor, images, calibration=calibration, progress=seen.append)
    assert sum(seen) == 80
    assert bundle.thresholds is not None
    assert report["labels"]["cup"]["is_shared"]
    assert bundle.thresholds.shared_labels(bundle.label_names) == ["cup"]
    assert report["fitted_on"] == {"split": "val", "images": 80, "sha256": split_hash(images)}
    assert not report["is_training_split"]
    kept = bundle.thresholds.fitted_on
    assert kept["ECE"] == {"before": report["ECE"]["none"], "after": report["ECE"][report["calibration"]]}
    assert kept["reliability"]["after"] == report["reliability"][report["calibration"]]
    assert sum(kept["reliability"]["before"]["counts"]) == 480
    assert report["after"]["CF1"] > report["before"]["CF1"]
    decided = Predictor(bundle)
    # Labels that predict gives are those at or above each threshold, and scikit-learn counts as evaluate does.
    probs = torch.cat([probs for probs, _ in decided.probs_of_split(images)])
    predicted = (probs >= bundle.label_thresholds).numpy()
    for row, prediction in zip(predicted, decided.predict(images.paths), strict=True):
        assert {label.name for label in prediction.labels} == set(np.array(bundle.label_names)[row])
    result = evaluate(decided, images)
    assert result["OF1_fitted"] == pytest.approx(f1_score(images.target, predicted, average="micro"))
    assert result["OF1"] == pytest.approx(f1_score(images.target, (probs >= 0.5).numpy(), average="micro"))
    protocol = evaluation_protocol(bundle, images, threshold=0.5)
    assert protocol["fitted"].startswith("a threshold a label for f1 on 80 images of split 'val', sha256 ")
    assert ("none" if report["calibration"] == "none" else report["calibration"]) in protocol["calibration"]


def test_auto_takes_the_calibration_of_least_loss(predictor: Predictor, images: LabelledImages) -> None:
    _, report = fit_decisions(predictor, images)
    assert set(report["log_loss"]) == {"none", "temperature", "platt", "isotonic"}
    assert report["calibration"] == min(report["log_loss"], key=lambda method: report["log_loss"][method])
    assert report["log_loss"][report["calibration"]] < report["log_loss"]["none"]


def test_calibration_is_judged_on_images_left_out(predictor: Predictor, images: LabelledImages) -> None:
    """A curve through 80 images fits these better than others, so that judged on itself isotonic calibration would win."""
    rng = np.random.default_rng(1)
    noise = replace(images, target=(rng.random((80, 6)) < 0.3).astype(np.int8))
    _, report = fit_decisions(predictor, noise, calibration="isotonic")
    logits = torch.cat([logits for logits, _ in predictor.logits_of_split(noise)])
    fitted = fit_calibration(logits, torch.from_numpy(noise.target), "isotonic")(logits)
    itself = torch.nn.functional.binary_cross_entropy(fitted, torch.from_numpy(noise.target).double())
    assert report["log_loss"]["isotonic"] > float(itself) + 0.01


def test_training_images_are_told(predictor: Predictor, images: LabelledImages) -> None:
    training = {"splits": {"train": {"sha256": split_hash(images)}, "semantics": "odd"}}
    assert fit_decisions(Predictor(replace(predictor.bundle, training=training)), images)[1]["is_training_split"]


def test_a_given_threshold_still_counts(predictor: Predictor, images: LabelledImages) -> None:
    decided = Predictor(fit_decisions(predictor, images)[0])
    assert len(decided.predict(images.paths[0], threshold=0.0)[0].labels) == 6
    assert len(decided.predict(images.paths[0], top_k=4)[0].labels) == 4


def test_the_test_split_of_the_training_is_refused(predictor: Predictor, images: LabelledImages) -> None:
    training = {"splits": {"test": {"split": "test", "images": 80, "sha256": split_hash(images)}}}
    tested = Predictor(replace(predictor.bundle, training=training))
    with pytest.raises(DataError, match="split 'val' is the one this model was tested on"):
        fit_decisions(tested, images)


def test_what_cannot_be_fitted_is_said(predictor: Predictor, images: LabelledImages) -> None:
    nothing = replace(images, target=np.full_like(images.target, -1))
    with pytest.raises(DataError, match="no label is present in any of the 80 images of split 'val'"):
        fit_decisions(predictor, nothing)
    with pytest.raises(DataError, match=r"no threshold reaches precision 0\.999 on these 80 images"):
        fit_decisions(predictor, images, objective="precision=0.999")
    with pytest.raises(ValueError, match="'beta' is no calibration"):
        fit_decisions(predictor, images, calibration="beta")


def test_one_image_is_enough_to_go_on(predictor: Predictor, images: LabelledImages) -> None:
    target = np.array([[1, 0, -1, 0, 0, 0]], dtype=np.int8)
    one = LabelledImages((Path(images.paths[0]),), target, images.label_names, "val")
    bundle, report = fit_decisions(predictor, one)
    assert report["crossfit"] is None
    assert bundle.thresholds is not None
    assert all(bundle.thresholds.is_shared)
