"""`msrn report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from msrn.predict import Predictor

EPILOG = """Examples:

  msrn report runs/scenes/bundle --data msrn-demo/data --split test --out report

  msrn report runs/photos/bundle --data split.csv --split test --out report --vs runs/photos-before/bundle

  msrn report BUNDLE --data photos.csv --split val --json - | jq '.labels[] | select(.AP < 0.5) | .name'"""
PAGE_FILE = "index.html"
JSON_FILE = "report.json"


def report(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[
        Path,
        typer.Option(help=LABELLED_IMAGES),
    ],
    split: Annotated[str, typer.Option(help="Split to measure on: train, val or test.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder for the page, {PAGE_FILE}, and the numbers, {JSON_FILE}.", show_default=False),
    ] = None,
    vs: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Another model of the same labels, to show beside.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 32,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    label_separator: LabelSeparator = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    split_column: SplitColumn = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that the page shows; '-' prints it.")
    ] = None,
) -> None:
    """Write a page to look at: metrics with intervals, every label's curve, worst images, confusions, likely annotation errors.

    Decisions are at the bundle's thresholds (`msrn thresholds`). The page is one file and needs no network.
    """
    from functools import partial

    from rich.progress import Progress

    from msrn.cli.output import check_folder, check_outputs, make_console
    from msrn.errors import MSRNError
    from msrn.files import write_json
    from msrn.predict import load, read_labelled
    from msrn.report import Scores, compare_scores, evaluate_scores, read_scores, write_evaluation_page
    from msrn.report.evaluation import in_order, shown_images

    if out is None and json_file is None:
        raise MSRNError("a report needs a place: --out FOLDER for the page, --json FILE for the numbers, or both.")
    check_outputs(data, **{"--json": json_file})
    if out is not None:
        check_folder(out, _is_report)
    options = given(
        label_separator=label_separator,
        label_column=label_column,
        path_column=path_column,
        split_column=split_column,
        keep_unannotated=keep_unannotated,
        allow_outside=allow_outside,
    )
    console = make_console(json_file)
    predictors = {
        name: load(path) for path, name in zip((bundle, vs), names_of(bundle, vs), strict=True) if path is not None
    }
    check_same_labels(*predictors.values())
    scores: list[Scores] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, predictor in predictors.items():
            images = read_labelled(data, split, predictor.label_names, **options)
            task = progress.add_task(f"scores of {name}", total=len(images))
            scores.append(
                read_scores(
                    predictor,
                    images,
                    name,
                    batch_size=batch_size,
                    num_workers=num_workers,
                    progress=partial(progress.advance, task),
                )
            )
        for own in scores:
            if "warning" in own.protocol:
                console.print(f"warning: {own.name}: {own.protocol['warning']}.", style="yellow", markup=False)
        progress.add_task("measuring", total=None)
        found = evaluate_scores(scores[0])
        other = compare_scores(scores[0], in_order(scores[1], scores[0].label_names), found) if vs is not None else None
    paths = {"bundle": str(bundle), "vs": None if vs is None else str(vs), "data": str(data), "split": split}
    written = {**paths, **found, "paths": {}, "other": other}
    written["paths"] = {row: str(images.paths[row]) for row in shown_images(found)}
    if out is not None:
        write_evaluation_page(out / PAGE_FILE, found, images, other=other)
        write_json(out / JSON_FILE, written)
        console.print(f"page: {out / PAGE_FILE}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, written)


def names_of(bundle: Path, other: Path | None) -> tuple[str, str]:
    """What two bundles are called: the shortest end of their paths that tells them apart, without the usual `bundle`.

    Example:
        >>> names_of(Path("runs/photos/bundle"), Path("runs/before/bundle"))
        ('photos', 'before')
    """

    def parts(path: Path | None) -> list[str]:
        found = [] if path is None else list(path.resolve().parts[1:])
        return found[:-1] if len(found) > 1 and found[-1] == "bundle" else found

    ours, theirs = parts(bundle), parts(other)
    for length in range(1, max(len(ours), len(theirs)) + 1):
        if ours[-length:] != theirs[-length:]:
            return "/".join(ours[-length:]), "/".join(theirs[-length:])
    return ours[-1], f"{ours[-1]} again"


def _is_report(path: Path) -> bool:
    marks = {PAGE_FILE: b'<meta name="generator" content="msrn">', JSON_FILE: b'{\n  "bundle"'}
    return path.name in marks and marks[path.name] in path.read_bytes()[:400]


def check_same_labels(*predictors: "Predictor") -> None:
    """Refuse models of different labels before any image is read for them.

    Raises:
        LabelMismatchError: A label is not known to all.
    """
    from msrn.errors import LabelMismatchError

    first = set(predictors[0].label_names)
    for other in predictors[1:]:
        if odd := sorted(first ^ set(other.label_names)):
            raise LabelMismatchError(
                f"the two bundles know different labels, such as '{odd[0]}'. Compare models of the same labels."
            )
