"""Images that are no files of their own: packed in an archive, or in a column of a table."""

import os
from abc import abstractmethod


class PackedImage(os.PathLike[str]):
    """One image inside a larger file.

    Its path is that of the archive with the image's name below it, as if the archive were a folder, so that it can be
    printed, compared and hashed like any other path. Instances travel to worker processes.
    """

    @abstractmethod
    def __fspath__(self) -> str:
        """The archive's path, a slash, and the image's name in it."""

    @abstractmethod
    def read_bytes(self) -> bytes:
        """The image file's content.

        Raises:
            OSError: The archive cannot be read, or no longer holds the image.
        """

    @abstractmethod
    def is_file(self) -> bool:
        """Whether the archive is there."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return os.path.basename(os.fspath(self))  # noqa: PTH119

    def __str__(self) -> str:
        return os.fspath(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({os.fspath(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and os.fspath(other) == os.fspath(self)

    def __hash__(self) -> int:
        return hash(os.fspath(self))
