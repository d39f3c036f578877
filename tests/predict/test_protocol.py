"""The lines beside a table: what a bundle says of its training, and what it does not say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msrn.bundle import Bundle
from msrn.data import LabelledImages, split_hash
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.models import build_pooled
from msrn.predict import evaluation_protocol, protocol_lines

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}
MODEL = {"backbone": "resnet10t", "pretrained": False, "weights": None, "init_from": None}
TRAINING: dict[str, Any] = {
    "best_epoch": 4,
    "chosen_by": "validation mAP on split val",
    "splits": {"train": {"images": 24, "sha256": "a" * 64}, "val": {"images": 8, "sha256": "b" * 64}},
    "recipe": {"trainer": {"seed": 7}, "model": MODEL},
}
SPLIT = LabelledImages(
    (Path("/data/a.jpg"), Path("/data/b.jpg")), np.array([[1] * 6, [-1] * 6], np.int8), tuple("abcdef"), "val"
)


def protocol_of(label_graph: LabelGraph, training: dict[str, Any], **options: Any) -> dict[str, Any]:
    preprocessing = Preprocessing((64, 96), interpolation="bicubic")
    bundle = Bundle(build_pooled(6, **TINY), label_graph, {"name": "pooled", **TINY}, preprocessing, 0.4, training)
    return evaluation_protocol(bundle, SPLIT, **options)


def test_everything_that_moves_a_table_is_there(label_graph: LabelGraph) -> None:
    protocol = protocol_of(label_graph, TRAINING, reading="read once")
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol_lines(protocol) == [
        f"split       val, 2 images, sha256 {split_hash(SPLIT)[:12]}, read once",
        "resize      whole image to 64 x 96, bicubic, one view",
        "unknown     unknown labels (-1, blank, VOC 'difficult') enter no metric and no loss",
        "threshold   0.4 for every label, fixed and not fitted; top 3 beside it",
        "pretraining none",
        "trained on  train 24 images, sha256 aaaaaaaaaaaa; val 8 images, sha256 bbbbbbbbbbbb",
        "seed        7",
        "epoch       5, chosen by validation mAP on split val",
    ]


@pytest.mark.parametrize(
    ("model", "training", "expected"),
    [
        ({"pretrained": True}, {}, "resnet10t, weights of timm"),
        ({"pretrained": True, "weights": "own.safetensors"}, {}, "resnet10t from own.safetensors"),
        (
            {"pretrained": True, "init_from": "bundle"},
            {"init_from": {"bundle": "coco2014", "sha256": "c" * 64}},
            "bundle coco2014, sha256 cccccccccccc",
        ),
        ({}, {}, "none"),
    ],
)
def test_pretraining(label_graph: LabelGraph, model: dict[str, Any], training: dict[str, Any], expected: str) -> None:
    recipe = {**TRAINING["recipe"], "model": {**MODEL, **model}}
    assert protocol_of(label_graph, {**TRAINING, **training, "recipe": recipe})["pretraining"] == expected


def test_the_threshold_of_the_table_goes_before_that_of_the_bundle(label_graph: LabelGraph) -> None:
    assert protocol_of(label_graph, TRAINING, threshold=0.5)["threshold"].startswith("0.5 for every label")


def test_a_published_model_says_that_nothing_is_recorded(label_graph: LabelGraph) -> None:
    lines = protocol_lines(protocol_of(label_graph, {"origin": "imported from voc_checkpoint.pth.tar"}))
    assert "pretraining not recorded in this bundle: imported from voc_checkpoint.pth.tar" in lines
    assert [line for line in lines if line.endswith("not recorded in this bundle")] == [
        "trained on  not recorded in this bundle",
        "seed        not recorded in this bundle",
        "epoch       not recorded in this bundle",
    ]


@pytest.mark.parametrize(
    "training", [{}, {"recipe": 3, "splits": "all", "best_epoch": "last"}, {"splits": {"train": 5, "val": None}}]
)
def test_whatever_stands_in_a_bundle_is_survived(label_graph: LabelGraph, training: dict[str, Any]) -> None:
    assert len(protocol_lines(protocol_of(label_graph, training))) == 8
