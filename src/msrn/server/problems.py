"""Answers that say what was wrong: problem details for HTTP (RFC 9457)."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
_MOST_SHOWN = 60
_DEEPEST = 100  # of values within each other; pydantic writes 255


class Problem(BaseModel):
    """What was wrong with a request, and what to do."""

    title: str = Field(description="The kind of problem.", examples=["The image is too large."])
    status: int = Field(description="The HTTP status.", examples=[413])
    detail: str = Field(description="What was expected, what came, what to do.")
    image: int | None = Field(None, description="Which image of the request it is about, from 0.")


@dataclass
class ProblemError(Exception):
    """A request that is answered with a problem.

    Attributes:
        status: The HTTP status.
        title: The kind of problem.
        detail: What was expected, what came, what to do.
        image: Which image of the request it is about, from 0, or None.
        headers: Sent with it, such as `Retry-After`.
    """

    status: int
    title: str
    detail: str
    image: int | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        """The answer."""
        problem = Problem(title=self.title, status=self.status, detail=printable(self.detail), image=self.image)
        return JSONResponse(problem.model_dump(exclude_none=True), self.status, self.headers, MEDIA_TYPE)


def printable(text: str) -> str:
    r"""Text that UTF-8 can hold: JSON and forms can bring lone surrogates, which it cannot.

    Example:
        >>> printable("caf\u00e9 \ud800")
        'café \\ud800'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def plain(value: Any, depth: int = _DEEPEST) -> Any:
    r"""What a stranger's JSON told, as an answer can hold it: halves of letters written out, what lies too deep left out.

    Example:
        >>> plain({"\ud800": [1, [2, [3]]]}, depth=3)
        {'\\ud800': [1, [2, '...']]}
    """
    if isinstance(value, str):
        return printable(value)
    if not isinstance(value, dict | list):
        return value
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        return {printable(key): plain(own, depth - 1) for key, own in value.items()}
    return [plain(own, depth - 1) for own in value]


def shown(text: str) -> str:
    """The beginning of what a client sent: an answer says what was wrong with it, and does not send all of it back.

    Example:
        >>> len(shown("a" * 1000))
        60
        >>> shown("dog")
        'dog'
    """
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"
