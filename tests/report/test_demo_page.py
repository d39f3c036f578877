"""The demo's page: one file, nothing fetched, nothing of the data run as markup."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.bundle import Bundle
from msrn.data import LabelledImages
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.metrics import evaluate_predictions
from msrn.models import build_msrn
from msrn.predict import Predictor
from msrn.report import HeadResult, draw_label_graph, write_demo_page

LABELS = ("<script>alert(1)</script>", "tea & cake", "boat")
TINY = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, (6, 3)).astype(np.int8)
    paths = []
    for number in range(6):
        paths.append(folder / f"<b>{number}.png")
        Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(paths[-1])
    graph = LabelGraph.from_target(torch.from_numpy(target), LABELS)
    predictor = Predictor(Bundle(build_msrn(graph, **TINY), graph, {"name": "msrn", **TINY}, Preprocessing((32, 32))))
    report = evaluate_predictions(torch.rand(6, 3).double(), torch.from_numpy(target).long(), LABELS)
    heads = [HeadResult("MSRN", report, 1000, 1.0), HeadResult("average pooling", report, 900, 1.0)]
    images = LabelledImages(tuple(paths), target, LABELS, "test")
    path = write_demo_page(folder / "index.html", predictor, images, heads, num_pictures=4)
    return path.read_text(encoding="utf-8")


def test_the_page_fetches_nothing(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "@import" not in page
    assert page.count("data:image/jpeg;base64,") == 4


def test_names_are_shown_and_not_run(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "tea &amp; cake" in page
    assert "<b>0.png" not in page


def test_both_heads_and_the_graph_are_there(page):
    assert "average pooling" in page
    assert page.count("<svg") == 1


def test_the_label_graph_is_drawn_for_any_number_of_labels():
    for num_labels in (1, 2, 30):
        target = (torch.rand(50, num_labels, generator=torch.Generator().manual_seed(0)) < 0.3).int()
        graph = LabelGraph.from_target(target, [f"label {number}" for number in range(num_labels)])
        assert draw_label_graph(graph).startswith("<svg")
