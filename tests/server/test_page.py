"""The page in a real browser, against a real server."""

import base64
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from running_server import RunningServer, running_server
from tiny_bundle import noise

from msrn.data.cells import _FORMULA

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

SHARED = Path(__file__).parents[3] / "shared" / "voc2007" / "VOCdevkit" / "VOC2007" / "JPEGImages"
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def server(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(bundle_dir, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


MARKUP = [
    "<script>document.title = 'run'</script>",
    "<img src=x onerror=\"document.title = 'run'\">",
    "'\"><b>",
    "&lt;i&gt;",
    "person",
    "sun & <sea>",
]


@pytest.fixture(scope="module")
def two_bundles(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The labels of one of them have markup in their names."""
    folder = tmp_path_factory.mktemp("server")
    scenes = Path(shutil.copytree(bundle_dir, folder / "scenes"))
    config = json.loads((scenes / "config.json").read_text())
    (scenes / "config.json").write_text(json.dumps({**config, "labels": MARKUP}))
    with running_server(f"pets={bundle_dir}", folder / "log", f"scenes={scenes}") as server:
        yield server


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real photos, where there are some, one of them under a name that a page and a spreadsheet could take for code."""
    folder = tmp_path_factory.mktemp("photos")
    found = sorted(SHARED.glob("*.jpg"))[:2] if SHARED.is_dir() else []
    made = []
    for number, name in enumerate(("=1+1 <img src=x onerror=alert(1)>.png", "second.png")):
        made.append(folder / name)
        (Image.open(found[number]) if found else noise(number)).convert("RGB").save(made[-1])
    return made


@pytest.fixture
def page(browser: "Browser", server: RunningServer, request: pytest.FixtureRequest) -> "Iterator[Page]":
    """The page; in the end nothing was on the console, and nothing was asked of anybody else."""
    options: dict[str, Any] = getattr(request, "param", {"viewport": DESKTOP})
    page = browser.new_page(**options)
    messages: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    page.goto(server.address)
    page.wait_for_selector("#graph svg")
    yield page
    page.close()
    # The browser itself notes every answer that is a refusal.
    assert [message for message in messages if "status of 422" not in message] == []
    assert [url for url in asked if not url.startswith((server.address, "blob:", "data:"))] == []


def drop(page: "Page", paths: list[Path]) -> None:
    """Drop files on the page as a person does."""
    files = [{"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    page.evaluate(
        """async (files) => {
            const dropped = new DataTransfer();
            for (const file of files) {
                const bytes = Uint8Array.from(atob(file.data), (letter) => letter.charCodeAt(0));
                dropped.items.add(new File([bytes], file.name, { type: "image/png" }));
            }
            for (const kind of ["dragenter", "dragover", "drop"]) {
                document.getElementById("drop").dispatchEvent(
                    new DragEvent(kind, { dataTransfer: dropped, bubbles: true, cancelable: true }));
            }
        }""",
        files,
    )
    page.wait_for_function("(count) => document.querySelectorAll('.result .label').length >= count", arg=2 * len(paths))
    page.get_by_text(f"{len(paths)} of {len(paths)} photos done.").wait_for()


def pixels(page: "Page") -> str:
    found: str = page.locator(".result canvas").first.evaluate("(canvas) => canvas.toDataURL()")
    return found


def download(page: "Page", name: str) -> str:
    with page.expect_download() as found:
        page.get_by_role("button", name=name).click()
    return Path(found.value.path()).read_bytes().decode()


def move_slider(page: "Page", value: int) -> None:
    page.locator("#strictness").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_drop_look_and_download(page: "Page", photos: list[Path]) -> None:
    drop(page, photos)
    first = page.locator(".result").first
    assert first.locator("h3").inner_text() == photos[0].name
    move_slider(page, 100)
    assert page.locator(".label.kept").count() == 0
    move_slider(page, 0)
    assert page.locator(".label.kept").count() == 12
    assert "50 looser" in page.locator("#strictness-value").inner_text()
    assert page.locator("#strictness").get_attribute("aria-valuetext") == "50 looser"
    assert page.locator(".least").first.inner_text() == "from 0 %"
    move_slider(page, 50)
    assert page.locator(".least").first.inner_text() == "from 50 %"
    first.locator(".label", has_text="dog").click()
    first.get_by_text("Where the network looked for dog").wait_for()
    seen = {pixels(page)}
    for stage in ("stage 1", "stage 2", "stage 3", "residual"):
        first.get_by_label(stage).check()
        seen.add(pixels(page))
    assert len(seen) == 5
    assert page.locator("#graph .chosen").count() == 1
    neighbours = page.evaluate(
        """async () => {
            const { labels } = await (await fetch("v1/labels")).json();
            const follows = (one, other) => labels.find((own) => own.name === one).neighbours.includes(other);
            return labels.map((own) => own.name).filter((name) => follows("dog", name) || follows(name, "dog"));
        }"""
    )
    lit = page.locator("#graph .near text").all_text_contents()
    assert sorted(lit) == sorted(neighbours)
    assert lit
    assert page.locator("#graph-text h3").inner_text() == "dog"
    first.locator(".label", has_text="dog").click()
    assert first.locator(".stages").is_hidden()
    move_slider(page, 0)
    rows = list(csv.reader(download(page, "Download CSV").splitlines()))
    assert rows[0] == [
        *("photo", "label", "probability", "threshold", "applied_threshold", "strictness", "model", "error")
    ]
    assert len(rows) == 1 + 12
    assert rows[1][0] == f"'{photos[0].name}"  # no formula
    in_json = json.loads(download(page, "Download JSON"))
    assert [row["name"] for row in in_json] == [photo.name for photo in photos]
    best = in_json[0]["labels"][0]
    assert [float(cell) for cell in rows[1][2:5]] == [best["probability"], best["threshold"], best["applied_threshold"]]
    assert (best["threshold"], best["applied_threshold"]) == (0.5, 0)
    assert rows[1][5:] == [str(in_json[0]["strictness"]), in_json[0]["model"], ""] == ["0", "tiny0", ""]
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".result").count() == 0


def test_a_downloaded_cell_begins_as_no_formula_does(page: "Page") -> None:
    names = [f"{sign}1+1" for sign in _FORMULA]
    text = page.evaluate(
        """async (names) => (await import("/static/download.js")).toCsv(names.map((name) => ({ name, labels: [] })))""",
        names,
    )
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert [row[0] for row in rows[1:]] == [f"'{name}" for name in names]


@pytest.mark.parametrize(
    "page",
    [
        {"viewport": DESKTOP, "color_scheme": "light"},
        {"viewport": DESKTOP, "color_scheme": "dark"},
        {"viewport": PHONE, "color_scheme": "light", "has_touch": True},
        {"viewport": PHONE, "color_scheme": "dark", "has_touch": True},
    ],
    ids=["desktop light", "desktop dark", "phone light", "phone dark"],
    indirect=True,
)
def test_anybody_can_use_it(page: "Page", photos: list[Path], request: pytest.FixtureRequest) -> None:
    """With the folder MSRN_SCREENSHOTS in the environment it leaves pictures there."""
    drop(page, photos)
    label = page.locator(".result").first.locator(".label").first
    if page.viewport_size == PHONE:
        label.tap()
    else:
        label.click()
    page.locator(".choices input").first.wait_for()
    found = Axe().run(page).response["violations"]
    assert [(own["id"], own["impact"]) for own in found if own["impact"] in {"serious", "critical"}] == []
    width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1]
    stages = page.locator(".stages").first
    stages.scroll_into_view_if_needed()
    for part in (page.locator(".layers").first, stages):  # a layer is chosen with the photo in view
        box = part.bounding_box()
        assert box
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= page.viewport_size["height"]  # type: ignore[index]
    page.locator("#graph").evaluate("(graph) => graph.scrollIntoView({ block: 'center' })")
    assert page.locator("#graph-text h3").evaluate(
        "(own) => own.getBoundingClientRect().top >= 0 && own.getBoundingClientRect().bottom <= innerHeight"
    )  # and so are a label's neighbours beside the graph
    targets = page.locator("#graph .target").evaluate_all(
        "(targets) => targets.map((own) => own.getBoundingClientRect().width)"
    )
    assert min(targets) >= 24
    if "MSRN_SCREENSHOTS" in os.environ:
        name = request.node.callspec.id.replace(" ", "-")
        page.screenshot(path=Path(os.environ["MSRN_SCREENSHOTS"]) / f"{name}-view.png")
        page.screenshot(path=Path(os.environ["MSRN_SCREENSHOTS"]) / f"{name}.png", full_page=True)


def test_by_keyboard_alone(page: "Page", photos: list[Path]) -> None:
    drop(page, photos[:1])
    page.locator("#clear").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("label")
    name = page.evaluate("document.activeElement.dataset.label")
    page.keyboard.press("Enter")
    page.get_by_text(f"Where the network looked for {name}").wait_for()
    for _ in range(2):  # away and back again
        assert page.evaluate("document.activeElement.dataset.label") == name
        page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.label") == name
    assert page.locator(".stages").is_visible()
    before = pixels(page)
    page.locator(".choices input").first.focus()
    page.keyboard.press("ArrowRight")
    assert pixels(page) != before
    nodes = page.locator("#graph .node")
    page.locator(".choices input:checked").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.classList.contains('node')")  # the graph is one stop
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.classList.contains('node')")
    nodes.first.focus()
    page.keyboard.press("Enter")
    assert nodes.first.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert nodes.first.get_attribute("aria-pressed") == "false"
    for key, index in (("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowUp", 5), ("ArrowDown", 0), ("End", 5), ("Home", 0)):
        page.keyboard.press(key)
        assert nodes.nth(index).evaluate("(node) => node === document.activeElement")
    assert page.locator("#graph [tabindex='0']").count() == 1


def test_a_file_that_is_no_photo_is_told(page: "Page", tmp_path: Path, photos: list[Path]) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(photos[1].read_bytes()[:500])
    notes = tmp_path / "notes.txt"
    notes.touch()
    page.locator("#files").set_input_files([str(damaged), str(photos[1]), str(notes)])
    page.get_by_text("2 of 2 photos done.").wait_for()
    assert page.locator("#status").inner_text() == "2 of 2 photos done. 1 failed. No images: notes.txt."
    assert "damaged or cut off" in page.locator(".error").first.inner_text()
    assert page.locator(".label").count() > 0


def test_a_pasted_photo(page: "Page", photos: list[Path]) -> None:
    page.evaluate(
        """(data) => {
            const pasted = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            pasted.items.add(new File([bytes], "image.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted, bubbles: true }));
        }""",
        base64.b64encode(photos[0].read_bytes()).decode(),
    )
    page.get_by_text("1 of 1 photos done.").wait_for()
    assert page.locator(".label").count() > 0


def refuse(route: "Route", status: int, detail: str) -> None:
    route.fulfill(status=status, content_type="application/problem+json", body=json.dumps({"detail": detail}))


def hold(page: "Page", held: "list[Route]", count: int) -> None:
    """Wait until so many requests are held."""
    for _ in range(500):
        if len(held) >= count:
            return
        page.wait_for_timeout(20)
    pytest.fail(f"{len(held)} requests came, not {count}")


def test_a_busy_server_is_asked_again_and_what_came_too_late_is_not_shown(
    browser: "Browser", server: RunningServer, photos: list[Path]
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    asked: list[str] = []

    def explain(route: "Route") -> None:
        label = "cat" if '"labels"\r\n\r\ncat' in (route.request.post_data_buffer or b"").decode("latin-1") else "dog"
        asked.append(label)
        if label == "cat":
            held.append(route)
        elif len(asked) == 2:
            refuse(route, 503, "busy")
        else:
            route.continue_()

    held: list[Route] = []
    page.route("**/v1/explain", explain)
    page.goto(server.address)
    page.wait_for_selector("#graph svg")
    drop(page, photos[:1])
    move_slider(page, 0)
    page.locator(".label", has_text="cat").click()
    page.locator(".busy").wait_for()
    page.locator(".label", has_text="dog").click()
    page.get_by_text("Where the network looked for dog").wait_for()
    assert asked == ["cat", "dog", "dog"]
    refuse(held[0], 422, "too late")
    page.wait_for_timeout(100)
    assert page.locator(".error").is_hidden()
    assert page.locator(".busy").is_hidden()
    page.locator(".label", has_text="cat").click()
    hold(page, held, 2)
    assert page.locator(".stages").is_hidden()  # the map of the other label is gone, also where none comes
    assert page.locator(".result canvas").evaluate("(canvas) => canvas.width") == 1
    refuse(held[1], 422, "no map")
    page.get_by_text("no map").wait_for()
    assert page.locator(".stages").is_hidden()
    page.close()


def test_a_key(browser: "Browser", server: RunningServer) -> None:
    page = browser.new_page(viewport=DESKTOP)

    def check(route: "Route") -> None:
        if route.request.headers.get("x-api-key") == "right":
            route.continue_()
        else:
            refuse(route, 401, "Send the key.")

    page.route("**/v1/*", check)
    page.goto(server.address)
    page.get_by_text("Send the key.").wait_for()
    for key, told in (("ключ", "The key is wrong: keys are made of ASCII characters."), ("other", "The key is wrong.")):
        page.locator("#key").fill(key)
        page.get_by_role("button", name="Use it").click()
        page.get_by_text(told, exact=True).wait_for()
        assert page.locator("#key-form").is_visible()
    page.locator("#key").fill("right")
    page.get_by_role("button", name="Use it").click()
    page.wait_for_selector("#graph svg")
    assert page.locator("#key-form").is_hidden()
    page.close()


def test_another_bundle(browser: "Browser", two_bundles: RunningServer, photos: list[Path]) -> None:
    """Photos dropped before a bundle is chosen keep what the other one said; those after it are asked of the chosen one."""
    page = browser.new_page(viewport=DESKTOP)
    page.goto(two_bundles.address)
    page.wait_for_selector("#graph svg")
    assert page.locator("#model option").all_text_contents() == ["pets", "scenes"]
    drop(page, photos[:1])
    page.locator("#model").select_option("scenes")
    page.wait_for_function("document.getElementById('model').value === 'scenes'")
    page.wait_for_selector("#graph svg")
    drop(page, photos)
    assert models_of(page) == ["pets", "scenes", "scenes"]
    page.close()


def test_of_ten_thousand_labels_those_with_most_neighbours_are_drawn(
    browser: "Browser", server: RunningServer, photos: list[Path]
) -> None:
    names = [f"label {number}" for number in range(10_000)]
    labels = [
        {"name": name, "threshold": 0.5, "group": None, "neighbours": names[:30] if number % 10 == 0 else names[10:12]}
        for number, name in enumerate(names)
    ]
    page = browser.new_page(viewport=DESKTOP)
    page.route("**/v1/labels*", lambda route: route.fulfill(json={"model": "tiny", "labels": labels}))
    page.goto(server.address)
    page.wait_for_selector("#graph svg")
    assert sorted(page.locator("#graph .node text").all_text_contents()) == sorted(names[::10])
    assert page.locator("#graph-note").inner_text() == (
        "10000 labels, 48000 edges. Drawn are the 1000 with most neighbours, and 3000 edges between them."
    )
    page.locator("#graph .node").first.press("Enter")
    assert page.locator("#graph-text li").count() >= 30  # all neighbours, drawn or not
    drop(page, photos[:1])
    page.close()


@pytest.mark.fault("label and file names with markup on the server's page")
def test_markup(
    browser: "Browser", two_bundles: RunningServer, photos: list[Path], lost: Callable[[Any, Any, str], None]
) -> None:
    """They are shown as they are written: beside a photo, above its map, and in the label graph."""
    page = browser.new_page(viewport=DESKTOP)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))  # also where a script was kept from running
    page.goto(two_bundles.address)
    page.wait_for_selector("#graph svg")
    title = page.title()
    with page.expect_response(re.compile(r"/v1/labels\?model=scenes")):
        page.locator("#model").select_option("scenes")
    page.get_by_text("&lt;i&gt;", exact=True).first.wait_for(state="attached")
    drop(page, photos[:1])
    move_slider(page, 0)
    shown = [page.locator(".result h3").inner_text()]
    for name in MARKUP:
        page.locator(".result .label", has=page.get_by_text(name, exact=True)).first.click()
        page.get_by_text(f"Where the network looked for {name}", exact=True).wait_for()
        shown.append(page.locator("#graph-text h3").inner_text())
    assert sorted(page.locator("#graph .node text").all_text_contents()) == sorted(MARKUP)
    assert (page.title(), messages) == (title, [])
    page.close()
    lost([photos[0].name, *MARKUP], shown, "names, shown as they are written")


def test_of_two_bundles_chosen_quickly_the_last_stays(
    browser: "Browser", two_bundles: RunningServer, photos: list[Path]
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    held: list[Route] = []
    page.route(re.compile(r"/v1/model\?model=scenes"), lambda route: held.append(route))
    page.goto(two_bundles.address)
    page.wait_for_selector("#graph svg")
    page.locator("#model").select_option("scenes")
    hold(page, held, 1)
    page.locator("#files").set_input_files(photos[0])  # for the one chosen now
    with page.expect_response(re.compile(r"/v1/labels\?model=pets")):
        page.locator("#model").select_option("pets")
    with page.expect_response(re.compile(r"/v1/labels\?model=scenes")):
        held[0].continue_()
    page.get_by_text("1 of 1 photos done.").wait_for()
    assert page.locator("#model").input_value() == "pets"
    drop(page, photos)
    assert models_of(page) == ["scenes", "pets", "pets"]
    page.close()


def models_of(page: "Page") -> list[str]:
    return [own["model"] for own in json.loads(download(page, "Download JSON"))]


def test_photos_without_an_answer_are_named_in_downloads_and_not_sent_once_cleared(
    browser: "Browser", server: RunningServer, photos: list[Path]
) -> None:
    page = browser.new_page(viewport=DESKTOP)
    held: list[Route] = []
    page.route("**/v1/predict", lambda route: held.append(route))
    page.goto(server.address)
    page.wait_for_selector("#graph svg")
    page.locator("#files").set_input_files(photos * 3)
    hold(page, held, 4)
    rows = json.loads(download(page, "Download JSON"))
    assert [(row["error"], row["labels"]) for row in rows] == [("not answered yet", [])] * 6
    held[0].continue_()
    page.get_by_text("1 of 6 photos done.").wait_for()
    rows = json.loads(download(page, "Download JSON"))
    assert [row["error"] for row in rows] == [None] + ["not answered yet"] * 5
    hold(page, held, 5)
    page.get_by_role("button", name="Clear").click()
    for route in held[1:]:
        route.continue_()
    page.wait_for_timeout(500)
    assert len(held) == 5
    assert page.locator("#status").inner_text() == ""
    page.close()


def test_what_cannot_be_sent_is_told(page: "Page", tmp_path: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda asking: asked.append(asking.url))
    large = tmp_path / "large.png"
    large.write_bytes(bytes(20_010_000))
    page.locator("#files").set_input_files(large)
    page.get_by_text("1 of 1 photos done. 1 failed.").wait_for()
    told = "The photo has 20.1 MB; this server takes up to 20 MB. Choose a smaller one."
    assert page.locator(".error").inner_text() == told
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "photo.png").touch()
    place = page.locator("#drop").bounding_box()
    assert place
    dragged = {"data": {"items": [], "files": [str(folder)], "dragOperationsMask": 1}, "x": place["x"], "y": place["y"]}
    mouse = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        mouse.send("Input.dispatchDragEvent", {"type": kind, **dragged})
    page.get_by_text("Folders are not read: holiday. Choose the photos in them.").wait_for()
    assert page.locator(".result").count() == 1
    assert [url for url in asked if "/v1/" in url] == []
