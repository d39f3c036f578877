"""Image files of many kinds, good and bad."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def tile_bomb(width: int, height: int, *, order: str = "<", again: bool = False) -> bytes:
    """A TIFF of 1 x 1 with a tile of so many pixels, nearly all of them missing, where a reader that decodes it fails.

    Args:
        width: Pixels of the tile.
        height: Likewise.
        order: Of its bytes, as `struct` has it.
        again: Whether tags of a smaller tile follow.
    """
    data = zlib.compress(bytes(1000))
    tags = [
        (256, 1),
        (257, 1),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, width),
        (323, height),
        (324, 8),
        (325, len(data)),
    ]
    tags += [(322, 16), (323, 16)] if again else []
    entries = b"".join(struct.pack(f"{order}HHLL", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack(f"{order}2sHL", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def odd_images() -> dict[str, tuple[bytes, int]]:
    """Files by what they are, with the status a server answers to each."""
    red = Image.new("RGB", (40, 20), "red")
    photo = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    return {
        "decompression bomb": (bomb(60_000, 60_000), 413),
        "a tile of far more pixels than the image": (tile_bomb(16_384, 16_384), 413),
        "1 x 50,000": (encoded(Image.new("RGB", (1, 50_000), "red")), 200),
        "truncated": (photo[: len(photo) // 2], 422),
        "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 415),
        "empty": (b"", 422),
        "EXIF-rotated": (encoded(red, "JPEG", exif=exif), 200),
        "CMYK": (encoded(red.convert("CMYK"), "JPEG"), 200),
        "16-bit": (encoded(Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))), 200),
        "animated": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 200),
        "palette": (encoded(red.convert("P")), 200),
        "1 x 1": (encoded(Image.new("L", (1, 1))), 200),
    }
