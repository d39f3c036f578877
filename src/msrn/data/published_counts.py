"""How many images a split has, beside the published set."""


def compare_with_published(what: str, num_found: int, num_published: int) -> str:
    """Half a sentence for `Source.notes`; a difference is told, never fatal.

    Example:
        >>> compare_with_published("images", 2500, 2501)
        '2,500 images, the published set has 2,501 (1 fewer)'
        >>> compare_with_published("images", 4952, 4952)
        '4,952 images, as published'
    """
    found = f"{num_found:,} {what}"
    if num_found == num_published:
        return f"{found}, as published"
    difference = f"{abs(num_found - num_published):,} {'fewer' if num_found < num_published else 'more'}"
    return f"{found}, the published set has {num_published:,} ({difference})"
