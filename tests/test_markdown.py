"""Names of strangers in the Markdown that we write, as a renderer shows it."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from records import make_record

from msrn.bundle.card import model_card
from msrn.compare import HEADS, ComparisonFolder, Plan, Variant, build_comparison, frame_of, write_comparison
from msrn.compare.summary import HEADER
from msrn.markdown import plain

MARKS = [
    "a|b", "<script>alert(1)</script>", "![x](http://x.org/x.png)", "[x](http://x.org)", "two\nlines\r\n\n# of text", "`code`",
    "```", "**bold** _i_ __b__ ~~s~~", "a_b__c_ _d", "back\\slash \\| \\", "&lt; & &#124;", "$x$", "# heading", "1. one", "- two",
    "+ three", "> quote", "---", "[ ] task", "http://x.org", "<http://x.org>", "<!-- gone -->", "\tcode", "'\"", "=", "é ①_x",
    "[a]: b", "|", "| a | b |", ":--|--:", "avg_pool",
]  # fmt: skip


class Rendered(HTMLParser):
    """Markdown as a renderer makes it into a page: the text of each element, under its tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, str]] = []
        self._open: list[list[str]] = []
        self.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._open.append([tag, ""])

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element[1] += data

    def handle_endtag(self, tag: str) -> None:
        name, text = self._open.pop()
        assert name == tag  # a tag that is never closed is none of ours
        self.elements.append((name, text.strip()))

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements} | {tag for tag, _ in self._open}


@pytest.mark.parametrize("mark", MARKS)
def test_it_is_shown_as_it_is(mark: str) -> None:
    shown = " ".join(mark.split())
    assert Rendered(f"- {plain(mark)}\n").elements == [("li", shown), ("ul", shown)]
    assert Rendered(f"{plain(mark)} and x").elements == [("p", f"{shown} and x")]
    assert Rendered(f"x, {plain(mark)}").elements == [("p", f"x, {shown}")]
    assert Rendered(f"# {plain(mark)}: x").elements == [("h1", f"{shown}: x")]
    table = Rendered(f"| a | b |\n| --- | --- |\n| {plain(mark)} | 1 |\n")
    assert [text for tag, text in table.elements if tag == "td"] == [shown, "1"]
    assert table.tags == {"table", "thead", "tbody", "tr", "th", "td"}


def test_names_of_our_own_stay_readable() -> None:
    own = "voc2007-mobilenet with data.root=VOCdevkit, model.learn_vectors=true, val mAP +1.2 (3 seeds)"
    assert plain(own) == own


@pytest.mark.fault("names with markup in a comparison's table and in a model card")
def test_pages(tmp_path: Path, lost: Callable[[Any, Any, str], None]) -> None:
    """No tag, no image, no link, and no column more; `<script>` is text."""
    names = [" ".join(mark.split()) for mark in MARKS]
    variants = [Variant(f"v{number}", mark, ()) for number, mark in enumerate(MARKS)]
    plan = Plan("scenes", (), (*variants, HEADS["msrn"]), num_seeds=2, skipped={MARKS[2]: MARKS[1]})
    records = [make_record(variant.name, 0, 0.5) for variant in plan.variants]
    failed = [{**make_record("msrn", 1, None), "failed": mark} for mark in MARKS]
    made = build_comparison(frame_of(plan), [*records, *failed])
    made["protocol"] |= {"recipe": MARKS[1], "overrides": MARKS}
    write_comparison(ComparisonFolder(tmp_path), made, picture=False)
    page = Rendered((tmp_path / "comparison.md").read_text())
    assert page.tags == {"h1", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"}
    cells = [text for tag, text in page.elements if tag == "td"]
    assert len(cells) == len(HEADER) * len(plan.variants)
    lines = {text for tag, text in page.elements if tag == "li"}
    assert f"left out: {names[2]}, {names[1]}" in lines
    assert f"recipe {names[1]} with {', '.join(names)}" in lines
    assert {f"failed: msrn, seed 1: {name}" for name in names} <= lines

    config = {
        "labels": MARKS,
        "preprocessing": {"size": [8, 8]},
        "architecture": {"backbone": MARKS[1], "pooling": MARKS[2]},
        "training": {"recipe_name": MARKS[2], MARKS[1]: {MARKS[2]: MARKS[0]}},
        "threshold": 0.5,
    }
    card = Rendered(model_card(config).split("---\n", 2)[2])
    assert card.tags == {"h1", "h2", "p", "pre", "code", "ul", "li"}
    (labels,) = (text for tag, text in card.elements if tag == "p" and text.startswith("Predicts"))
    assert labels == f"Predicts which of these labels an image shows: {', '.join(names)}."
    assert ("li", f"recipe name: {names[2]}") in card.elements
    assert sum(tag == "code" for tag, _ in card.elements) == 2  # of our own
    shown = [name for name in names if name in cells and name in labels]
    lost(names, shown, "names, shown as they are written")
