"""A picture of the label graph."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int

from msrn.drawing import drawn_name, font_families
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
# Up to so many labels each is named where there is room, and all pairs pull on the layout; beyond, that would be neither readable
# nor quick.
_MAX_NAMED = 150
_NUM_NAMED = 70
_MOST_LETTERS = 28
_GAP = 3.0  # points between names
_MAX_ARROWS = 600
_MAX_LINES = 4000


def draw_label_graph(label_graph: LabelGraph, groups: Int[np.ndarray, " L"] | None = None) -> str:
    """Draw the label graph as SVG: an arrow from label i to label j where j follows i, coloured by group.

    Names do not run into each other: labels make way for them, and where there is no room, or of more than 150 labels, the best
    connected are named. Of more than 600 edges the direction is not shown, of more than 4,000 only the most likely are drawn. The
    picture says so. Eight groups have a colour each; more have the colours again with other shapes.

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
    metadata = {"Title": "Label graph"}
    _draw(label_graph, groups).savefig(data, format="png", dpi=100, facecolor="white", metadata=metadata)
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
    share = 1.0 if groups is None else 1 - 2.2 / (1.35 * side)  # of the width; 2.2 inches are for the groups
    axes = figure.add_axes((0.0, 0.0, share, 1.0))
    axes.set_axis_off()
    area = figure.get_size_inches() * (72 * share, 72)
    axes.set(xlim=(0, area[0]), ylim=(0, area[1]))  # in points, as the sizes of discs and names
    names = [drawn_name(name, _MOST_LETTERS) for name in label_graph.label_names]
    font: dict[str, Any] = {
        "fontsize": 11 if is_small else 12,
        "parse_math": False,  # a pair of $ would be set as mathematics
        "fontfamily": font_families(names),
    }
    degree = edges.sum(axis=0) + edges.sum(axis=1)
    first = np.lexsort((-counts, -degree))[
        : num_labels if is_small else 4 * _NUM_NAMED
    ]  # to be named, if there is room
    boxes = np.zeros((num_labels, 2))
    boxes[first] = _text_sizes(figure, [names[label] for label in first], font)
    discs = np.sqrt(sizes)
    places = _fill(_place(label_graph, edges), area)
    if is_small:
        places = _spread(places, discs, boxes, area)
    positions = dict(enumerate(places))
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
    most = num_labels if is_small else _NUM_NAMED
    named = _without_overlap(first, _text_boxes(places, discs, boxes), most)
    for node in named:
        axes.annotate(
            names[node],
            positions[node],
            (0.0, -discs[node] / 2 - 2),  # points from the disc's centre
            textcoords="offset points",
            ha="center",
            va="top",
            color="#1f2733",
            path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)],
            **font,
        )
    notes = []
    if len(named) < num_labels:
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


def _place(label_graph: LabelGraph, edges: Bool[np.ndarray, "L L"]) -> Float[np.ndarray, "L 2"]:
    """A place for every label: every pair that occurs together pulls, of many labels only the likest pairs and the edges."""
    import networkx

    num_labels = label_graph.num_labels
    likeness = _likeness(label_graph)
    graph = networkx.Graph()
    graph.add_nodes_from(range(num_labels))
    if num_labels <= _MAX_NAMED:
        pairs = ((i, j) for i in range(num_labels) for j in range(i))
        graph.add_edges_from((i, j, {"length": 1.0 / (0.15 + likeness[i, j])}) for i, j in pairs)
        placed = networkx.kamada_kawai_layout(graph, weight="length")
        return _in_order(placed)
    likest = np.zeros_like(edges)
    np.put_along_axis(likest, np.argsort(-likeness, axis=1, kind="stable")[:, :4], True, axis=1)
    sources, targets = np.nonzero((likest & (likeness > 0)) | edges)
    graph.add_weighted_edges_from(
        (int(i), int(j), 0.05 + float(likeness[i, j])) for i, j in zip(sources, targets, strict=True)
    )
    placed = networkx.spring_layout(graph, k=2.5 / math.sqrt(num_labels), iterations=80, seed=0)
    return _in_order(placed)


