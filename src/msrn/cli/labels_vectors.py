"""`msrn labels vectors`."""

EPILOG = """Examples:

  msrn labels vectors"""


def vectors() -> None:
    """Make word vectors."""
    raise NotImplementedError
