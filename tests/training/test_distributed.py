"""Several processes train as one would that holds all images, and end together. They are real: torchrun starts two on this CPU."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from torch import nn

from msrn.compare.variants import ABLATIONS, HEADS
from msrn.data.loader import EpochSampler, SharedOutBatches
from msrn.errors import TrainingError
from msrn.labels import EdgeRule, LabelGraph, vectors_from_co_occurrence
from msrn.models import Backbone
from msrn.processes import is_first_process
from msrn.recipes import load_recipe
from msrn.recipes.build import build_recipe_model
from msrn.training import MSRNModule, OptimizerSettings, TrainerSettings, build_optimizer, planned_processes
from msrn.training.distributed import plan_processes, synchronised_batch_norms

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of two processes found in every case."""
    folder = tmp_path_factory.mktemp("two")
    script = ROOT / "tests" / "helpers" / "two_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


# Two processes are one with twice the batch


@pytest.mark.parametrize("case", ["frozen", "frozen asymmetric"])
def test_two_processes_have_the_gradients_and_metrics_of_one_with_twice_the_batch(
    results: tuple[Path, list[dict[str, Any]]], tmp_path: Path, case: str
) -> None:
    """Nineteen images, seven for validation, and unknown labels that are not spread evenly."""
    folder, ranks = results
    one = two_processes.train(folder / case, tmp_path, case=case, batch_size=8, devices=1)
    for two in (found[case] for found in ranks):
        assert two["gradients"].keys() == one["gradients"].keys()
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-3, atol=1e-6, msg=name)
        check_same_run(two, one)


def check_same_run(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-5, msg=name)
    assert len(found["rows"]) == len(expected["rows"]) == 2
    for row, expected_row in zip(found["rows"], expected["rows"], strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4)


def test_unknown_labels_are_uneven_between_the_processes(results: tuple[Path, list[dict[str, Any]]]) -> None:
    """So that the test above would notice a loss that each process normalises on its own."""
    folder, _ = results
    target = torch.from_numpy(two_processes.make_images(folder / "frozen", "train", 19, seed=0).target)
    order = torch.tensor([index for _, index in EpochSampler(19, seed=3)])[:8]
    known = [(target[order[rank::2]] >= 0).sum().item() for rank in (0, 1)]
    assert known[0] != known[1]


def test_every_process_goes_on_with_the_same_model(results: tuple[Path, list[dict[str, Any]]]) -> None:
    """Batch norms that see the images of one process only, and a moving average of the weights."""
    first, second = (found["statistics"] for found in results[1])
    for kind in ("last", "weights"):
        assert all(torch.equal(value, second[kind][name]) for name, value in first[kind].items()), kind
    assert any("running_mean" in name for name in first["last"])
    assert first["rows"] == second["rows"]


