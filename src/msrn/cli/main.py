"""The command line: `msrn COMMAND`. Each command lives in a file of its own and imports what it needs when it runs."""

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

import msrn
from msrn.cli import (
    compare,
    data,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    import_published,
    labels,
    predict,
    push,
    recipe,
    report,
    serve,
    thresholds,
    train,
)
from msrn.errors import MSRNError, is_killed_worker, is_out_of_memory

# Exit codes of commands that were told to stop: 128 and the number of the signal, as shells have it.
STOPPED = {128 + signal.SIGINT: "Ctrl-C", 128 + signal.SIGTERM: "SIGTERM"}
# How to go on with a command that was stopped; the others start anew.
AFTER_STOP = {
    "train": " A run keeps its last checkpoint; go on with it by --resume.",
    "demo": " Start it again: it goes on where it stopped.",
    "compare": " Start it again: it goes on where it stopped.",
    "predict": " With --out, the same command goes on where it stopped.",
}

WORKER_KILLED = "a process that reads images was killed, as systems do where memory runs out. Lower {settings}.{after}"
OUT_OF_MEMORY = (
    "memory ran out. Lower --batch-size or --workers where there are, make the model smaller, or end other programs."
)

app = typer.Typer(
    name="msrn",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool | None) -> None:
    if value:
        typer.echo(f"msrn {msrn.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool | None = typer.Option(
        None, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Multi-label image classification that knows how labels relate."""


app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=train.EPILOG)(train.train)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=thresholds.EPILOG)(thresholds.thresholds)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=predict.EPILOG)(predict.predict)
app.command(epilog=explain.EPILOG)(explain.explain)
app.command(epilog=export.EPILOG)(export.export)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=push.EPILOG)(push.push)
app.command(epilog=import_published.EPILOG)(import_published.import_published)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.add_typer(recipe.app, name="recipe")
app.add_typer(data.app, name="data")
app.add_typer(labels.app, name="labels")


def main() -> None:
    """Run a command; a problem that msrn knows is one line on standard error and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # As standard error: letters that the encoding lacks are written out.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow's remark on large images; those that are too large are refused, and named.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    with _stoppable():
        _run()


def _run() -> None:
    try:
        app()
    except MSRNError as error:
        if error.is_in_every_process and not _is_first_process():
            return  # the first one says it, and fails
        _fail(" ".join(str(error).split()))
    except SystemExit as stop:
        if not isinstance(stop.code, int) or stop.code not in STOPPED or not _is_first_process():
            raise
        _fail(f"stopped by {STOPPED[stop.code]}.{AFTER_STOP.get(sys.argv[1], '')}", code=stop.code)
    except OSError as error:
        if is_out_of_memory(error):
            _fail(OUT_OF_MEMORY)
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}. Check that the path is right, writable and has space left.")
    except Exception as error:
        if os.environ.get("MSRN_DEBUG"):
            raise
        if is_out_of_memory(error):
            _fail(OUT_OF_MEMORY)
        if is_killed_worker(error):
            is_training = sys.argv[1] in ("train", "compare", "demo")
            settings = (
                "data.num_workers, data.cache_gb or data.batch_size" if is_training else "--workers or --batch-size"
            )
            _fail(WORKER_KILLED.format(settings=settings, after=AFTER_STOP.get(sys.argv[1], "")))
        text = " ".join(str(error).split()) or "no message"
        _fail(
            f"msrn did not expect this: {type(error).__name__}: {text[:400]}. Check data and settings; "
            "set MSRN_DEBUG=1 to see where it happened, and report it."
        )


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the command once it has cleared away what it began, and at once when they come again.

    Training, comparing and serving have handlers of their own while they do so. Whoever calls `main` and has handlers keeps them.
    """
    owner = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a process that was forked just now, which has nothing to clear away
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for taken in ours:
            signal.signal(taken, _end_at_once)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number, default in defaults.items() if is_main and signal.getsignal(number) == default]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is stop:
                signal.signal(number, defaults[number])


def _end_at_once(number: int, frame: Any) -> NoReturn:
    os.write(2, f"error: stopped by {STOPPED[128 + number]}.\n".encode())
    os._exit(128 + number)


def _is_first_process() -> bool:
    from msrn.processes import is_first_process  # PyTorch takes a while

    return is_first_process()


def _fail(message: str, *, code: int = 1) -> None:
    from msrn.cli.output import printable  # Rich takes a while

    typer.echo(f"error: {printable(message)}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
