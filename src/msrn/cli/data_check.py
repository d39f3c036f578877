"""`msrn data check`."""

EPILOG = """Examples:

  msrn data check"""


def check() -> None:
    """Look for what is wrong in a data set."""
    raise NotImplementedError
