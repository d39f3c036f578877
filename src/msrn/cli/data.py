"""`msrn data COMMAND`: what to do with a data set before training."""

import typer

from msrn.cli import data_check, data_split

app = typer.Typer(no_args_is_help=True, help="Check a data set, and split it.")
app.command("check", epilog=data_check.EPILOG)(data_check.check)
app.command("split", epilog=data_split.EPILOG)(data_split.split)
