"""The engine on this machine: workers read, this process runs the network."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

from msrn.bulk.reader import read_batches
from msrn.bulk.sources import ImageRef
from msrn.predict import Predictor

Row = dict[str, Any]


def predict(
    predictor: Predictor,
    refs: Iterator[ImageRef],
    *,
    threshold: float | None,
    top_k: int | None,
    batch_size: int,
    num_workers: int,
) -> Generator[list[Row], None, None]:
    """Rows of a stream of images, a batch at a time, in its order.

    Args:
        predictor: The model.
        refs: The images.
        threshold: See `Predictor.predict`.
        top_k: See `Predictor.predict`.
        batch_size: Images a pass.
        num_workers: Processes that read images.

    Raises:
        MSRNError: A worker was killed.
    """
    batches = read_batches(refs, predictor.bundle.preprocessing, batch_size=batch_size, num_workers=num_workers)
    with closing(batches):
        for batch in batches:
            probs = predictor.probs(batch.images) if len(batch.images) else ()
            rows = to_rows(predictor, batch.names, batch.errors, probs, threshold=threshold, top_k=top_k)
            del batch  # the workers' memory
            yield rows


def to_rows(
    predictor: Predictor,
    names: Sequence[str],
    errors: Sequence[str | None],
    probs: Any,
    *,
    threshold: float | None,
    top_k: int | None,
) -> list[Row]:
    """Rows as the writers take them; `probs` has a row for each image that could be read."""
    readable = iter(probs)
    rows: list[Row] = []
    for name, error in zip(names, errors, strict=True):
        if error is None:
            labels = predictor.rank(next(readable), threshold=threshold, top_k=top_k)
            own = [{"name": label.name, "probability": label.probability} for label in labels]
            rows.append({"path": name, "labels": own})
        else:
            rows.append({"path": name, "labels": [], "error": error})
    return rows
