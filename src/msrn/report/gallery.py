"""Explanations of several images, as one page to look at."""

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from msrn.errors import MissingDependencyError
from msrn.explain import Explanation
from msrn.explain.explanation import JSON_FILE
from msrn.files import replace_folder, write_text

PAGE_FILE = "index.html"
_PICTURE = r"\d\d+-.*\.png"


def write_gallery(explanations: Iterable[Explanation], folder: str | Path) -> Path:
    """Write a folder an image, as `Explanation.save` does, and a page that shows all, in one step.

    Raises:
        MissingDependencyError: matplotlib or Jinja2 is not installed.
        MSRNError: The folder cannot be written.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the page needs Jinja2: pip install 'msrn[report]'.") from error

    folder = Path(folder)
    with replace_folder(folder) as temporary:
        shown = []
        for number, found in enumerate(explanations, start=1):
            name = "image" if found.path is None else found.path.name
            own = found.save(temporary / f"{number:03d}")
            rows = [
                {"label": label, "probability": float(probability), "picture": f"{own.name}/{picture}"}
                for label, probability, picture in zip(
                    found.labels, found.probabilities, found.picture_names, strict=True
                )
            ]
            shown.append({"name": name, "labels": rows})
        template = (resources.files("msrn.report") / "templates" / "gallery.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        html = environment.from_string(template).render(images=shown)
        write_text(temporary / PAGE_FILE, html.encode("utf-8", "backslashreplace").decode("utf-8"))
    return folder


def is_gallery_file(path: Path) -> bool:
    """Whether a file or folder is named as those that `write_gallery` and `Explanation.save` write."""
    if path.is_dir():
        return re.fullmatch(r"\d\d\d+", path.name) is not None and all(map(is_gallery_file, path.iterdir()))
    return path.name in (JSON_FILE, PAGE_FILE) or re.fullmatch(_PICTURE, path.name) is not None
