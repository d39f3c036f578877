EPILOG=""
def import_published() -> None:
    """stub"""
