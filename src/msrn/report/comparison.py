"""A picture of a comparison: every seed's mAP, and what it costs in parameters and time."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msrn.errors import MissingDependencyError
from msrn.files import write_bytes
from msrn.report.label_graph import GROUP_COLOURS, check_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _GREY = "#1f2733", "#8a94a6"
_REFERENCE = GROUP_COLOURS[5]
_OTHER = GROUP_COLOURS[0]


def save_comparison(comparison: dict[str, Any], path: str | Path) -> None:
    """Draw the variants of a comparison (`msrn.compare`), best mAP on top.

    On the left a dot a seed with mean and standard deviation; on the right the means against parameters and training time, where
    each variant has the number of its row.

    Args:
        comparison: What `comparison.json` holds.
        path: File that ends in .svg or .png.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        MSRNError: The file has another ending, or cannot be written.
    """
    path = Path(path)
    check_picture(path)
    figure = _draw(comparison)
    data = io.BytesIO()
    if path.suffix.lower() == ".svg":
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # the same comparison is the same file
            figure.savefig(data, format="svg", metadata={"Date": None}, facecolor="white")
    else:
        figure.savefig(data, format="png", dpi=100, facecolor="white")
    write_bytes(path, data.getvalue())


def _draw(comparison: dict[str, Any]) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"drawing needs {error.name}: pip install 'msrn[report]'.") from error

    summary, reference = comparison["summary"], comparison["protocol"]["reference"]
    names = sorted(summary, key=lambda name: -(summary[name]["mAP"]["mean"] or 0.0))
    colours = [_REFERENCE if name == reference else _OTHER for name in names]
    figure = Figure(figsize=(13, 1.6 + 0.38 * max(6, len(names))), layout="constrained")
    dots, parameters, time = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        mean = 100 * (summary[name]["mAP"]["mean"] or 0.0)
        std = None if summary[name]["mAP"]["std"] is None else 100 * summary[name]["mAP"]["std"]
        own = [run for run in comparison["runs"] if run["variant"] == name]
        seeds = [100 * run["mAP"] for run in own if run["mAP"] is not None]
        dots.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.35, markersize=7, markeredgewidth=0)
        dots.errorbar(mean, row, xerr=std, fmt="|", color=colour, markersize=13, capsize=3, linewidth=1.6)
    titles = [f"{comparison['variants'][name]['title']}  {row + 1}" for row, name in enumerate(names)]
    dots.set_yticks(range(len(names)), titles, parse_math=False)
    dots.invert_yaxis()
    dots.set_xlabel("test mAP, %: seeds, mean ± standard deviation")
    dots.grid(axis="x", color=_GREY, alpha=0.25)
    _scatter(parameters, summary, names, colours, "parameters", 1e6, "parameters, millions")
    _scatter(time, summary, names, colours, "train_seconds", 60.0, "training, minutes")
    time.set_ylabel("")
    for axes in (dots, parameters, time):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=_INK)
    model, data = comparison["protocol"]["settings"]["model"], comparison["protocol"]["settings"]["data"]
    title = f"{comparison['protocol']['recipe']}: {model['backbone']}, {data['size'][0]} x {data['size'][1]} px"
    figure.suptitle(title, color=_INK, fontsize=12, x=0.01, ha="left", parse_math=False)
    return figure


def _scatter(
    axes: "Axes", summary: dict[str, Any], names: list[str], colours: list[str], key: str, unit: float, label: str
) -> None:
    """Means against what they cost, each with the number of its row."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        x, y = summary[name][key] / unit, 100 * (summary[name]["mAP"]["mean"] or 0.0)
        axes.plot(x, y, "o", color=colour, markersize=15, markeredgecolor="white", zorder=3)
        axes.annotate(str(row + 1), (x, y), ha="center", va="center", color="white", fontsize=9, zorder=4)
    values = [summary[name][key] for name in names]
    if min(values) > 0 and max(values) > 4 * min(values):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15)
    axes.set_xlabel(label)
    axes.set_ylabel("test mAP, %")
    axes.grid(color=_GREY, alpha=0.25)
