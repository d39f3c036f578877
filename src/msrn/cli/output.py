"""What commands print: tables for people, on standard error where standard output carries JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from msrn.predict import Prediction


def make_console(json_file: Path | None) -> Console:
    """A console on standard output, or on standard error where JSON goes to standard output."""
    return Console(stderr=str(json_file) == "-", emoji=False)


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
    """Print the report of `msrn.metrics.evaluate_predictions`, in percent."""
    table = Table(title=escape(title), title_justify="left")
    for name in ("", "mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"):
        table.add_column(name, justify="right")
    table.add_row("at 0.5", *(percent(report[name]) for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")))
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
    if by_label:
        labels = Table("label", "AP", title="average precision a label", title_justify="left")
        labels.columns[1].justify = "right"
        for name, value in sorted(report["labels"].items(), key=lambda item: -(item[1] if item[1] is not None else -1)):
            labels.add_row(escape(name), percent(value))
        console.print(labels)
