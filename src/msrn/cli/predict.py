"""`msrn predict`."""

import glob
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.predict import Predictor

EPILOG = """Examples:

  msrn predict runs/scenes/bundle photo.jpg

  msrn predict BUNDLE holiday/ --threshold 0.7 --json tags.jsonl

  msrn predict BUNDLE *.jpg --top 5 --json - | jq -r '.labels[0].name'

  msrn predict BUNDLE archive/ --out tags.parquet

  msrn predict BUNDLE 'shards/*.tar' more.csv https://example.org/a.jpg --out tags.csv --workers 8

  find . -name '*.jpg' -newer last | msrn predict BUNDLE - --out sidecars

  msrn predict BUNDLE photos/ --out tasks.json --format label-studio"""

_SECONDS_BETWEEN_LINES = 60.0
_WITH_OUT = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".tar")


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or hub:OWNER/NAME.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Image files, or folders of them. With --out also globs in quotes, tables with a column of paths "
            "(.csv, .tsv, .jsonl, .parquet), .tar archives, http(s) addresses, and '-' for paths on standard input.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the labels to a .parquet, .csv or .jsonl file, or into a folder of XMP sidecars, for any number of images; "
            "stopped, the same command goes on.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="With --out: parquet, csv, jsonl, xmp, label-studio or fiftyone; by default by its ending.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Keep labels with at least this probability.", show_default=False)
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Keep at most this many labels.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass.")] = 16,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="With --out: processes that read images; by default by the machine.", show_default=False
        ),
    ] = None,
    part_size: Annotated[
        int,
        typer.Option(
            min=1, help="With --out: most images that are written at a time; a kill costs no more than these."
        ),
    ] = 8192,
    path_column: Annotated[
        str | None, typer.Option(help="With --out: the tables' column of paths.", show_default=False)
    ] = None,
    allow_outside: Annotated[
        bool,
        typer.Option(
            "--allow-outside", help="With --out: let tables name images outside of their folders, and addresses."
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="With --out: local, or ray for Ray Data here or on the cluster of RAY_ADDRESS.")
    ] = "local",
    device: Annotated[
        str | None,
        typer.Option(help="Where to run, such as cuda:1; by default a GPU if there is one.", show_default=False),
    ] = None,
    bf16: Annotated[
        bool,
        typer.Option(
            "--bf16", help="Compute in bfloat16: faster on recent GPUs, probabilities differ by some hundredths."
        ),
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="With --out: begin an unfinished job anew.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an --out that exists.")] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write JSON Lines, one object an image; '-' prints them. With --out: a summary of the job.",
        ),
    ] = None,
) -> None:
    """Print the labels of images, best first, or write those of any number of images to a file.

    Without --threshold and --top, those above the bundle's own thresholds. An image that cannot be read is reported, the rest go
    on; without --out the exit code is then 1.
    """
    from msrn.cli.output import check_apart, check_outputs, make_console
    from msrn.data.images import IMAGE_SUFFIXES
    from msrn.errors import MSRNError
    from msrn.predict import load

    given = {
        "--format": format,
        "--workers": workers,
        "--path-column": path_column,
        "--allow-outside": allow_outside or None,
    }
    given |= {
        "--engine": None if engine == "local" else engine,
        "--restart": restart or None,
        "--overwrite": overwrite or None,
    }
    alone = [name for name, value in given.items() if value is not None]
    if out is None and alone:
        raise MSRNError(f"{alone[0]} is for writing to a file. Add --out, or leave it out.")
    if json_file is not None and json_file.suffix.lower() in IMAGE_SUFFIXES:
        raise MSRNError(f"--json {json_file} is an image, which would be lost. Choose another name.")
    if out is not None:
        if engine == "ray" and device is not None:
            raise MSRNError(
                f"--device {device} is for this machine; on Ray every worker has a GPU where the cluster has any. Leave it out."
            )
        check_apart("--json", json_file, [f"{out.rstrip('/')}{ending}" for ending in ("", ".parts", ".errors.jsonl")])
    check_outputs(sources, **{"--json": json_file})
    console = make_console(json_file)
    if out is None:
        _print(
            load(bundle, device=device, bf16=bf16),
            sources,
            console,
            json_file,
            threshold=threshold,
            top_k=top,
            batch_size=batch_size,
        )
        return
    from msrn.bulk import find_format, tag_images
    from msrn.files import write_json

    find_format(Path(out), format)
    predictor = load(bundle, device=device, bf16=bf16)
    with _Progress(console, sources, path_column=path_column, allow_outside=allow_outside) as progress:
        result = tag_images(
            predictor,
            sources,
            out,
            format=format,
            threshold=threshold,
            top_k=top,
            batch_size=batch_size,
            num_workers=workers,
            part_size=part_size,
            path_column=path_column,
            allow_outside=allow_outside,
            engine=engine,
            restart=restart,
            overwrite=overwrite,
            on_progress=progress.show,
        )
    rate = (result.num_images + result.num_unreadable - result.num_resumed) / max(result.seconds, 1e-9)
    if result.num_resumed:
        console.print(f"went on behind {result.num_resumed:,} images that were done", highlight=False)
    console.print(
        f"{result.num_images:,} images tagged, {rate:,.1f} a second: {result.out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if result.errors_file is not None:
        console.print(
            f"{result.num_unreadable:,} could not be read: {result.errors_file}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if not result.num_images:
        typer.echo("error: none of the images could be read.", err=True)
    if json_file is not None:
        summary = {
            "out": str(result.out),
            "images": result.num_images,
            "unreadable": result.num_unreadable,
            "errors": None if result.errors_file is None else str(result.errors_file),
            "resumed_behind": result.num_resumed,
            "seconds": result.seconds,
        }
        write_json(json_file, summary)
    if not result.num_images:
        raise typer.Exit(1)


def _print(
    predictor: "Predictor",
    sources: Sequence[str],
    console: "Console",
    json_file: Path | None,
    *,
    threshold: float | None,
    top_k: int | None,
    batch_size: int,
) -> None:
    from rich.progress import Progress

    from msrn.cli.output import printable, shown_labels
    from msrn.data import list_images
    from msrn.errors import MSRNError
    from msrn.files import JSONLinesWriter

    packed = [source for source in sources if source == "-" or "://" in source or source.lower().endswith(_WITH_OUT)]
    packed += [source for source in sources if glob.has_magic(source) and not Path(source).exists()]
    if packed:
        raise MSRNError(
            f"{packed[0]}: tables, archives, globs, addresses and lists are tagged into a file. Add --out FILE."
        )
    closed: list[str] = []
    paths = list_images(sources, closed.append)
    for problem in closed:
        typer.echo(f"error: {printable(problem)} Change its permissions.", err=True)
    num_failed = 0
    with (
        JSONLinesWriter(json_file) as writer,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("predicting", total=len(paths))
        for prediction in predictor.predict_stream(paths, threshold=threshold, top_k=top_k, batch_size=batch_size):
            progress.advance(task)
            writer.write(prediction.to_dict())
            if prediction.error is not None:
                num_failed += 1
                typer.echo(f"error: {printable(prediction.error)}", err=True)
            elif json_file is None:
                labels = shown_labels(prediction)
                console.print(
                    f"{printable(prediction.path)}: {labels or '(no label above the threshold)'}",
                    markup=False,
                    soft_wrap=True,
                )
    if num_failed:
        typer.echo(f"error: {num_failed} of {len(paths)} images could not be read; the others are done.", err=True)
    if num_failed or closed:
        raise typer.Exit(1)


class _Progress:
    """Images done, rate and time left: a bar on a terminal, a line a minute elsewhere.

    The images are counted while the first ones are tagged; those of standard input are not known before their end.
    """

    def __init__(self, console: "Console", sources: Sequence[str], **table_options: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console
        self.sources = sources
        self.table_options = table_options
        self.total: int | None = None
        self._start: tuple[float, int] | None = None
        self._printed = time.monotonic()
        self.progress = Progress(
            TextColumn("tagging"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("tagging", total=None, rate="")

    def __enter__(self) -> "_Progress":
        from threading import Thread

        self.progress.start()
        if "-" not in self.sources:
            Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, num_done: int, num_unreadable: int) -> None:
        """Take the state of the job."""
        now = time.monotonic()
        if self._start is None:
            self._start = now, num_done  # the first batch waits for the workers
            return
        since, before = self._start
        rate = (num_done - before) / max(now - since, 1e-9)
        unreadable = f", {num_unreadable:,} unreadable" if num_unreadable else ""
        self.progress.update(self.task, completed=num_done, total=self.total, rate=f"{rate:,.1f} a second{unreadable}")
        if not self.console.is_terminal and now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            left = ""
            if self.total is not None and rate > 0:
                left = f" of {self.total:,}, {(self.total - num_done) / rate / 60:,.0f} min left"
            self.console.print(f"{num_done:,} images{left}, {rate:,.1f} a second{unreadable}", highlight=False)

    def _count(self) -> None:
        from msrn.bulk import find_images
        from msrn.errors import MSRNError

        try:
            self.total = sum(1 for _ in find_images(self.sources, **self.table_options))
        except (MSRNError, OSError):
            return  # the job says it
