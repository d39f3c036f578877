"""What tests of several folders share."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch
from tiny_bundle import save_tiny_bundle

import msrn._torchvision  # noqa: F401  (before timm, which tests import too)
from msrn.labels import LabelGraph

if TYPE_CHECKING:
    from playwright.sync_api import Browser

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


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Headless Chromium of the system."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: install Debian's package chromium to test the pages in a browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
