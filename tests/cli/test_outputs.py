"""Files that commands write: never a part of the data, never a folder, refused before any work is done."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import run
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save

from msrn.cli.output import check_outputs
from msrn.errors import MSRNError
from msrn.report.learning_rate import save_learning_rate_curve


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    rows = ["path,labels"]
    for number in range(12):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'sea|dog' if number % 2 else 'sea'}")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    return folder / "photos.csv"


@pytest.mark.parametrize("through_folder", [False, True])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("data", "check"), "--json"),
        (("data", "check"), "--out"),
        (("labels", "graph"), "--json"),
        (("data", "split", "--out", "other.csv"), "--json"),
    ],
)
def test_no_command_writes_over_the_data(table, capsys, monkeypatch, command, option, through_folder):
    monkeypatch.chdir(table.parent.parent)
    before = table.read_bytes()
    source = table.parent if through_folder else table
    code, _, err = run(capsys, *command[:2], source, *command[2:], option, table)
    assert code == 1
    assert (
        "exists and is not what msrn writes" if through_folder else "is a part of the data, which would be lost"
    ) in err
    assert table.read_bytes() == before
    assert not Path("other.csv").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("train", "scenes", "data.root={data}"),
        ("train", "scenes", "data.root={data}", "--dry-run"),
        ("compare", "scenes", "data.root={data}"),
        ("evaluate", "{bundle}", "--data", "{data}", "--split", "train"),
        ("thresholds", "{bundle}", "--data", "{data}", "--split", "train"),
        ("report", "{bundle}", "--data", "{data}", "--split", "train"),
        ("explain", "{bundle}", "{data}", "--out", "why"),
        ("export", "{bundle}", "--out", "m.onnx"),
        ("import-published", "{data}", "--labels", "voc2007", "--graph", "a.pkl", "--vectors", "b.pkl", "--out", "b"),
        ("demo",),
        ("doctor",),
        ("recipe", "list"),
    ],
    ids=" ".join,
)
def test_no_json_takes_the_place_of_what_msrn_did_not_write(table, bundle_dir, capsys, monkeypatch, command):
    """Neither the data nor a bundle's configuration, in any command, before any work is done."""
    monkeypatch.chdir(table.parent)
    arguments = [word.format(data=table, bundle=bundle_dir) for word in command]
    for file in (table, bundle_dir / "config.json", table.parent / "0.png"):
        before = file.read_bytes()
        code, _, err = run(capsys, *arguments, "--json", file)
        assert code == 1
        assert re.search("which would be lost|is not what msrn writes|is in the bundle", err)
        assert file.read_bytes() == before
    assert not Path("b").exists()
    assert not Path("runs").exists()
    assert not Path("msrn-demo").exists()


