"""`msrn import-published`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

EPILOG = """Examples:

  msrn import-published voc.pth.tar --labels voc2007 --graph voc_adj.pkl --vectors voc_glove_word2vec.pkl --out voc

  msrn import-published apparel.pth.tar --labels names.txt --graph adj.pkl --vectors glove.pkl --out apparel --json -

  msrn predict voc photo.jpg"""


def import_published(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE.pth.tar", help="Checkpoint of the published MSRN.", show_default=False)
    ],
    labels: Annotated[
        str,
        typer.Option(help="Label set (voc2007, coco2014), or a text file with one label a line.", show_default=False),
    ],
    graph: Annotated[Path, typer.Option(help="The authors' label graph, such as voc_adj.pkl.", show_default=False)],
    vectors: Annotated[
        Path, typer.Option(help="The authors' word vectors, such as voc_glove_word2vec.pkl.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.", show_default=False)],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' prints it.")
    ] = None,
) -> None:
    """Turn the authors' checkpoint, label graph and word vectors into a bundle, running nothing that is in them.

    The bundle gives the authors' logits. It takes images as theirs did, resized to 448 x 448.
    """
    from msrn.bundle import Bundle, save_bundle
    from msrn.bundle.bundle import check_bundle_folder
    from msrn.cli.output import check_outputs, check_outside, make_console
    from msrn.data.transforms import Preprocessing
    from msrn.errors import MSRNError, PublishedFileError
    from msrn.files import write_json
    from msrn.labels import LabelGraph
    from msrn.labels.pickles import read_published_graph, read_published_vectors
    from msrn.labels.sets import read_label_names
    from msrn.models.published import (
        from_state_dict,
        published_architecture,
        published_sizes,
        read_published_checkpoint,
    )

    check_bundle_folder(out)
    check_outside(out, **{"--json": json_file})
    check_outputs((checkpoint, labels, graph, vectors), **{"--json": json_file})
    # Every file is read before any problem is reported, so that one run names them all.
    label_names = architecture = counts = word_vectors = None
    state_dict: dict[str, Tensor] = {}
    problems = []
    try:
        state_dict = read_published_checkpoint(checkpoint)
        architecture = published_architecture(state_dict)
    except MSRNError as error:
        problems.append(_about(checkpoint, error))
    try:
        label_names = read_label_names(labels)
    except MSRNError as error:
        problems.append(_about(labels, error))
    try:
        counts = read_published_graph(graph)
    except MSRNError as error:
        problems.append(_about(graph, error))
    try:
        word_vectors = read_published_vectors(vectors)
    except MSRNError as error:
        problems.append(_about(vectors, error))
    if architecture is not None:
        num_labels, width = published_sizes(state_dict)
        numbers = {
            f"--labels {labels}": None if label_names is None else len(label_names),
            f"--graph {graph}": None if counts is None else len(counts[1]),
            f"--vectors {vectors}": None if word_vectors is None else len(word_vectors),
        }
        problems += [
            f"{what} has {number} labels, the checkpoint knows {num_labels}. Give the one it was trained with."
            for what, number in numbers.items()
            if number not in (None, num_labels)
        ]
        if word_vectors is not None and word_vectors.shape[1] != width:
            problems.append(
                f"--vectors {vectors} has vectors of width {word_vectors.shape[1]}, the checkpoint takes {width}. "
                "Give those it was trained with."
            )
    if problems or label_names is None or architecture is None or counts is None or word_vectors is None:
        raise PublishedFileError(" ".join(problems))
    try:
        model = from_state_dict(state_dict, *counts, word_vectors, label_names=label_names)
    except PublishedFileError as error:
        raise PublishedFileError(_about(checkpoint, error)) from error
    bundle = Bundle(
        model,
        LabelGraph(label_names, *counts),
        architecture,
        Preprocessing(size=(448, 448)),
        training={"origin": f"imported from {checkpoint.name}"},
    )
    save_bundle(bundle, out)
    num_groups = len(model.group_embeddings())
    console = make_console(json_file)
    console.print(
        f"{len(label_names)} labels in {num_groups} groups: {', '.join(label_names)}", markup=False, highlight=False
    )
    console.print(f"bundle: {out}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(
            json_file, {"bundle": str(out), "labels": list(label_names), "num_groups": num_groups, **bundle.training}
        )


def _about(path: Path | str, error: Exception) -> str:
    """An error's message on one line, with the file's name."""
    text = " ".join(str(error).split())
    return text if str(path) in text else f"{path}: {text}"
