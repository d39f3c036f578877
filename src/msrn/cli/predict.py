"""`msrn predict`."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Examples:

  msrn predict runs/scenes/bundle photo.jpg

  msrn predict BUNDLE holiday/ --threshold 0.7 --json tags.jsonl

  msrn predict BUNDLE *.jpg --top 5 --json - | jq -r '.labels[0].name'"""


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Image files, or folders of them.")
    ],
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Keep labels with at least this probability.", show_default=False)
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Keep at most this many labels.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 16,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write JSON Lines, one object an image; '-' prints them."),
    ] = None,
) -> None:
    """Print the labels of images, best first. Without --threshold and --top, those above the bundle's own threshold.

    An image that cannot be read is reported, the rest go on, and the exit code is 1.
    """
    from rich.progress import Progress

    from msrn.cli.output import make_console, shown_labels
    from msrn.data import list_images
    from msrn.files import JSONLinesWriter
    from msrn.predict import load

    paths = list_images(images)
    predictor = load(bundle)
    console = make_console(json_file)
    num_failed = 0
    with (
        JSONLinesWriter(json_file) as writer,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("predicting", total=len(paths))
        for prediction in predictor.predict_stream(paths, threshold=threshold, top_k=top, batch_size=batch_size):
            progress.advance(task)
            writer.write(prediction.to_dict())
            if prediction.error is not None:
                num_failed += 1
                typer.echo(f"error: {prediction.error}", err=True)
            elif json_file is None:
                labels = shown_labels(prediction)
                console.print(
                    f"{prediction.path}: {labels or '(no label above the threshold)'}", markup=False, soft_wrap=True
                )
    if num_failed:
        typer.echo(f"error: {num_failed} of {len(paths)} images could not be read; the others are done.", err=True)
        raise typer.Exit(1)
