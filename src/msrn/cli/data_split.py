"""`msrn data split`."""

EPILOG = """Examples:

  msrn data split"""


def split() -> None:
    """Split a data set."""
    raise NotImplementedError
