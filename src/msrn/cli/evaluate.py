"""`msrn evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from msrn.cli.source_options import (
    LABELLED_IMAGES,
    AllowOutside,
    KeepUnannotated,
    LabelColumn,
    LabelSeparator,
    PathColumn,
    SplitColumn,
    given,
)

EPILOG = """Examples:

  msrn evaluate runs/scenes/bundle --data msrn-demo/data --split test

  msrn evaluate runs/voc2007-mobilenet/bundle --data /data/VOCdevkit --split val --json voc.json

  msrn evaluate BUNDLE --data photos.csv --split test --json - | jq .mAP"""


def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[
        Path,
        typer.Option(help=LABELLED_IMAGES),
    ],
    split: Annotated[str, typer.Option(help="Split to measure on: train, val or test.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 32,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    label_separator: LabelSeparator = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    split_column: SplitColumn = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all metrics as fractions; '-' prints them.")
    ] = None,
) -> None:
    """Measure a model on a labelled split: mAP, precision, recall and F1 at 0.5 and on the top 3, ranking, and the protocol."""
    from rich.progress import Progress

    from msrn.cli.output import check_outputs, make_console, print_evaluation
    from msrn.files import write_json
    from msrn.predict import evaluate as evaluate_model
    from msrn.predict import evaluation_protocol, load, read_labelled

    check_outputs(data, **{"--json": json_file})
    predictor = load(bundle)
    options = given(
        label_separator=label_separator,
        label_column=label_column,
        path_column=path_column,
        split_column=split_column,
        keep_unannotated=keep_unannotated,
        allow_outside=allow_outside,
    )
    images = read_labelled(data, split, predictor.label_names, **options)
    console = make_console(json_file)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("evaluating", total=len(images))
        report = evaluate_model(
            predictor,
            images,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=lambda n: progress.advance(task, n),
        )
    report["protocol"] = evaluation_protocol(predictor.bundle, images, threshold=0.5)
    print_evaluation(console, report, title=f"{bundle} on split '{split}' of {data}", by_label=True)
    if json_file is not None:
        given_names = {"bundle": str(bundle), "data": str(data), "split": split}
        sha256 = report["protocol"]["sha256"]
        write_json(json_file, {**given_names, **report, "split_sha256": sha256, "threshold": 0.5})
