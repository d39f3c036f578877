import json
import os
import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.errors import DataError, SourceNotFoundError
from msrn.labels import CountedGraph, EdgeRule, LabelGraph, read_graph, write_graph

SMALL: dict[str, Any] = {"labels": ["cat", "dog"], "co_occurrence": [[0, 2], [2, 0]], "label_counts": [3, 5]}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({**SMALL, **changes}))
    return path


def same(left: LabelGraph, right: LabelGraph) -> bool:
    return (
        left.label_names == right.label_names
        and torch.equal(left.co_occurrence, right.co_occurrence)
        and torch.equal(left.label_counts, right.label_counts)
        and torch.equal(left.adjacency, right.adjacency)
        and (left.threshold, left.rule) == (right.threshold, right.rule)
    )


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), min_size=1, max_size=6, unique=True),
    rule=st.sampled_from([EdgeRule(), EdgeRule(threshold=0.15), EdgeRule("top-k", top_k=2), EdgeRule("lift")]),
    seed=st.integers(0, 9),
)
def test_what_is_written_is_read_back(tmp_path_factory, names, rule, seed) -> None:
    path = tmp_path_factory.mktemp("graph") / "graph.json"
    target = (torch.rand(40, len(names), generator=torch.Generator().manual_seed(seed)) < 0.4).int()
    graph = LabelGraph.from_target(target, names, rule=rule)
    write_graph(path, CountedGraph(graph, 40, "train", "abc"))
    read = read_graph(path)
    assert same(read.label_graph, graph)
    assert (read.num_images, read.split, read.split_sha256) == (40, "train", "abc")


def test_no_file_that_would_not_be_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_graph: LabelGraph
) -> None:
    graph = CountedGraph(label_graph, 40, "train")
    write_graph(tmp_path / "graph.json", graph)
    size = (tmp_path / "graph.json").stat().st_size
    monkeypatch.setattr("msrn.labels.graph_file.MAX_FILE_BYTES", size)
    assert same(read_graph(tmp_path / "graph.json").label_graph, label_graph)
    monkeypatch.setattr("msrn.labels.graph_file.MAX_FILE_BYTES", size - 1)
    with pytest.raises(DataError, match=r"graph of .* labels takes more than .* Count it on fewer labels"):
        write_graph(tmp_path / "other.json", graph)
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]


def test_what_is_in_the_file(tmp_path: Path, label_graph: LabelGraph) -> None:
    write_graph(tmp_path / "graph.json", CountedGraph(label_graph, 40, "train"))
    values = json.loads((tmp_path / "graph.json").read_text())
    assert values["labels"] == list(label_graph.label_names)
    assert len(values["edges"]) == label_graph.num_edges
    names = {(values["labels"][i], values["labels"][j]) for i, j in values["edges"]}
    assert ("cat", "dog") in names  # a cat is always with a dog
    assert {row["threshold"]: row["edges"] for row in values["sweep"]}[0.4] == label_graph.num_edges
    assert values["labels_alone"] == label_graph.num_alone
    assert values["rule"] == "P(j | i) >= 0.4"


