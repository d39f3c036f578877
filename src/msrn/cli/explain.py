"""`msrn explain`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.explain import Explanation

EPILOG = """Examples:

  msrn explain runs/scenes/bundle photo.jpg --out why

  msrn explain BUNDLE photo.jpg --labels dog,person --out why

  msrn explain BUNDLE a.jpg b.jpg c.jpg --top 2 --out gallery

  msrn explain BUNDLE photo.jpg --json - | jq '.labels[] | {name, peak}'"""

_LEAST_EFFECT = 0.005  # of related labels that are named


def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or hub:OWNER/NAME; its head is MSRN.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    labels: Annotated[
        str | None, typer.Option(help="Labels to explain, as a,b,c; by default the most probable.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels, where none are named.")] = 3,
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
    """Show why images have their labels: where each stage looks, what it adds to the score, and what related labels do.

    What is shown adds up to the score; red raises it, blue lowers it. With a joint classifier it is an approximation.
    """
    from rich.progress import track

    from msrn.cli.output import make_console
    from msrn.errors import UnreadableImageError
    from msrn.files import check_can_write, write_json
    from msrn.predict import load
    from msrn.report.gallery import check_gallery_folder, write_gallery

    if out is not None:
        check_gallery_folder(out)
    check_can_write("--json", json_file)
    predictor = load(bundle)
    names = None if labels is None else [name.strip() for name in labels.split(",") if name.strip()]
    console = make_console(json_file)
    is_single = len(images) == 1
    rows: list[dict[str, Any]] = []
    failed: list[UnreadableImageError] = []

    def told() -> Iterator[tuple["Explanation", dict[str, Any]]]:
        on_error = None if is_single else failed.append
        for found in predictor.explain_stream(images, names, top_k=top, on_error=on_error):
            rows.append(found.to_dict())
            if not is_single:
                console.print(f"{found.path}", markup=False, highlight=False, soft_wrap=True)
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
    if json_file is not None:
        write_json(json_file, rows[0] if is_single else rows)
    for error in failed:
        typer.echo(f"error: {error}", err=True)
    if failed:
        typer.echo(f"error: {len(failed)} of {len(images)} images could not be read; the others are done.", err=True)
        raise typer.Exit(1)


def _tell(console: "Console", report: dict[str, Any]) -> None:
    """A sentence a label."""
    for row in report["labels"]:
        parts = [f"stage {number + 1} {stage['contribution']:+.2f}" for number, stage in enumerate(row["stages"])]
        if row["residual"] is not None:
            parts.append(f"residual {row['residual']['contribution']:+.2f}")
        across, down = (round(100 * share) for share in row["peak"])
        strong = [edge for edge in row["related"][:3] if abs(edge["effect"]) >= _LEAST_EFFECT]
        related = ", ".join(f"{edge['label']} {edge['effect']:+.2f}" for edge in strong)
        console.print(
            f"{row['name']} {100 * row['probability']:.0f} %: most at {across} % from the left, {down} % from the top; logit "
            f"{row['logit']:+.2f} = {', '.join(parts)}, constant {row['constant']:+.2f}"
            + ("" if report["is_exact"] else " (an approximation: the classifier is not linear)")
            + (f"; related labels: {related}" if related else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