def test_what_was_written_before_is_written_again_and_all_else_is_left_alone(table, bundle_dir, capsys, monkeypatch):
    monkeypatch.chdir(table.parent)
    commands = [
        ("data", "check", "--json", "check.json", "--out", "check.html"),
        ("labels", "graph", "--json", "graph.json", "--picture", "graph.png"),
        ("labels", "graph", "--picture", "graph.svg"),
        ("labels", "vectors", "--from", "cooccurrence", "--out", "v.safetensors", "--json", "v.json"),
        ("data", "split", "--out", "split.csv", "--json", "split-report.json", "--force"),
    ]
    for command in commands * 2:
        assert run(capsys, *command[:2], table, *command[2:])[0] == 0, command
    known = table.parent / "known.csv"
    known.write_text(f"path,labels\n0.png,{'|'.join(json.loads((bundle_dir / 'config.json').read_text())['labels'])}\n")
    evaluated = ("evaluate", bundle_dir, "--data", known, "--split", "train", "--json", "evaluated.json")
    others = [
        ("predict", bundle_dir, "0.png", "1.png", "--json", "tags.jsonl"),
        ("predict", bundle_dir, "0.png", "1.png", "--threshold", "0.9999", "--json", "no-tags.jsonl"),
        ("predict", bundle_dir, "0.png", "--out", "tags.csv", "--workers", "0", "--overwrite", "--json", "tagged.json"),
        ("thresholds", bundle_dir, "--data", known, "--split", "train", "--out", "fitted", "--json", "fitted.json"),
        ("thresholds", "fitted", "--reset", "--json", "reset.json"),
        ("report", bundle_dir, "--data", known, "--split", "train", "--json", "report.json"),
        ("labels", "groups", bundle_dir, "--picture", "groups.svg", "--json", "groups.json"),
        ("labels", "groups", bundle_dir, "--picture", "groups.png"),
        ("explain", bundle_dir, "0.png", "--no-related", "--json", "why.json"),
        ("explain", bundle_dir, "0.png", "1.png", "--no-related", "--json", "all.json"),
        ("doctor", "--json", "doctor.json"),
        ("recipe", "list", "--json", "list.json"),
        evaluated,
    ]
    for command in others * 2:
        assert run(capsys, *command)[0] == 0, command
    save_learning_rate_curve([1e-3, 1e-2, 1e-1], [2.0, 1.0, 3.0], 1e-3, "rates.png")
    check_outputs((), **{"--picture": Path("rates.png")})
    names = [f"label {number} of a graph" for number in range(10_000)]
    Path("many.json").write_text(json.dumps({"labels": names, "num_images": 1, "split": "train"}))
    check_outputs((), **{"--json": Path("many.json")})
    drawing = '<svg xmlns="http://www.w3.org/2000/svg"><title>Logo</title></svg>'
    for name in ("figure.png", "figure.svg"):
        Figure().savefig(name, metadata={"Title": "Co-occurrence"})
    Path("own.safetensors").write_bytes(save({"vectors": torch.ones(2, 2)}, metadata={"made by": "me"}))
    with pytest.raises(MSRNError, match="is not what msrn writes; it is left alone"):
        check_outputs((), **{"--out": Path("own.safetensors")})
    own = {
        "instances.json": '{"images": []}',
        "labels.jsonl": '{"path": "0.png", "labels": ["cat", "dog"]}\n{"path": "1.png", "labels": []}\n',
        "begins-empty.jsonl": '{"path": "0.png", "labels": []}\n{"path": "1.png", "labels": ["cat"]}\n',
        "sizes.json": '[{"path": "0.png", "size": [20, 20], "labels": ["cat"]}]',
        "notes.json": '{"labels": {"mine": 1}, "notes": "hand made"}',
        "classes.json": '{"labels": ["cat", "dog"], "colours": ["red", "blue"]}',
        "deployed.json": '{"bundle": "runs/scenes", "threshold": 0.4, "notes": "hand made"}',
        "source.json": '{"source": "my camera", "layout": "mine"}',
        "logo.svg": f'<?xml version="1.0" encoding="utf-8"?>\n{drawing}',
        "plain-logo.svg": drawing,
    }
    for name, text in own.items():
        Path(name).write_text(text)
    for name, option in (
        ("0.png", "--json"),
        ("0.png", "--picture"),
        ("split.csv", "--json"),
        ("figure.png", "--picture"),
        ("figure.svg", "--picture"),
        *((name, "--picture" if name.endswith("svg") else "--json") for name in own),
    ):
        before = Path(name).read_bytes()
        code, _, err = run(capsys, "labels", "graph", table, option, name)
        assert code == 1
        assert f"{option} {name} exists and is not what msrn writes; it is left alone." in err
        assert Path(name).read_bytes() == before
    Path("own.csv").write_text("path,labels\n")
    code, _, err = run(capsys, "data", "split", table, "--out", "own.csv", "--force")
    assert code == 1
    assert "own.csv was not written by msrn data split; it is left alone." in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data", "check", "--out", "."), "--out . is a folder. Give the name of a file."),
        (("data", "check", "--out", "-"), "--out - is standard output, which is for --json."),
        (("data", "check", "--out", "x", "--json", "x"), "name the same file"),
        (("labels", "graph", "--json", "."), "--json . is a folder"),
        (("labels", "graph", "--picture", "graph.bmp"), "graph.bmp has an ending that no picture is written to"),
        (
            ("labels", "vectors", "--from", "cooccurrence", "--out", "v.safetensors", "--json", "."),
            "--json . is a folder",
        ),
        (("data", "split", "--check", "--out", "x.csv"), "--check only looks at SOURCE"),
    ],
)
def test_what_cannot_be_written_is_said_first(table, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(table.parent.parent)
    code, out, err = run(capsys, *arguments[:2], table, *arguments[2:])
    assert (code, out) == (1, "")
    assert words in err


def test_other_columns_are_left_out_by_naming_the_labels(table, capsys):
    rows = ["path,sea,dog,width", *(f"{number}.png,1,{number % 2},640" for number in range(12))]
    table.write_text("\n".join(rows) + "\n")
    code, out, _ = run(capsys, "data", "check", table)
    assert code == 1
    assert "if 'width' is no label, pass label_names (--label-names)" in out
    (table.parent / "names.txt").write_text("sea\ndog\n")
    for names in ("sea,dog", table.parent / "names.txt"):
        assert run(capsys, "data", "check", table, "--label-names", names)[0] == 0
    split = table.parent / "split.csv"
    assert run(capsys, "data", "split", table, "--label-names", "sea,dog", "--out", split)[0] == 0
    assert run(capsys, "labels", "graph", table, "--label-names", "sea,dog")[0] == 0
    assert "width" not in split.read_text()


def test_a_split_keeps_the_column_of_groups_and_says_what_was_pooled(table, capsys):
    rows = ["path,labels,day,split"]
    rows += [f"{number}.png,sea,day {number // 2},{'test' if number > 8 else 'train'}" for number in range(12)]
    table.write_text("\n".join(rows) + "\n")
    split = table.parent / "split.csv"
    code, out, _ = run(
        capsys, "data", "split", table, "--group-by", "day", "--val", "0.2", "--test", "0.2", "--out", split
    )
    assert code == 0
    assert "pooled and dealt out anew: train, test" in out
    assert split.read_text().splitlines()[0] == "path,labels,split,day"
    code, out, _ = run(capsys, "data", "check", split, "--group-by", "day")
    assert code == 0
    assert run(capsys, "data", "split", split, "--check")[0] == 0
    again = shutil.copy(split, table.parent / "again.csv")
    mixed = Path(again).read_text().replace("train,day", "val,day", 1)
    Path(again).write_text(mixed)
    code, out, _ = run(capsys, "data", "check", again, "--group-by", "day")
    assert "group across splits" in out
    assert code == 1


def test_mixed_separators_and_swapped_letters_are_named(table, capsys):
    cells = ["dog", "dog;sea", "dgo", *["dog"] * 9]
    table.write_text("path,labels\n" + "".join(f"{i}.png,{cell}|sea\n" for i, cell in enumerate(cells)))
    _, out, _ = run(capsys, "data", "check", table, "--min-positives", "0")
    assert "warning: separator in label (1)" in out
    assert "photos.csv:3: label 'dog;sea' (1 image) holds a ';': are these several labels?" in " ".join(
        out.split()
    ) or ("label 'dog;sea' holds a ';'" in out)
    assert "label 'dgo' (1 image) looks like 'dog'" in out


@pytest.mark.parametrize(
    ("command", "encoding"),
    [(("labels", "graph"), "ascii"), (("labels", "graph"), "utf-8"), (("data", "check"), "cp1252")],
)
def test_what_programs_read_from_standard_output_is_whole_in_every_encoding(table, command, encoding):
    text = table.read_text(encoding="utf-8").replace("dog", "犬")
    table.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "msrn.cli.main", *command, str(table), "--json", "-"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    said = json.loads(done.stdout.decode(encoding))
    assert "犬" in (said["labels"])
    assert ("犬".encode() in done.stdout) == (encoding == "utf-8")


def test_a_terminal_without_a_letter_is_shown_its_number(table):
    table.write_text(table.read_text(encoding="utf-8").replace("dog", "犬"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "msrn.cli.main", "labels", "graph", str(table)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert b"\\u72ac" in done.stdout
    assert done.stderr == b""
