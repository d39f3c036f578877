"""The explanation of one image, as people and programs get it."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.bundle import Bundle
from msrn.data.transforms import Preprocessing
from msrn.errors import LabelMismatchError, ModelError, MSRNError, UnreadableImageError
from msrn.explain import Related
from msrn.labels import LabelGraph
from msrn.metrics.calibration import ScaledLogits
from msrn.models import build_msrn, build_pooled
from msrn.predict import Predictor

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}


@pytest.fixture(scope="module")
def predictor(label_graph: LabelGraph) -> Predictor:
    torch.manual_seed(0)
    model = build_msrn(label_graph, dim=8, **TINY)
    for name, parameter in model.named_parameters():
        if not name.startswith("label_group"):
            torch.nn.init.normal_(parameter, std=0.3)
    calibration = ScaledLogits((0.5,) * 6, (0.1,) * 6, "platt")
    architecture = {"name": "msrn", "dim": 8, **TINY}
    return Predictor(Bundle(model, label_graph, architecture, Preprocessing((64, 64)), calibration=calibration))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (90, 150, 3)).astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_it_says_what_predict_says_and_what_adds_up_to_it(predictor: Predictor, photo: Path) -> None:
    found = predictor.explain(photo, ["boat", "cat"])
    assert (found.labels, found.size, found.path) == (("boat", "cat"), (90, 150), photo)
    predicted = {label.name: label.probability for label in predictor.predict(photo, threshold=0.0)[0].labels}
    report = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    for row in report["labels"]:
        assert row["probability"] == pytest.approx(predicted[row["name"]], abs=1e-5)
        total = (
            sum(stage["contribution"] for stage in row["stages"]) + row["residual"]["contribution"] + row["constant"]
        )
        assert total == pytest.approx(row["logit"], abs=1e-4)
        for stage in row["stages"]:
            assert stage["own"] + stage["by_group"] == pytest.approx(stage["contribution"], abs=1e-5)
        by_group = sum(stage["by_group"] for stage in row["stages"])
        assert sum(group["contribution"] for group in row["groups"]) == pytest.approx(by_group, abs=1e-4)
        assert sum(group["membership"] for group in row["groups"]) == pytest.approx(1, abs=1e-5)
        assert all(0 <= share <= 1 for share in row["peak"])
    related = {row["name"]: {edge["label"] for edge in row["related"]} for row in report["labels"]}
    adjacency, names = predictor.bundle.label_graph.adjacency, predictor.label_names
    for name, others in related.items():
        label = names.index(name)
        assert others == {
            other for column, other in enumerate(names) if adjacency[column, label] > 0 and column != label
        }


def test_maps_have_the_proportions_of_the_image(predictor: Predictor, photo: Path) -> None:
    found = predictor.explain(photo, ["cat", "dog"], with_related=False)
    assert found.heatmaps.shape == (3, 2, 90, 150)
    assert found.combined.shape == (2, 90, 150)
    assert found.heatmaps_at(20, 10).shape == (2, 20, 10)
    assert found.related == {"cat": [], "dog": []}
    large = predictor.explain(Image.new("RGB", (3000, 1000)), ["cat"], with_related=False)
    assert large.heatmaps.shape == (3, 1, 171, 512)
    # The peak of the JSON is the middle of the region that adds most, by a plain loop over a coarse map's Gaussian sums.
    heat = found.heatmaps_at(38, 64)[0].double().numpy()
    heat -= heat.mean()
    rows, columns = np.mgrid[:38, :64]
    sums = [
        [(heat * np.exp(-0.5 * ((rows - row) ** 2 + (columns - column) ** 2) / 12**2)).sum() for column in range(64)]
        for row in range(38)
    ]
    row, column = divmod(int(np.argmax(sums)), 64)
    across, down = found.to_dict()["labels"][0]["peak"]
    assert abs(across - (column + 0.5) / 64) <= 1 / 64
    assert abs(down - (row + 0.5) / 38) <= 1 / 38


def test_maps_of_a_few_labels_at_any_size(predictor: Predictor) -> None:
    found = predictor.explain(Image.new("RGB", (900, 600)), ["cat", "dog", "boat"], with_related=False)
    assert found.stage_maps("dog").shape == (3, 600, 900)
    torch.testing.assert_close(found.stage_maps("dog", 341, 512), found.heatmaps[:, 1])
    torch.testing.assert_close(found.heatmaps_at(30, 40, ["boat", "cat"]), found.heatmaps_at(30, 40)[[2, 0]])
    with pytest.raises(ValueError, match="'tree' was not explained"):
        found.stage_maps("tree")


@pytest.mark.parametrize(("width", "height"), [(2, 3000), (4000, 3)])
def test_pictures_of_extreme_proportions_are_bounded(predictor: Predictor, width: int, height: int) -> None:
    figure = predictor.explain(Image.new("RGB", (width, height), "red"), "cat", with_related=False).plot()
    assert max(figure.get_size_inches()) < 20
    figure.canvas.draw()
    panel = figure.axes[0].get_window_extent()
    assert min(panel.width, panel.height) > 30  # pixels: it can be seen


def test_rounding_is_no_effect_in_pictures(predictor: Predictor, photo: Path) -> None:
    found = predictor.explain(photo, "cat")
    for effect, texts in ((1e-6, []), (0.006, ["dog"])):
        edge = Related(found.parts.labels[0], found.label_names.index("dog"), torch.tensor([effect]))
        axes = replace(found, related_edges=(edge,)).plot().axes[-1]
        assert [text.get_text() for text in axes.get_yticklabels()] == texts
        assert max(axes.get_xlim()) >= 0.05
    assert axes.get_title() == "related labels: what their edge adds to the logit"
    assert replace(found, related_edges=None).plot().axes[-1].get_title() == "related labels: left out"


def test_pictures_say_what_is_approximate_and_calibrated(predictor: Predictor, photo: Path) -> None:
    found = predictor.explain(photo, "cat", with_related=False)
    assert found.plot().axes[0].get_title().endswith("% after calibration")
    assert replace(found, is_calibrated=False).plot().axes[0].get_title().endswith("%")
    for is_exact in (True, False):
        title = replace(found, parts=replace(found.parts, is_exact=is_exact)).plot().axes[-2].get_title()
        assert ("an approximation" in title) != is_exact
        assert f"{float(found.parts.logits[0, 0]):+.2f}" in title


def test_many_images_are_explained_as_each_alone(predictor: Predictor, photo: Path) -> None:
    images = [Image.open(photo), photo, Image.new("RGB", (40, 70), "red")]
    together = list(predictor.explain_stream(images, top_k=2, batch_size=2))
    for image, found in zip(images, together, strict=True):
        alone = predictor.explain(image, top_k=2)
        assert (found.labels, found.size, found.path) == (alone.labels, alone.size, alone.path)
        torch.testing.assert_close(found.heatmaps, alone.heatmaps, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.probabilities, alone.probabilities)
        for name in found.labels:
            effects = [{row["label"]: row["effect"] for row in own.related[name]} for own in (found, alone)]
            assert effects[0] == pytest.approx(effects[1], abs=1e-5)
    assert list(predictor.explain_stream([])) == []


def test_images_that_cannot_be_read_are_left_out_if_asked(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    buffer = io.BytesIO()
    Image.open(photo).convert("RGB").save(buffer, format="JPEG")
    cut = Image.open(io.BytesIO(buffer.getvalue()[:-3000]))
    failed: list[Exception] = []
    images = [photo, tmp_path / "bad.jpg", cut, photo]
    found = list(predictor.explain_stream(images, "cat", on_error=failed.append))
    assert [own.path for own in found] == [photo, photo]
    assert ["bad.jpg" in str(failed[0]), "in memory" in str(failed[1])] == [True, True]
    with pytest.raises(UnreadableImageError, match="in memory cannot be read"):
        predictor.explain(Image.open(io.BytesIO(buffer.getvalue()[:-3000])))


def test_the_most_probable_labels_by_default(predictor: Predictor, photo: Path) -> None:
    best = [label.name for label in predictor.predict(photo, top_k=3)[0].labels]
    assert list(predictor.explain(photo).labels) == best
    assert len(predictor.explain(photo, top_k=99, with_related=False).labels) == 6


def test_pictures_and_numbers_are_saved_together(predictor: Predictor, photo: Path, tmp_path: Path) -> None:
    found = predictor.explain(photo, ["cat", "dog"])
    found.save(tmp_path / "why")
    assert {path.name for path in (tmp_path / "why").iterdir()} == {"01-cat.png", "02-dog.png", "explanation.json"}
    with Image.open(tmp_path / "why" / "01-cat.png") as picture:
        assert picture.width > 1000
        colours = np.unique(np.asarray(picture.convert("RGB").resize((60, 20))).reshape(-1, 3), axis=0)
    assert len(colours) > 100  # something is drawn
    assert json.loads((tmp_path / "why" / "explanation.json").read_text()) == found.to_dict()
    for ask in (found.plot, found.group_maps):
        with pytest.raises(ValueError, match="'boat' was not explained; there are cat, dog"):
            ask("boat")
    assert [tuple(own.shape[1:]) for own in found.group_maps("dog")] == [
        tuple(own.shape[2:]) for own in found.parts.own
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(MSRNError, match="cannot be written"):
        found.save(tmp_path / "file" / "why")


def test_what_cannot_be_explained_is_said(predictor: Predictor, photo: Path, label_graph: LabelGraph) -> None:
    with pytest.raises(LabelMismatchError, match=r"knows no label 'ca'\. Do you mean 'cat'\?"):
        predictor.explain(photo, ["ca"])
    with pytest.raises(LabelMismatchError, match="no label was named"):
        predictor.explain(photo, [])
    with pytest.raises(ValueError, match="top_k is at least 1"):
        predictor.explain(photo, top_k=0)
    assert predictor.explain(photo, "cat").labels == predictor.explain(photo, ["cat", "cat"]).labels == ("cat",)
    pooled = Bundle(build_pooled(6, **TINY), label_graph, {"name": "pooled", **TINY}, Preprocessing((64, 64)))
    with pytest.raises(
        ModelError, match=r"a pooled head has no attention to explain\. Give a bundle whose head is MSRN"
    ):
        Predictor(pooled).explain(photo)
