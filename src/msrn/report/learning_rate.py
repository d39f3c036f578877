"""A picture of the search for a learning rate."""

import io
from collections.abc import Sequence
from pathlib import Path

from msrn.errors import MissingDependencyError
from msrn.files import write_bytes
from msrn.report.label_graph import check_picture


def save_learning_rate_curve(
    rates: Sequence[float], losses: Sequence[float], suggestion: float, path: str | Path
) -> None:
    """Draw the loss over the learning rate, with the suggestion marked, into a .svg or .png file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        MSRNError: The file has another ending, or cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"drawing needs {error.name}: pip install 'msrn[report]'.") from error

    path = Path(path)
    check_picture(path)
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color="#0072B2")
    axes.axvline(suggestion, color="#D55E00", linewidth=1)
    axes.annotate(
        f" optimizer.lr={suggestion:.2g}",
        (suggestion, 1),
        xycoords=("data", "axes fraction"),
        va="top",
        color="#D55E00",
    )
    axes.set_xscale("log")
    lowest = min(losses)
    highest = max(losses[: losses.index(lowest) + 1])  # where the loss explodes is no part of the picture
    axes.set_ylim(lowest - 0.1 * (highest - lowest), highest + 0.3 * (highest - lowest))
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("loss, smoothed")
    axes.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    is_svg = path.suffix.lower() == ".svg"
    metadata = {"Date": None, "Title": "Learning rates"} if is_svg else {"Title": "Learning rates"}
    figure.savefig(data, format="svg" if is_svg else "png", dpi=120, facecolor="white", metadata=metadata)
    write_bytes(path, data.getvalue())
