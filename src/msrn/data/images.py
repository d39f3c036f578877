"""Image files: read any of them as RGB, and find them in folders."""

import errno
import io
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from msrn.data.packed import PackedImage, open_regular
from msrn.errors import DataError, EmptySplitError, MSRNError, SourceNotFoundError, UnreadableImageError
from msrn.files import walk

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# What browsers and cameras make. Others (EPS, PSD, FITS ...) have decoders that few test, some of which start programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_ORIENTATION_TAG = 0x0112
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
# Pixels that are converted at once, so that what is held beside the image stays small.
_NUM_AT_ONCE = 1 << 20
# Tags of TIFF, and how long whole numbers are, by their kind.
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_BYTES_OF_KIND = {1: 1, 6: 1, 3: 2, 8: 2, 4: 4, 9: 4, 16: 8, 17: 8}


@cache
def known_formats() -> tuple[str, ...]:
    """The formats that are read, of those that this Pillow knows: what a file holds counts, not its name."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def open_file(path: Path | PackedImage) -> io.BytesIO | io.BufferedReader:
    """The content of an image file, wherever it lies.

    Raises:
        OSError: It cannot be opened, or is a pipe or a device.
    """
    return io.BytesIO(path.read_bytes()) if isinstance(path, PackedImage) else open_regular(path)


def open_image(file: io.BytesIO | io.BufferedReader) -> Image.Image:
    """An image whose header was read and whose pixels were not. All of msrn's ways to an image file lead through here.

    Raises:
        DecompressionBombError: It has more than twice PIL.Image.MAX_IMAGE_PIXELS, or one of its tiles has.
        Exception: It is damaged, or no image.
    """
    image = Image.open(file, formats=known_formats())
    most = None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if most is not None and (num_pixels := count_pixels(image)) > most:
        image.close()
        raise Image.DecompressionBombError(f"a tile of {num_pixels:,} pixels exceeds limit of {most:,} pixels")
    return image


def count_pixels(image: Image.Image) -> int:
    """Pixels that are decoded at once: those of an image, or of a tile where that is larger, as it may be in a TIFF."""
    file = getattr(image, "fp", None)
    num_in_tile = _count_in_tile(file) if image.format == "TIFF" and file is not None else 0
    return max(image.width * image.height, num_in_tile)


def _count_in_tile(file: io.BufferedIOBase) -> int:
    """Pixels in a tile of a TIFF, 0 where it has none; of a tag that comes twice the larger counts, whichever is decoded."""
    position = file.tell()
    file.seek(0)
    head = file.read(16)
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    is_big = 43 in head[2:4]  # of more than 4 GB
    length, start, field = (20, 12, 8) if is_big else (12, 8, 4)  # of an entry, and of the value in it
    sides = {_TILE_WIDTH: 0, _TILE_HEIGHT: 0}
    file.seek(int.from_bytes(head[8:16] if is_big else head[4:8], order))
    for _ in range(int.from_bytes(file.read(8 if is_big else 2), order)):
        entry = file.read(length)
        if len(entry) < length:
            break
        tag, size = int.from_bytes(entry[:2], order), _BYTES_OF_KIND.get(int.from_bytes(entry[2:4], order), 0)
        if tag in sides and size:
            # A value that has no room in its entry lies elsewhere; no writer's tile does.
            value = int.from_bytes(entry[start : start + size], order) if size <= field else 1 << 32
            sides[tag] = max(sides[tag], value)
    file.seek(position)
    return sides[_TILE_WIDTH] * sides[_TILE_HEIGHT]


def read_image(path: str | Path | PackedImage, *, min_size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image, a file or packed in an archive, as RGB, upright.

    The EXIF orientation is applied. Transparent parts become white. Samples of 16 bits keep their upper 8, floats are
    taken as 0 to 1. Of animations the first frame counts. The result carries no metadata.

    Args:
        path: The file, or a packed image.
        min_size: Least (height, width) that is needed. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, which
            is several times faster, but never below `min_size` (unless the image itself is smaller).

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, too large to be honest or for the memory, or not an image.
        MSRNError: This process has too many files open.
    """
    path = path if isinstance(path, PackedImage) else Path(path)
    try:
        with open_file(path) as file, open_image(file) as image:
            if min_size is not None:
                height, width = min_size
                # The file's own axes, before the orientation is applied.
                size = (height, width) if _orientation(image) in _SWAPS_SIDES else (width, height)
                image.draft(None, (max(size[0], 1), max(size[1], 1)))
            return to_rgb(image)
    except UnreadableImageError:
        raise
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: no such file. Check the path, or leave the image out.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(
            f"{path}: {error}. Shrink the image, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except MemoryError as error:
        raise UnreadableImageError(
            f"{path}: memory ran out while it was decoded. Shrink it, leave it out, or let fewer processes read images."
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            # No fault of the image: the next one could not be read either.
            raise MSRNError(
                f"{path} cannot be read: too many files are open. Raise the limit (ulimit -n), or let fewer processes read images."
            ) from error
        raise UnreadableImageError(_describe_damage(path, error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened or made, as `read_image` gives it; the image itself stays as it is.

    Example:
        >>> to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    image.load()
    # Only now: Pillow turns some formats (TIFF) upright itself while loading.
    transpose = _TRANSPOSE_OF_ORIENTATION.get(_orientation(image))
    rgb = _convert(image)  # a copy, whatever the mode
    if transpose is not None:
        rgb = rgb.transpose(transpose)
    # An orientation that stayed would be applied a second time by whoever reads a saved copy.
    rgb.info = {}
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF leaves the pixels intact
        return 1


def _convert(image: Image.Image) -> Image.Image:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        # Pillow's own conversion clips these at 255, which turns 16-bit images white.
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The upper 8 of 16 bits, or floats of 0 to 1 as 0 to 255; what is beyond is cut off."""
    flat, found = values.reshape(-1), np.empty(values.size, dtype=np.uint8)
    for start in range(0, flat.size, _NUM_AT_ONCE):
        part = flat[start : start + _NUM_AT_ONCE]
        if values.dtype.kind == "f":
            part = np.nan_to_num(part.astype(np.float64), posinf=1, neginf=0)
            part *= 255
        else:
            part = part >> 8  # rounds down, below 0 too
        found[start : start + _NUM_AT_ONCE] = part.clip(0, 255)
    return found.reshape(values.shape)


def _describe_damage(path: Path | PackedImage, error: Exception) -> str:
    if isinstance(path, PackedImage):
        if isinstance(error, UnidentifiedImageError):  # whose own words name an object in memory
            return (
                f"{path}: not an image that msrn reads ({', '.join(known_formats())}). Pack another, or leave it out."
            )
        return f"{path}: no whole image ({error or type(error).__name__}). Pack it again, or leave it out."
    if os.path.isdir(path):  # noqa: PTH112  (Path's own methods raise at a name that is too long)
        return f"{path}: a folder, expected an image file. Pass the files in it."
    if isinstance(error, PermissionError):
        return f"{path}: no permission to read it. Change its permissions."
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
        return f"{path}: a pipe or a device, expected an image file. Leave it out."
    if os.path.isfile(path) and path.stat().st_size == 0:  # noqa: PTH113
        return f"{path}: an empty file. Copy it again, or leave it out."
    if isinstance(error, UnidentifiedImageError):
        return f"{path}: not an image that msrn reads ({', '.join(known_formats())}). Convert it to JPEG or PNG, or leave it out."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{path}: no file can have so long a name. Check the path, or leave the image out."
    return f"{path}: damaged or truncated ({error or type(error).__name__}). Copy it again, or leave it out."


def list_images(
    paths: str | Path | Iterable[str | Path], on_closed: Callable[[str], object] | None = None
) -> list[Path]:
    """All image files among `paths` and below its folders.

    Folders are searched to the bottom, sorted by path, for the usual suffixes; hidden files and folders (`.name`) are
    passed over. A file that is named itself is kept whatever its suffix. A file that comes twice is listed once.

    Args:
        paths: A file or folder, or several.
        on_closed: Called with what is wrong with a folder that cannot be listed, whose images are then missing. By default this is
            an error.

    Returns:
        The files, in the order of `paths`.

    Raises:
        SourceNotFoundError: A path does not exist.
        EmptySplitError: A folder holds no image, or no path was given.
        DataError: A folder cannot be listed.
    """
    found: dict[Path, None] = {}
    tell, is_given = on_closed or _refuse, False
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        path = path.expanduser()
        if os.path.isdir(path):  # noqa: PTH112  (False where the folder that it lies in is closed)
            closed: list[str] = []
            files = _images_below(path, closed.append)
            for problem in closed:
                tell(problem)
            if not files and not closed:
                raise EmptySplitError(
                    f"{path} holds no images: expected files such as {', '.join(sorted(IMAGE_SUFFIXES))}. "
                    "Pass a folder with images, or the files themselves."
                )
            found.update(dict.fromkeys(files))
        elif _may_exist(path):
            found[path] = None
        else:
            raise SourceNotFoundError(f"{path} does not exist. Check the path; relative ones start at {Path.cwd()}.")
        is_given = True
    if not is_given:
        raise EmptySplitError("expected at least one image or folder, got none. Name what to read.")
    return list(found)


def _refuse(problem: str) -> None:
    raise DataError(f"{problem} Change its permissions, or name the images to be read.")


def _may_exist(path: Path) -> bool:
    """Whether a path exists, or cannot be looked at: reading it then tells why."""
    try:
        path.stat()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    except ValueError:  # a name that no file can have
        return False
    return True


def _images_below(folder: Path, on_closed: Callable[[str], object]) -> list[Path]:
    def tell(error: OSError) -> None:
        on_closed(
            f"{error.filename}: the folder cannot be listed ({error.strerror or error}), so its images are missing."
        )

    files: list[Path] = []
    for parent, folders, names in walk(folder, tell):
        folders[:] = [name for name in folders if not name.startswith(".")]
        is_image = [name for name in names if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES]
        files.extend(Path(parent, name) for name in is_image)
    return sorted(files)
