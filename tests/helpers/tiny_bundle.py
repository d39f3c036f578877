"""A small trained bundle's stand-in, and images for it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import msrn._torchvision  # noqa: F401  (before timm)
from msrn.bundle import Bundle, save_bundle
from msrn.data.transforms import Preprocessing
from msrn.labels import LabelGraph
from msrn.metrics.calibration import ScaledLogits
from msrn.models import build_msrn, build_pooled

BACKBONE: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}
TINY: dict[str, Any] = {**BACKBONE, "dim": 8}


def save_tiny_bundle(folder: Path, *, is_pooled: bool = False) -> Path:
    """Untrained, with weights and a calibration that make each label likely in about half of all images of noise.

    Pooled, it is exported in a quarter of the time.
    """
    torch.manual_seed(0)
    target = (torch.rand(40, 6) < 0.4).int()
    graph = LabelGraph.from_target(target, ["boat", "car", "cat", "dog", "person", "sun & <sea>"])
    architecture = {"name": "pooled", **BACKBONE} if is_pooled else {"name": "msrn", **TINY}
    model = build_pooled(graph.num_labels, **BACKBONE) if is_pooled else build_msrn(graph, **TINY)
    for name, parameter in model.named_parameters():
        if not name.startswith("label_group"):
            torch.nn.init.normal_(parameter, std=0.3)
    preprocessing = Preprocessing((48, 64))
    logits = model.eval()(torch.stack([preprocessing(noise(number)) for number in range(40)])).detach().double()
    spread, middle = logits.std(dim=0), logits.mean(dim=0)  # so that each label is there in about half of the images
    calibration = ScaledLogits(tuple((1 / spread).tolist()), tuple((-middle / spread).tolist()), "platt")
    bundle = Bundle(model, graph, architecture, preprocessing, calibration=calibration)
    return save_bundle(bundle, folder)


def noise(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 90, 2)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8))
