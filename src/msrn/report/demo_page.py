"""The page that `msrn demo` leaves: what was trained, how well, and pictures to look at."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from msrn.data.images import read_image
from msrn.data.source import LabelledImages
from msrn.errors import MissingDependencyError
from msrn.files import write_text
from msrn.models import MSRN
from msrn.predict import Predictor
from msrn.report.label_graph import draw_label_graph


@dataclass(frozen=True)
class HeadResult:
    """One head's line in the page.

    Attributes:
        name: What the head is called.
        test: Its report on the test split (`msrn.metrics.evaluate_predictions`).
        parameters: Trained numbers.
        train_seconds: Time of all epochs.
    """

    name: str
    test: dict[str, Any]
    parameters: int
    train_seconds: float


def write_demo_page(
    path: str | Path,
    predictor: Predictor,
    images: LabelledImages,
    heads: Sequence[HeadResult],
    *,
    num_pictures: int = 24,
) -> Path:
    """Write one self-contained page.

    Args:
        path: The HTML file, replaced whole.
        predictor: The trained MSRN.
        images: Held-out images with their true labels; the first ones are shown.
        heads: Test results, the first is MSRN's.
        num_pictures: Images shown.

    Raises:
        MissingDependencyError: Jinja2, matplotlib or networkx is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the page needs Jinja2: pip install 'msrn[report]'.") from error

    shown = images.take(list(range(min(num_pictures, len(images)))))
    predictions = predictor.predict(shown.paths, threshold=0.0)
    least = predictor.bundle.threshold
    cards = [
        {
            "picture": _data_uri(read_image(path)),
            "name": path.name,
            "labels": _compare(prediction.labels, target, images.label_names, least),
        }
        for path, prediction, target in zip(shown.paths, predictions, shown.target, strict=True)
    ]
    groups, num_groups = None, 0
    if isinstance(predictor.model, MSRN):
        assignment = predictor.model.embed().assignment  # (L, G)
        groups, num_groups = assignment.argmax(dim=1).cpu().numpy(), assignment.shape[1]
    label_rows = sorted(
        ({"name": name, "values": [head.test["labels"][name] for head in heads]} for name in predictor.label_names),
        key=lambda row: -(row["values"][0] or 0.0),
    )
    template = (resources.files("msrn.report") / "templates" / "demo.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = lambda value: "-" if value is None else f"{100 * value:.1f}"
    html = environment.from_string(template).render(
        heads=heads,
        cards=cards,
        label_rows=label_rows,
        label_graph=predictor.bundle.label_graph,
        graph_svg=draw_label_graph(predictor.bundle.label_graph, groups),
        num_groups=num_groups,
        num_used_groups=0 if groups is None else len(set(groups.tolist())),
        threshold=least,
        num_images=len(images),
    )
    path = Path(path)
    write_text(path, html)
    return path


def _compare(labels: Sequence[Any], target: Any, label_names: Sequence[str], least: float) -> list[dict[str, Any]]:
    """Predicted labels, right or wrong, and true ones that were missed; best first."""
    is_true = {name: int(value) for name, value in zip(label_names, target, strict=True)}
    rows = []
    for label in labels:
        said, truth = label.probability >= least, is_true[label.name]
        if said or truth == 1:
            kind = ("right" if truth == 1 else "unknown" if truth < 0 else "wrong") if said else "missed"
            rows.append({"name": label.name, "probability": label.probability, "kind": kind})
    return rows


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
