"""The picture of the label graph, from one label to a thousand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from msrn.errors import MSRNError
from msrn.labels import EdgeRule, LabelGraph
from msrn.report import draw_label_graph, save_label_graph
from msrn.report.label_graph import _draw

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg
pytest.importorskip("networkx")


def graph_of(num_labels: int, *, density: float = 0.3, rule: str = "top-k", name: str = "label") -> LabelGraph:
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(300, num_labels, generator=generator) < density).int()
    return LabelGraph.from_target(target, [f"{name} {number}" for number in range(num_labels)], rule=EdgeRule(rule))


def texts_of(graph: LabelGraph) -> tuple[list[str], list[str]]:
    """The labels that are named, and the notes below."""
    figure = _draw(graph, None)
    return [text.get_text() for text in figure.axes[0].texts], [text.get_text() for text in figure.texts]


def boxes_of(figure: Any) -> np.ndarray:
    """Left, bottom, right and top of each name, in pixels."""
    figure.canvas = FigureCanvasAgg(figure)
    figure.canvas.draw()
    return np.array([text.get_window_extent().extents for text in figure.axes[0].texts])


def assert_no_overlap(figure: Any) -> None:
    """Neither of names with each other nor with the picture's edge."""
    boxes = boxes_of(figure)
    overlap = (boxes[:, None, :2] < boxes[None, :, 2:]).all(-1) & (boxes[None, :, :2] < boxes[:, None, 2:]).all(-1)
    assert overlap.sum() == len(boxes)  # each with itself
    assert boxes.min() >= 0
    assert (boxes[:, 2:].max(axis=0) <= figure.bbox.size).all()


@pytest.mark.parametrize(("num_labels", "name"), [(20, "label"), (80, "label"), (80, "a label of a long name")])
def test_names_do_not_run_into_each_other(num_labels: int, name: str) -> None:
    figure = _draw(graph_of(num_labels, density=0.1, name=name), np.arange(num_labels) % 7)
    assert len(figure.axes[0].texts) == num_labels
    assert_no_overlap(figure)


@pytest.mark.parametrize("name", ["x" * 300, "new\nline", "船"])
def test_names_of_any_kind(name: str) -> None:
    assert draw_label_graph(graph_of(6, name=name)).startswith("<svg")
    names, _ = texts_of(graph_of(6, name=name))
    assert all(len(own) <= 28 and "\n" not in own for own in names)


@pytest.mark.parametrize("num_labels", [1, 2, 20, 80])
def test_every_label_of_a_small_graph_is_named(num_labels: int) -> None:
    graph = graph_of(num_labels)
    names, notes = texts_of(graph)
    assert (sorted(names), notes) == (sorted(graph.label_names), [])
    assert draw_label_graph(graph).startswith("<svg")


def test_of_a_thousand_labels_some_are_named() -> None:
    figure = _draw(graph_of(1000, density=0.01), None)
    names, notes = figure.axes[0].texts, [text.get_text() for text in figure.texts]
    assert 10 < len(names) <= 70
    assert_no_overlap(figure)
    assert notes == [f"{len(names)} of 1000 labels named, from those of most edges on"]


def test_groups_are_told_apart_and_listed() -> None:
    groups = np.arange(20) % 10  # two more than there are colours
    axes = _draw(graph_of(20), groups).axes[0]
    drawn = {
        (tuple(nodes.get_facecolor()[0]), len(nodes.get_paths()[0].vertices)): len(nodes.get_offsets())
        for nodes in axes.collections
        if len(nodes.get_sizes())
    }
    assert list(drawn.values()) == [2] * 10  # ten pairs of colour and shape, two labels each
    listed = [text.get_text() for text in axes.get_legend().get_texts()]
    assert listed == [f"group {group}, 2 labels" for group in range(10)]
    assert _draw(graph_of(20), None).axes[0].get_legend() is None
    many = np.concatenate([np.arange(50), np.zeros(10, dtype=int)])
    listed = [text.get_text() for text in _draw(graph_of(60), many).axes[0].get_legend().get_texts()]
    assert (listed[0], listed[-1], len(listed)) == ("group 0, 11 labels", "19 other groups, 19 labels", 32)


def test_more_edges_than_can_be_drawn_are_counted() -> None:
    graph = graph_of(200, density=0.7, rule="threshold")
    assert f"4000 of {graph.num_edges} edges drawn, the most likely" in texts_of(graph)[1][0]


def test_the_same_graph_gives_the_same_picture() -> None:
    for num_labels in (20, 200):
        graph = graph_of(num_labels, density=0.05)
        first, second = (_draw(graph, None).axes[0].texts for _ in range(2))
        assert [tuple(text.xy) for text in first] == [tuple(text.xy) for text in second]


def test_names_are_not_taken_for_mathematics() -> None:
    svg = draw_label_graph(graph_of(3, name="$x_{$ \\frac"))
    assert svg.startswith("<svg")


def test_groups_colour_the_labels() -> None:
    svg = draw_label_graph(graph_of(4), np.array([0, 0, 1, 1]))
    assert "#0072b2" in svg.lower()
    assert "#e69f00" in svg.lower()


def test_files(tmp_path: Path) -> None:
    save_label_graph(graph_of(5), tmp_path / "a.svg")
    save_label_graph(graph_of(5), tmp_path / "a.png")
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(
        MSRNError, match=r"a\.jpg has an ending that no picture is written to\. Give a name that ends in"
    ):
        save_label_graph(graph_of(5), tmp_path / "a.jpg")
