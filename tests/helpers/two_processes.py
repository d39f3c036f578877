"""What tests of several processes run in each of them: `torchrun two_processes.py FOLDER` trains every case in FOLDER."""

import dataclasses
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    OptimStateKeyType,
    StateDictType,
)

from msrn.data import LabelledImages
from msrn.data.loader import build_loader
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.errors import MSRNError
from msrn.labels import LabelGraph
from msrn.models import build_msrn
from msrn.processes import is_first_process
from msrn.training import LossSettings, MSRNModule, MultilabelLoss, OptimizerSettings, TrainerSettings, fit
from msrn.training.distributed import FSDPStrategy, ProcessPlan

LABELS = ("red", "green", "blue", "warm")
PREPROCESSING = Preprocessing((32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
NUM_TRAIN, NUM_VAL = 19, 7  # neither is whole batches for two processes


class PoisonWhite:
    """Makes an image that is all white a tensor of NaN."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        tensor = PREPROCESSING(image)
        return torch.full_like(tensor, torch.nan) if np.asarray(image).min() == 255 else tensor


def make_images(folder: Path, split: str, count: int, *, seed: int) -> LabelledImages:
    """Pictures whose labels can be seen in their colour, many of them unknown: of some pictures all, of others one."""
    rng = np.random.default_rng(seed)
    (folder / split).mkdir(parents=True, exist_ok=True)
    paths, rows = [], []
    for number in range(count):
        present = rng.random(3) < 0.5
        pixels = rng.integers(0, 90, (32, 32, 3)) + 150 * present
        paths.append(folder / split / f"{number}.png")
        if not paths[-1].exists():
            Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
        row = np.array([*present, present[0] and not present[2]], dtype=np.int8)
        if number % 3 == 0:
            row[:] = -1
        elif number % 3 == 1:
            row[number % 4] = -1
        rows.append(row)
    return LabelledImages(tuple(paths), np.array(rows), LABELS, split)


class StoppedError(MSRNError):
    """What stops a run in these tests."""


class WatchedModule(MSRNModule):
    """Keeps the gradients of its first step, and can be stopped."""

    gradients: dict[str, torch.Tensor] | None = None
    stop_at: tuple[int, int] | None = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Stop at this batch of this epoch."""
        if (self.current_epoch, batch_idx) == self.stop_at:
            raise StoppedError("stopped by the test")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Keep them."""
        if self.gradients is None:
            named = self.model.named_parameters()
            self.gradients = {name: value.grad.clone() for name, value in named if value.grad is not None}


class ShardOnCPU(FSDPStrategy):
    """FSDP, which Lightning and PyTorch keep for GPUs: on a CPU it trains too, and only cannot offload its state."""

    def _setup_model(self, model: Any) -> Any:
        make = FullyShardedDataParallel.__init__
        with mock.patch.object(FullyShardedDataParallel, "__init__", partialmethod(_with_cpu, make)):
            return super()._setup_model(model)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole model."""
        with self._whole():
            return self.model.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole state, with numbers for names."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        with self._whole():
            state = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
            return FullyShardedDataParallel.rekey_optim_state_dict(state, OptimStateKeyType.PARAM_ID, self.model)

    def _whole(self) -> Any:
        configs = FullStateDictConfig(offload_to_cpu=False), FullOptimStateDictConfig(offload_to_cpu=False)
        return FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *configs)


def _with_cpu(self: Any, make: Any, *args: Any, **options: Any) -> None:
    make(self, *args, **{**options, "device_id": torch.device("cpu")})


def sharded_plan(self: ProcessPlan) -> dict[str, Any]:
    """The trainer's arguments of a plan, with FSDP as it is planned for GPUs."""
    on_gpus = dataclasses.replace(self, strategy="fsdp", device_type="cuda")
    planned = TRAINER_ARGUMENTS(on_gpus)
    policy = planned["strategy"].kwargs["auto_wrap_policy"]
    return {**planned, "strategy": ShardOnCPU(auto_wrap_policy=policy), "accelerator": "cpu"}


TRAINER_ARGUMENTS = ProcessPlan.trainer_arguments


def train(
    folder: Path,
    out: Path,
    *,
    case: str,
    batch_size: int,
    devices: int | None = None,
    stop_at: tuple[int, int] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train one case; what came out of it, or the text of the error."""
    train_images = make_images(folder, "train", NUM_TRAIN, seed=0)
    val_images = make_images(folder, "val", NUM_VAL, seed=1)
    transform: Any = TrainTransform(PREPROCESSING, crop_scale=(0.7, 1.0))
    val_transform: Any = PREPROCESSING
    if case == "poisoned training":
        transform = PoisonWhite()
        Image.new("RGB", (32, 32), "white").save(train_images.paths[3])
    if case == "poisoned validation":
        val_transform = PoisonWhite()
        Image.new("RGB", (32, 32), "white").save(val_images.paths[4])
    is_frozen = case.startswith("frozen")
    torch.manual_seed(0)
    graph = LabelGraph.from_target(torch.from_numpy(train_images.target), LABELS)
    options = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}
    model = build_msrn(graph, dim=8, normalize=not is_frozen, freeze_batch_norm=is_frozen, **options)
    loss = LossSettings("asymmetric", label_weights="inverse") if "asymmetric" in case else LossSettings()
    module = WatchedModule(
        model,
        LABELS,
        loss=MultilabelLoss(loss, torch.from_numpy(train_images.target)),
        group_loss_weight=0.1,  # large enough to be seen if it were counted twice
        optimizer=OptimizerSettings("sgd", lr=0.1, backbone_factor=0.3),
        image_paths=train_images.paths,
        val_image_paths=val_images.paths,
    )
    module.stop_at = stop_at
    settings = TrainerSettings(
        2,
        gradient_clip=0.5 if "clipped" in case else None,
        accelerator="cpu",
        devices=devices,
        seed=3,
        ema_decay=0.5 if "statistics" in case else None,
        checkpoint_steps=1 if "within" in case else None,
    )
    train_loader = build_loader(train_images, transform, batch_size=batch_size, shuffle=True, seed=3)
    val_loader = build_loader(val_images, val_transform, batch_size=2, is_shared_out=True)
    is_sharded = "sharded" in case and devices is None
    arguments = sharded_plan if is_sharded else TRAINER_ARGUMENTS
    try:
        with mock.patch.object(ProcessPlan, "trainer_arguments", arguments):
            result = fit(module, settings, train_loader, val_loader, out / case, resume=resume)
    except MSRNError as error:
        return {"error": str(error), "is_in_every_process": error.is_in_every_process}
    timed = ("images_per_s", "seconds")
    return {
        "rows": [{name: value for name, value in row.items() if name not in timed} for row in result.rows],
        "weights": result.state_dict,
        "last": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": module.gradients,
        "is_first": is_first_process(),
    }


CASES = (
    "frozen",
    "frozen asymmetric",
    "frozen sharded clipped",
    "frozen sharded stopped",
    "statistics",
    "statistics within",
    "poisoned validation",
    "poisoned training",
)


if __name__ == "__main__":
    import os

    folder = Path(sys.argv[1])
    stops = {"frozen sharded stopped": (1, 0), "statistics within": (1, 1)}
    results = {case: train(folder / case, folder, case=case, batch_size=4, stop_at=stops.get(case)) for case in CASES}
    results["resumed"] = train(folder / "statistics", folder, case="statistics within", batch_size=4, resume=True)
    torch.save(results, folder / f"rank{os.environ['RANK']}.pt")
