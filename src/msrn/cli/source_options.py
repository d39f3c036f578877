"""The options of commands that read labelled images, and what they come to."""

from pathlib import Path
from typing import Annotated, Any

import typer

LABELLED_IMAGES = (
    "Labelled images: a table, a folder a split or a label, VOC, COCO, NUS-WIDE, Apparel; the layout is recognised."
)
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
AllowOutside = Annotated[
    bool | None,
    typer.Option("--allow-outside", help="Let a table or list name images outside of its folder.", show_default=False),
]
LabelNames = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Labels to read from a table, as a,b,c or as a text file with one a line; other columns are ignored.",
        show_default=False,
    ),
]


def names_of(text: str | None) -> tuple[str, ...] | None:
    """The labels that `--label-names` gives: a label set, a file with one a line, or names with commas between them.

    Example:
        >>> names_of("sea, dog")
        ('sea', 'dog')
    """
    if text is None:
        return None
    from msrn.labels.sets import LABEL_SETS, read_label_names

    if text in LABEL_SETS or Path(text).is_file():
        return read_label_names(text)
    return tuple(name.strip() for name in text.split(",") if name.strip())


def given(**options: Any) -> dict[str, Any]:
    """The options that were given; the others are left to the reader.

    Example:
        >>> given(label_column="tags", split_column=None)
        {'label_column': 'tags'}
    """
    return {name: value for name, value in options.items() if value is not None}