def test_a_run_of_two_processes_goes_on_from_within_an_epoch_as_if_never_stopped(
    results: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in results[1]:
        assert found["statistics within"]["error"] == "stopped by the test"
        assert found["resumed"]["rows"] == found["statistics"]["rows"]
        for kind in ("last", "weights"):
            expected = found["statistics"][kind]
            assert all(torch.equal(value, expected[name]) for name, value in found["resumed"][kind].items())


def test_one_process_is_the_first(results: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["statistics"]["is_first"] for found in results[1]] == [True, False]


@pytest.mark.parametrize(
    ("case", "image", "what"),
    [
        ("poisoned training", "train/3.png", "the loss became nan in epoch 1 of 2, batch "),
        ("poisoned validation", "val/4.png", "the validation loss became nan in epoch 1 of 2, validation batch "),
    ],
)
def test_what_one_process_finds_ends_both_with_one_message(
    results: tuple[Path, list[dict[str, Any]]], case: str, image: str, what: str
) -> None:
    first, second = (found[case] for found in results[1])
    assert first == second
    assert first["is_in_every_process"]
    assert what in first["error"]
    assert f"(images {results[0] / case / image})" in first["error"]


@pytest.mark.parametrize("variant", sorted(HEADS | ABLATIONS))
def test_every_parameter_that_is_trained_gets_a_gradient(variant: str) -> None:
    """Processes wait for the gradients of all of them."""
    small = ["model.backbone=resnet10t", "model.backbone_options={channels: [8, 8, 16, 16]}", "model.dim=8"]
    recipe = load_recipe("scenes", [*small, *(HEADS | ABLATIONS)[variant].overrides])
    target = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
    rule = EdgeRule(recipe.labels.rule, recipe.labels.threshold)
    graph = LabelGraph.from_target(target, two_processes.LABELS, rule=rule)
    model = build_recipe_model(recipe, graph, vectors_from_co_occurrence(graph, dim=8))
    module = MSRNModule(model, two_processes.LABELS, group_loss_weight=recipe.loss.group_weight)
    batch = {"images": torch.randn(4, 3, 64, 64), "target": target, "index": torch.arange(4)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*self.log", category=UserWarning)  # there is no trainer to log to
        module.training_step(batch, 0).backward()
    missing = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not missing


# Shares of the images


def set_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr("msrn.data.loader.rank_and_world_size", lambda: (rank, world_size))


@pytest.mark.parametrize(("num_images", "batch_size", "world_size"), [(40, 4, 2), (19, 3, 3), (23, 1, 4), (8, 4, 2)])
def test_batches_of_all_processes_are_those_of_one(
    monkeypatch: pytest.MonkeyPatch, num_images: int, batch_size: int, world_size: int
) -> None:
    alone = [index for _, index in EpochSampler(num_images, seed=5, batch_size=batch_size * world_size)]
    shares = []
    for rank in range(world_size):
        set_rank(monkeypatch, rank, world_size)
        sampler = EpochSampler(num_images, seed=5, batch_size=batch_size)
        shares.append([index for _, index in sampler])
        assert len(sampler) == len(shares[-1])
    assert len({len(share) for share in shares}) == 1
    for start in range(0, len(shares[0]), batch_size):
        batch = sorted(index for share in shares for index in share[start : start + batch_size])
        assert batch == sorted(alone[start * world_size : (start + batch_size) * world_size])
    assert len(alone) == num_images // (batch_size * world_size) * batch_size * world_size


def test_fewer_images_than_a_batch_of_all_are_dealt_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(3):
        set_rank(monkeypatch, rank, 3)
        share = [index for _, index in EpochSampler(7, seed=0, batch_size=4)]
        assert 0 < len(share) <= 4  # one batch
        seen += share
    assert sorted(seen) == list(range(7))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
@pytest.mark.parametrize("num_images", [7, 8, 20, 33])
def test_validation_deals_every_image_out_once_in_as_many_batches(
    monkeypatch: pytest.MonkeyPatch, num_images: int, batch_size: int, world_size: int
) -> None:
    shares = []
    for rank in range(world_size):
        set_rank(monkeypatch, rank, world_size)
        batches = SharedOutBatches(num_images, batch_size=batch_size)
        shares.append(list(batches))
        assert len(batches) == len(shares[-1])
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(batch) <= max(batch_size, min(2, world_size)) for share in shares for batch in share)
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(num_images))


# What is asked for


PLAN: dict[str, Any] = {
    "devices": None,
    "num_nodes": None,
    "strategy": "auto",
    "sync_batch_norm": None,
    "device_type": "cpu",
}


