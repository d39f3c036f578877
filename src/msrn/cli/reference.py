"""The command line as Markdown, made from the commands themselves: `python -m msrn.cli.reference`."""

from typing import Any

import typer


def command_reference() -> str:
    """A section a command: what it does, its options with their defaults, and its examples."""
    from msrn.cli.main import app

    lines = [
        "# Command line",
        "",
        "Every command prints this with `--help`; `-` as a JSON file means standard output.",
        "",
    ]
    for path, command in _commands("msrn", typer.main.get_command(app)):
        lines += [f"## {path}", "", _paragraphs(command.help or ""), ""]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
        examples = [line for line in (command.epilog or "").splitlines() if line.startswith("  ")]
        if examples:
            lines += ["Examples:", "", *(f"  {line}" for line in examples), ""]
    return "\n".join(lines)


def _commands(path: str, command: Any) -> list[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        return [(path, command)]
    return [found for name, own in sorted(below.items()) for found in _commands(f"{path} {name}", own)]


def _row(parameter: Any) -> str:
    is_option = bool(getattr(parameter, "opts", None)) and parameter.param_type_name == "option"
    names = [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.metavar or parameter.name.upper()]
    default = parameter.default
    shown = "" if default is None or callable(default) or default is False or default == () else f"`{default}`"
    meaning = " ".join((parameter.help or "").split()).replace("|", "\\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {shown} | {meaning} |"


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


if __name__ == "__main__":
    print(command_reference(), end="")
