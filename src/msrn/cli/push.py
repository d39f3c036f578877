"""`msrn push`."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Examples:

  msrn push runs/scenes/bundle me/scenes

  msrn push BUNDLE my-team/tagger --private --message "fitted thresholds"

  msrn predict hub:me/scenes photo.jpg"""


def push(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where it goes on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.", show_default=False)] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; by default the main one.", show_default=False)] = None,
) -> None:
    """Put a bundle on the Hugging Face hub: weights, configuration and model card.

    Log in first: 'hf auth login', or the variable HF_TOKEN. Everyone loads it by hub:OWNER/NAME.
    """
    from msrn.bundle import push_bundle
    from msrn.cli.output import make_console

    console = make_console(None)
    with console.status("uploading"):
        address = push_bundle(bundle, name, private=private, message=message, revision=revision)
    console.print(address, markup=False, highlight=False, soft_wrap=True)
