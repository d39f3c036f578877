"""What tests of several folders share."""

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from tiny_bundle import save_tiny_bundle

import msrn._torchvision  # noqa: F401  (before timm, which tests import too)
from msrn.labels import LabelGraph

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# A shell that starts the tests in its background has them ignore Ctrl-C, and so would each process that they send one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LABELS = ("cat", "dog", "boat", "bird", "tree", "cup")


@pytest.fixture
def typing_off() -> Iterator[None]:
    """Show the errors users see: the checks of annotations, which only the tests switch on, would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def label_graph() -> LabelGraph:
    """Six labels over 40 images, with edges between some of them."""
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(40, len(LABELS), generator=generator) < 0.35).int()
    target[:, 1] |= target[:, 0]  # a cat is always with a dog
    return LabelGraph.from_target(target, LABELS)


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle that predicts some labels of each image."""
    return save_tiny_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Headless Chromium of the system; its event loop runs in this thread until the module ends, so others cannot."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install Debian's package chromium to test the pages in a browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def lost(request: pytest.FixtureRequest) -> Callable[[Iterable[Hashable], Iterable[Hashable], str], None]:
    """Compare what there was before a fault, or would be without it, with what there is after it; the difference was lost."""

    def compare(before: Iterable[Hashable], after: Iterable[Hashable], what: str) -> None:
        expected, found = Counter(iter(before)), Counter(iter(after))  # of a dict its keys
        assert expected, f"there were no {what} that could be lost"
        missing, surplus = expected - found, found - expected
        text = f"{missing.total() or 'nothing'} of {expected.total()} {what}"
        request.node.user_properties.append(("lost", text if not surplus else f"{text}, {surplus.total()} too many"))
        assert not missing, f"lost {text}: {list(missing)[:5]}"
        assert not surplus, f"{surplus.total()} {what} too many: {list(surplus)[:5]}"

    return compare


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note which row of docs/reliability.md a test shows, for the table that `make faults` prints."""
    if mark := item.get_closest_marker("fault"):
        item.user_properties.append(("fault", mark.args[0]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Under `-m fault`: a row a fault, with what was lost, or why it was not run."""
    if config.option.markexpr != "fault":
        return
    rows = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = getattr(report, "user_properties", ())  # a file that cannot be imported has none
            fault = dict(properties).get("fault")
            if fault is None or (outcome == "passed" and report.when != "call"):
                continue
            if outcome == "skipped":
                rows.append((fault, "not run", report.longrepr[2].removeprefix("Skipped: ")))
            else:
                cost = "; ".join(value for name, value in properties if name == "lost") or "not told"
                rows.append((fault, outcome, f"lost: {cost}"))
    terminalreporter.section("faults: what was lost")
    for fault, outcome, said in sorted(rows):
        terminalreporter.write_line(f"{fault:<66} {outcome:<8} {said}")
    num_left_out = sum(outcome == "not run" for _, outcome, _ in rows)
    terminalreporter.write_line(f"{len(rows)} tests, {num_left_out} of them not run")
