"""Requests as they come in: no larger than allowed, as forms or as JSON."""

import asyncio
import base64
import binascii
import json
import string
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Message

from msrn.server.images import check_size
from msrn.server.problems import ProblemError, printable, shown
from msrn.server.settings import ServerSettings

Options = TypeVar("Options", bound=BaseModel)

FIELD = "images"
_MOST_FIELDS = 64
_MOST_VALUES = 10_000  # of JSON, besides the images
_BLANKS = string.whitespace.encode()


@dataclass
class Upload:
    """An image file of a request.

    Attributes:
        data: Its bytes.
        name: The file name that was sent with it, or None.
    """

    data: bytes
    name: str | None = None

    def take(self) -> bytes:
        """Its bytes, which are not kept here any longer."""
        data, self.data = self.data, b""
        return data


class Bodies:
    """How many bytes of requests there are, of all clients together.

    Args:
        max_bytes: Most of them; requests with more are refused.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request adds, until the block ends."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()


class Share:
    """The bytes of one request."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._num_bytes = 0

    def check_room(self, num_bytes: int) -> None:
        """Refuse bytes that cannot be added now.

        Raises:
            ProblemError: 503, there is no room for them.
        """
        if self._bodies.num_bytes + num_bytes > self._bodies.max_bytes:
            detail = (
                f"The requests under way may have {self._bodies.max_bytes:,} bytes together. Try again in a moment."
            )
            raise ProblemError(503, "The server is busy.", detail, headers={"Retry-After": "1"})

    def take(self, num_bytes: int) -> None:
        """Add some; raises as `check_room`."""
        self.check_room(num_bytes)
        self._bodies.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def give_back(self) -> None:
        """Count them no longer."""
        self._bodies.num_bytes -= self._num_bytes
        self._num_bytes = 0


async def read_request(
    request: Request, options: type[Options], settings: ServerSettings, share: Share, *, max_images: int
) -> tuple[Options, list[Upload]]:
    """What a request asks for, and its images.

    Args:
        request: A form (multipart) with files in the field `images`, or JSON with files in base64 in the list `images`.
        options: The other fields.
        settings: Limits.
        share: Counts the bytes.
        max_images: Most images.

    Raises:
        ProblemError: 413 for a large request, 415 for another type of content, 422 for content that is not as described, 503 where
            there is no room for it now.
    """
    if request.query_params:
        names = shown(", ".join(request.query_params))
        raise _wrong(
            f"Fields of the form or of the JSON are expected, got {names} in the address. Send them in the body."
        )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limited = _Limited(request, settings.max_request_bytes, share)
    if kind == "multipart/form-data":
        fields, uploads = await _read_form(limited.request, max_images)
    elif kind == "application/json":
        body = await limited.request.body()
        fields, uploads = await asyncio.to_thread(_read_json, body, settings, max_images)
    else:
        detail = f"Expected multipart/form-data or application/json, got {shown(kind) or 'no content type'}."
        raise ProblemError(415, "The content type is not served.", detail)
    if not uploads:
        detail = f"Expected image files in '{FIELD}', got none. Send at least one."
        raise ProblemError(422, "There is no image.", detail)
    try:
        return options.model_validate(fields), uploads
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError) -> ProblemError:
    """A problem that names the first field that is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the request"
    return _wrong(f"{shown(where)}: {first['msg']}. /openapi.json says what is expected.")


class _Limited:
    """A request whose body is given up on once it is too large, or there is no room for it."""

    def __init__(self, request: Request, max_bytes: int, share: Share) -> None:
        self.max_bytes = max_bytes
        self.share = share
        self.received = 0
        self._receive = request.receive
        self.request = Request(request.scope, self.receive)
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            if int(length) > max_bytes:
                raise self._error()
            share.check_room(int(length))

    async def receive(self) -> Message:
        message = await self._receive()
        num_bytes = len(message.get("body", b""))
        self.received += num_bytes
        if self.received > self.max_bytes:
            raise self._error()
        self.share.take(num_bytes)
        return message

    def _error(self) -> ProblemError:
        detail = f"A request may have {self.max_bytes:,} bytes, this one has more. Send fewer or smaller images."
        # The rest of the body is not read, so the connection cannot be used again.
        return ProblemError(413, "The request is too large.", detail, headers={"Connection": "close"})


class _FormParser(MultiPartParser):
    """Starlette's, which takes a form for whole that was cut off, and keeps large files in the temporary folder."""

    spool_max_size = 0  # no file is too large for the memory: `Share` counts their bytes
    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True

    async def parse(self) -> FormData:
        self.stream = self._until_the_end(self.stream)
        async with aclosing(self.stream):
            return await super().parse()

    async def _until_the_end(self, stream: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk
        if not self.is_whole:
            raise MultiPartException("Its last boundary is missing, so it was cut off.")


async def _read_form(request: Request, max_images: int) -> tuple[dict[str, Any], list[Upload]]:
    uploads: list[Upload] = []
    fields: dict[str, Any] = {}
    parser = _FormParser(request.headers, request.stream(), max_files=max_images, max_fields=_MOST_FIELDS)
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError) as error:
        text = str(getattr(error, "message", error))
        if text.startswith("Too many files"):
            raise _too_many(max_images) from None
        raise ProblemError(422, "The form cannot be read.", f"{text} Send it again whole.") from None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != FIELD:
                    raise _wrong(f"Expected files in '{FIELD}', got one in '{shown(name)}'.")
                uploads.append(Upload(await value.read(), printable(value.filename or "") or None))
                await value.close()  # before the next one is copied
            elif name == "labels":
                fields.setdefault(name, []).append(value)
            elif name == FIELD:
                raise _wrong(f"'{FIELD}' holds text, expected files. Send each with a file name.")
            elif name in fields:
                raise _wrong(f"'{shown(name)}' is there more than once. Send it once.")
            elif value:  # an empty field of a form is one that was not filled in
                fields[name] = value
    finally:
        await form.close()
    return fields, uploads


