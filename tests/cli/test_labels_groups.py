"""`msrn labels groups`: the learnt assignment as a table, a picture and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run

from msrn.bundle import Bundle, load_bundle, save_bundle
from msrn.cli.labels_groups import _remark
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.models import build_model

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}


def write(label_graph: LabelGraph, path: Path, **architecture: Any) -> Path:
    torch.manual_seed(0)
    architecture = {"name": "msrn", "dim": 8, "group_ratio": 0.5, **TINY, **architecture}
    model = build_model(architecture, label_graph)
    return save_bundle(Bundle(model, label_graph, architecture, Preprocessing((64, 64))), path)


def test_every_label_stands_with_the_group_that_has_most_of_it(
    capsys: pytest.CaptureFixture[str], label_graph: LabelGraph, tmp_path: Path
) -> None:
    bundle = write(label_graph, tmp_path / "bundle")
    picture = tmp_path / "groups.svg"
    code, out, err = run(capsys, "labels", "groups", bundle, "--picture", picture, "--json", "-")
    assert code == 0, err
    found = json.loads(out)
    assignment = load_bundle(bundle).model.embed().assignment
    torch.testing.assert_close(torch.tensor(found["assignment"]), assignment)
    listed = {own["name"]: (row["group"], own["membership"]) for row in found["groups"] for own in row["labels"]}
    assert set(listed) == set(found["labels"]) == set(label_graph.label_names)
    for number, name in enumerate(label_graph.label_names):
        assert listed[name][0] == int(assignment[number].argmax())
        assert listed[name][1] == pytest.approx(float(assignment[number].max()))
    assert sum(row["share"] for row in found["groups"]) == pytest.approx(1, abs=1e-5)
    assert "3 groups of 6 labels" in err
    used = {group for group, _ in listed.values()}
    from msrn.report.label_graph import GROUP_COLOURS

    drawn = picture.read_text().lower()
    assert all(colour.lower() in drawn for colour in GROUP_COLOURS[: len(used)])


def test_groups_that_are_none_are_said_to_be() -> None:
    one = torch.zeros(6, 3)
    one[:, 1] = 1
    assert "has learnt no groups" in (_remark(one) or "")
    assert "almost even" in (_remark(torch.full((6, 3), 1 / 3)) or "")
    assert _remark(torch.eye(3)) is None


def test_models_without_groups_are_refused(
    capsys: pytest.CaptureFixture[str], label_graph: LabelGraph, tmp_path: Path
) -> None:
    bundle = write(label_graph, tmp_path / "none", has_groups=False)
    code, _, err = run(capsys, "labels", "groups", bundle)
    assert (code, "was trained without groups" in err) == (1, True)
    architecture = {"name": "pooled", **TINY}
    pooled = Bundle(build_model(architecture, label_graph), label_graph, architecture, Preprocessing((64, 64)))
    code, _, err = run(capsys, "labels", "groups", save_bundle(pooled, tmp_path / "pooled"))
    assert (code, "a pooled head has no groups of labels" in err) == (1, True)
