"""`msrn labels graph`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msrn.cli.source_options import (
    AllowOutside,
    KeepUnannotated,
    LabelColumn,
    LabelNames,
    LabelSeparator,
    PathColumn,
    SplitColumn,
    given,
    names_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.data import LabelledImages
    from msrn.labels import LabelGraph

EPILOG = """Examples:

  msrn labels graph /data/VOCdevkit

  msrn labels graph /data/VOCdevkit --split train --split val --json graph.json --picture graph.svg

  msrn labels graph /data/VOCdevkit --rule threshold --threshold 0.4

  msrn labels graph photos.csv --rule lift --significance 0.001 --json - | jq .labels_alone

  msrn train my-recipe.yaml labels.graph=graph.json"""

_NUM_PAIRS = 15


def graph(
    source: Annotated[Path, typer.Argument(help="Labelled images, any layout msrn reads.", show_default=False)],
    split: Annotated[
        list[str] | None,
        typer.Option(help="Split to count; give it twice to count both. By default train.", show_default=False),
    ] = None,
    rule: Annotated[
        Literal["top-k", "threshold", "lift", "identity"] | None,
        typer.Option(
            help="Which labels have an edge: the likeliest, as published, those together beyond chance, or none. By default top-k, "
            "as in recipes, or the rule whose setting is given.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least P(j | i) of an edge, for --rule threshold; published 0.4.", show_default=False),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Edges from each label, for --rule top-k.")] = 3,
    significance: Annotated[
        float | None, typer.Option(help="Share of false edges, for --rule lift; 0.01 unless given.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the graph as JSON, for a recipe; '-' prints it."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the graph into a .svg or .png file.", show_default=False)
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    label_names: LabelNames = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
) -> None:
    """Count which labels occur together in the training images, and choose the edges of the label graph.

    The JSON file is what `labels.graph` of a recipe takes. The test split is refused: a graph counted on it would know the
    answers.
    """
    import torch

    from msrn.cli.output import check_outputs, make_console
    from msrn.data import LabelledImages, open_source, split_hash
    from msrn.errors import DataError
    from msrn.labels import CountedGraph, EdgeRule, LabelGraph, write_graph
    from msrn.report.label_graph import check_picture

    check_outputs(source, **{"--json": json_file, "--picture": picture})
    if picture is not None:
        check_picture(picture)
    if rule is None:
        rule = "threshold" if threshold is not None else "lift" if significance is not None else "top-k"
    threshold = 0.4 if threshold is None else threshold
    significance = 0.01 if significance is None else significance
    if not 0 < threshold <= 1:
        raise typer.BadParameter(f"a probability above 0 and at most 1, got {threshold}", param_hint="--threshold")
    if not 0 < significance < 1:
        raise typer.BadParameter(f"a share between 0 and 1, got {significance}", param_hint="--significance")
    names = tuple(dict.fromkeys(split or ["train"]))
    if "test" in names:
        raise DataError(
            "the label graph comes from training images; counted on the test split it would know the answers. "
            "Leave --split test out."
        )
    options = given(
        path_column=path_column,
        label_column=label_column,
        label_separator=label_separator,
        split_column=split_column,
        keep_unannotated=keep_unannotated,
        allow_outside=allow_outside,
        label_names=names_of(label_names),
    )
    console = make_console(json_file)
    data = open_source(source, **options)
    images = LabelledImages.join([data.read(name) for name in names], split=" + ".join(names))
    if "train" not in names:
        console.print(
            f"note: counted on {images.split}; a graph to train with comes from training images", highlight=False
        )
    label_graph = LabelGraph.from_target(
        torch.from_numpy(images.target),
        images.label_names,
        rule=EdgeRule(rule, threshold, top_k, significance),
    )
    counted = CountedGraph(label_graph, len(images), images.split, split_hash(images))
    for note in data.notes:
        console.print(note, highlight=False, markup=False)
    _print_sweep(console, label_graph)
    _print_pairs(console, label_graph)
    alone = label_graph.num_alone
    console.print(
        f"{len(images)} images of {images.split}, {label_graph.num_labels} labels; {label_graph.rule}: "
        f"{label_graph.num_edges} edge{'' if label_graph.num_edges == 1 else 's'}, "
        + ("1 label attends only to itself" if alone == 1 else f"{alone} labels attend only to themselves"),
        highlight=False,
        markup=False,
    )
    if 2 * label_graph.num_alone > label_graph.num_labels:
        _warn(console, label_graph, images)
    if json_file is not None:
        write_graph(json_file, counted)
    if picture is not None:
        from msrn.report import save_label_graph

        save_label_graph(label_graph, picture)
        console.print(f"picture: {picture}", highlight=False, markup=False, soft_wrap=True)


def _print_sweep(console: "Console", label_graph: "LabelGraph") -> None:
    from rich.table import Table

    from msrn.labels import sweep_thresholds

    table = Table(title="what a threshold leaves of the graph", title_justify="left")
    for name in ("P(j | i) >=", "edges", "labels without an edge", "attend only to themselves"):
        table.add_column(name, justify="right")
    for row in sweep_thresholds(label_graph.co_occurrence, label_graph.label_counts):
        table.add_row(f"{row.threshold:.2f}", str(row.edges), str(row.labels_without_edge), str(row.labels_alone))
    console.print(table)


def _print_pairs(console: "Console", label_graph: "LabelGraph") -> None:
    """The most likely pairs; between equals, the one of more images."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    from msrn.labels import conditional_probability

    both, counts = label_graph.co_occurrence.numpy(), label_graph.label_counts.numpy()
    probability = conditional_probability(label_graph.co_occurrence, label_graph.label_counts).numpy()
    sources, targets = np.nonzero(both)
    order = np.lexsort((-both[sources, targets], -probability[sources, targets]))[:_NUM_PAIRS]
    table = Table(title="strongest conditional probabilities", title_justify="left")
    table.add_column("label i")
    table.add_column("label j")
    for name in ("P(j | i)", "images of i", "of both"):
        table.add_column(name, justify="right")
    for i, j in zip(sources[order], targets[order], strict=True):
        labels = (escape(label_graph.label_names[i]), escape(label_graph.label_names[j]))
        table.add_row(*labels, f"{probability[i, j]:.3f}", str(counts[i]), str(both[i, j]))
    console.print(table)


def _warn(console: "Console", graph: "LabelGraph", images: "LabelledImages") -> None:
    """Say that hardly any message passes, and what would change that, measured on the same images."""
    import torch

    from msrn.labels import EdgeRule, LabelGraph, sweep_thresholds

    both, counts, num_labels = graph.co_occurrence, graph.label_counts, graph.num_labels
    better = [
        f"--threshold {row.threshold:g} ({row.edges} edges, {row.labels_alone} alone)"
        for row in sweep_thresholds(both, counts)
        if 2 * row.labels_alone <= num_labels
    ][-1:]
    for rule in (EdgeRule("top-k"), EdgeRule("lift")):
        other = LabelGraph.from_target(torch.from_numpy(images.target), graph.label_names, rule=rule)
        if 2 * other.num_alone <= num_labels:
            better.append(f"--rule {rule.name} ({other.num_edges} edges, {other.num_alone} alone)")
    advice = f"Try {', '.join(better)}." if better else "No rule joins more of them: few images hold two labels."
    console.print(
        f"warning: the graph is nearly empty, {graph.num_alone} of {num_labels} labels attend only to themselves, so that "
        f"they learn nothing from the others. {advice}",
        highlight=False,
        markup=False,
        style="yellow",
    )
