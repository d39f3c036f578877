"""`msrn labels graph`."""

EPILOG = """Examples:

  msrn labels graph"""


def graph() -> None:
    """Count the label graph."""
    raise NotImplementedError
