"""`msrn thresholds`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msrn.cli.source_options import (
    AllowOutside,
    KeepUnannotated,
    LabelColumn,
    LabelSeparator,
    PathColumn,
    SplitColumn,
    given,
)

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = """Examples:

  msrn thresholds runs/scenes/bundle

  msrn thresholds BUNDLE --data photos.csv --split val --target precision=0.9

  msrn thresholds BUNDLE --data photos.csv --target labels=3 --calibration isotonic --out tagger

  msrn thresholds BUNDLE --reset"""


def thresholds(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Labelled images; by default the validation images of the bundle's run.", show_default=False),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of --data to fit on; val by default.", show_default=False)
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="What to fit for: f1, precision=P or recall=R for every label, or labels=N an image on average."
        ),
    ] = "f1",
    calibration: Annotated[
        str,
        typer.Option(help="temperature, platt, isotonic, none, or auto: the one of least log loss on images left out."),
    ] = "auto",
    min_positives: Annotated[int, typer.Option(min=1, help="Labels with fewer positives share one threshold.")] = 5,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a bundle of this name, instead of changing the one given.", show_default=False),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Take thresholds and calibration off, and fit nothing.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 32,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    label_separator: LabelSeparator = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    split_column: SplitColumn = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report; '-' prints it.")
    ] = None,
) -> None:
    """Fit a threshold for every label, and calibrate the probabilities, on validation images; kept in the bundle.

    `predict`, `evaluate` and Python use them from then on. A rare label's few images decide little: how far they are believed is
    found by cross-fitting, and labels with fewer than --min-positives share one threshold.
    """
    from rich.progress import Progress

    from msrn.bundle import reset_decisions, save_bundle, save_decisions
    from msrn.bundle.bundle import check_bundle_folder
    from msrn.cli.output import check_outputs, make_console
    from msrn.files import write_json
    from msrn.metrics import Objective
    from msrn.metrics.calibration import METHODS
    from msrn.predict import fit_decisions, load, read_labelled

    reading = given(
        label_separator=label_separator,
        label_column=label_column,
        path_column=path_column,
        split_column=split_column,
        keep_unannotated=keep_unannotated,
        allow_outside=allow_outside,
    )
    is_plain = (target, calibration, min_positives) == ("f1", "auto", 5)
    if reset and not (is_plain and data is None and out is None and split is None and not reading):
        raise typer.BadParameter(
            "it reads no data, fits nothing and writes no other bundle. Leave the rest out.", param_hint="--reset"
        )
    if data is None and (split is not None or reading):
        raise typer.BadParameter(
            "without --data the validation images of the bundle's run are taken. Give --data too, or leave it out.",
            param_hint="--split" if split is not None else f"--{next(iter(reading)).replace('_', '-')}",
        )
    try:
        objective = Objective.parse(target)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--target") from None
    if calibration not in (*METHODS, "auto", "none"):
        raise typer.BadParameter(
            f"'{calibration}' is none of auto, {', '.join(METHODS)}, none.", param_hint="--calibration"
        )
    check_outputs(data or bundle, **{"--json": json_file})
    console = make_console(json_file)
    if reset:
        threshold = reset_decisions(bundle)
        console.print(f"{bundle}: every label from {threshold:g}, not calibrated", markup=False, highlight=False)
        if json_file is not None:
            write_json(json_file, {"bundle": str(bundle), "threshold": threshold})
        return
    if out is not None:
        check_bundle_folder(out)
    predictor = load(bundle)
    if data is None:
        from msrn.recipes.validation import validation_images

        images = validation_images(predictor.bundle, bundle)
    else:
        images = read_labelled(data, split or "val", predictor.label_names, **reading)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading scores", total=len(images))
        fitted, report = fit_decisions(
            predictor,
            images,
            objective=objective,
            calibration=calibration,
            min_positives=min_positives,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=lambda n: progress.advance(task, n),
        )
    if out is None:
        save_decisions(fitted, bundle)
    else:
        save_bundle(fitted, out)
    _print(console, report)
    console.print(f"bundle: {out or bundle}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"bundle": str(out or bundle), **report})


def _print(console: "Console", report: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from msrn.cli.output import percent

    on = report["fitted_on"]
    table = Table(
        title=escape(f"thresholds for {report['objective']}, fitted on {on['images']} images of split '{on['split']}'")
    )
    table.title_justify = "left"
    for name in ("label", "positives", "threshold"):
        table.add_column(name, justify="left" if name == "label" else "right")
    table.add_column("")
    for name, row in report["labels"].items():
        if row["is_out_of_reach"]:
            threshold, remark = "-", "out of reach: never predicted"
        else:
            threshold, remark = f"{row['threshold']:.3f}", "shared: too few positives" if row["is_shared"] else ""
        table.add_row(escape(name), str(row["positives"]), threshold, remark)
    console.print(table)
    if report["is_training_split"]:
        console.print(
            "warning: the model was trained on these images, where it is too sure of itself. Fit on others.",
            style="yellow",
        )
    reached = report["crossfit"]
    if reached is not None:
        words = {"f1": "macro F1", "precision": "precision of all decisions", "recall": "recall of all positives"}
        words["labels"] = "labels an image"
        kind = report["objective"].partition("=")[0]
        shown = f"{reached:.2f}" if kind == "labels" else f"{percent(reached)} %"
        console.print(f"on images left out of the fit: {words[kind]} {shown}", highlight=False)
    before, after = report["before"], report["after"]
    console.print(
        f"on these images, before and after: CF1 {percent(before['CF1'])} and {percent(after['CF1'])}, OF1 "
        f"{percent(before['OF1'])} and {percent(after['OF1'])}",
        highlight=False,
    )
    chosen = report["calibration"]
    losses = ", ".join(f"{name} {value:.4f}" for name, value in report["log_loss"].items())
    errors = report["ECE"]
    console.print(
        f"calibration: {chosen}; log loss on images left out: {losses}; calibration error {percent(errors['none'])} % before, "
        f"{percent(errors[chosen])} % after",
        highlight=False,
    )
