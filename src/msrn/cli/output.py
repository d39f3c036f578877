"""What commands print: tables for people, on standard error where standard output carries JSON."""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from msrn.drawing import undrawable_letters
from msrn.errors import MSRNError
from msrn.files import check_can_write

if TYPE_CHECKING:
    from msrn.predict import Prediction


# Control characters, formatting such as a reversed direction, halves of letters, and other ends of lines.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# They join letters, in Persian and in emoji.
_JOINERS = "\u200c\u200d"

# How far a file is looked into: the names of 10,000 labels may come before the second key.
_START_BYTES = 4 << 20
_TEXT = r'"[^"\\]*(?:\\.[^"\\]*)*"'
# The keys that what commands write as JSON begins with; one or two of them a user's own file may well have.
_FIRST_KEYS = (
    "source layout notes",  # data check
    "source pooled kept",  # data split
    "labels num_images split",  # labels graph
    "labels groups group",  # labels groups
    "vectors source dim",  # labels vectors
    "path size is_exact",  # explain
    "bundle data split mAP",  # evaluate
    "bundle vs data split",  # report
    "bundle objective crossfit",  # thresholds
    "bundle best_epoch val_mAP",  # train
    "bundle labels num_groups",  # import-published
    "recipe size precision",  # train --dry-run
    "recipe optimizer.lr rates",  # train --find lr
    "recipe data.batch_size fastest",  # train --find batch_size
    "out images unreadable",  # predict --out
    "out precision bytes",  # export
    "protocol recipe overrides",  # compare
    "runs run epochs",  # compare --dry-run
    "page heads MSRN",  # demo
    "recipes apparel apparel-convnext",  # recipe list
    "processor threads gpu",  # doctor
)


class _SafeConsole(Console):
    """Shows labels, paths and whatever else comes from strangers as `printable` does; what Rich adds stays."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n\t"), segment.style)


def make_console(json_file: Path | None) -> Console:
    """A console on standard output, or on standard error where JSON goes to standard output."""
    return _SafeConsole(stderr=str(json_file) == "-", emoji=False)


def printable(text: object, *, keep: str = "") -> str:
    r"""Text of strangers for a terminal: what would move its cursor, change its title or turn its letters around is written out.

    Args:
        text: A label, a path, an error.
        keep: Characters that are left as they are.

    Example:
        >>> printable("船 \x1b]0;title\x07")
        '船 \\x1b]0;title\\x07'
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in _UNSAFE and letter not in keep and letter not in _JOINERS
        else letter
        for letter in str(text)
    )


def check_outputs(source: str | Path | Sequence[str | Path], **outputs: Path | None) -> None:
    """Refuse files to write that cannot be, or that exist and are none of ours, before any work is done for them.

    What commands wrote before may be written again; photos, tables, annotations and what else lies there may not.

    Args:
        source: The data, or whatever is read, or several of these.
        outputs: Each file by its option; `-` is standard output for --json.

    Raises:
        MSRNError: The message names the option.
    """
    read = set(map(_resolved, [source] if isinstance(source, str | Path) else source))
    given = []
    for option, path in outputs.items():
        if path is None or (str(path) == "-" and option == "--json"):
            continue
        if str(path) == "-" or path.is_dir():
            what = "a folder" if path.is_dir() else "standard output, which is for --json"
            raise MSRNError(f"{option} {path} is {what}. Give the name of a file.")
        given.append(_resolved(path))
        if given[-1] in read:
            raise MSRNError(f"{option} {path} is a part of the data, which would be lost. Choose another name.")
        if given[-1].is_file() and not _is_ours(given[-1], ".json" if option == "--json" else path.suffix):
            raise MSRNError(
                f"{option} {path} exists and is not what msrn writes; it is left alone. Choose another name, or delete it."
            )
    if len(set(given)) < len(given):
        raise MSRNError(f"{' and '.join(outputs)} name the same file. Give each its own.")
    for option, path in outputs.items():
        check_can_write(option, path)


def check_apart(option: str, path: Path | None, results: Iterable[str | Path]) -> None:
    """Refuse a file that would replace something that the same command writes, or lie in a folder that it writes.

    Raises:
        MSRNError: The message names the option.
    """
    if path is None or str(path) == "-":
        return
    for result in results:
        if _resolved(path).is_relative_to(_resolved(result)):
            raise MSRNError(
                f"{option} {path} would take the place of {result}, which is written too. Choose another name."
            )


def _resolved(path: str | Path) -> Path:
    """Where a path leads, with the user's own `~/`, or an address of this machine; other addresses lead nowhere here."""
    text = str(path).removeprefix("file://")
    own = Path(text).expanduser() if text == "~" or text.startswith("~/") else Path(text)
    return Path(os.path.realpath(own))


def check_outside(bundle: Path, **outputs: Path | None) -> None:
    """Refuse to write into a bundle's folder.

    Raises:
        MSRNError: The message names the option.
    """
    for option, path in outputs.items():
        if path is not None and path.expanduser().resolve().is_relative_to(bundle.expanduser().resolve()):
            raise MSRNError(f"{option} {path} is in the bundle, which holds nothing else. Give a place outside of it.")


