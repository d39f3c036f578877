"""`msrn doctor`."""

from pathlib import Path
from typing import Annotated, Any

import typer

EPILOG = """Examples:

  msrn doctor

  msrn doctor --json - | jq '.extras | map_values(.missing)'"""


def doctor(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all of it as JSON; '-' prints it.")
    ] = None,
) -> None:
    """Print versions, devices and memory, and for each extra what is missing and how to install it."""
    from rich.markup import escape
    from rich.table import Table

    from msrn.cli.output import check_outputs, make_console
    from msrn.files import write_json
    from msrn.machine import describe_installation

    check_outputs((), **{"--json": json_file})
    found = describe_installation()
    console = make_console(json_file)
    for name, value in _rows(found):
        console.print(f"{name:<12} {value}", highlight=False, markup=False, soft_wrap=True)
    table = Table(title="extras", title_justify="left")
    for column in ("extra", "what for", "missing", "install"):
        table.add_column(column)
    for name, extra in found["extras"].items():
        missing = ", ".join(extra["missing"])
        table.add_row(name, extra["purpose"], missing or "nothing", escape(extra["install"]) if missing else "")
    console.print(table)
    if json_file is not None:
        write_json(json_file, found)


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    gb = "{:.1f} GB".format
    memory = "not known" if found["free_memory_bytes"] is None else f"{gb(found['free_memory_bytes'] / 1e9)} free"
    gpus = [f"{gpu['name']} ({gb(gpu['memory_bytes'] / 1e9)})" for gpu in found["gpus"]]
    versions = ", ".join(
        f"{name} {version}" for name, version in found["versions"].items() if version and name != "msrn"
    )
    return [
        ("msrn", str(found["versions"]["msrn"])),
        ("python", found["python"]),
        ("packages", versions),
        ("processor", f"{found['processor']}, {found['num_processors']} processors, {found['threads']} threads"),
        ("memory", memory),
        ("gpu", ", ".join(gpus) or "none that PyTorch finds; models train and run on the processor"),
        ("weights", found["weights_cache"]),
    ]
