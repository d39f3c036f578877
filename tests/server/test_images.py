"""Odd images, each with its right answer."""

import numpy as np
import pytest
from image_files import bomb, encoded
from PIL import Image

from msrn.server.images import decode
from msrn.server.problems import ProblemError


def read(data: bytes) -> Image.Image:
    return decode(data, 2, max_bytes=1_000_000, max_pixels=1_000_000)


def refused(data: bytes) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        read(data)
    assert caught.value.image == 2
    return caught.value


@pytest.mark.parametrize(("width", "height"), [(1001, 1000), (20_000, 20_000), (60_000, 60_000)])
def test_a_bomb_is_refused_by_its_header(width: int, height: int) -> None:
    problem = refused(bomb(width, height))
    assert problem.status == 413
    assert "1,000,000 pixels" in problem.detail


def test_files_that_are_refused() -> None:
    photo = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")
    assert refused(photo[: len(photo) // 2]).status == 422
    assert refused(b"").status == 422
    assert refused(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>").status == 415
    assert refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n").status == 415
    assert refused(b"not an image").status == 415
    assert refused(photo + b"\0" * 1_000_000).status == 413


def test_images_that_are_read() -> None:
    thin = read(encoded(Image.new("RGB", (1, 50_000), "red")))
    assert thin.size == (1, 50_000)
    red = Image.new("RGB", (40, 20), "red")
    assert read(encoded(red.convert("P"))).getpixel((0, 0)) == (255, 0, 0)
    cmyk = read(encoded(red.convert("CMYK"), "JPEG")).getpixel((5, 5))
    assert cmyk[0] > 200
    assert max(cmyk[1:]) < 60
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(encoded(red, "JPEG", exif=exif)).size == (20, 40)
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    assert read(encoded(deep)).getpixel((0, 0)) == (156, 156, 156)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    assert read(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (0, 0, 255)