def test_a_file_made_by_hand_needs_three_keys(tmp_path: Path) -> None:
    graph = read_graph(write(tmp_path / "graph.json"))
    assert graph.num_images is None
    assert graph.label_graph.num_edges == 2
    assert read_graph(write(tmp_path / "graph.json", threshold=0.5)).label_graph.num_edges == 1
    assert read_graph(write(tmp_path / "graph.json", edges=[])).label_graph.num_edges == 0
    one = read_graph(write(tmp_path / "graph.json", edges=[[1, 0]])).label_graph
    assert (one.num_edges, one.rule) == (1, "given edges")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": []}, "labels is not a list of names"),
        ({"labels": ["cat", ""]}, "labels is not a list of names"),
        ({"labels": ["cat", "cat"]}, "'cat' is there twice"),
        ({"labels": ["cat"]}, "co_occurrence is not made of 1 x 1 whole numbers from 0 on"),
        ({"co_occurrence": [[0, 2], [2]]}, "co_occurrence is not made of 2 x 2 whole"),
        ({"co_occurrence": [[0, 2.0], [2, 0]]}, "co_occurrence is not made of 2 x 2 whole"),
        ({"co_occurrence": [[0, float("nan")], [2, 0]]}, "co_occurrence is not made of"),
        ({"co_occurrence": [[0, 10**30], [10**30, 0]]}, "co_occurrence is not made of"),
        ({"co_occurrence": [[0, -1], [-1, 0]]}, "co_occurrence is not made of"),
        ({"co_occurrence": [[0, 1], [2, 0]]}, "co_occurrence is not symmetric"),
        ({"co_occurrence": [[1, 2], [2, 0]]}, "co_occurrence is not symmetric with a zero diagonal"),
        ({"co_occurrence": [[0, 4], [4, 0]]}, "more images of two labels than label_counts has of one"),
        ({"co_occurrence": "x"}, "co_occurrence is not made of"),
        ({"label_counts": [True, False]}, "label_counts is not made of 2 whole"),
        ({"label_counts": [3, None]}, "label_counts is not made of 2 whole"),
        ({"num_images": 4}, "num_images is 4, fewer than a label's images"),
        ({"num_images": "5"}, "num_images is '5'"),
        ({"threshold": 0}, "threshold is a probability above 0 and at most 1, got 0. The published one is 0.4. Make"),
        ({"threshold": float("nan")}, "threshold is a probability"),
        ({"threshold": "0.4"}, "threshold is '0.4', not a probability"),
        ({"split": 3}, "split is 3, not text"),
        ({"split": "\ud800"}, "split is '\\ud800', not text"),
        ({"labels": ["cat", "\udcff"]}, "it names a label that is not UTF-8: '\\udcff'"),
        ({"edges": [[0, 2]]}, "edges is not a list of pairs of positions from 0 to 1"),
        ({"edges": [["cat", "dog"]]}, "edges is not a list of pairs"),
        ({"edges": {"0": 1}}, "edges is not a list of pairs"),
        ({"edges": [[1, 1]]}, "edges joins a label to itself"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "graph.json", **changes)
    with pytest.raises(DataError) as caught:
        read_graph(path)
    assert f"{path} is not a label graph: " in str(caught.value)
    assert message in str(caught.value)
    assert ".." not in str(caught.value).replace(str(path), "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "it holds a list, expected an object with labels, co_occurrence, label_counts"),
        (b'{"labels": ["cat"]}', "it lacks co_occurrence, label_counts"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"labels": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"", "is not JSON"),
    ],
    ids=["list", "keys", "cut", "bytes", "deep", "long", "empty"],
)
def test_a_file_of_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_graph(path)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"none\.json does not exist\. Give the JSON file that msrn labels"):
        read_graph(tmp_path / "none.json")
    with pytest.raises(SourceNotFoundError, match="is not a file"):
        read_graph(tmp_path)
    large = tmp_path / "large.json"
    large.touch()
    os.truncate(large, 300 << 20)
    with pytest.raises(DataError, match="larger than 256 MB"):
        read_graph(large)


def test_graph_of_voc_equals_a_plain_count_over_its_annotations() -> None:
    root = Path(__file__).parents[2].parent / "shared" / "voc2007" / "VOCdevkit"
    if not root.is_dir():
        pytest.skip("PASCAL VOC 2007 is not beside the checkout")
    from msrn.data import open_source

    images = open_source(root).read("train")
    graph = LabelGraph.from_target(torch.from_numpy(images.target), images.label_names)
    counts = dict.fromkeys(images.label_names, 0)
    both = {(a, b): 0 for a in images.label_names for b in images.label_names}
    for path in images.paths:
        tree = ElementTree.parse(path.parents[1] / "Annotations" / f"{Path(path).stem}.xml")
        objects = [(node.findtext("name"), node.findtext("difficult")) for node in tree.iter("object")]
        present = {name for name, difficult in objects if difficult != "1"}
        for a in present:
            counts[a] += 1
            for b in present - {a}:
                both[a, b] += 1
    assert graph.label_counts.tolist() == list(counts.values())
    for (i, a), (j, b) in ((x, y) for x in enumerate(images.label_names) for y in enumerate(images.label_names)):
        assert graph.co_occurrence[i, j] == both[a, b]


@pytest.mark.parametrize("key", ["co_occurrence", "label_counts", "edges"])
def test_a_long_text_among_the_numbers_takes_no_memory(tmp_path: Path, key: str) -> None:
    """NumPy would give each of them its length."""
    path = write(tmp_path / "graph.json", labels=[str(i) for i in range(3000)], **{key: ["x" * 3000] * 3000})
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="is not a label graph"):
            read_graph(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size + 10_000_000
    finally:
        tracemalloc.stop()