def check_folder(out: Path, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a folder to write that holds anything but what the command writes there, before any work is done for it.

    Raises:
        MSRNError: It does; nothing in it is touched.
    """
    if out.exists() and not (out.is_dir() and all(is_ours(path) for path in out.iterdir())):
        raise MSRNError(f"--out {out} holds other things; it is left alone. Give a new folder.")


def _is_ours(path: Path, suffix: str) -> bool:
    """Whether a file looks like what a command writes under that ending: a report, page, picture or file of vectors.

    It must not look so by what files of others have too, as every drawing is an SVG, and tables are JSON Lines.
    """
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    titles = "(Label graph|Learning rates)"
    marks = {
        ".html": '<!doctype html.{,400}<meta name="generator" content="msrn">',
        ".svg": rf"(<\?xml.{{,400}})?<svg[^>]*>\s*<title>{titles}</title>.{{,800}}<dc:title>Matplotlib",
        ".png": rf".{{,100}}Software\0Matplotlib.{{,200}}Title\0{titles}",
        ".safetensors": r'.{8}\{"__metadata__":\{"msrn\.label_vectors":',
    }
    if start == b"":  # as `mktemp` makes it
        return True
    if suffix.lower() == ".json":
        return _is_our_json(start)
    mark = marks.get(suffix.lower())
    return mark is not None and re.match(mark.encode(), start, re.DOTALL) is not None


def _is_our_json(start: bytes) -> bool:
    """Whether a file begins as the JSON or JSON Lines of a command does.

    A table of the user's has paths and labels, too, but no probabilities; one that has no label in any row is taken for ours.
    """
    value = rf'(?:{_TEXT}|[\w.+-]+|\[[^\[\]{{}}"]*(?:{_TEXT}[^\[\]{{}}"]*)*\])\s*'
    to_next = rf"\s*:\s*(?:{value},|[\[{{])[\s\[{{]*"
    kinds = [to_next.join(f'"{re.escape(key)}"' for key in keys.split()) for keys in _FIRST_KEYS]
    kinds.append(rf'"bundle"{to_next}"threshold"\s*:\s*{value}\}}\s*\Z')  # thresholds --reset
    row = rf'\{{"path": {_TEXT}, "labels": \['  # predict
    rows = rf'(?:{row}\](?:, "error": {_TEXT})?\}}\n)*(?:{row}\{{"name": {_TEXT}, "probability": |\Z)'
    return re.match(rf"(?:\[\s*)?\{{\s*(?:{'|'.join(kinds)})|{rows}".encode(), start) is not None


def tell_undrawable(console: Console, names: Iterable[str]) -> None:
    """Say which letters of names no font has, if any: pictures have a box for each."""
    if missing := undrawable_letters(names):
        console.print(
            f"note: no font here has {' '.join(missing[:10])}{' and others' if len(missing) > 10 else ''}; pictures show a box "
            "for each. Install one that has, such as Noto Sans.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def percent(value: float | None) -> str:
    """A fraction as a percentage with two decimals, or a dash.

    Example:
        >>> percent(0.5), percent(None)
        ('50.00', '-')
    """
    return "-" if value is None else f"{100 * value:.2f}"


def shown_labels(prediction: "Prediction") -> str:
    """The labels of one image with their probabilities, on one line."""
    return ", ".join(f"{' '.join(label.name.split())} {label.probability:.2f}" for label in prediction.labels)


def print_evaluation(console: Console, report: dict[str, Any], *, title: str, by_label: bool = False) -> None:
    """Print the report of `msrn.metrics.evaluate_predictions`, in percent, and its `protocol` where it has one."""
    table = Table(title=escape(title), title_justify="left")
    for name in ("", "mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"):
        table.add_column(name, justify="right")
    table.add_row("at 0.5", *(percent(report[name]) for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")))
    if "CF1_fitted" in report:
        table.add_row(
            "fitted", "", *(percent(report[f"{name}_fitted"]) for name in ("CP", "CR", "CF1", "OP", "OR", "OF1"))
        )
    table.add_row("top 3", "", *(percent(report[f"{name}_top3"]) for name in ("CP", "CR", "CF1", "OP", "OR", "OF1")))
    console.print(table)
    ranking = ", ".join(
        f"{label} {'-' if report[name] is None else format(report[name], '.4f')}"
        for label, name in (
            ("coverage error", "coverage_error"),
            ("label ranking AP", "label_ranking_average_precision"),
            ("ranking loss", "ranking_loss"),
        )
    )
    console.print(f"{ranking}; {report['num_images']} images, {report['num_unknown']} unknown entries", highlight=False)
    if report["labels_without_positives"]:
        names = ", ".join(report["labels_without_positives"])
        console.print(f"without positives, left out of the mean: {names}", highlight=False, markup=False)
    protocol = report.get("protocol")
    if isinstance(protocol, dict):  # runs of before the protocol was written down have a sentence there
        from msrn.predict import protocol_lines

        console.print("\n".join(protocol_lines(protocol)), highlight=False, markup=False, soft_wrap=True)
    if by_label:
        labels = Table("label", "AP", title="average precision a label", title_justify="left")
        labels.columns[1].justify = "right"
        for name, value in sorted(report["labels"].items(), key=lambda item: -(item[1] if item[1] is not None else -1)):
            labels.add_row(escape(name), percent(value))
        console.print(labels)
