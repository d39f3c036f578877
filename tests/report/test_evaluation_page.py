"""The evaluation page in a real browser."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.data import LabelledImages
from msrn.report import Scores, compare_scores, evaluate_scores, write_evaluation_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("zebra", "apple", '<b onclick="x">&', "moon </script>")


def make(folder: Path, num_labels: int = 4, num_images: int = 60) -> tuple[Scores, LabelledImages]:
    rng = np.random.default_rng(0)
    target = (rng.random((num_images, num_labels)) < 0.3).astype(np.int64)
    target[:, min(3, num_labels - 1)] = 0
    logits = torch.from_numpy(3 * target - 1.5 + 2 * rng.normal(size=target.shape))
    names = NAMES if num_labels == 4 else tuple(f"label {number:04d}" for number in range(num_labels))
    paths = []
    for number in range(num_images):
        paths.append(folder / f"{number} <i>.png")
        Image.fromarray(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)).save(paths[-1])
    images = LabelledImages(tuple(paths), target.astype(np.int8), names, "test")
    thresholds = torch.full((num_labels,), 0.5, dtype=torch.float64)
    protocol = {"split": "test", "images": num_images, "epoch": None}
    shared = (False,) * (num_labels - 1) + (True,)
    return Scores("ours", names, logits.sigmoid(), torch.from_numpy(target), thresholds, protocol, shared), images


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("page")
    scores, images = make(folder)
    images.paths[5].write_bytes(b"no longer an image")
    report = evaluate_scores(scores, num_resamples=30)
    theirs = replace(scores, name="theirs", preds=(scores.preds + torch.rand(scores.preds.shape)) / 2)
    other = compare_scores(scores, theirs, num_resamples=30)
    return write_evaluation_page(folder / "index.html", report, images, other=other), report


@pytest.fixture
def page(browser: "Browser", written: tuple[Path, dict[str, Any]]) -> "Any":
    """The page, opened; it must ask for nothing and complain of nothing."""
    opened = browser.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(written[0].as_uri())
    yield opened
    assert [url for url in requests if not url.startswith("data:")] == [written[0].as_uri()]
    assert complaints == []
    opened.close()


def facts(page: "Page") -> dict[str, str]:
    return {
        fact.get_attribute("data-fact") or "": fact.locator("b").inner_text()
        for fact in page.locator("#facts > div").all()
    }


def shown_labels(page: "Page") -> list[str]:
    return [cell.inner_text() for cell in page.locator("#labels tbody tr td:first-child").all()]


def test_the_slider_moves_precision_recall_and_counts(page: "Page", written: tuple[Path, dict[str, Any]]) -> None:
    page.locator("#labels tbody tr", has_text="zebra").click()
    row = written[1]["labels"][0]
    assert facts(page)["threshold"] == "0.500"
    assert facts(page)["precision"] == f"{100 * row['precision']:.1f}"
    seen = []
    for index in (0, len(row["curve"]["thresholds"]) - 1):
        page.locator("#slider").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", index
        )
        now = facts(page)
        seen.append(now)
        correct, predicted = row["curve"]["correct"][index], row["curve"]["predicted"][index]
        assert now["correct"] == str(correct)
        assert now["false"] == str(predicted - correct)
        assert now["missed"] == str(row["positives"] - correct)
        assert now["recall"] == f"{100 * correct / row['positives']:.1f}"
        assert now["threshold"] == f"{row['curve']['thresholds'][index]:.3f}"
    assert seen[0] != seen[1]


def test_columns_sort_and_the_search_narrows(page: "Page", written: tuple[Path, dict[str, Any]]) -> None:
    by_ap = sorted(written[1]["labels"], key=lambda row: -(row["AP"] if row["AP"] is not None else -1))
    assert shown_labels(page) == [row["name"] for row in by_ap]
    page.get_by_role("button", name="label", exact=True).click()
    assert shown_labels(page)[:2] == ['<b onclick="x">&', "apple"]
    page.get_by_role("button", name="label", exact=True).click()
    assert shown_labels(page)[0] == "zebra"
    page.get_by_role("button", name="positives").click()
    assert shown_labels(page)[-1] == "moon </script>"
    page.locator("#search").fill("PPL")
    assert shown_labels(page) == ["apple"]
    assert page.locator("#found").inner_text() == "1 of 4 labels"
    page.locator("#search").fill("nothing")
    assert shown_labels(page) == []


def test_strange_names_are_shown_as_they_are(page: "Page") -> None:
    page.locator("#labels tbody tr", has_text="onclick").click()
    assert page.locator("#label h3").first.inner_text() == '<b onclick="x">&'
    page.locator("#labels tbody tr", has_text="moon").click()
    assert "No image of this split has this label" in page.locator("#label").inner_text()
    assert "0.500*" in page.locator("#labels tbody tr", has_text="moon").inner_text()


def test_pictures_are_there_and_one_that_is_gone_leaves_its_place(
    page: "Page", written: tuple[Path, dict[str, Any]]
) -> None:
    images = page.locator("#suspects img").all()
    assert len(images) > 10
    assert all(image.evaluate("image => image.complete && image.naturalWidth > 0") for image in images)
    assert page.locator("#suspects figure").count() == len(written[1]["suspects"])
    assert page.locator("#suspects .none").count() == sum(suspect["image"] == 5 for suspect in written[1]["suspects"])


def test_a_second_model_stands_beside(page: "Page", written: tuple[Path, dict[str, Any]]) -> None:
    report = written[1]
    other = json.loads(page.locator("#data").text_content() or "")["other"]
    box = page.locator('[data-number="CF1"]')
    assert box.locator("b").inner_text() == f"{100 * report['metrics']['CF1']:.1f}"
    assert box.locator("em").inner_text() == f"{100 * other['metrics']['CF1']:.1f}"
    value = other["differences"]["CF1"]["value"]
    assert f"difference {'+' if value > 0 else '−'}{abs(100 * value):.1f}" in box.inner_text()
    assert page.locator("#protocols dl").count() == 2
    cells = page.locator("#labels tbody tr", has_text="zebra").locator("td").all_inner_texts()
    difference = other["labels"][0]["difference"]
    assert cells[3] == f"{100 * other['labels'][0]['AP']:.1f}"
    assert cells[4].startswith(f"{'+' if difference > 0 else '−'}{abs(100 * difference):.1f}")
    page.locator("#labels tbody tr", has_text="zebra").click()
    assert page.locator("#label svg path[stroke='var(--theirs)']").count() == 2  # a curve, and a reliability diagram


def test_diagrams_and_the_matrix_show_the_numbers(page: "Page", written: tuple[Path, dict[str, Any]]) -> None:
    report = written[1]
    for place, bins in (("#reliability", report["reliability"]), ("#label", report["labels"][0]["reliability"])):
        page.locator("#labels tbody tr", has_text="zebra").click()
        dots = page.locator(f"{place} circle[fill='var(--ours)']").all()
        expected = [
            (count, prob, share)
            for count, prob, share in zip(bins["counts"], bins["probs"], bins["shares"], strict=True)
            if count
        ]
        assert len(dots) == len(expected)
        for dot, (count, prob, share) in zip(dots, expected, strict=True):
            x, y = (float(dot.get_attribute(name) or "nan") for name in ("cx", "cy"))
            assert (x, y) == (pytest.approx(42 + 198 * prob), pytest.approx(208 - 198 * share))
            assert (dot.locator("title").text_content() or "").startswith(f"{count} entries")
    matrix = report["co_error_matrix"]
    cells = page.locator("#heat rect").all()
    assert len(cells) == sum(count > 0 for row in matrix["images"] for count in row) > 0
    for cell in cells:
        row, column = (matrix["labels"].index(cell.get_attribute(f"data-{kind}")) for kind in ("said", "missed"))
        assert f": {matrix['images'][row][column]} images" in (cell.locator("title").text_content() or "")


def test_worst_images_of_a_label_stand_under_it(page: "Page", written: tuple[Path, dict[str, Any]]) -> None:
    page.locator("#labels tbody tr", has_text="zebra").click()
    row = written[1]["labels"][0]
    captions = page.locator("#label figcaption b").all_inner_texts()
    assert captions == [f"{100 * probability:.1f} %" for _, probability in (*row["misses"], *row["false_alarms"])]
    shown = page.locator("#suspects figcaption").first.inner_text()
    first = written[1]["suspects"][0]
    assert shown.startswith(first["label"])
    assert ("not annotated" in shown) == (not first["is_present"])


def test_the_keyboard_does_what_the_mouse_does(page: "Page") -> None:
    button = page.get_by_role("button", name="label", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the focus has stayed
    assert shown_labels(page)[0] == "zebra"
    page.locator("#labels tbody tr").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#label h3").first.inner_text() == "zebra"
    assert page.locator("#labels tbody tr[aria-current]").count() == 1
    pair = page.locator("#pairs tbody tr").first
    missed = pair.locator("td").nth(1).inner_text()
    pair.focus()
    page.keyboard.press("Enter")
    assert page.locator("#label h3").first.inner_text() == missed


def test_a_thousand_labels_stay_usable(browser: "Browser", tmp_path: Path) -> None:
    scores, images = make(tmp_path, num_labels=1_000, num_images=40)
    path = write_evaluation_page(tmp_path / "index.html", evaluate_scores(scores, num_resamples=20), images)
    assert path.stat().st_size < 8e6
    opened = browser.new_page()
    opened.goto(path.as_uri())
    assert opened.locator("#labels tbody tr").count() == 1_000
    opened.locator("#search").fill("0999")
    assert shown_labels(opened) == ["label 0999"]
    opened.locator("#labels tbody tr").click()
    assert opened.locator("#label h3").first.inner_text() == "label 0999"
    opened.close()
