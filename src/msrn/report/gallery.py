"""Explanations of several images, as one page to look at."""

import re
from collections.abc import Iterable
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

from msrn.errors import MissingDependencyError, MSRNError
from msrn.explain import Explanation
from msrn.explain.explanation import JSON_FILE
from msrn.files import check_parent, replace_folder, write_text

PAGE_FILE = "index.html"
_PICTURE = r"\d\d+-.*\.png"


def write_gallery(explanations: Iterable[tuple[Explanation, dict[str, Any]]], folder: str | Path) -> Path | None:
    """Write a folder an image, as `Explanation.save` does, and a page that shows all, in one step.

    Args:
        explanations: Each with what its `to_dict` returned.
        folder: Where.

    Returns:
        The folder; None where there are no explanations, and then nothing is written and what is there stays.

    Raises:
        MissingDependencyError: matplotlib or Jinja2 is not installed.
        MSRNError: The folder cannot be written.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the page needs Jinja2: pip install 'msrn[report]'.") from error

    folder = Path(folder)
    pending = iter(explanations)
    first = next(pending, None)
    if first is None:
        return None
    with replace_folder(folder) as temporary:
        shown = []
        for number, (found, report) in enumerate(chain([first], pending), start=1):
            name = "image" if found.path is None else found.path.name
            own = found.save(temporary / f"{number:03d}", report=report)
            rows = [
                {"label": label, "percent": found.in_percent(label), "picture": f"{own.name}/{picture}"}
                for label, picture in zip(found.labels, found.picture_names, strict=True)
            ]
            shown.append({"name": name, "labels": rows, "note": report["note"]})
        template = (resources.files("msrn.report") / "templates" / "gallery.html").read_text(encoding="utf-8")
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        html = environment.from_string(template).render(images=shown)
        write_text(temporary / PAGE_FILE, html.encode("utf-8", "backslashreplace").decode("utf-8"))
    return folder


def check_gallery_folder(folder: str | Path) -> None:
    """Refuse a folder to write that cannot be written, or holds anything but what `write_gallery` and `Explanation.save` write.

    Raises:
        MSRNError: It does; nothing in it is touched.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or _is_ours(folder))):
        raise MSRNError(f"--out {folder} holds other things; it is left alone. Give a new folder.")
    check_parent(folder)


def _is_ours(folder: Path) -> bool:
    """Whether the folder has our page or our JSON, and nothing else than goes with it; by content, not only by name."""
    files = list(folder.iterdir())
    return any(path.name in (JSON_FILE, PAGE_FILE) for path in files) and all(map(_is_our_file, files))


def _is_our_file(path: Path) -> bool:
    if path.is_dir():
        return re.fullmatch(r"\d\d\d+", path.name) is not None and _is_ours(path)
    content = path.read_bytes()
    if path.name == PAGE_FILE:
        return b'<meta name="generator" content="msrn">' in content
    if path.name == JSON_FILE:
        return b'"is_exact"' in content
    return re.fullmatch(_PICTURE, path.name) is not None and b"Matplotlib" in content[:512]
