"""Prediction: the same picture gives the same answer, ranked, whatever else is in the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.bundle import Bundle
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.models import build_msrn
from msrn.predict import Predictor

TINY = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8}


@pytest.fixture(scope="module")
def predictor(label_graph: LabelGraph) -> Predictor:
    torch.manual_seed(0)
    architecture = {"name": "msrn", **TINY}
    return Predictor(Bundle(build_msrn(label_graph, **TINY), label_graph, architecture, Preprocessing((40, 32))))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    written = []
    for number in range(5):
        pixels = rng.integers(0, 255, (30 + 7 * number, 50, 3)).astype(np.uint8)
        written.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(written[-1])
    return written


def test_one_image_many_images_and_any_batch_size_agree(predictor, paths):
    together = predictor.predict(paths, threshold=0.0)
    for batch_size in (1, 2, 3):
        for one, other in zip(predictor.predict(paths, threshold=0.0, batch_size=batch_size), together, strict=True):
            assert [label.name for label in one.labels] == [label.name for label in other.labels]
            for left, right in zip(one.labels, other.labels, strict=True):
                assert left.probability == pytest.approx(right.probability, abs=1e-5)


def test_a_path_a_string_and_an_image_in_memory_agree(predictor, paths):
    results = [predictor.predict(image, top_k=6)[0] for image in (paths[0], str(paths[0]), Image.open(paths[0]))]
    assert results[0].path == paths[0]
    assert results[2].path is None
    assert results[0].labels == results[1].labels == results[2].labels


def test_labels_are_ranked_and_cut(predictor, paths):
    every = predictor.predict(paths[0], threshold=0.0)[0].labels
    assert len(every) == 6
    probabilities = [label.probability for label in every]
    assert probabilities == sorted(probabilities, reverse=True)
    assert predictor.predict(paths[0], top_k=2)[0].labels == every[:2]
    least = every[2].probability
    assert predictor.predict(paths[0], threshold=least)[0].labels == every[:3]
    assert predictor.predict(paths[0], threshold=least, top_k=1)[0].labels == every[:1]
    at_half = tuple(label for label in every if label.probability >= 0.5)
    assert predictor.predict(paths[0])[0].labels == at_half


def test_probabilities_are_those_of_the_model(predictor, paths):
    images = torch.stack([predictor.bundle.preprocessing(Image.open(path)) for path in paths])
    with torch.no_grad():
        expected = predictor.bundle.model(images).double().sigmoid()  # not the one made ready for inference
    torch.testing.assert_close(predictor.probs(images), expected, atol=1e-6, rtol=0)


def test_an_unreadable_image_has_an_error_and_the_rest_go_on(predictor, paths, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    first, second, third = predictor.predict([paths[0], broken, paths[1]], top_k=1)
    assert "broken.jpg" in (second.error or "")
    assert second.labels == ()
    assert (first.error, third.error) == (None, None)
    assert len(first.labels) == len(third.labels) == 1
    assert "error" in second.to_dict()
    assert "error" not in first.to_dict()


def test_a_stream_reads_no_further_than_a_batch(predictor, paths):
    taken = []

    def images():
        for path in paths:
            taken.append(path)
            yield path

    stream = predictor.predict_stream(images(), top_k=1, batch_size=2)
    next(stream)
    assert len(taken) == 2
    assert len(list(stream)) == 4


@pytest.mark.parametrize("kind", ["transparent", "turned", "16 bit"])
def test_an_image_in_memory_is_read_like_its_file(predictor, tmp_path, kind):
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.png"
    if kind == "16 bit":
        Image.fromarray(rng.integers(0, 65536, (30, 50)).astype(np.uint16)).save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6 if kind == "turned" else 1
        Image.fromarray(rng.integers(0, 255, (30, 50, 4)).astype(np.uint8)).save(path, exif=exif)
    with Image.open(path) as image:
        info = dict(image.info)
        in_memory = predictor.predict(image, top_k=6)[0].labels
        assert info.items() <= image.info.items()  # the caller's image stays as it is
    assert in_memory == predictor.predict(path, top_k=6)[0].labels


def test_an_image_in_memory_that_is_damaged_is_reported(predictor, paths, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:300])
    with Image.open(cut) as image:
        first, second = predictor.predict([image, paths[1]])
    assert "the image in memory cannot be read" in first.error
    assert second.error is None


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"top_k": 0}, {"threshold": 1.5}, {"threshold": float("nan")}])
def test_impossible_options_are_refused(predictor, paths, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        predictor.predict(paths[0], **options)
