"""Run a command as a user does, in this process."""

import sys

from msrn.cli import main as cli


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
