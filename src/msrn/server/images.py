"""Images from strangers: checked before they are decoded."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from msrn.data.images import count_pixels, known_formats, open_image, to_rgb
from msrn.server.problems import ProblemError


def check_size(num_bytes: int, index: int, max_bytes: int) -> None:
    """Refuse a large file.

    Raises:
        ProblemError: 413 for one of more than `max_bytes`.
    """
    if num_bytes > max_bytes:
        detail = f"An image may have {max_bytes:,} bytes, this one has {num_bytes:,}. Send a smaller one."
        raise ProblemError(413, "The image is too large.", detail, index)


def decode(data: bytes, index: int, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """An image as RGB, upright.

    Args:
        data: The file.
        index: Which image of the request it is.
        max_bytes: Largest file.
        max_pixels: Most pixels, by the file's header: none is decoded before this is known.

    Raises:
        ProblemError: 413 for a large file or many pixels, 415 for something that is no image of a known format, 422 for an
            empty or damaged one.
        MemoryError: There is too little memory for it now.
    """
    if not data:
        raise ProblemError(422, "The image is empty.", "Expected the bytes of an image file, got none.", index)
    check_size(len(data), index, max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = open_image(io.BytesIO(data))
    except Image.DecompressionBombError:
        detail = f"An image may have {max_pixels:,} pixels, this one has far more. Send a smaller one."
        raise ProblemError(413, "The image has too many pixels.", detail, index) from None
    except UnidentifiedImageError:
        detail = f"Expected one of {', '.join(known_formats())}. Convert the image to JPEG or PNG."
        raise ProblemError(415, "Not an image of a known format.", detail, index) from None
    except MemoryError:  # no fault of the image's
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise _damaged(error, index) from None
    with image:
        if (num_pixels := count_pixels(image)) > max_pixels:
            detail = f"An image may have {max_pixels:,} pixels, this one has {num_pixels:,}. Send a smaller one."
            raise ProblemError(413, "The image has too many pixels.", detail, index)
        try:
            return to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise _damaged(error, index) from None


def _damaged(error: Exception, index: int) -> ProblemError:
    detail = f"It is damaged or cut off ({error or type(error).__name__}). Send it again whole."
    return ProblemError(422, "The image cannot be read.", detail, index)