def _read_json(body: bytes, settings: ServerSettings, max_images: int) -> tuple[dict[str, Any], list[Upload]]:
    """Of a large body no more is decoded than may be served; this takes a while, so it is not for the event loop."""
    if body.count(b",") > max_images + _MOST_VALUES:
        detail = f"A request may have {max_images} images and some options, this one has far more values. Send fewer."
        raise ProblemError(413, "There are too many values.", detail)
    try:
        fields = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise ProblemError(
            422, "The JSON cannot be read.", "Expected a JSON object; /openapi.json says which."
        ) from None
    if not isinstance(fields, dict):
        raise ProblemError(422, "The JSON cannot be read.", f"Expected an object, got a {type(fields).__name__}.")
    images = fields.pop(FIELD, [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise _wrong(f"{FIELD}: expected a list of files in base64.")
    if len(images) > max_images:
        raise _too_many(max_images)
    uploads = []
    for index, image in enumerate(images):
        try:
            # base64 may have lines; a string's `split` would make an object of 50 bytes of every letter between two blanks
            text = image.encode("ascii").translate(None, _BLANKS)
            check_size(3 * (len(text) // 4) - text[-2:].count(b"="), index, settings.max_image_bytes)
            uploads.append(Upload(base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            detail = "Expected an image file in base64, without a 'data:' prefix."
            raise ProblemError(422, "The image is not base64.", detail, index) from None
    return fields, uploads


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _wrong(f"'{shown(name)}' is there more than once. Send it once.")
        found[name] = value
    return found


def _wrong(detail: str) -> ProblemError:
    return ProblemError(422, "A field of the request is wrong.", detail)


def _too_many(max_images: int) -> ProblemError:
    detail = f"A request may have {max_images} images, this one has more. Send them in several requests."
    return ProblemError(413, "There are too many images.", detail)
