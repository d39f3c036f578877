"""Draw the pictures of docs/network.md: `python tools/pictures.py [FOLDER]`.

The network as boxes, the label graph of the generated scenes as the program counts it, and what guided attention makes of one map,
computed by the program's plain form.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

from msrn.data import open_source
from msrn.data.scenes import write_scenes
from msrn.labels import EdgeRule, LabelGraph
from msrn.ops.semantic_attention.reference import attend_reference

INK, BLUE, ORANGE, GREEN, PLAIN = "#333333", "#cfe3f3", "#fbe3c6", "#d5ecd4", "#eeeeee"
STYLE = {"svg.hashsalt": "msrn", "svg.fonttype": "path", "font.size": 9, "text.color": INK}


def main(folder: Path) -> None:
    """Write the three pictures."""
    with mpl.rc_context(STYLE):
        for name, figure in (("network", network()), ("label-relations", label_relations()), ("pooling", pooling())):
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)


def network() -> Any:
    """The parts and what flows between them."""
    figure, axes = plt.subplots(figsize=(9.2, 4.6))
    axes.set(xlim=(0, 114), ylim=(0, 57))
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
        style = "round,pad=0,rounding_size=0.8"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, fc=colour, ec=INK, lw=0.8))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.35, fontsize=8)

    def arrow(*points: tuple[float, float]) -> None:
        axes.plot(*zip(*points, strict=True), color=INK, lw=0.9)
        head = {"arrowstyle": "-|>", "color": INK, "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], points[-2], arrowprops=head)

    box(0, 46, 18, 10, "training labels\n→ label graph", BLUE)
    box(0, 32, 18, 10, "word vectors\n(L, E)", BLUE)
    box(25, 46, 28, 10, "graph attention\n→ label embeddings (L, D)", BLUE)
    box(60, 46, 28, 10, "DiffPool\n→ group embeddings (G, D)", BLUE)
    arrow((18, 52), (25, 52))
    arrow((18, 37), (21.5, 37), (21.5, 50), (25, 50))
    arrow((53, 51), (60, 51))
    box(0, 2, 12, 10, "image", PLAIN)
    for number, x in enumerate((25, 47, 69), start=1):
        box(x, 2, 17, 10, f"layer {number}\nof the backbone", ORANGE)
        box(x, 22, 17, 10, f"semantic guided\nattention {number}", GREEN)
        arrow((12 if number == 1 else x - 5, 7), (x, 7))
        arrow((x + 8.5, 12), (x + 8.5, 22))
        arrow((x + 8.5, 39), (x + 8.5, 32))
        axes.plot((x + 17, x + 19.5, x + 19.5), (27, 27, 16.5), color=INK, lw=0.9)
    axes.plot((29, 84), (39, 39), color=INK, lw=0.9)
    axes.plot((29, 29), (46, 39), color=INK, lw=0.9)
    axes.plot((84, 84), (46, 39), color=INK, lw=0.9)
    axes.text(56.5, 41.5, "every label and every group asks every layer", ha="center", style="italic")
    axes.plot((44.5, 88.5), (16.5, 16.5), color=INK, lw=0.9)
    box(92, 22, 15, 10, "classifier\nof each label", GREEN)
    box(92, 2, 15, 10, "residual:\naverage pooling", ORANGE)
    arrow((88.5, 16.5), (88.5, 27), (92, 27))
    arrow((86, 7), (92, 7))
    box(92, 46, 15, 10, "logits\n(B, L)", PLAIN)
    arrow((99.5, 32), (99.5, 46))
    arrow((107, 7), (110.5, 7), (110.5, 51), (107, 51))
    return figure


def label_relations() -> Any:
    """P(j | i) over the scenes' training images, and which of them become edges."""
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder) / "scenes", num_train=600, num_val=1, num_test=1)
        source = open_source(Path(folder) / "scenes")
        target = torch.from_numpy(source.read("train").target)
    graph = LabelGraph.from_target(target, source.label_names, rule=EdgeRule("top-k"))
    chance = (graph.co_occurrence / graph.label_counts[:, None].clamp(min=1)).numpy()
    figure, axes = plt.subplots(figsize=(6.4, 5.6))
    shown = axes.imshow(np.ma.masked_array(chance, np.eye(len(chance), dtype=bool)), cmap="cividis", vmin=0)
    is_edge = (graph.adjacency.numpy() > 0) & ~np.eye(len(chance), dtype=bool)
    row, column = np.nonzero(is_edge)
    axes.plot(column, row, "o", mfc="none", mec="white", ms=6, mew=1.2)
    ticks = range(len(source.label_names))
    axes.set_xticks(ticks, source.label_names, rotation=90, fontsize=7)
    axes.set_yticks(ticks, source.label_names, fontsize=7)
    axes.set(xlabel="… there is label j", ylabel="where there is label i …")
    figure.colorbar(shown, label="P(j | i);  ○ becomes an edge", fraction=0.046)
    return figure


def pooling() -> Any:
    """One channel of one map, and the weights that embeddings of 0, 1 and 4 give its positions."""
    rows, columns = np.mgrid[0:7, 0:7]
    channel = 2 * np.exp(-((rows - 2) ** 2 + (columns - 4) ** 2) / 3) + 0.8 * np.exp(
        -((rows - 5) ** 2 + (columns - 1) ** 2) / 4
    )
    features = torch.from_numpy(channel.reshape(1, -1, 1)).float()  # (1, P, 1)
    figure, axes = plt.subplots(1, 4, figsize=(9.2, 2.7))
    axes[0].imshow(channel, cmap="cividis")
    axes[0].set_title(f"one channel f\nmean {channel.mean():.2f}, max {channel.max():.2f}")
    for place, embedding in zip(axes[1:], (0.0, 1.0, 4.0), strict=True):
        pooled = attend_reference(features, torch.tensor([[embedding]])).item()
        place.imshow((features[0, :, 0] * embedding).softmax(0).reshape(7, 7), cmap="cividis", vmin=0)
        place.set_title(f"softmax(f · e), e = {embedding:g}\npools to {pooled:.2f}")
    for place in axes:
        place.set(xticks=(), yticks=())
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images")