def _in_order(placed: dict[int, Any]) -> Float[np.ndarray, "L 2"]:
    return np.array([placed[node] for node in sorted(placed)])


def _fill(places: Float[np.ndarray, "L 2"], area: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "L 2"]:
    """The places stretched over an area, but for a margin."""
    reach = np.ptp(places, axis=0)
    share = np.where(reach > 1e-9, (places - places.min(axis=0)) / reach.clip(1e-9), 0.5)
    filled: Float[np.ndarray, "L 2"] = (0.05 + 0.9 * share) * area
    return filled


def _text_sizes(figure: "Figure", names: list[str], font: dict[str, Any]) -> Float[np.ndarray, "L 2"]:
    """Width and height of texts, in points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [Text(0, 0, name, figure=figure, **font) for name in names]
    pixels: Float[np.ndarray, "L 2"] = np.array([text.get_window_extent(renderer).size for text in texts])
    return pixels * 72 / figure.dpi


def _text_boxes(
    places: Float[np.ndarray, "L 2"], discs: Float[np.ndarray, " L"], boxes: Float[np.ndarray, "L 2"]
) -> Float[np.ndarray, "L 4"]:
    """Where the names are: left, bottom, right, top, with a gap around."""
    half = boxes[:, 0] / 2 + _GAP / 2
    top = places[:, 1] - discs / 2 - 2 + _GAP / 2
    return np.stack([places[:, 0] - half, top - boxes[:, 1] - _GAP, places[:, 0] + half, top], axis=1)


def _spread(
    places: Float[np.ndarray, "L 2"],
    discs: Float[np.ndarray, " L"],
    boxes: Float[np.ndarray, "L 2"],
    area: Float[np.ndarray, " 2"],
) -> Float[np.ndarray, "L 2"]:
    """Places at which no disc and no name lies on another, as near as can be to those given, where there is room for all."""
    sizes = np.stack([np.maximum(boxes[:, 0], discs), discs + 2 + boxes[:, 1]], axis=1) + _GAP
    down = np.stack([np.zeros_like(discs), (2 + boxes[:, 1]) / 2], axis=1)  # from the disc to the middle of both
    least, most = np.minimum(sizes / 2, area / 2), np.maximum(area - sizes / 2, area / 2)
    middles = np.clip(places - down, least, most)
    reach = (sizes[:, None] + sizes) / 2  # (L, L, 2)
    for _ in range(500):
        away = middles[:, None] - middles
        overlap = reach - np.abs(away)
        hit = (overlap > 0).all(axis=2)
        np.fill_diagonal(hit, False)
        if not hit.any():
            break
        # Each pair moves apart the shorter way; of labels in one place the later goes up or right.
        order = np.sign(np.arange(len(places))[:, None] - np.arange(len(places)))[..., None]
        side = np.where(away == 0, order, np.sign(away))
        shorter = np.arange(2) == overlap.argmin(axis=2)[..., None]
        middles = middles + (0.3 * side * (overlap + 1) * (shorter & hit[..., None])).sum(axis=1)
        middles = np.clip(middles, least, most)
    spread: Float[np.ndarray, "L 2"] = middles + down
    return spread


def _without_overlap(order: Int[np.ndarray, " _"], boxes: Float[np.ndarray, "L 4"], most: int) -> list[int]:
    """The first labels of `order`, at most so many, whose names do not run into those before them."""
    named: list[int] = []
    for node in map(int, order):
        others = boxes[named]
        if not ((others[:, :2] < boxes[node, 2:]) & (boxes[node, :2] < others[:, 2:])).all(axis=1).any():
            named.append(node)
        if len(named) == most:
            break
    return named


def _likeness(label_graph: LabelGraph) -> Float[np.ndarray, "L L"]:
    """Cosine of the labels' images."""
    counts = label_graph.label_counts.clamp(min=1).double()
    both = label_graph.co_occurrence.double()
    likeness: Float[np.ndarray, "L L"] = (both / (counts[:, None] * counts[None, :]).sqrt()).numpy()
    return likeness
