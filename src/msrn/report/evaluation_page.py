"""The page that `msrn report` writes: one file, to be looked at without a network."""

import base64
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

from msrn.data import LabelledImages
from msrn.data.images import read_image
from msrn.errors import MissingDependencyError, UnreadableImageError
from msrn.files import write_text
from msrn.report.evaluation import shown_images

_THUMBNAIL = 132


def write_evaluation_page(
    path: str | Path, report: dict[str, Any], images: LabelledImages, *, other: dict[str, Any] | None = None
) -> Path:
    """Write the page of an evaluation.

    Args:
        path: The HTML file, replaced whole.
        report: What `evaluate_scores` returned.
        images: The split it was measured on; those that are shown are read again.
        other: What `compare_scores` returned, to show a second model beside it.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
        MSRNError: The file cannot be written.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the page needs Jinja2: pip install 'msrn[report]'.") from error

    thumbnails = {
        row: {"name": images.paths[row].name, "uri": _thumbnail(images.paths[row])} for row in shown_images(report)
    }
    data = {"report": report, "other": other, "images": thumbnails}
    # Names come from strangers: no "<" in them may end the script element.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = (resources.files("msrn.report") / "templates" / "evaluation.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(template).render(report=report, other=other, data=text)
    path = Path(path)
    write_text(path, html.encode("utf-8", "backslashreplace").decode("utf-8"))
    return path


def _thumbnail(path: Any) -> str | None:
    """The image as a data URI, None where it cannot be read."""
    try:
        image = read_image(path, min_size=(_THUMBNAIL, _THUMBNAIL))
    except UnreadableImageError:
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
