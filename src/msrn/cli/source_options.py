"""The options of commands that read labelled images, and what they come to."""

from typing import Annotated, Any

import typer

PathColumn = Annotated[str | None, typer.Option(help="Column of the paths.", show_default=False)]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels.", show_default=False)]
LabelSeparator = Annotated[
    str | None, typer.Option(help="What stands between two labels of a table's cell.", show_default=False)
]
SplitColumn = Annotated[str | None, typer.Option(help="Column of the splits.", show_default=False)]
KeepUnannotated = Annotated[
    bool | None,
    typer.Option(
        "--keep-unannotated/--drop-unannotated",
        help="COCO's images without annotations: keep them as images of nothing, or leave them out.",
        show_default=False,
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others are left to the reader.

    Example:
        >>> given(label_column="tags", split_column=None)
        {'label_column': 'tags'}
    """
    return {name: value for name, value in options.items() if value is not None}
