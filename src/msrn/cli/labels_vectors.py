"""`msrn labels vectors`."""

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

    from msrn.labels import LabelGraph, LabelVectors

EPILOG = """Examples:

  msrn labels vectors voc2007 --from glove.6B.300d.txt --out vectors.safetensors

  msrn labels vectors photos.csv --from GoogleNews-vectors-negative300.bin.gz --out vectors.safetensors --json -

  msrn labels vectors names.txt --from cooccurrence --graph graph.json --out vectors.safetensors

  msrn labels vectors graph.json --from sentence-transformers/all-MiniLM-L6-v2 --out vectors.safetensors

  msrn train my-recipe.yaml labels.vectors=vectors.safetensors"""

CO_OCCURRENCE = "cooccurrence"


def vectors(
    labels: Annotated[
        str,
        typer.Argument(
            metavar="LABELS",
            help="Label set such as voc2007, text file with one label a line, JSON of msrn labels graph, or labelled "
            "images. What exists on disk goes first.",
            show_default=False,
        ),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="File of GloVe or word2vec, pickle of ML-GCN or MSRN, folder or name of a sentence-transformers model, or "
            "cooccurrence. What exists on disk goes first.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="File to write.")] = Path("vectors.safetensors"),
    graph: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON of msrn labels graph, for --from cooccurrence.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' prints it.")
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    label_names: LabelNames = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
) -> None:
    """Make a word vector for each label, and name every label that was not found as it is, with what was used instead.

    The file is what `labels.vectors` of a recipe takes.
    """
    from msrn.cli.output import check_outputs, make_console
    from msrn.errors import MSRNError
    from msrn.files import write_json
    from msrn.labels import vectors_from, write_vectors

    check_outputs(labels, **{"--json": json_file, "--out": out})
    check_outputs(source, **{"--json": json_file, "--out": out})
    if out.suffix.lower() != ".safetensors":
        raise MSRNError(f"--out {out}: vectors are written as safetensors. Give a name that ends in .safetensors.")
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
    with console.status("reading"):
        names, label_graph = _read_labels(
            labels, graph, options, needs_graph=source == CO_OCCURRENCE and not Path(source).exists()
        )
        made = vectors_from(names, source) if label_graph is None else _from_co_occurrence(label_graph)
    write_vectors(out, made)
    _print_origins(console, made)
    console.print(f"vectors: {out}", highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"vectors": str(out), **made.to_dict()})


def _read_labels(
    labels: str, graph_file: Path | None, options: dict[str, Any], *, needs_graph: bool
) -> tuple[tuple[str, ...], "LabelGraph | None"]:
    """The labels and, where vectors come from co-occurrence, their graph in the labels' order."""
    import torch

    from msrn.data import open_source
    from msrn.errors import DataError
    from msrn.labels import LabelGraph, read_graph
    from msrn.labels.sets import read_label_names

    if graph_file is not None and not needs_graph:
        raise DataError("--graph is for --from cooccurrence. Leave it out.")
    path = Path(labels).expanduser()
    given_graph = None if graph_file is None else read_graph(graph_file).label_graph
    if _is_graph(path):
        own_graph = read_graph(path).label_graph
        names = own_graph.label_names
    elif path.is_dir() or (path.exists() and path.suffix.lower() != ".txt"):
        data = open_source(path, **options)
        names, own_graph = data.label_names, None
        if needs_graph and given_graph is None:
            own_graph = LabelGraph.from_target(torch.from_numpy(data.read("train").target), names)
    else:
        names, own_graph = read_label_names(labels), None
    if not needs_graph:
        return names, None
    graph = given_graph or own_graph
    if graph is None:
        raise DataError(
            "vectors from co-occurrence need images: give the data as LABELS, or the JSON of msrn labels graph by --graph."
        )
    return names, graph.reorder(names)


def _is_graph(path: Path) -> bool:
    """Whether a file is JSON of `msrn labels graph`, other than the JSON of a data set, which may be large."""
    if path.suffix.lower() != ".json" or not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b'"co_occurrence"') >= 0


def _from_co_occurrence(label_graph: "LabelGraph") -> "LabelVectors":
    from msrn.labels import LabelVectors, VectorOrigin, vectors_from_co_occurrence

    origins = (VectorOrigin("co-occurrence"),) * label_graph.num_labels
    return LabelVectors(label_graph.label_names, vectors_from_co_occurrence(label_graph), origins, CO_OCCURRENCE)


def _print_origins(console: "Console", made: "LabelVectors") -> None:
    """How many labels came how, and each that was not found as it is."""
    from collections import Counter

    from rich.markup import escape
    from rich.table import Table

    counts = Counter(origin.how for origin in made.origins)
    summary = ", ".join(f"{number} {how}" for how, number in counts.most_common())
    others = [
        (name, origin)
        for name, origin in zip(made.label_names, made.origins, strict=True)
        if origin.how in ("spelling", "words", "compound", "some words", "random")
    ]
    if others:
        table = Table("label", "how", "used instead", title="labels not found as they are", title_justify="left")
        for name, origin in others:
            table.add_row(escape(name), origin.how, escape(" + ".join(origin.words)) or "a random vector")
        console.print(table)
    num_labels, dim = made.vectors.shape
    console.print(
        f"{num_labels} labels, vectors of width {dim} from {made.source}: {summary}", highlight=False, markup=False
    )
