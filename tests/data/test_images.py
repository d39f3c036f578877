import contextlib
import math
import os
import re
import tracemalloc
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import tile_bomb
from PIL import Image, PngImagePlugin

from msrn.bulk.reader import read_batches
from msrn.data import LabelledImages
from msrn.data import images as images_module
from msrn.data.images import count_pixels, list_images, read_image, to_rgb
from msrn.data.loader import build_loader
from msrn.data.transforms import Preprocessing
from msrn.errors import DataError, EmptySplitError, MSRNError, SourceNotFoundError, UnreadableImageError


def corners(image: Image.Image) -> list[int]:
    """Brightness of the four corners, clockwise from the top left."""
    grey = np.asarray(image.convert("L")).astype(int)
    return [int(value) // 64 for value in (grey[0, 0], grey[0, -1], grey[-1, -1], grey[-1, 0])]


def quadrants(height: int = 32, width: int = 64) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, width // 2 :] = 85
    pixels[height // 2 :, width // 2 :] = 170
    pixels[height // 2 :, : width // 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = quadrants()
    # What a camera stores: the inverse of the turn that the tag asks for.
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # tag -> Image.Transpose that undoes it
    stored = upright.transpose(Image.Transpose(turn[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored.save(path, exif=exif)
    for min_size in (None, (16, 32)):
        image = read_image(path, min_size=min_size)
        assert corners(image) == [0, 1, 2, 3]
        assert image.width == 2 * image.height
        assert not image.info
        assert not image.getexif()


def test_min_size_decodes_a_smaller_jpeg_but_never_too_small(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    quadrants(480, 640).save(path)
    sizes = [read_image(path, min_size=min_size).size for min_size in ((60, 80), (61, 80), (200, 200), (500, 500))]
    assert sizes == [(80, 60), (160, 120), (320, 240), (640, 480)]
    quadrants(480, 640).save(tmp_path / "photo.png")
    assert read_image(tmp_path / "photo.png", min_size=(60, 80)).size == (640, 480)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    min_size=st.tuples(st.integers(0, 140), st.integers(0, 140)),
    orientation=st.sampled_from([1, 3, 6]),
)
def test_reduced_images_keep_the_least_size_or_their_own(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, min_size: tuple[int, int], orientation: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "reduced.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    whole, reduced = read_image(path), read_image(path, min_size=min_size)
    assert reduced.height >= min(min_size[0], whole.height)
    assert reduced.width >= min(min_size[1], whole.width)
    factors = [(math.ceil(whole.width / factor), math.ceil(whole.height / factor)) for factor in (1, 2, 4, 8)]
    assert reduced.size in factors


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"])
def test_modes_keep_their_colours(tmp_path: Path, mode: str) -> None:
    suffix = {"CMYK": "tiff", "YCbCr": "jpg", "HSV": "png"}.get(mode, "png")
    image = Image.new("RGB", (8, 8), "white").convert(mode if mode != "HSV" else "RGB")
    image.save(tmp_path / f"photo.{suffix}")
    read = read_image(tmp_path / f"photo.{suffix}")
    assert read.mode == "RGB"
    assert np.asarray(read).min() >= 254


def test_greyscale_jpeg_and_cmyk_jpeg(tmp_path: Path) -> None:
    for mode in ("L", "CMYK"):
        quadrants().convert(mode).save(tmp_path / "photo.jpg", quality=95)
        read = read_image(tmp_path / "photo.jpg", min_size=(16, 16))
        assert (read.mode, corners(read)) == ("RGB", [0, 1, 2, 3])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((0, 0), 1)
        image.save(tmp_path / "photo.png", transparency=0)
        expected = (255, 0, 0)
    else:
        image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
        image.putpixel((0, 0), (0, 0, 0, 255))
        image.convert(mode).save(tmp_path / "photo.png")
        expected = (0, 0, 0)
    read = read_image(tmp_path / "photo.png")
    assert (read.getpixel((0, 0)), read.getpixel((3, 3))) == (expected, (255, 255, 255))


def test_16_bits_keep_the_upper_8(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"photo.{suffix}")
        assert np.asarray(read_image(tmp_path / f"photo.{suffix}"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_floats_are_0_to_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 0.5, 1.0, 7.0, np.nan]], dtype=np.float32)).save(tmp_path / "photo.tiff")
    assert np.asarray(read_image(tmp_path / "photo.tiff"))[0, :, 1].tolist() == [0, 0, 127, 255, 255, 0]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "photo.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "photo.gif").getpixel((0, 0)) == (255, 0, 0)


def encoded(image_format: str) -> bytes:
    stream = BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, image_format)
    return stream.getvalue()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_unreadable(tmp_path: Path, image_format: str, share: float) -> None:
    data = encoded(image_format)
    path = tmp_path / "photo"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableImageError, match=r"photo: .*\. (Copy|Convert)"):
        read_image(path)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_are_unreadable_or_read(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for image_format in ("JPEG", "PNG", "TIFF"):
        data = bytearray(encoded(image_format))
        for position in rng.integers(0, min(len(data), 600), 5):
            data[position] = int(rng.integers(0, 256))
        path = tmp_path / "photo"
        path.write_bytes(data)
        with contextlib.suppress(UnreadableImageError):  # no other error may come
            assert read_image(path).mode == "RGB"


def test_missing_empty_folder_and_text(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"a.jpg: no such file\. Check the path"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(UnreadableImageError, match=r"a folder, expected an image file"):
        read_image(tmp_path)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableImageError, match=r"empty.jpg: an empty file\. Copy it again"):
        read_image(str(tmp_path / "empty.jpg"))
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(
        UnreadableImageError,
        match=r"text.jpg: not an image that msrn reads \(JPEG, PNG, .*\)\. Convert it to JPEG or PNG, or leave it out\.",
    ):
        read_image(tmp_path / "text.jpg")


@pytest.mark.parametrize("limit", [100, 60])  # Pillow refuses above twice its limit and warns above it
def test_decompression_bombs_are_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.new("L", (16, 8)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImageError, match=r"bomb.png: .*decompression bomb.*MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("again", [False, True])
def test_tiles_count_as_pixels(tmp_path: Path, order: str, again: bool) -> None:
    path = tmp_path / "tile.tif"
    path.write_bytes(tile_bomb(16_384, 16_384, order=order, again=again))
    with pytest.raises(UnreadableImageError, match=r"a tile of 268,435,456 pixels exceeds limit of 178,956,970 pixels"):
        read_image(path)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_deflate"}, {"big_tiff": True}])
def test_tiff_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    image = Image.effect_noise((70, 50), 90).convert("RGB")
    image.save(tmp_path / "x.tif", **options)
    assert read_image(tmp_path / "x.tif").tobytes() == image.tobytes()
    with Image.open(tmp_path / "x.tif") as opened:
        assert count_pixels(opened) == 70 * 50


def test_images_in_folders_are_sorted_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    wanted = ["a.jpg", "b/c/d.PNG", "b/ü 1.webp", "z.tif"]
    for name in [*wanted, "notes.txt", ".hidden.jpg", ".thumbnails/a.jpg", "__MACOSX/._a.jpg", "b/labels.csv"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / name for name in wanted]
    assert list_images([tmp_path / "z.tif", str(tmp_path)]) == [tmp_path / name for name in ["z.tif", *wanted[:3]]]
    assert list_images(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]


def test_a_folder_that_cannot_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "closed/b.jpg", "open/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = f"{tmp_path / 'closed'}: the folder cannot be listed (Permission denied), so its images are missing."
    with pytest.raises(DataError, match=rf"^{re.escape(message)} Change its permissions, or name the images"):
        list_images(tmp_path)
    said: list[str] = []
    assert list_images(tmp_path, said.append) == [tmp_path / "a.jpg", tmp_path / "open" / "c.jpg"]
    assert said == [message]
    said.clear()
    assert list_images(tmp_path / "closed", said.append) == []
    assert said == [message]


def test_nothing_to_list(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="nowhere does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(EmptySplitError, match=r"holds no images: expected files such as \.bmp"):
        list_images(tmp_path)
    with pytest.raises(EmptySplitError, match="expected at least one image or folder, got none"):
        list_images([])


# What runs out


@pytest.mark.fault("memory that runs out while an image is decoded")
def test_memory_that_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Callable[[Any, Any, str], None]
) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    quadrants().save(tmp_path / "photo.png")
    expected = read_image(tmp_path / "photo.png").tobytes()
    with monkeypatch.context() as patch:
        patch.setattr(PngImagePlugin.PngImageFile, "load", fail)
        with pytest.raises(UnreadableImageError, match=r"photo\.png: memory ran out while it was decoded\. Shrink it"):
            read_image(tmp_path / "photo.png")
    lost([expected], [read_image(tmp_path / "photo.png").tobytes()], "images")


@pytest.mark.fault("more open files than a process may have")
@pytest.mark.parametrize(("what", "num_workers"), [("one", 0), ("loader", 0), ("loader", 1), ("tagging", 1)])
def test_too_many_open_files(
    tmp_path: Path, lost: Callable[[Any, Any, str], None], what: str, num_workers: int
) -> None:
    """No fault of the images: a job stops, in place of listing all others as unreadable."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "photo.png"
    quadrants().save(path)
    expected = read_image(path).tobytes()
    images = LabelledImages((path,), np.zeros((1, 1), dtype=np.int8), ("cat",), "train")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def take_all() -> None:
        first_free = os.dup(0)
        os.close(first_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))

    class Taking(Preprocessing):
        def __call__(self, image: Image.Image, *, out: Any = None) -> Any:
            take_all()
            read_image(path)

    def read() -> None:
        try:
            if what == "one":
                take_all()
                read_image(path)
            elif what == "tagging":
                next(read_batches([path], Taking((4, 4)), batch_size=1, num_workers=num_workers))
            else:
                next(iter(build_loader(images, Taking((4, 4)), batch_size=1, num_workers=num_workers)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    message = rf"^{path} cannot be read: too many files are open\. Raise the limit"
    with pytest.raises(MSRNError, match=message) as caught:
        read()
    assert type(caught.value) is MSRNError
    lost([expected], [read_image(path).tobytes()], "images")


@pytest.mark.parametrize("kind", [np.uint16, ">u2", np.int32, np.float32])
def test_conversion_to_8_bits(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    monkeypatch.setattr(images_module, "_NUM_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    bounds = (-2, 3) if kind is np.float32 else (-(2**31), 2**31) if kind is np.int32 else (0, 2**16)
    values = rng.uniform(*bounds, (5, 9)).astype(kind)
    if kind is np.float32:
        values[0, :3] = np.nan, np.inf, -np.inf
        values[1:] = (np.arange(36).reshape(4, 9) / 255).astype(kind)
        expected = (np.nan_to_num(values.astype(np.float64), posinf=1, neginf=0) * 255).clip(0, 255).astype(np.uint8)
    else:
        expected = (values.astype(np.float64) // 256).clip(0, 255).astype(np.uint8)
    found = images_module._to_8_bits(values)
    assert found.dtype == np.uint8
    assert found.tolist() == expected.tolist()


def test_conversion_takes_little_memory() -> None:
    image = Image.fromarray(np.full((2000, 3000), 40_000, dtype=np.uint16))
    tracemalloc.start()
    try:
        assert to_rgb(image).getpixel((0, 0)) == (156, 156, 156)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6 * 2000 * 3000  # with floats of 64 bits it was 24 bytes a pixel and more
