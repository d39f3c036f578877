"""The page that `msrn data check --out` writes: what is wrong in a data set, and what is in it."""

import base64
import io
import warnings
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msrn.data.check import DataReport, locate
from msrn.data.images import read_image
from msrn.data.packed import PackedImage
from msrn.errors import MissingDependencyError, UnreadableImageError
from msrn.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SPLIT_COLOURS = {"train": "#0072B2", "val": "#E69F00", "test": "#009E73"}
_INK = "#1f2733"
_NUM_BARS = 60
_NUM_HEAT = 60
_NUM_NUMBERED = 25  # up to so many labels the cells of the heat map have room for numbers
_NUM_DOTS = 3000
_THUMBNAIL = 220


def write_data_page(path: str | Path, report: DataReport) -> Path:
    """Write one self-contained page.

    Args:
        path: The HTML file, replaced whole.
        report: What `msrn.data.check.check_source` found.

    Raises:
        MissingDependencyError: Jinja2 or matplotlib is not installed.
        MSRNError: The file cannot be written.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the page needs {error.name}: pip install 'msrn[report]'.") from error

    template = (resources.files("msrn.report") / "templates" / "data.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["thousands"] = lambda number: f"{number:,}"
    # Label names may hold letters that matplotlib's font lacks; the browser's has them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        html = environment.from_string(template).render(
            report=report,
            kinds=_kinds(report),
            pictures=[
                {"problem": picture.problem, "images": [_thumbnail(image) for image in picture.images]}
                for picture in report.pictures
            ],
            bars=_bars(report),
            num_bars=_NUM_BARS,
            heat_svg=_draw_heat_map(report) if report.co_occurrence.any() else None,
            num_heat=min(_NUM_HEAT, len(report.label_names)),
            sizes_svg=_draw_sizes(report) if report.images.num_readable else None,
            images=report.images.to_dict(),
            colours=SPLIT_COLOURS,
        )
    path = Path(path)
    # Names of files that are not UTF-8 would spoil the page.
    write_text(path, html.encode("utf-8", "backslashreplace").decode("utf-8"))
    return path


def _kinds(report: DataReport) -> list[dict[str, Any]]:
    """The kinds of problems, errors first, each with its problems one a line."""
    return [
        {
            "name": kind,
            "is_error": is_error,
            "count": count,
            "lines": [locate(p) for p in report.problems if (p.kind, p.is_error) == (kind, is_error)],
        }
        for (kind, is_error), count in report.problem_counts.items()
    ]


def _bars(report: DataReport) -> list[dict[str, Any]]:
    """The most frequent labels: positives a split, as parts of the widest bar, and the unknown share."""
    num_labels = len(report.label_names)
    total = sum((split.positives for split in report.splits), np.zeros(num_labels, dtype=np.int64))
    unknown = sum((split.unknown for split in report.splits), np.zeros(num_labels, dtype=np.int64))
    widest = max(int(total.max(initial=0)), 1)
    return [
        {
            "name": report.label_names[label],
            "counts": [int(split.positives[label]) for split in report.splits],
            "widths": [100 * int(split.positives[label]) / widest for split in report.splits],
            "unknown": 100 * int(unknown[label]) / max(report.num_images, 1),
        }
        for label in np.argsort(-total, kind="stable")[:_NUM_BARS]
    ]


def _thumbnail(path: Path | PackedImage) -> dict[str, str | None]:
    """The image as a data URI, None where it cannot be read."""
    try:
        image = read_image(path, min_size=(_THUMBNAIL, _THUMBNAIL))
    except UnreadableImageError:
        return {"name": path.name, "uri": None}
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return {
        "name": path.name,
        "uri": "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
    }


def _draw_heat_map(report: DataReport) -> str:
    """P(column | row) on the training images, for the most frequent labels."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    order = np.argsort(-report.label_counts, kind="stable")[:_NUM_HEAT]
    counts = report.label_counts[order]
    share = report.co_occurrence[np.ix_(order, order)] / np.maximum(counts, 1)[:, None]  # (K, K)
    np.fill_diagonal(share, np.nan)
    num_labels = len(order)
    side = max(5.0, 0.36 * num_labels if num_labels <= _NUM_NUMBERED else 0.19 * num_labels)
    figure = Figure(figsize=(side + 3.2, side + 2.0), layout="constrained")
    axes = figure.add_subplot()
    most = float(np.nanmax(share))
    colours = colormaps["Blues"].with_extremes(bad="#d5dbe5")  # the diagonal
    shown = axes.imshow(share, cmap=colours, vmin=0, vmax=most, interpolation="none")
    names = [_short(report.label_names[label]) for label in order]
    axes.set_xticks(range(num_labels), names, rotation=90, fontsize=10, parse_math=False)
    axes.set_yticks(
        range(num_labels),
        [f"{name} ({count:,})" for name, count in zip(names, counts.tolist(), strict=True)],
        fontsize=10,
        parse_math=False,
    )
    if num_labels <= _NUM_NUMBERED:
        for row, column in zip(*np.nonzero(np.nan_to_num(share) >= 0.005), strict=True):
            colour = "white" if share[row, column] > 0.6 * most else _INK
            text = f"{100 * share[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(shown, ax=axes, fraction=0.03, pad=0.02, format=lambda value, _: f"{value:.0%}")
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _to_svg(figure, "Co-occurrence")


def _draw_sizes(report: DataReport) -> str:
    """Width against height of a sample of the images, and how many labels images have."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    widths, heights = report.images.widths, report.images.heights
    chosen = np.random.default_rng(0).permutation(len(widths))[:_NUM_DOTS]
    left.scatter(widths[chosen], heights[chosen], s=14, alpha=0.35, color=SPLIT_COLOURS["train"], linewidths=0)
    left.collections[0].set_rasterized(True)
    left.set(xscale="log", yscale="log", xlabel="width, pixels", ylabel="height, pixels")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_minor_formatter(lambda value, _: "")
    _widen(left, widths, heights)
    left.set_title("Image sizes" + (f", {_NUM_DOTS:,} of {len(widths):,} images" if len(widths) > _NUM_DOTS else ""))
    num_splits = len(report.splits)
    for number, split in enumerate(report.splits):
        shares = np.array(split.labels_an_image) / split.num_images
        positions = np.arange(len(shares)) + (number - (num_splits - 1) / 2) * 0.8 / num_splits
        right.bar(positions, shares, 0.8 / num_splits, color=SPLIT_COLOURS[split.name], label=split.name)
    right.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[attr-defined]
    right.set(xlabel="labels present in an image", ylabel="share of the split's images")
    right.set_title("Labels an image")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return _to_svg(figure, "Sizes and labels")


def _widen(axes: "Axes", widths: np.ndarray, heights: np.ndarray) -> None:
    """Both axes alike, so that a square image lies on the diagonal."""
    least, most = min(widths.min(), heights.min()) / 1.6, max(widths.max(), heights.max()) * 1.6
    axes.set(xlim=(least, most), ylim=(least, most))
    axes.plot([least, most], [least, most], color="#8a94a6", linewidth=0.8, linestyle=":")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000) if least <= tick <= most]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= 24 else f"{name[:23]}…"


def _to_svg(figure: "Figure", title: str) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(text, format="svg", transparent=True, dpi=144, metadata={"Date": None, "Title": title})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
