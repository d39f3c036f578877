"""Evaluation: columns in the model's order, numbers that scikit-learn confirms."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from msrn.bundle import Bundle
from msrn.data import LabelledImages
from msrn.data.transforms import Preprocessing
from msrn.errors import LabelMismatchError
from msrn.models import build_pooled
from msrn.predict import Predictor, align_labels, evaluate, read_labelled

LABELS = ("cat", "dog", "boat", "bird", "tree", "cup")


def images_of(target: np.ndarray, names: tuple[str, ...]) -> LabelledImages:
    from pathlib import Path

    return LabelledImages(
        tuple(Path(f"{row}.png") for row in range(len(target))), target.astype(np.int8), names, "test"
    )


def test_columns_are_brought_into_the_models_order():
    aligned = align_labels(images_of(np.array([[1, 0], [0, -1]]), ("dog", "cat")), ("cat", "dog"))
    assert aligned.target.tolist() == [[0, 1], [-1, 0]]
    assert aligned.label_names == ("cat", "dog")


@pytest.mark.parametrize("missing", [-1, 0])
def test_labels_that_the_data_lacks_are_filled(missing):
    aligned = align_labels(images_of(np.array([[1]]), ("dog",)), ("cat", "dog"), missing=missing)
    assert aligned.target.tolist() == [[missing, 1]]


def test_labels_that_the_model_lacks_are_named():
    with pytest.raises(LabelMismatchError, match=r"knows 2 labels, but not 'dgo', 'moon'.*'dgo' may be 'dog'"):
        align_labels(images_of(np.array([[1, 0]]), ("dgo", "moon")), ("cat", "dog"))


def test_a_label_column_names_every_label_and_a_missing_column_is_unknown(tmp_path):
    (tmp_path / "cell.csv").write_text("path,labels,split\na.png,dog,test\n")
    (tmp_path / "column.csv").write_text("path,dog,split\na.png,1,test\n")
    assert read_labelled(tmp_path / "cell.csv", "test", ("cat", "dog")).target.tolist() == [[0, 1]]
    assert read_labelled(tmp_path / "column.csv", "test", ("cat", "dog")).target.tolist() == [[-1, 1]]


def test_metrics_are_those_of_scikit_learn_on_the_models_probabilities(label_graph, tmp_path):
    torch.manual_seed(0)
    tiny = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}
    model = build_pooled(6, **tiny)
    predictor = Predictor(Bundle(model, label_graph, {"name": "pooled", **tiny}, Preprocessing((32, 32))))
    rng = np.random.default_rng(0)
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(paths[-1])
    target = rng.integers(-1, 2, (20, 6)).astype(np.int8)
    split = LabelledImages(tuple(paths), target, LABELS, "test")
    steps: list[int] = []
    report = evaluate(predictor, split, batch_size=7, progress=steps.append)
    probs = torch.cat([probs for probs, _ in predictor.probs_of_split(split)]).numpy()
    for column, name in enumerate(LABELS):
        known = target[:, column] >= 0
        expected = average_precision_score(target[known, column], probs[known, column])
        assert report["labels"][name] == pytest.approx(expected, abs=1e-6)
    assert steps == [7, 7, 6]
    assert report["num_unknown"] == int((target < 0).sum())


def test_an_image_of_which_nothing_is_known_stays_unknown_for_labels_the_data_never_names(tmp_path):
    (tmp_path / "photos.csv").write_text("path,labels\na.jpg,cat\nb.jpg,\nc.jpg,[]\n")
    images = read_labelled(tmp_path / "photos.csv", "train", ("cat", "dog"))
    assert images.target.tolist() == [[1, 0], [-1, -1], [0, 0]]
