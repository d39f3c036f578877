"""A picture of the label graph."""

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from msrn.errors import MissingDependencyError
from msrn.labels import LabelGraph

if TYPE_CHECKING:
    import networkx

# Okabe and Ito's colours, which colour-blind people can tell apart.
GROUP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")


def draw_label_graph(label_graph: LabelGraph, groups: Int[np.ndarray, " L"] | None = None) -> str:
    """Draw the label graph as SVG: an arrow from label i to label j where j follows i, coloured by group.

    Args:
        label_graph: Labels and co-occurrence.
        groups: The most likely group of each label; one colour for all where not given.

    Returns:
        The SVG element, to be placed in a page. Larger discs are labels of more images.

    Raises:
        MissingDependencyError: matplotlib or networkx is not installed.
    """
    try:
        import networkx
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"drawing needs {error.name}: pip install 'msrn[report]'.") from error

    graph = _build(label_graph)
    colours = (
        [GROUP_COLOURS[int(group) % len(GROUP_COLOURS)] for group in groups] if groups is not None else ["#0072B2"]
    )
    counts = label_graph.label_counts.numpy()
    sizes = 120 + 900 * np.sqrt(counts / max(1, counts.max()))
    side = max(7.0, 1.6 * math.sqrt(label_graph.num_labels))
    figure = Figure(figsize=(1.35 * side, side))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.margins(0.05)
    positions = networkx.kamada_kawai_layout(graph.to_undirected(), weight="length")
    shown = [(i, j) for i, j, data in graph.edges(data=True) if data["is_edge"]]
    networkx.draw_networkx_edges(
        graph,
        positions,
        edgelist=shown,
        ax=axes,
        node_size=sizes,
        edge_color="#8a94a6",
        alpha=0.7,
        arrowsize=9,
        connectionstyle="arc3,rad=0.08",
    )
    networkx.draw_networkx_nodes(graph, positions, ax=axes, node_size=sizes, node_color=colours, edgecolors="white")
    for node, name in enumerate(label_graph.label_names):
        below = (0.0, -math.sqrt(sizes[node]) / 2 - 2)  # points from the disc's centre
        axes.annotate(
            name,
            positions[node],
            below,
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=11,
            color="#1f2733",
        )
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": "Label graph"})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _build(label_graph: LabelGraph) -> "networkx.DiGraph":
    """Every pair that occurs together pulls on the layout; only the graph's own edges are drawn."""
    import networkx

    graph = networkx.DiGraph()
    graph.add_nodes_from(range(label_graph.num_labels))
    counts = label_graph.label_counts.clamp(min=1).double()
    both = label_graph.co_occurrence.double()
    likeness = (both / (counts[:, None] * counts[None, :]).sqrt()).numpy()  # cosine of the labels' images
    is_edge = (label_graph.adjacency > 0).numpy()
    for i in range(label_graph.num_labels):
        for j in range(label_graph.num_labels):
            if i != j:
                graph.add_edge(i, j, length=1.0 / (0.15 + likeness[i, j]), is_edge=bool(is_edge[i, j]))
    return graph
