"""`msrn explain`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.explain import Explanation

EPILOG = """Examples:

  msrn explain runs/scenes/bundle photo.jpg --out why

  msrn explain BUNDLE photo.jpg --labels dog,person --out why

  msrn explain BUNDLE photo.jpg --labels "salt, pepper" --labels fork

  msrn explain BUNDLE a.jpg b.jpg c.jpg --top 2 --out gallery

  msrn explain BUNDLE photo.jpg --json - | jq '.labels[] | {name, peak}'"""


def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or hub:OWNER/NAME; its head is MSRN.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Labels to explain, as a,b,c or one at a time; by default the most probable.", show_default=False
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels, where none are named.")] = 3,
    no_related: Annotated[
        bool,
        typer.Option("--no-related", help="Leave out what related labels do, which takes long where they are many."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a picture a label and explanation.json; of several images, for a folder each and a page of all. "
            "Replaced if it holds one.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the explanation, of several images a list; '-' prints it."),
    ] = None,
) -> None:
    """Show why images have their labels: where each stage looks, what it adds to the logit, and what related labels do.

    What is shown adds up to the logit, the score before the sigmoid and calibration; red raises it, blue lowers it. With a joint
    classifier it is an approximation.
    """
    from rich.progress import track

    from msrn.cli.output import check_outputs, check_outside, make_console, printable, tell_undrawable
    from msrn.errors import MSRNError, UnreadableImageError
    from msrn.files import write_json
    from msrn.predict import load
    from msrn.report.gallery import check_gallery_folder, write_gallery

    check_outside(bundle, **{"--out": out, "--json": json_file})
    if out is not None:
        if json_file is not None and json_file.expanduser().resolve().is_relative_to(out.expanduser().resolve()):
            raise MSRNError(f"--json {json_file} is in --out, which is replaced as a whole. Give a file elsewhere.")
        check_gallery_folder(out)
    check_outputs(bundle, **{"--json": json_file})
    predictor = load(bundle)
    names = None if not labels else [name for text in labels for name in _names(text, predictor.label_names)]
    console = make_console(json_file)
    is_single = len(images) == 1
    rows: list[dict[str, Any]] = []
    failed: list[UnreadableImageError] = []

    def told() -> Iterator[tuple["Explanation", dict[str, Any]]]:
        on_error = None if is_single else failed.append
        for found in predictor.explain_stream(images, names, top_k=top, with_related=not no_related, on_error=on_error):
            rows.append(found.to_dict())
            if not is_single:
                console.print(printable(found.path), markup=False, highlight=False, soft_wrap=True)
            _tell(console, rows[-1])
            yield found, rows[-1]

    each = track(told(), "explaining", total=len(images), console=console, disable=is_single, transient=True)
    if out is None:
        for _ in each:
            pass
    elif is_single:
        found, report = next(iter(each))
        found.save(out, report=report)
    else:
        write_gallery(each, out)
    if out is not None and rows:
        console.print(f"pictures: {out}", markup=False, highlight=False, soft_wrap=True)
        tell_undrawable(console, _drawn(rows))
    if json_file is not None and rows:
        write_json(json_file, rows[0] if is_single else rows)
    for error in failed:
        typer.echo(f"error: {printable(error)}", err=True)
    if failed:
        rest = "the others are done" if rows else "nothing was written"
        typer.echo(f"error: {len(failed)} of {len(images)} images could not be read; {rest}.", err=True)
        raise typer.Exit(1)


def _names(text: str, known: Sequence[str]) -> list[str]:
    """The labels of one --labels: a name that may hold commas itself, or several between commas."""
    return [text] if text in known else [name.strip() for name in text.split(",") if name.strip()]


def _drawn(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The names in the pictures."""
    for label in (label for row in rows for label in row["labels"]):
        yield label["name"]
        yield from (edge["label"] for edge in label["related"] or ())


def _tell(console: "Console", report: dict[str, Any]) -> None:
    """A sentence a label."""
    from msrn.explain.explanation import LEAST_EFFECT

    for row in report["labels"]:
        parts = [f"stage {number + 1} {stage['contribution']:+.2f}" for number, stage in enumerate(row["stages"])]
        if row["residual"] is not None:
            parts.append(f"residual {row['residual']['contribution']:+.2f}")
        across, down = (round(100 * share) for share in row["peak"])
        strong = [edge for edge in (row["related"] or [])[:3] if abs(edge["effect"]) >= LEAST_EFFECT]
        related = ", ".join(f"{_one_line(edge['label'])} {edge['effect']:+.2f}" for edge in strong)
        calibrated = " after calibration" if report["is_calibrated"] else ""
        console.print(
            f"{_one_line(row['name'])} {100 * row['probability']:.0f} %{calibrated}: most at {across} % from the left, "
            f"{down} % from the top; logit {row['logit']:+.2f} = {', '.join(parts)}, constant {row['constant']:+.2f}"
            + ("" if report["is_exact"] else f" ({report['note']})")
            + (f"; related labels: {related}" if related else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _one_line(name: str) -> str:
    return " ".join(name.split())
