"""`msrn labels groups`: the learnt assignment as a table, a picture and JSON."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from rich.console import Console

from msrn.bundle import Bundle, load_bundle, save_bundle
from msrn.cli.labels_groups import _remark, _table
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
    assert "all labels are in the only group" in (_remark(torch.ones(6, 1)) or "")


def test_one_group_is_one(capsys: pytest.CaptureFixture[str], label_graph: LabelGraph, tmp_path: Path) -> None:
    _, out, _ = run(capsys, "labels", "groups", write(label_graph, tmp_path / "one", group_ratio=0.1))
    assert "1 group of 6 labels" in out
    assert "all labels are in the only group" in out


def test_many_labels_take_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    labels = [{"name": f"label\n{number}", "membership": 0.004} for number in range(50)]
    listed = [{"group": number, "labels": labels[: number % 50], "share": number / 5000} for number in range(100)]
    Console(width=80).print(_table(listed))
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 120
    rows = [line.split("│") for line in out.splitlines() if re.match(r"│ +\d", line)]
    assert [int(row[1]) for row in rows] == list(range(99, 79, -1))  # the largest first
    assert float(rows[0][2]) == 2.0
    said = " ".join(re.sub("[│┃]", " ", out).split())
    assert "100 groups of 2450 labels" in said
    assert "label 0 0.4, label 1 0.4" in said
    assert "and 37 more" in said
    assert "and 78 smaller groups, which --json lists; 2 groups in which no label has most of itself" in said


def test_places_that_cannot_be_written_are_refused_first(
    capsys: pytest.CaptureFixture[str], label_graph: LabelGraph, tmp_path: Path
) -> None:
    bundle = write(label_graph, tmp_path / "bundle")
    (tmp_path / "file").write_text("")
    for options, message in (
        (["--picture", tmp_path / "file" / "x.svg"], "cannot be written"),
        (["--picture", bundle / "x.svg"], "is in the bundle, which holds nothing else"),
        (["--picture", tmp_path / "q.svg", "--json", tmp_path / "q.svg"], "name the same file"),
    ):
        code, out, err = run(capsys, "labels", "groups", bundle, *options)
        assert (code, out, message in err) == (1, "", True), err
    assert not (tmp_path / "q.svg").exists()


def test_a_bundle_of_the_hub(
    capsys: pytest.CaptureFixture[str], label_graph: LabelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write(label_graph, tmp_path / "bundle")
    monkeypatch.setattr("msrn.bundle.sharing.download", lambda name, *_, **__: {"me/tagger": bundle}[name])
    code, out, err = run(capsys, "labels", "groups", "hub:me/tagger")
    assert (code, "3 groups of 6 labels" in out) == (0, True), err


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
