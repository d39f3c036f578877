"""Names of labels in pictures: of any length, in any script."""

from collections.abc import Iterable
from functools import cache

_BOX = "\N{WHITE SQUARE}"


def drawn_name(name: str, most: int) -> str:
    """A name as pictures show it: on one line, of at most so many letters, with a box for each that no installed font has.

    Example:
        >>> drawn_name("sun  and moon", 9)
        'sun and …'
    """
    line = " ".join(name.split())
    short = line if len(line) <= most else f"{line[: most - 1]}…"
    return "".join(_BOX if _font_of(letter) is None else letter for letter in short)


def font_families(names: Iterable[str]) -> list[str]:
    """The fonts that have the letters of some names between them, the usual one first; matplotlib asks them in this order."""
    from matplotlib import rcParams

    others = {font: None for name in names for letter in name if (font := _font_of(letter))}
    return [*rcParams["font.family"], *others]


def undrawable_letters(names: Iterable[str]) -> str:
    """The letters for which pictures show a box, once each."""
    letters = {letter for name in names for letter in "".join(name.split())}
    return "".join(sorted(letter for letter in letters if _font_of(letter) is None))


@cache
def _font_of(letter: str) -> str | None:
    """The font to draw a letter with: "" for the usual one, or the name of another, or None where none has it."""
    from matplotlib import font_manager

    usual = font_manager.findfont(font_manager.FontProperties())
    if font_manager.get_font(usual).get_char_index(ord(letter)):
        return ""
    for entry in font_manager.fontManager.ttflist:
        # The font of last resort has a picture of the script for every letter.
        if not entry.name.startswith("Last Resort") and font_manager.get_font(entry.fname).get_char_index(ord(letter)):
            return str(entry.name)
    return None
