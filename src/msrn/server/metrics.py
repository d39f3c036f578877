"""What a server counts, in Prometheus' format."""

import os
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from msrn.errors import MSRNError

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # of the counts of several processes
_ROOM = 1 << 16  # bytes of a file with counts; far fewer are needed
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one process; where several serve, the text has the sum of all.

    Raises:
        MSRNError: Several serve, and the folder of their counts has no room.
    """

    def __init__(self) -> None:
        if FOLDER in os.environ:
            _make_room(Path(os.environ[FOLDER]))
        self._registry = CollectorRegistry()
        self.requests = Counter("msrn_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self.seconds = Histogram(
            "msrn_request_seconds",
            "Time from a request's first byte to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.images = Counter(
            "msrn_images", "Images that went through the network.", ["model"], registry=self._registry
        )
        self.batch_size = Histogram(
            "msrn_batch_size",
            "Images of each pass through the network.",
            ["model"],
            buckets=_SIZES,
            registry=self._registry,
        )
        self.waiting = Gauge(
            "msrn_waiting_images",
            "Images that wait for the network, to be labelled or explained.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )

    def count_batch(self, model: str, size: int) -> None:
        """Count a pass through the network."""
        self.images.labels(model).inc(size)
        self.batch_size.labels(model).observe(size)

    def text(self) -> bytes:
        """All counts."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def _make_room(folder: Path) -> None:
    """Make the files in which this process will count, with room on the disk.

    Prometheus' own have none until something is counted; a disk that is full by then would end the process (SIGBUS).
    """
    try:
        for kind in ("counter", "histogram", "gauge_livesum"):
            path = folder / f"{kind}_{os.getpid()}.db"
            if not path.exists():
                path.write_bytes(bytes(_ROOM))
    except OSError as error:
        raise MSRNError(
            f"{folder} cannot be written: {error.strerror}. Free some space, or set TMPDIR to a folder with more."
        ) from error
