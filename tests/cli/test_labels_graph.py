"""`msrn labels graph`: what it counts, prints, writes and draws."""

import json
from pathlib import Path
from typing import Any

import command_line
import pytest

# A horse is always with a person; cups come with saucers; the owl is alone.
ROWS = {
    "train": ["person|horse"] * 4 + ["person"] * 8 + ["cup|saucer"] * 3 + ["cup"] * 9 + ["owl"] * 6,
    "val": ["person|owl"] * 4,
    "test": ["cup|owl"] * 5,
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["path,labels,split"]
    for split, rows in ROWS.items():
        lines += [f"{split}-{number}.png,{labels},{split}" for number, labels in enumerate(rows)]
    path = tmp_path / "photos.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `msrn labels graph ARGUMENTS`."""
    code, out, err = command_line.run(capsys, "labels", "graph", *arguments)
    return code, " ".join(out.split()), " ".join(err.split())


def graph_of(capsys, *arguments: object) -> dict[str, Any]:
    code, out, _ = run(capsys, *arguments, "--json", "-")
    assert code == 0
    return json.loads(out)


def edges_of(graph: dict[str, Any]) -> set[tuple[str, str]]:
    return {(graph["labels"][i], graph["labels"][j]) for i, j in graph["edges"]}


def test_only_training_images_are_counted(capsys, table: Path) -> None:
    graph = graph_of(capsys, table, "--rule", "threshold")
    counts = dict(zip(graph["labels"], graph["label_counts"], strict=True))
    assert counts == {"person": 12, "horse": 4, "cup": 12, "saucer": 3, "owl": 6}
    assert (graph["split"], graph["num_images"], len(graph["split_sha256"])) == ("train", 30, 64)
    assert edges_of(graph) == {("horse", "person"), ("saucer", "cup")}
    assert graph["labels_alone"] == 3  # the horse, the saucer and the owl: nothing leads to them


def test_several_splits_are_counted_together(capsys, table: Path) -> None:
    graph = graph_of(capsys, table, "--split", "train", "--split", "val", "--threshold", "0.25")
    assert (graph["split"], graph["num_images"]) == ("train + val", 34)
    assert ("owl", "person") in edges_of(graph)


def test_rules(capsys, table: Path) -> None:
    assert edges_of(graph_of(capsys, table, "--rule", "top-k", "--top-k", 1)) == {
        *(("horse", "person"), ("person", "horse"), ("cup", "saucer"), ("saucer", "cup"))
    }
    lift = graph_of(capsys, table, "--rule", "lift", "--significance", "0.1")
    assert edges_of(lift) == {
        *(("horse", "person"), ("person", "horse"), ("cup", "saucer"), ("saucer", "cup")),
    }
    assert lift["rule"] == "labels together more often than by chance, significance 0.1"


def test_without_a_rule_it_is_that_of_recipes_or_of_the_setting(capsys, table: Path) -> None:
    assert graph_of(capsys, table)["rule"] == graph_of(capsys, table, "--rule", "top-k")["rule"]
    assert graph_of(capsys, table, "--threshold", "0.25")["rule"] == "P(j | i) >= 0.25"
    lift = graph_of(capsys, table, "--significance", "0.1")["rule"]
    assert lift == "labels together more often than by chance, significance 0.1"


def test_what_is_printed(capsys, table: Path) -> None:
    code, out, _ = run(capsys, table, "--rule", "threshold")
    assert code == 0
    assert "30 images of train, 5 labels; P(j | i) >= 0.4: 2 edges, 3 labels attend only to themselves" in out
    assert "what a threshold leaves of the graph" in out
    assert "strongest conditional probabilities" in out
    assert "horse │ person │ 1.000 │ 4 │ 4" in out
    assert "warning: the graph is nearly empty, 3 of 5 labels attend only to themselves" in out
    assert "Try --threshold 0.3 (3 edges, 2 alone), --rule top-k (4 edges, 1 alone)" in out
    assert "warning" not in run(capsys, table, "--rule", "top-k")[1]


def test_a_graph_that_no_rule_helps(capsys, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("path,labels\na.png,cat\nb.png,dog\nc.png,owl\n")
    code, out, _ = run(capsys, tmp_path / "one.csv")
    assert code == 0
    assert "3 of 3 labels attend only to themselves" in out
    assert "No rule joins more of them: few images hold two labels." in out


@pytest.mark.parametrize("name", ["graph.svg", "graph.PNG"])
def test_picture(capsys, table: Path, tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = run(capsys, table, "--picture", tmp_path / "new" / name)
    assert code == 0
    assert "picture: " in out
    start = (tmp_path / "new" / name).read_bytes()[:8]
    assert start.startswith(b"<svg") or start == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "error: the label graph comes from training images"),
        (["--split", "training"], "has no split 'training'"),
        (["--picture", "graph.pdf"], "graph.pdf has an ending that no picture is written to"),
        (["--threshold", "0"], "a probability above 0 and at most 1, got 0.0"),
        (["--significance", "1"], "a share between 0 and 1, got 1.0"),
        (["--top-k", "0"], "should be greater than or equal to 1"),
        (["--rule", "best"], "'best' is not one of"),
    ],
)
def test_what_is_refused(capsys, table: Path, arguments: list[str], message: str) -> None:
    code, _, err = run(capsys, table, *arguments)
    assert code != 0
    assert "Traceback" not in err
    assert message in err.replace("│ ", "")


def test_names_of_labels_are_not_taken_for_markup(capsys, tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("path,labels\na.png,a[bold]|b[/x]\nb.png,a[bold]\n")
    code, out, err = run(capsys, tmp_path / "tags.csv")
    assert (code, err) == (0, "")
    assert "b[/x] │ a[bold] │ 1.000" in out
