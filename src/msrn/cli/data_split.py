"""`msrn data split`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from rich.console import Console

    from msrn.data import Source

_NUM_SHOWN = 10

EPILOG = """Examples:

  msrn data split photos.csv

  msrn data split photos.csv --out photos-split.csv --val 0.15 --test 0.15 --group-by scene

  msrn data split /data/VOCdevkit --out voc-split.csv --keep test

  msrn data split photos-split.csv --check"""


def split(
    source: Annotated[
        Path,
        typer.Argument(help=LABELLED_IMAGES),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Table to write: .csv, .tsv or .parquet; how it was made goes to .split.json beside it. By default NAME-split.csv "
            "here.",
            show_default=False,
        ),
    ] = None,
    val: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the images for val; 0.1 unless val is kept.")
    ] = None,
    test: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the images for test; 0.1 unless test is kept.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Split that stays as it is, val or test; all others are pooled. May be repeated."),
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Column of what must stay together, such as a scene or a patient.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another split.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check that SOURCE, a table written before, is still what it was.")
    ] = False,
    label_separator: LabelSeparator = None,
    label_column: LabelColumn = None,
    path_column: PathColumn = None,
    split_column: SplitColumn = None,
    label_names: LabelNames = None,
    keep_unannotated: KeepUnannotated = None,
    allow_outside: AllowOutside = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what .split.json holds; '-' prints it.")
    ] = None,
) -> None:
    """Split labelled images into train, val and test such that each holds its share of every label; write a table."""
    from msrn.cli.output import check_outputs, make_console
    from msrn.data import open_source
    from msrn.data.split_table import check_is_free, sidecar_path, verify_split
    from msrn.errors import DataError
    from msrn.files import write_json

    console = make_console(json_file)
    if check:
        if out is not None:
            raise DataError("--check only looks at SOURCE and writes no --out. Leave one of them out.")
        report = verify_split(source, allow_outside=bool(allow_outside))
        counts = ", ".join(f"{name} {part['images']:,}" for name, part in report["splits"].items())
        console.print(f"{source} is what {sidecar_path(source).name} says: {counts}", highlight=False, markup=False)
    else:
        kept = tuple(dict.fromkeys(keep or ()))
        fractions = _find_fractions(val, test, kept)
        out = Path(f"{source.resolve().stem}-split.csv") if out is None else out.expanduser()
        if out.resolve() == source.expanduser().resolve():
            raise DataError(
                f"--out {out} is the source itself, whose other columns would be lost. Choose another name."
            )
        check_outputs(source, **{"--json": json_file})
        check_is_free(out, overwrite=force)
        options = given(
            label_separator=label_separator,
            label_column=label_column,
            path_column=path_column,
            split_column=split_column,
            keep_unannotated=keep_unannotated,
            allow_outside=allow_outside,
            label_names=names_of(label_names),
            group_column=group_by,
        )
        opened = open_source(source, **options)
        for note in opened.notes:
            console.print(note, highlight=False, markup=False)
        report = _split_source(opened, kept, fractions, group_by, seed, out, force, console)
    if json_file is not None:
        write_json(json_file, report)


def _find_fractions(val: float | None, test: float | None, kept: tuple[str, ...]) -> dict[str, float]:
    """Share of the pooled images by split; train takes what is left."""
    from msrn.errors import DataError

    asked = {"val": val, "test": test}
    if not set(kept) <= asked.keys():
        raise DataError(f"--keep takes val or test, got {', '.join(kept)}. Train is what the others leave.")
    both = [name for name in kept if asked[name]]
    if both:
        raise DataError(f"{both[0]} cannot both be kept and drawn anew. Leave out --keep {both[0]} or --{both[0]}.")
    shares = {name: (0.1 if share is None else share) for name, share in asked.items() if name not in kept}
    train = round(1 - sum(shares.values()), 9)
    if train <= 0:
        raise DataError(
            f"--val and --test leave nothing for train: they add up to {sum(shares.values()):g}. Pass smaller shares."
        )
    fractions = {"train": train, **{name: share for name, share in shares.items() if share > 0}}
    if len(fractions) == 1:
        raise DataError("nothing to split: val and test are kept or 0. Pass --val or --test.")
    return fractions


def _split_source(
    source: "Source",
    kept: tuple[str, ...],
    fractions: dict[str, float],
    group_column: str | None,
    seed: int,
    out: Path,
    force: bool,
    console: "Console",
) -> dict[str, Any]:
    from dataclasses import asdict

    from msrn.data import LabelledImages, check_disjoint
    from msrn.data.source import is_outside
    from msrn.data.split import check_groups_apart, plan_split
    from msrn.data.split_table import write_split
    from msrn.errors import DataError

    pooled = [name for name in source.splits if name not in kept]
    if not pooled or not set(kept) <= set(source.splits):
        raise DataError(
            f"{source.root} has the splits {', '.join(source.splits)}, --keep names {', '.join(kept)}. "
            "Keep splits that exist, and leave one to be split."
        )
    with console.status("reading"):
        kept_images = {name: source.read(name) for name in kept}
        parts = [source.read(name) for name in pooled]
        check_disjoint(*parts, *kept_images.values())
        images = LabelledImages.join(parts, split=" + ".join(pooled))
        del parts
        groups = None
        if group_column is not None:
            groups = [group for name in pooled for group in source.groups(name) or ()]
    with console.status("splitting"):
        plan = plan_split(images, fractions, seed=seed, groups=groups)
        if groups is not None:
            parted = {name: {groups[row] for row in (plan.part == i).nonzero()[0]} for i, name in enumerate(plan.names)}
            check_groups_apart({**parted, **{name: set(source.groups(name) or ()) for name in kept}})
        splits = {**plan.take(images), **kept_images}
        extra = None
        if groups is not None and group_column is not None:
            of_part = {
                name: [groups[row] for row in (plan.part == i).nonzero()[0]] for i, name in enumerate(plan.names)
            }
            extra = (group_column, {**of_part, **{name: source.groups(name) or () for name in kept}})
        del images
        about = {
            "source": source.layout,
            "pooled": pooled,
            "kept": list(kept),
            "seed": seed,
            "fractions": fractions,
            "group_column": group_column,
            "num_groups": None if groups is None else len(plan.part_of_unit),
            "deviations": {name: asdict(found) for name, found in plan.deviations().items()},
            "random_deviations": {name: asdict(found) for name, found in plan.random_deviations(seed=seed).items()},
            "missing_labels": plan.missing_labels(),
        }
    with console.status("writing"):
        report = write_split(out, list(splits.values()), extra_column=extra, about=about, overwrite=force)
    _print_report(report, out, console)
    if pooled != ["train"]:
        console.print(
            f"pooled and dealt out anew: {', '.join(pooled)}; --keep leaves val or test as it is", highlight=False
        )
    if group_column is not None and group_column not in report["columns"]:
        console.print(
            f"the table has no room for the column '{group_column}': its labels have a column each",
            highlight=False,
            markup=False,
        )
    if any(is_outside(path, out.parent) for part in splits.values() for path in part.paths):
        console.print(
            "images lie outside of the table's folder: read it with --allow-outside (in a recipe data.allow_outside=true), or "
            "write it into theirs",
            highlight=False,
        )
    console.print(
        f"copies of a photo under other names may be in two splits; msrn data check {out} finds them",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return report


def _print_report(report: dict[str, Any], out: Path, console: "Console") -> None:
    from rich.markup import escape
    from rich.table import Table

    from msrn.cli.output import percent

    num_images = sum(part["images"] for part in report["splits"].values())
    table = Table(
        title=escape(f"{out}: {num_images:,} images, {len(report['label_names']):,} labels"), title_justify="left"
    )
    table.add_column("split")
    for name in ("images", "share %", "off by %", "at random", "off by images", "at random"):
        table.add_column(name, justify="right")
    for name, part in report["splits"].items():
        cells = [name, f"{part['images']:,}", percent(part["images"] / num_images)]
        if name in report["deviations"]:
            for figure, show in (("largest_share", percent), ("largest_count", "{:.1f}".format)):
                cells += [show(report[which][name][figure]) for which in ("deviations", "random_deviations")]
        else:
            cells += ["kept", "", "", ""]
        table.add_row(*cells)
    console.print(table)
    console.print(
        "off by: the largest deviation of a label; in % of its positives from the split's share of images, among labels with "
        "enough positives for every split; in images among all labels. At random: the mean of 10 random splits",
        highlight=False,
    )
    if report["num_groups"] is not None:
        console.print(f"{report['num_groups']:,} groups, none in two splits", highlight=False)
    for name, labels in report["missing_labels"].items():
        if labels:
            rarest = sorted(labels.items(), key=lambda item: (item[1], item[0]))[:_NUM_SHOWN]
            shown = ", ".join(f"{label} ({count})" for label, count in rarest)
            more = f", ... ({len(labels):,} in all)" if len(labels) > _NUM_SHOWN else ""
            console.print(f"missing in {name}, with their positives: {shown}{more}", highlight=False, markup=False)
    console.print(f"SHA-256 {report['sha256']}", highlight=False)
