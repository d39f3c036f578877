"""Everything that msrn raises on purpose.

    MSRNError
    ├── DataError                 a source, table or image that cannot be used
    │   ├── SourceNotFoundError   no such folder or file, or a layout that no reader knows
    │   ├── EmptySplitError       a split without images
    │   └── UnreadableImageError  a file that is not a whole image
    ├── LabelMismatchError        the data's labels and the model's differ
    ├── RecipeError               a recipe with unknown keys or impossible values
    ├── ModelError                a backbone or an architecture that cannot be built
    ├── BundleError               a bundle that is incomplete or does not fit its configuration
    ├── PublishedFileError        a published checkpoint, graph or vector file that cannot be read safely
    ├── TrainingError             training cannot start or go on
    │   └── NonFiniteLossError    the loss became NaN or infinite
    └── MissingDependencyError    an optional package is not installed

Each message says what was expected, what came and what to do next. The command line prints the message on one line
and exits with 1; it never shows a traceback for these.
"""

import traceback


class MSRNError(Exception):
    """Base of every error that msrn raises on purpose.

    Attributes:
        is_in_every_process: Whether all processes of a run raise it, so that only the first has to say it.
    """

    is_in_every_process = False


class DataError(MSRNError):
    """A source, table or image cannot be used."""


class SourceNotFoundError(DataError):
    """The path does not exist, or no reader knows its layout."""


class EmptySplitError(DataError):
    """A split holds no images."""


class UnreadableImageError(DataError):
    """A file is missing, truncated or not an image."""


class LabelMismatchError(MSRNError):
    """The labels of the data and of the model differ."""


class RecipeError(MSRNError):
    """A recipe has unknown keys or impossible values."""


class ModelError(MSRNError):
    """A backbone or an architecture cannot be built as asked."""


class BundleError(MSRNError):
    """A bundle is incomplete, damaged or does not fit its configuration."""


class PublishedFileError(MSRNError):
    """A published checkpoint, graph or vector file cannot be read, or not safely."""


class TrainingError(MSRNError):
    """Training cannot start or go on."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite."""


class MissingDependencyError(MSRNError):
    """An optional package is not installed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python or PyTorch says that memory has run out, of the machine or of a GPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    said = ("can't allocate memory", "out of memory", "Cannot allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in said)
    )


def without_traceback(error: MSRNError) -> MSRNError:
    """An error that a process that reads images has raised, as it was there: PyTorch puts the whole traceback into its message.

    Example:
        >>> str(without_traceback(MSRNError("Caught in a worker ... MSRNError: too many files are open")))
        'too many files are open'
    """
    kind = type(error)
    return kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip())


def is_killed_worker(error: BaseException) -> bool:
    """Whether an error tells that a process that reads images is gone.

    It is PyTorch's word, which can come at any line of the first process, or a connection that broke while a batch was fetched.

    Example:
        >>> is_killed_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
        True
    """
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    # A connection to a place of images is none between processes.
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ConnectionError | EOFError) and any(
        frame.f_globals.get("__name__", "").startswith("multiprocessing.") for frame in frames
    )
