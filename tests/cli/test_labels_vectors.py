"""`msrn labels vectors`: which labels and which source, what it prints and writes."""

import gzip
import json
from pathlib import Path

import command_line
import pytest
import torch

from msrn.labels import CountedGraph, LabelGraph, read_vectors, vectors_from_co_occurrence, write_graph

WORDS = "cat 1 0\ndog 0 1\nhot_dog 2 2\ndining 4 0\ntable 0 4\n"


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text(WORDS)
    Path("names.txt").write_text("cat\nhot dog\ndiningtable\nzyzzyva\n")
    Path("photos.csv").write_text("path,labels\na.png,cat|dog\nb.png,cat\nc.png,dog|cat\n")
    target = torch.tensor([[1, 1], [1, 0], [1, 1]])
    write_graph("graph.json", CountedGraph(LabelGraph.from_target(target, ["cat", "dog"])))


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `msrn labels vectors ARGUMENTS`."""
    code, out, err = command_line.run(capsys, "labels", "vectors", *arguments)
    return code, out, " ".join(err.split())


def test_every_label_not_found_as_it_is_is_named(capsys) -> None:
    code, out, err = run(capsys, "names.txt", "--from", "words.txt", "--out", "new/v.safetensors")
    assert (code, err) == (0, "")
    out = " ".join(out.split())
    assert "hot dog │ spelling │ hot_dog" in out
    assert "diningtable │ compound │ dining + table" in out
    assert "zyzzyva │ random │ a random vector" in out
    assert "│ cat" not in out
    assert "4 labels, vectors of width 2 from words.txt: 1 as it is, 1 spelling, 1 compound, 1 random" in out
    made = read_vectors("new/v.safetensors")
    assert made.label_names == ("cat", "hot dog", "diningtable", "zyzzyva")
    assert made.vectors[:3].tolist() == [[1, 0], [2, 2], [2, 2]]


def test_json_holds_what_the_table_shows(capsys) -> None:
    code, out, _ = run(capsys, "names.txt", "--from", "words.txt", "--out", "v.safetensors", "--json", "-")
    assert code == 0
    values = json.loads(out)
    assert (values["vectors"], values["source"], values["dim"]) == ("v.safetensors", "words.txt", 2)
    assert values["labels"] == [
        {"name": "cat", "how": "as it is", "words": ["cat"]},
        {"name": "hot dog", "how": "spelling", "words": ["hot_dog"]},
        {"name": "diningtable", "how": "compound", "words": ["dining", "table"]},
        {"name": "zyzzyva", "how": "random", "words": []},
    ]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("photos.csv", ("cat", "dog")),
        ("graph.json", ("cat", "dog")),
        ("names.txt", ("cat", "hot dog", "diningtable", "zyzzyva")),
        ("voc2007", ("aeroplane", "bicycle", "bird")),
    ],
)
def test_where_labels_come_from(capsys, labels: str, names: tuple[str, ...]) -> None:
    code, _, err = run(capsys, labels, "--from", "words.txt", "--out", "v.safetensors")
    assert (code, err) == (0, "")
    assert read_vectors("v.safetensors").label_names[: len(names)][: len(names)] == names


@pytest.mark.parametrize(
    "arguments",
    [
        ["photos.csv"],
        ["graph.json"],
        ["photos.csv", "--graph", "graph.json"],
    ],
)
def test_from_co_occurrence(capsys, arguments: list[str]) -> None:
    code, out, err = run(capsys, *arguments, "--from", "cooccurrence", "--out", "v.safetensors")
    assert (code, err) == (0, "")
    assert "from cooccurrence: 2 co-occurrence" in out
    graph = LabelGraph.from_target(torch.tensor([[1, 1], [1, 0], [1, 1]]), ["cat", "dog"])
    torch.testing.assert_close(read_vectors("v.safetensors").vectors, vectors_from_co_occurrence(graph))


def test_graph_is_brought_into_the_order_of_the_labels(capsys) -> None:
    Path("turned.txt").write_text("dog\ncat\n")
    assert run(capsys, "graph.json", "--from", "cooccurrence", "--out", "a.safetensors")[0] == 0
    arguments = ["turned.txt", "--graph", "graph.json", "--from", "cooccurrence", "--out", "b.safetensors"]
    assert run(capsys, *arguments)[0] == 0
    first, second = read_vectors("a.safetensors"), read_vectors("b.safetensors")
    assert second.label_names == ("dog", "cat")
    likeness = first.of(["dog", "cat"]) @ first.of(["dog", "cat"]).T
    torch.testing.assert_close(second.vectors @ second.vectors.T, likeness)


def test_what_exists_on_disk_goes_first(capsys) -> None:
    Path("cooccurrence").write_text(WORDS)
    Path("voc2007").mkdir()
    Path("voc2007/labels.csv").write_text("path,labels\na.png,dog\n")
    code, out, err = run(capsys, "voc2007", "--from", "cooccurrence", "--out", "v.safetensors")
    assert (code, err) == (0, "")
    assert "1 labels, vectors of width 2 from cooccurrence: 1 as it is" in out


def test_packed_file(capsys) -> None:
    Path("words.txt.gz").write_bytes(gzip.compress(WORDS.encode()))
    assert run(capsys, "photos.csv", "--from", "words.txt.gz", "--out", "v.safetensors")[0] == 0
    assert read_vectors("v.safetensors").vectors.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["names.txt", "--from", "cooccurrence"], "vectors from co-occurrence need images: give the data as LABELS"),
        (["names.txt", "--from", "words.txt", "--graph", "graph.json"], "--graph is for --from cooccurrence. Leave it"),
        (
            ["names.txt", "--from", "cooccurrence", "--graph", "graph.json"],
            "the label graph knows 2 labels, the data has 4",
        ),
        (["names.txt", "--from", "glove.txt"], "glove.txt does not exist. Check the path"),
        (["nothing", "--from", "words.txt"], "'nothing' is neither a label set nor a file"),
        (["voc2007", "--from", "names.txt"], "line 1: 0 numbers after a word"),
    ],
)
def test_what_is_refused(capsys, arguments: list[str], message: str) -> None:
    code, _, err = run(capsys, *arguments, "--out", "v.safetensors")
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert not Path("v.safetensors").exists()


def test_output_has_to_be_safetensors(capsys) -> None:
    code, _, err = run(capsys, "names.txt", "--from", "words.txt", "--out", "v.pkl")
    assert code == 1
    assert "--out v.pkl: vectors are written as safetensors. Give a name that ends in .safetensors." in err
