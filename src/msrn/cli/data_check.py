"""`msrn data check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msrn.cli.source_options import (
    LABELLED_IMAGES,
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
    from collections.abc import Callable

    from rich.console import Console

    from msrn.data.check import DataReport

EPILOG = """Examples:

  msrn data check photos.csv

  msrn data check /data/VOCdevkit --labels voc2007 --out voc.html

  msrn data check photos.csv --decode all --json - | jq '.problems[] | select(.severity == "error")'"""

_NUM_LABELS = 40
_NUM_PROBLEMS = 10


def check(
    source: Annotated[
        Path,
        typer.Argument(help=LABELLED_IMAGES),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="The labels that may occur: a label set, or a text file with one a line.",
            show_default=False,
        ),
    ] = None,
    min_positives: Annotated[int, typer.Option(min=0, help="Name labels with fewer training images.")] = 10,
    decode: Annotated[
        Literal["auto", "all", "none"],
        typer.Option(help="Decode all images, or read headers only; auto decodes all of up to 20,000."),
    ] = "auto",
    num_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that read images; by default one a processor.", show_default=False),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Column of what must not be in two splits, such as a scene.", show_default=False),
    ] = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    label_separator: LabelSeparator = None,
    split_column: SplitColumn = None,
    label_names: LabelNames = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
    page: Annotated[
        Path | None, typer.Option("--out", metavar="PAGE", help="Write a page to look at (HTML).", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write everything that was found; '-' prints it."),
    ] = None,
) -> None:
    """Look for what is wrong in a data set: rows, files, copies, labels. The exit code is 1 if it would break training."""
    from rich.progress import Progress

    from msrn.cli.output import check_outputs, make_console
    from msrn.data.check import check_source
    from msrn.files import write_json

    check_outputs(source, **{"--json": json_file, "--out": page})
    options = given(
        path_column=path_column,
        label_column=label_column,
        label_separator=label_separator,
        split_column=split_column,
        group_column=group_by,
        label_names=names_of(label_names),
        keep_unannotated=keep_unannotated,
        allow_outside=allow_outside,
    )
    console = make_console(json_file)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading the lists", total=None)
        report = check_source(
            source,
            known_labels=labels,
            min_positives=min_positives,
            decode=decode,
            num_workers=num_workers,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
            **options,
        )
    _print_report(console, report)
    if json_file is not None:
        write_json(json_file, report.to_dict())
    if page is not None:
        from msrn.report import write_data_page

        console.print(f"page: {write_data_page(page, report)}", markup=False, highlight=False, soft_wrap=True)
    if report.num_errors:
        raise typer.Exit(1)


def _print_report(console: "Console", report: "DataReport") -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(f"{report.path}: {report.layout or 'cannot be opened'}", "bold")
    for note in report.notes:
        say(f"note: {note}")
    for split in report.splits:
        nothing = f", nothing known of {split.num_nothing_known:,}" if split.num_nothing_known else ""
        say(f"{split.name}: {split.num_images:,} images{nothing}, sha256 {split.split_hash[:12]}")
    if report.splits:
        _print_images(say, report)
        _print_labels(console, report)
        _print_graph(say, report)
    _print_problems(say, report)
    say(report.verdict, "bold red" if report.num_errors else "bold green")


def _print_images(say: "Callable[[str], None]", report: "DataReport") -> None:
    images = report.images.to_dict()
    if images["width"] is None:
        return
    formats = ", ".join(f"{count:,} {name}" for name, count in images["formats"].items())
    modes = ", ".join(f"{count:,} {name}" for name, count in images["modes"].items())
    least, median, most = ([images[side][i] for side in ("width", "height")] for i in range(3))
    say(
        f"sizes: {least[0]} x {least[1]} to {most[0]} x {most[1]} pixels, median {median[0]} x {median[1]}; "
        f"{formats}; {modes}"
    )
    if images["decode"] != "all":
        ends = " and end markers" if images["decode"] == "ends" else ""
        say(f"looked at headers{ends} only; --decode all finds every kind of damage, and takes longer")


def _print_labels(console: "Console", report: "DataReport") -> None:
    """A row a label, the most frequent first."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    num_images = max(report.num_images, 1)
    positives = np.sum([split.positives for split in report.splits], axis=0)
    unknown = np.sum([split.unknown for split in report.splits], axis=0)
    order = sorted(range(len(report.label_names)), key=lambda label: -positives[label])
    table = Table("label", *(split.name for split in report.splits), "share", "unknown", title_justify="left")
    table.title = f"{len(order):,} labels, images that bear each"
    for column in table.columns[1:]:
        column.justify = "right"
    for label in order[:_NUM_LABELS]:
        table.add_row(
            escape(report.label_names[label]),
            *(f"{split.positives[label]:,}" for split in report.splits),
            f"{positives[label] / num_images:.1%}",
            f"{unknown[label] / num_images:.1%}",
        )
    console.print(table)
    if len(order) > _NUM_LABELS:
        console.print(f"and {len(order) - _NUM_LABELS:,} rarer labels (--json has all)", highlight=False)


def _print_graph(say: "Callable[[str], None]", report: "DataReport") -> None:
    """The pairs that occur together most often."""
    import numpy as np

    upper = np.triu(report.co_occurrence)
    best = [pair for pair in np.argsort(-upper, axis=None, kind="stable")[:3] if upper.flat[pair]]
    if not best:
        return
    names = report.label_names
    pairs = ", ".join(f"{names[p // len(names)]} + {names[p % len(names)]} {upper.flat[p]:,}" for p in best)
    say(f"most often together in training images: {pairs}; more by: msrn labels graph {report.path}")


def _print_problems(say: "Callable[..., None]", report: "DataReport") -> None:
    """The kinds, errors first, each with its first problems."""
    from msrn.data.check import locate

    for (kind, is_error), count in report.problem_counts.items():
        say(f"{'error' if is_error else 'warning'}: {kind} ({count:,})", "bold red" if is_error else "bold yellow")
        kept = [problem for problem in report.problems if (problem.kind, problem.is_error) == (kind, is_error)]
        for problem in kept[:_NUM_PROBLEMS]:
            say(f"  {locate(problem)}")
        if count > _NUM_PROBLEMS:
            say(f"  and {count - _NUM_PROBLEMS:,} more")
