"""Answers that say what was wrong: problem details for HTTP (RFC 9457)."""

from dataclasses import dataclass, field

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
_MOST_SHOWN = 60


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


def shown(text: str) -> str:
    """The beginning of what a client sent: an answer says what was wrong with it, and does not send all of it back.

    Example:
        >>> len(shown("a" * 1000))
        60
        >>> shown("dog")
        'dog'
    """
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"
