"""Names in pictures."""

import pytest

from msrn import drawing
from msrn.drawing import drawn_name, font_families, undrawable_letters

pytest.importorskip("matplotlib")


def test_names_are_short_and_on_one_line() -> None:
    assert drawn_name("new\nline\t of \r\n text", 40) == "new line of text"
    assert drawn_name("x" * 300, 20) == "x" * 19 + "…"


def test_letters_come_from_the_font_that_has_them_or_are_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (drawn_name("a\U0010ffff", 9), undrawable_letters(["a\U0010ffff b", "\U0010ffff\n"])) == ("a□", "\U0010ffff")
    assert font_families(["boat", "é"]) == font_families([])
    monkeypatch.setattr(drawing, "_font_of", lambda letter: {"船": "Noto Sans CJK JP"}.get(letter, ""))
    assert drawn_name("船 boat", 9) == "船 boat"
    assert font_families(["船 boat"]) == [*font_families([]), "Noto Sans CJK JP"]
