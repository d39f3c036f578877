"""A small trained bundle's stand-in, and photos of many kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.bundle import Bundle, save_bundle
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.metrics.calibration import ScaledLogits
from msrn.models import build_msrn

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}, "dim": 8}


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    target = (torch.rand(40, 6) < 0.4).int()
    graph = LabelGraph.from_target(target, ["boat", "car", "cat", "dog", "person", "sun & <sea>"])
    model = build_msrn(graph, **TINY)
    for name, parameter in model.named_parameters():
        if not name.startswith("label_group"):
            torch.nn.init.normal_(parameter, std=0.3)
    preprocessing = Preprocessing((48, 64))
    logits = model.eval()(torch.stack([preprocessing(noise(number)) for number in range(40)])).detach().double()
    spread, middle = logits.std(dim=0), logits.mean(dim=0)  # so that each label is there in about half of the images
    calibration = ScaledLogits(tuple((1 / spread).tolist()), tuple((-middle / spread).tolist()), "platt")
    bundle = Bundle(model, graph, {"name": "msrn", **TINY}, preprocessing, calibration=calibration)
    return save_bundle(bundle, tmp_path_factory.mktemp("bulk") / "bundle")


def noise(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 90, 2)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images of mixed sizes in a tree, one damaged, one that is no image."""
    folder = tmp_path / "photos"
    for number in range(12):
        path = folder / ("b" if number % 3 == 0 else "a/deeper" if number % 3 == 1 else "") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(100 + number).save(path)
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    (folder / "notes.txt").write_text("no image")
    return folder
