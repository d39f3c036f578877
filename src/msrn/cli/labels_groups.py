"""`msrn labels groups`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import Tensor

EPILOG = """Examples:

  msrn labels groups runs/scenes/bundle

  msrn labels groups runs/scenes/bundle --picture groups.svg

  msrn labels groups BUNDLE --json - | jq '.groups[].labels[].name'"""


def groups(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; its head is MSRN.")],
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the label graph, coloured by group, into a .svg or .png file.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the whole assignment; '-' prints it.")
    ] = None,
) -> None:
    """Show which labels share global semantics: the groups that a trained MSRN has learnt, and how much each label is in them.

    A label belongs to all groups, in shares that sum to 1; it is listed with the one that has most of it.
    """
    from rich.markup import escape
    from rich.table import Table

    from msrn.bundle import load_bundle
    from msrn.cli.output import check_outputs, make_console
    from msrn.errors import ModelError
    from msrn.files import check_can_write, write_json
    from msrn.models import MSRN
    from msrn.report.label_graph import check_picture, save_label_graph

    check_outputs(bundle, **{"--picture": picture})
    check_can_write("--json", json_file)
    if picture is not None:
        check_picture(picture)
    loaded = load_bundle(bundle)
    if not isinstance(loaded.model, MSRN):
        raise ModelError(
            f"a {loaded.architecture.get('name')} head has no groups of labels. Give a bundle whose head is MSRN."
        )
    assignment = loaded.model.embed().assignment.detach()  # (L, G)
    if not assignment.shape[1]:
        raise ModelError("this MSRN was trained without groups (model.has_groups=false). Give one that has them.")
    share, strongest = assignment.max(dim=1)
    listed: list[dict[str, Any]] = []
    for group in range(assignment.shape[1]):
        inside = [label for label in share.argsort(descending=True, stable=True).tolist() if strongest[label] == group]
        listed.append(
            {
                "group": group,
                "labels": [{"name": loaded.label_names[label], "membership": float(share[label])} for label in inside],
                "share": float(assignment[:, group].mean()),
            }
        )
    console = make_console(json_file)
    table = Table(title=f"{assignment.shape[1]} groups of {len(loaded.label_names)} labels", title_justify="left")
    for name in ("group", "of all, %", "labels, with their share in the group, %"):
        table.add_column(name, justify="left" if name.startswith("labels") else "right")
    used = [row for row in listed if row["labels"]]
    for row in used:
        members = ", ".join(f"{own['name']} {100 * own['membership']:.0f}" for own in row["labels"])
        table.add_row(str(row["group"]), f"{100 * row['share']:.0f}", escape(members))
    if len(used) < len(listed):
        table.caption = f"{len(listed) - len(used)} more groups, in which no label has most of itself"
    console.print(table)
    if (remark := _remark(assignment)) is not None:
        console.print(remark, highlight=False)
    if picture is not None:
        save_label_graph(loaded.label_graph, picture, groups=strongest.numpy())
        console.print(f"picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"labels": list(loaded.label_names), "groups": listed, "assignment": assignment.tolist()})


def _remark(assignment: "Tensor") -> str | None:
    """What there is to say of groups that tell labels apart badly."""
    num_groups = assignment.shape[1]
    if num_groups > 1 and float(assignment.mean(dim=0).max()) > 0.95:
        return "nearly all of every label is in one group: this network has learnt no groups."
    if num_groups > 1 and float((assignment - 1 / num_groups).abs().mean()) < 0.1 / num_groups:
        return "the shares are almost even: this network makes little difference between its groups."
    return None
