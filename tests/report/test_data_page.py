"""The doctor's page: one file, nothing fetched, nothing of the data run as markup, readable at any number of labels."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msrn.data.check import check_source

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from msrn.report.data_page import write_data_page

SCRIPT = "<script>alert(1)</script>"


def make_table(folder: Path, label_cells: list[str]) -> Path:
    rng = np.random.default_rng(0)
    with (folder / "photos.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "labels", "split"))
        for number, cell in enumerate(label_cells):
            Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / f"<b>{number}.png")
            writer.writerow((f"<b>{number}.png", cell, "val" if number % 4 == 3 else "train"))
    return folder / "photos.csv"


def page_of(table: Path) -> str:
    return write_data_page(table.parent / "out" / "check.html", check_source(table)).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    table = make_table(folder, [f"{SCRIPT}|tea & cake", "狗|$x_1$|tea & cake", f"{SCRIPT}|boat", "boat"] * 8)
    (folder / "<b>4.png").write_bytes((folder / "<b>0.png").read_bytes())
    (folder / "<b>7.png").write_bytes((folder / "<b>1.png").read_bytes())
    (folder / "<b>8.png").write_bytes(b"")
    (folder / "<b>9.png").unlink()
    return page_of(table)


def test_the_page_fetches_nothing(page):
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "@import" not in page
    assert page.count("data:image/jpeg;base64,") == 4  # two pairs of copies


def test_names_are_shown_and_not_run(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "tea &amp; cake" in page
    assert "<b>0.png" not in page
    assert "$x_1$" in page
    assert "狗" in page


def test_verdict_problems_and_pictures_are_there(page):
    headline = re.search(r"<h1[^>]*>(.*)</h1>", page)
    assert headline is not None
    assert headline[1].startswith("3 errors and ")
    for kind in ("missing file", "unreadable image", "duplicate across splits", "duplicate content"):
        assert f">{kind}</b>" in page
    assert "photos.csv:11: " in page  # the missing file
    assert "cannot be read" in page
    assert page.count("<svg") == 2


def test_of_many_labels_the_most_frequent_are_shown_and_the_page_says_so(tmp_path):
    cells = [f"label {i}|label {(i * 7 + 1) % 300}|common" for i in range(300)]
    page = page_of(make_table(tmp_path, cells))
    assert page.count("The 60 most frequent of 301 labels.") == 2
    assert page.count('<td class="bar">') == 60


@pytest.mark.parametrize("table", ["colour,price\nred,3\n", "path,labels\ngone.png,cat\n"])
def test_a_data_set_of_which_nothing_can_be_read_has_a_page(tmp_path, table):
    (tmp_path / "photos.csv").write_text(table)
    page = page_of(tmp_path / "photos.csv")
    assert "1 error and " in page
    assert "<svg" not in page