def test_one_process_is_the_default() -> None:
    plan = planned_processes(TrainerSettings(accelerator="cpu"))
    assert (plan.world_size, plan.strategy, plan.sync_batch_norm) == (1, "single", False)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"devices": 2}, (2, 1, "ddp", False)),
        ({"devices": 2, "num_nodes": 3, "strategy": "ddp"}, (2, 3, "ddp", False)),
        ({"devices": 2, "device_type": "cuda"}, (2, 1, "ddp", True)),
        ({"devices": 2, "device_type": "cuda", "sync_batch_norm": False}, (2, 1, "ddp", False)),
        ({"devices": 2, "device_type": "cuda", "strategy": "fsdp"}, (2, 1, "fsdp", True)),
    ],
)
def test_plans(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], expected: tuple[Any, ...]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    plan = plan_processes(**{**PLAN, **asked})
    assert (plan.devices, plan.num_nodes, plan.strategy, plan.sync_batch_norm) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"strategy": "fsdp"}, "shards a model over GPUs"),
        ({"devices": 2, "sync_batch_norm": True}, "needs GPUs"),
        ({"devices": 3, "device_type": "cuda"}, "trainer.devices=3 needs as many GPUs, PyTorch finds 2"),
    ],
)
def test_what_a_machine_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(TrainingError, match=message):
        plan_processes(**{**PLAN, **asked})


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "3", "LOCAL_RANK": "1"}
SLURM = {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "3", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(("launcher", "environment"), [("torchrun", TORCHRUN), ("SLURM", SLURM)])
def test_processes_that_were_started_are_taken(
    monkeypatch: pytest.MonkeyPatch, launcher: str, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plan = plan_processes(**PLAN)
    assert (plan.devices, plan.num_nodes, plan.strategy) == (2, 3, "ddp")
    assert not is_first_process()
    with pytest.raises(
        TrainingError, match=f"{launcher} has started 2 processes on each of 3 machines, the recipe asks for 4"
    ):
        plan_processes(**{**PLAN, "devices": 4})


def test_slurm_has_to_say_how_many_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(TrainingError, match="--ntasks-per-node"):
        plan_processes(**PLAN)


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "5"}, False),
    ],
)
def test_the_environment_tells_which_process_is_the_first(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_first: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == is_first


# Models of several GPUs, as far as a CPU can tell


def test_a_sharded_model_trains_as_a_whole_one(results: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """Weights, metrics, the norm of all gradients and its clipping."""
    folder, ranks = results
    case = "frozen sharded clipped"
    one = two_processes.train(folder / case, tmp_path, case=case, batch_size=8, devices=1)
    assert min(row["train/grad_norm"] for row in one["rows"]) > 0.5
    for found in ranks:
        check_same_run(found[case], one)


def test_one_process_goes_on_where_two_with_a_sharded_model_stopped(
    results: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, ranks = results
    case = "frozen sharded stopped"
    assert [found[case]["error"] for found in ranks] == ["stopped by the test"] * 2
    shutil.copytree(folder / case / "checkpoints", tmp_path / "two" / case / "checkpoints")
    options: dict[str, Any] = {"case": case, "batch_size": 8, "devices": 1}
    resumed = two_processes.train(folder / case, tmp_path / "two", **options, resume=True)
    check_same_run(resumed, two_processes.train(folder / case, tmp_path / "one", **options))


def test_batch_norms_are_synchronised_for_a_while() -> None:
    """The activations that timm keeps in its batch norms stay."""
    backbone = Backbone("mobilenetv2_100", num_stages=1).eval()  # a CPU can synchronise no others
    images = torch.randn(2, 3, 32, 32)
    before, (expected,) = dict(backbone.named_modules()), backbone(images)
    with synchronised_batch_norms(backbone, is_on=True):
        inside = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert inside
        assert all(isinstance(module, nn.SyncBatchNorm) and not module.training for module in inside)
        assert torch.equal(backbone(images)[0], expected)
        with torch.no_grad():
            inside[0].weight += 1
        inside[0].running_mean = inside[0].running_mean + 1
        changed = backbone(images)[0]
        assert not torch.equal(changed, expected)
    assert all(dict(backbone.named_modules())[name] is module for name, module in before.items())
    assert torch.equal(backbone(images)[0], changed)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimizer_knows_matrices_of_which_it_sees_pieces(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    expected = build_optimizer(model, OptimizerSettings(name))
    matrices = {key for key, parameter in model.named_parameters() if parameter.ndim > 1}
    for parameter in model.parameters():
        parameter.data = parameter.data.flatten()[:2]
    sharded = build_optimizer(model, OptimizerSettings(name), matrices=matrices)
    for group, other in zip(expected.param_groups, sharded.param_groups, strict=True):
        assert group["weight_decay"] == other["weight_decay"]
        assert all(one is two for one, two in zip(group["params"], other["params"], strict=True))
