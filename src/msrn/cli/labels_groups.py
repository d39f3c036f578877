"""`msrn labels groups`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

EPILOG = """Examples:

  msrn labels groups runs/scenes/bundle

  msrn labels groups runs/scenes/bundle --picture groups.svg

  msrn labels groups BUNDLE --json - | jq '.groups[].labels[].name'"""

_NUM_GROUPS = 20  # in the table
_NUM_MEMBERS = 12


def groups(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or hub:OWNER/NAME; its head is MSRN.")],
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
    from msrn.bundle import HUB_PREFIX, find_bundle, load_bundle
    from msrn.cli.output import check_outputs, check_outside, make_console, tell_undrawable
    from msrn.errors import ModelError
    from msrn.files import write_json
    from msrn.models import MSRN
    from msrn.report.label_graph import check_picture, save_label_graph

    check_outside(bundle, **{"--picture": picture, "--json": json_file})
    check_outputs(bundle, **{"--picture": picture, "--json": json_file})
    if picture is not None:
        check_picture(picture)
    loaded = load_bundle(find_bundle(bundle) if str(bundle).startswith(HUB_PREFIX) else bundle)
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
    console.print(_table(listed))
    if (remark := _remark(assignment)) is not None:
        console.print(remark, highlight=False)
    if picture is not None:
        save_label_graph(loaded.label_graph, picture, groups=strongest.numpy())
        console.print(f"picture: {picture}", markup=False, highlight=False, soft_wrap=True)
        tell_undrawable(console, loaded.label_names)
    if json_file is not None:
        write_json(json_file, {"labels": list(loaded.label_names), "groups": listed, "assignment": assignment.tolist()})


def _table(listed: list[dict[str, Any]]) -> "Table":
    """The largest groups and the labels that are most in them."""
    from rich.markup import escape
    from rich.table import Table

    counts = (_count(len(listed), "group"), _count(sum(len(row["labels"]) for row in listed), "label"))
    table = Table(title=" of ".join(counts), title_justify="left")
    for name in ("group", "of all, %", "labels, with their share in the group, %"):
        table.add_column(name, justify="left" if name.startswith("labels") else "right")
    used = sorted((row for row in listed if row["labels"]), key=lambda row: -row["share"])
    for row in used[:_NUM_GROUPS]:
        members = ", ".join(
            f"{' '.join(own['name'].split())} {100 * own['membership']:.1f}" for own in row["labels"][:_NUM_MEMBERS]
        )
        more = len(row["labels"]) - _NUM_MEMBERS
        table.add_row(
            str(row["group"]), f"{100 * row['share']:.1f}", escape(members) + (f" and {more} more" if more > 0 else "")
        )
    rest = []
    if len(used) > _NUM_GROUPS:
        rest.append(f"{_count(len(used) - _NUM_GROUPS, 'smaller group')}, which --json lists")
    if len(used) < len(listed):
        rest.append(f"{_count(len(listed) - len(used), 'group')} in which no label has most of itself")
    if rest:
        table.caption = f"and {'; '.join(rest)}"
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _remark(assignment: "Tensor") -> str | None:
    """What there is to say of groups that tell labels apart badly."""
    num_groups = assignment.shape[1]
    if num_groups == 1:
        return "all labels are in the only group: this network was made with one (model.group_ratio)."
    if float(assignment.mean(dim=0).max()) > 0.95:
        return "nearly all of every label is in one group: this network has learnt no groups."
    if float((assignment - 1 / num_groups).abs().mean()) < 0.1 / num_groups:
        return "the shares are almost even: this network makes little difference between its groups."
    return None
