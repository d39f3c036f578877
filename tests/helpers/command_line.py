"""Run a command as a user does, in this process."""

import sys
import tempfile
from pathlib import Path

from msrn.cli import main as cli
from msrn.cli.output import check_outputs


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `msrn ARGUMENTS`."""
    code = 0
    argv, sys.argv = sys.argv, ["msrn", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def check_may_be_replaced(text: str, *, option: str = "--json", name: str = "before.json") -> None:
    """What a command wrote is known as such, so that it may be written again."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(text)
        check_outputs((), **{option: Path(folder) / name})
