"""What a server may be asked for."""

from dataclasses import dataclass

from msrn.errors import MSRNError

_MOST_PIXELS = 178_000_000  # Pillow refuses more itself


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server; beyond them it refuses, and says so.

    Attributes:
        max_images: Most images of a request.
        max_image_bytes: Largest image file, in bytes.
        max_request_bytes: Largest request, in bytes.
        max_total_bytes: Most bytes of requests whose images are not decoded yet, of all clients together.
        max_pixels: Most pixels of an image, up to 178 million.
        max_waiting: Most images that wait for the network.
        max_requests_of_client: Most requests of one client (address) at a time.
        max_connections: Most open connections, of all clients together; no more than half of the files that may be open.
        batch_size: Most images a pass through the network.
        num_streams: Batches that go through the network at a time; by default one on a GPU, and up to four on processors.
        timeout: Seconds after which a request is given up, and a connection on which none has come.
        api_key: What callers of `/v1` and `/metrics` have to know, or None.

    Raises:
        MSRNError: Pillow would refuse so many pixels, headers cannot hold the key, or there is never room for the largest request.
    """

    max_images: int = 32
    max_image_bytes: int = 20_000_000
    max_request_bytes: int = 100_000_000
    max_total_bytes: int = 400_000_000
    max_pixels: int = 50_000_000
    max_waiting: int = 256
    max_requests_of_client: int = 64
    max_connections: int = 1000
    batch_size: int = 16
    num_streams: int | None = None
    timeout: float = 30.0
    api_key: str | None = None

    def __post_init__(self) -> None:
        if self.max_pixels > _MOST_PIXELS:
            raise MSRNError(
                f"an image may have up to {_MOST_PIXELS:,} pixels, got a limit of {self.max_pixels:,}. "
                f"Give --max-megapixels {_MOST_PIXELS // 1_000_000} or less."
            )
        if self.max_waiting < self.max_images:
            raise MSRNError(
                f"a request may have {self.max_images} images, but only {self.max_waiting} may wait, so a large one would be "
                f"refused always. Give --max-waiting {self.max_images} or more, or --max-images {self.max_waiting} or less."
            )
        if self.max_total_bytes < self.max_request_bytes:
            raise MSRNError(
                f"a request may have {self.max_request_bytes:,} bytes, but all of them together {self.max_total_bytes:,}, so a "
                f"large one would be refused always. Give --max-total-megabytes {-(-self.max_request_bytes // 1_000_000)} or "
                "more, or a smaller --max-megabytes."
            )
        key = self.api_key
        if key is not None and not (key.isascii() and key.isprintable() and key == key.strip() != ""):
            raise MSRNError(
                "an API key is sent in a header, so it is made of printable ASCII characters without spaces around it. "
                "Give another, such as that of: openssl rand -hex 16."
            )
