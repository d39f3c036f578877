"""A few batches, tried: what is measured, that it is training as it will be, and that nothing stays."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from msrn.data.loader import Batch
from msrn.errors import NonFiniteLossError, TrainingError
from msrn.training import MSRNModule, OptimizerSettings, TrainerSettings, Trial, trial, try_training

CPU = TrainerSettings(accelerator="cpu")


class Batches(DataLoader[Batch]):
    """A loader of that many batches, which counts those it gave."""

    def __init__(self, count: int, value: float = 1.0) -> None:
        super().__init__(range(count), batch_size=None, collate_fn=self.make)  # type: ignore[arg-type]
        self.value, self.given = value, 0

    def make(self, number: int) -> Batch:
        self.given += 1
        images = torch.full((4, 3, 8, 8), self.value)
        return {"images": images, "target": torch.tensor([[1, 0], [0, 1], [1, 1], [0, -1]]), "index": torch.arange(4)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images).mean(dim=(2, 3)))


def make_module(lr: float = 0.1) -> MSRNModule:
    torch.manual_seed(0)
    return MSRNModule(Net(), ("a", "b"), optimizer=OptimizerSettings(lr=lr))


def attempt(num_batches: int, settings: TrainerSettings = CPU, module: MSRNModule | None = None) -> Trial:
    return try_training(module or make_module(), settings, Batches(num_batches), Batches(2))


def test_four_batches_are_trained_and_one_validated() -> None:
    module, train, val = make_module(), Batches(100), Batches(50)
    before = module.model.head.weight.clone()
    found = try_training(module, CPU, train, val)
    assert found.timed_batches == 3
    assert train.given in (4, 5)  # Lightning looks one ahead
    assert val.given <= 2
    assert not torch.equal(module.model.head.weight, before)
    assert found.warm_up_s > 0
    assert found.step_s > 0
    assert found.val_batch_s > 0
    assert found.loss == pytest.approx(math.log(2), abs=0.3)
    assert found.peak_bytes is None or found.peak_bytes > 10**7
    assert json.loads(json.dumps(found.to_dict()))["timed_batches"] == 3


def test_the_only_batch_has_to_do() -> None:
    found = attempt(1)
    assert (found.timed_batches, found.step_s) == (0, found.warm_up_s)


def test_slow_batches_end_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_ENOUGH_S", 0.0)
    assert attempt(100).timed_batches == 1


def test_loss_is_that_of_the_batch_whatever_is_accumulated() -> None:
    assert attempt(4, TrainerSettings(accelerator="cpu", accumulate=3)).loss == pytest.approx(attempt(4).loss)


def test_time_of_an_epoch() -> None:
    found = Trial(0.7, warm_up_s=9.0, step_s=0.5, timed_batches=3, val_batch_s=0.25, peak_bytes=None)
    assert found.epoch_seconds(10, 4) == 6.0


def test_a_loss_that_is_not_finite_is_found() -> None:
    with pytest.raises(NonFiniteLossError, match="the loss became nan in epoch 1 of 1, batch 1"):
        try_training(make_module(), CPU, Batches(4, float("nan")), Batches(1))


def test_memory_that_runs_out_is_said() -> None:
    module = make_module()

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    module.model.forward = fail
    with pytest.raises(TrainingError, match=r"memory ran out in the first batches\. Lower data.batch_size"):
        try_training(module, CPU, Batches(4), Batches(1))


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attempt(4)
    assert list(tmp_path.iterdir()) == []
