"""A tiny training: pictures whose labels can be seen in their colour, and a network that learns them in seconds."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from msrn.data import LabelledImages
from msrn.data.loader import build_loader
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.labels import LabelGraph
from msrn.models import build_msrn
from msrn.training import FitResult, MSRNModule, OptimizerSettings, TrainerSettings, fit

LABELS = ("red", "green", "blue", "warm")
PREPROCESSING = Preprocessing((32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def write_pictures(folder: Path) -> LabelledImages:
    """Sixteen pictures whose labels can be seen in their colour."""
    rng = np.random.default_rng(0)
    paths, rows = [], []
    for number in range(16):
        present = rng.random(3) < 0.5
        pixels = rng.integers(0, 90, (32, 32, 3)) + 150 * present
        path = folder / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        paths.append(path)
        rows.append([*present, present[0] and not present[2]])
    return LabelledImages(tuple(paths), np.array(rows, dtype=np.int8), LABELS, "train")


def make_module(images: LabelledImages, *, freeze: bool = False, drop_path: float = 0.0, **options: Any) -> MSRNModule:
    torch.manual_seed(0)
    backbone: dict[str, Any] = {
        "backbone": "resnet10t",
        "backbone_options": {"channels": [8, 8, 16, 16], "drop_path_rate": drop_path},
    }
    graph = LabelGraph.from_target(torch.from_numpy(images.target), LABELS)
    model = build_msrn(graph, dim=8, freeze_batch_norm=freeze, **backbone)
    defaults = {"optimizer": OptimizerSettings("adamw", lr=3e-3, backbone_factor=1.0), "image_paths": images.paths}
    return MSRNModule(model, LABELS, **{**defaults, **options})


def run(
    images: LabelledImages,
    run_dir: Path,
    *,
    epochs: int = 3,
    workers: int = 0,
    batch_size: int = 4,
    gradient_clip: float | None = None,
    resume: bool = False,
    module: MSRNModule | None = None,
    val: LabelledImages | None = None,
    console: Console | None = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> FitResult:
    loader = build_loader(
        images,
        TrainTransform(PREPROCESSING, crop_scale=(0.7, 1.0)),
        batch_size=batch_size,
        num_workers=workers,
        shuffle=True,
        seed=3,
    )
    val_loader = build_loader(val or images, PREPROCESSING, batch_size=8)
    settings = TrainerSettings(epochs, gradient_clip=gradient_clip, accelerator="cpu", seed=3, **(trainer or {}))
    module = module or make_module(images, **options)
    return fit(module, settings, loader, val_loader, run_dir, resume=resume, console=console)


def read_rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_weights(run_dir: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


class Spy(MSRNModule):
    """Calls `before_step` with its epoch and batch index before every training step."""

    before_step: Callable[[int, int], None] = staticmethod(lambda epoch, batch: None)
    seen: list[tuple[int, list[int]]]

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        self.before_step(self.current_epoch, batch_index)
        if not hasattr(self, "seen"):
            self.seen = []
        self.seen.append((self.current_epoch, batch["index"].tolist()))
        return super().training_step(batch, batch_index)


def make_spy(images: LabelledImages, **options: Any) -> Spy:
    module = make_module(images, **options)
    module.__class__ = Spy
    assert isinstance(module, Spy)
    return module


def stop_at(epoch: int, batch: int, error: type[BaseException]) -> Callable[[int, int], None]:
    def stop(at_epoch: int, at_batch: int) -> None:
        if (at_epoch, at_batch) == (epoch, batch):
            raise error

    return stop


def forget(module: MSRNModule) -> None:
    """All logits of a label become the same, so that the epoch cannot be the best."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


class StoppedError(Exception):
    """What stops a run in these tests."""


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in ("images_per_s", "seconds")} for row in rows]
