"""A picture of the label graph."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from msrn.errors import MissingDependencyError, MSRNError
from msrn.files import write_bytes, write_text
from msrn.labels import LabelGraph, conditional_probability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people can tell apart.
GROUP_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")

# More groups than colours are told apart by shape, and then no more.
GROUP_SHAPES = "osDv"
_NUM_STYLES = len(GROUP_COLOURS) * len(GROUP_SHAPES) - 1
_REST = (GROUP_COLOURS[-1], GROUP_SHAPES[-1])

PICTURE_SUFFIXES = (".svg", ".png")
# Up to so many labels each is named, and all pairs pull on the layout; beyond, that would be neither readable nor quick.
_MAX_NAMED = 150
_NUM_NAMED = 70
_MAX_ARROWS = 600
_MAX_LINES = 4000


def draw_label_graph(label_graph: LabelGraph, groups: Int[np.ndarray, " L"] | None = None) -> str:
    """Draw the label graph as SVG: an arrow from label i to label j where j follows i, coloured by group.

    Of more than 150 labels only the best connected are named; of more than 600 edges the direction is not shown, of more
    than 4,000 only the most likely are drawn, as the picture then says. Eight groups have a colour each; more have the colours
    again with other shapes.

    Args:
        label_graph: Labels and co-occurrence.
        groups: The most likely group of each label; one colour for all where not given.

    Returns:
        The SVG element, to be placed in a page. Larger discs are labels of more images.

    Raises:
        MissingDependencyError: matplotlib or networkx is not installed.
    """
    text = io.StringIO()
    figure = _draw(label_graph, groups)
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": "Label graph"})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def check_picture(path: Path) -> None:
    """Refuse the name of a picture that cannot be written, before any work is done for it.

    Raises:
        MSRNError: It has another ending than .svg or .png.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise MSRNError(f"{path} has an ending that no picture is written to. Give a name that ends in .svg or .png.")


def save_label_graph(label_graph: LabelGraph, path: str | Path, *, groups: Int[np.ndarray, " L"] | None = None) -> None:
    """Write the picture of `draw_label_graph` to a file, .svg or .png; `groups` as there.

    Raises:
        MissingDependencyError: matplotlib or networkx is not installed.
        MSRNError: The file has another ending, or cannot be written.
    """
    path = Path(path)
    check_picture(path)
    if path.suffix.lower() == ".svg":
        write_text(path, draw_label_graph(label_graph, groups))
        return
    data = io.BytesIO()
    _draw(label_graph, groups).savefig(data, format="png", dpi=100, facecolor="white")
    write_bytes(path, data.getvalue())


def _draw(label_graph: LabelGraph, groups: Int[np.ndarray, " L"] | None) -> "Figure":
    try:
        import networkx
        from matplotlib.figure import Figure
        from matplotlib.patheffects import withStroke
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"drawing needs {error.name}: pip install 'msrn[report]'.") from error

    num_labels = label_graph.num_labels
    is_small = num_labels <= _MAX_NAMED
    edges = (label_graph.adjacency > 0).fill_diagonal_(False).numpy()
    shown = _most_likely(label_graph, edges)
    counts = label_graph.label_counts.numpy()
    shares = np.sqrt(counts / max(1, counts.max()))
    sizes = 120 + 900 * shares if is_small else 10 + 200 * shares
    side = min(max(7.0, 1.6 * math.sqrt(num_labels)), 18.0)
    figure = Figure(figsize=(1.35 * side, side))
    axes = figure.add_axes((0.0, 0.0, 1.0 if groups is None else 1 - 2.2 / (1.35 * side), 1.0))  # inches for the groups
    axes.set_axis_off()
    axes.margins(0.05)
    positions = _place(label_graph, edges)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(num_labels))
    graph.add_edges_from(shown)
    if len(shown) > _MAX_ARROWS:
        networkx.draw_networkx_edges(
            graph, positions, ax=axes, edge_color="#8a94a6", alpha=0.25, width=0.7, arrows=False
        )
    else:
        networkx.draw_networkx_edges(
            graph,
            positions,
            ax=axes,
            node_size=sizes,
            edge_color="#8a94a6",
            alpha=0.7,
            arrowsize=9,
            connectionstyle="arc3,rad=0.08",
        )
    order = _by_size(groups) if groups is not None else [0]
    ranks = {group: rank for rank, group in enumerate(order)}
    styles = [_style(ranks[group]) for group in (groups.tolist() if groups is not None else [0] * num_labels)]
    for colour, shape in dict.fromkeys(styles):
        inside = [node for node, style in enumerate(styles) if style == (colour, shape)]
        networkx.draw_networkx_nodes(
            graph,
            positions,
            ax=axes,
            nodelist=inside,
            node_size=sizes[inside],
            node_color=colour,
            node_shape=shape,
            edgecolors="white",
            alpha=1.0 if is_small else 0.7,
        )
    if groups is not None:
        _add_legend(axes, groups)
    degree = edges.sum(axis=0) + edges.sum(axis=1)
    names = [name.replace("$", r"\$") for name in label_graph.label_names]  # a pair of $ would be set as mathematics
    named = list(range(num_labels))
    if not is_small:
        named = _without_overlap(np.lexsort((-counts, -degree)), names, positions, figure.get_size_inches() * 72)
    for node in named:
        below = (0.0, -math.sqrt(sizes[node]) / 2 - 2)  # points from the disc's centre
        axes.annotate(
            names[node],
            positions[node],
            below,
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=11 if is_small else 12,
            color="#1f2733",
            path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)],
        )
    notes = []
    if not is_small:
        notes.append(f"{len(named)} of {num_labels} labels named, from those of most edges on")
    if len(shown) < edges.sum():
        notes.append(f"{len(shown)} of {edges.sum()} edges drawn, the most likely")
    if notes:
        figure.text(0.01, 0.01, "; ".join(notes), fontsize=10, color="#1f2733")
    return figure


