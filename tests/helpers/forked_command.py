"""Run commands in processes of their own that start at once: forked from one that has imported what takes seconds."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["msrn.cli.main", "msrn.recipes.run", "msrn.bulk", "msrn.predict", "pyarrow.parquet"])


def start_command(arguments: list[str], errors: Path) -> ForkServerProcess:
    """`msrn ARGUMENTS`, which leads a group of processes of its own and writes its standard error to a file."""
    process = FORKS.Process(target=_run, args=(arguments, errors, multiprocessing.get_start_method()))
    process.start()
    return process


def _run(arguments: list[str], errors: Path, start_method: str) -> None:
    from msrn.cli.main import main

    os.setsid()
    # The workers that it starts are those of a shell's command.
    multiprocessing.set_start_method(start_method, force=True)
    with errors.open("wb") as file, Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["msrn", *arguments]
    main()
