"""`msrn explain`."""

import re
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Examples:

  msrn explain runs/scenes/bundle photo.jpg --out why

  msrn explain BUNDLE photo.jpg --labels dog,person --out why

  msrn explain BUNDLE photo.jpg --json - | jq '.labels[] | {name, peak}'"""


def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; its head is MSRN.")],
    image: Annotated[Path, typer.Argument(help="An image file.")],
    labels: Annotated[
        str | None, typer.Option(help="Labels to explain, as a,b,c; by default the most probable.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many labels, where none are named.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for a picture a label and explanation.json; replaced if it holds one.", show_default=False
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the explanation; '-' prints it.")
    ] = None,
) -> None:
    """Show why an image has its labels: where each stage looks, what it adds to the score, and what related labels do.

    With a per-label classifier what is shown adds up to the score; red raises it, blue lowers it.
    """
    from msrn.cli.output import check_folder, make_console
    from msrn.explain.explanation import JSON_FILE
    from msrn.files import check_can_write, write_json
    from msrn.predict import load

    if out is not None:
        check_folder(out, lambda path: path.name == JSON_FILE or re.fullmatch(r"\d\d+-.*\.png", path.name) is not None)
    check_can_write("--json", json_file)
    predictor = load(bundle)
    names = None if labels is None else [name.strip() for name in labels.split(",") if name.strip()]
    found = predictor.explain(image, names, top_k=top)
    console = make_console(json_file)
    for row in found.to_dict()["labels"]:
        parts = [f"stage {number + 1} {stage['contribution']:+.2f}" for number, stage in enumerate(row["stages"])]
        if row["residual"] is not None:
            parts.append(f"residual {row['residual']['contribution']:+.2f}")
        across, down = (round(100 * share) for share in row["peak"])
        related = ", ".join(f"{edge['label']} {edge['effect']:+.2f}" for edge in row["related"][:3])
        console.print(
            f"{row['name']} {100 * row['probability']:.0f} %: most at {across} % from the left, {down} % from the top; logit "
            f"{row['logit']:+.2f} = {', '.join(parts)}, constant {row['constant']:+.2f}"
            + ("" if found.parts.is_exact else f", rest {row['rest']:+.2f} (to first order)")
            + (f"; related labels: {related}" if related else ""),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if out is not None:
        found.save(out)
        console.print(f"pictures: {out}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, found.to_dict())