def _by_size(groups: Int[np.ndarray, " L"]) -> list[int]:
    """The groups that have labels, the largest first."""
    numbers, counts = np.unique(groups, return_counts=True)
    return [int(number) for number in numbers[np.argsort(-counts, kind="stable")]]


def _style(rank: int) -> tuple[str, str]:
    """Colour and shape of a group's labels; beyond those there are, the groups look alike."""
    if rank >= _NUM_STYLES:
        return _REST
    return GROUP_COLOURS[rank % len(GROUP_COLOURS)], GROUP_SHAPES[rank // len(GROUP_COLOURS)]


def _add_legend(axes: Any, groups: Int[np.ndarray, " L"]) -> None:
    """The groups that have labels, with how many, beside the drawing."""
    from matplotlib.lines import Line2D

    def mark(style: tuple[str, str], name: str) -> Any:
        return Line2D([], [], color=style[0], marker=style[1], linestyle="", markersize=8, label=name)

    order = _by_size(groups)
    marks = []
    for rank, group in enumerate(order[:_NUM_STYLES]):
        count = int((groups == group).sum())
        marks.append(mark(_style(rank), f"group {group}, {count} {'label' if count == 1 else 'labels'}"))
    if len(order) > _NUM_STYLES:
        count = int(np.isin(groups, order[_NUM_STYLES:]).sum())
        marks.append(mark(_REST, f"{len(order) - _NUM_STYLES} other groups, {count} labels"))
    axes.legend(handles=marks, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=10)


def _most_likely(label_graph: LabelGraph, edges: Bool[np.ndarray, "L L"]) -> list[tuple[int, int]]:
    """The edges that are drawn, as pairs."""
    sources, targets = np.nonzero(edges)
    probability = conditional_probability(label_graph.co_occurrence, label_graph.label_counts).numpy()
    best = np.argsort(-probability[sources, targets], kind="stable")[:_MAX_LINES]
    return [(int(i), int(j)) for i, j in zip(sources[best], targets[best], strict=True)]


def _place(label_graph: LabelGraph, edges: Bool[np.ndarray, "L L"]) -> dict[int, Any]:
    """A place for every label: every pair that occurs together pulls, of many labels only the likest pairs and the edges."""
    import networkx

    num_labels = label_graph.num_labels
    likeness = _likeness(label_graph)
    graph = networkx.Graph()
    graph.add_nodes_from(range(num_labels))
    if num_labels <= _MAX_NAMED:
        pairs = ((i, j) for i in range(num_labels) for j in range(i))
        graph.add_edges_from((i, j, {"length": 1.0 / (0.15 + likeness[i, j])}) for i, j in pairs)
        return dict(networkx.kamada_kawai_layout(graph, weight="length"))
    likest = np.zeros_like(edges)
    np.put_along_axis(likest, np.argsort(-likeness, axis=1, kind="stable")[:, :4], True, axis=1)
    sources, targets = np.nonzero((likest & (likeness > 0)) | edges)
    graph.add_weighted_edges_from(
        (int(i), int(j), 0.05 + float(likeness[i, j])) for i, j in zip(sources, targets, strict=True)
    )
    placed = networkx.spring_layout(graph, k=2.5 / math.sqrt(num_labels), iterations=80, seed=0)
    return dict(placed)


def _without_overlap(
    order: Int[np.ndarray, " L"], names: list[str], positions: dict[int, Any], size: Float[np.ndarray, " 2"]
) -> list[int]:
    """The first labels of `order` whose names do not run into those before them, on a figure of so many points."""
    places = np.array([positions[node] for node in range(len(names))])
    places = (places - places.min(axis=0)) / np.ptp(places, axis=0).clip(1e-9) * size
    half_widths = np.array([3.6 * len(name) for name in names])  # points
    named: list[int] = []
    for node in map(int, order):
        away = np.abs(places[named] - places[node])
        if not ((away[:, 0] < half_widths[named] + half_widths[node]) & (away[:, 1] < 18)).any():
            named.append(node)
        if len(named) == _NUM_NAMED:
            break
    return named


def _likeness(label_graph: LabelGraph) -> Float[np.ndarray, "L L"]:
    """Cosine of the labels' images."""
    counts = label_graph.label_counts.clamp(min=1).double()
    both = label_graph.co_occurrence.double()
    likeness: Float[np.ndarray, "L L"] = (both / (counts[:, None] * counts[None, :]).sqrt()).numpy()
    return likeness
