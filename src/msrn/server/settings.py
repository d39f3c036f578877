"""What a server may be asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server; beyond them it refuses, and says so.

    Attributes:
        max_images: Most images of a request.
        max_image_bytes: Largest image file, in bytes.
        max_request_bytes: Largest request, in bytes.
        max_pixels: Most pixels of an image.
        max_waiting: Most images that wait for the network.
        max_requests_of_client: Most requests of one client (address) at a time.
        batch_size: Most images a pass through the network.
        num_streams: Batches that go through the network at a time; by default one on a GPU, and up to four on processors.
        timeout: Seconds after which a request is given up.
        api_key: What callers of `/v1` have to know, or None.
    """

    max_images: int = 32
    max_image_bytes: int = 20_000_000
    max_request_bytes: int = 100_000_000
    max_pixels: int = 50_000_000
    max_waiting: int = 256
    max_requests_of_client: int = 64
    batch_size: int = 16
    num_streams: int | None = None
    timeout: float = 30.0
    api_key: str | None = None
