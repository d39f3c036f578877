"""The memory estimate: what it counts, that it counts right, and how much memory it finds free."""

import contextlib
import importlib.util
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from msrn.errors import ModelError, TrainingError
from msrn.labels import LabelGraph
from msrn.models import PUBLISHED, build_msrn, build_pooled, use_channels_last
from msrn.models.flops import without_data
from msrn.training import (
    MemoryEstimate,
    MSRNModule,
    OptimizerSettings,
    TrainerSettings,
    build_optimizer,
    estimate_training_memory,
    free_memory_bytes,
    training_device_type,
)
from msrn.training.memory import _empty_batch, _LiveStorages

CPU = TrainerSettings(accelerator="cpu")
SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": [8, 8, 16, 16]},
    "dim": 8,
    "classifier_dim": 16,
}

SMALL_SWIN = {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 24}


def make_module(label_graph: LabelGraph, optimizer: str = "sgd", **options: Any) -> MSRNModule:
    model = build_msrn(label_graph, **{**SMALL, **options})
    use_channels_last(model)
    return MSRNModule(model, label_graph.label_names, optimizer=OptimizerSettings(optimizer, lr=1e-3))


def count(module: MSRNModule, batch_size: int = 4, size: tuple[int, int] = (64, 64), **settings: Any) -> MemoryEstimate:
    return estimate_training_memory(
        module, TrainerSettings(**{"accelerator": "cpu", **settings}), size=size, batch_size=batch_size
    )


@pytest.fixture(scope="module")
def estimate(label_graph: LabelGraph) -> MemoryEstimate:
    return count(make_module(label_graph))


class Flat(nn.Module):
    """One matrix over all pixels: its memory can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 10 * 10, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


# What is counted


@pytest.mark.parametrize(("optimizer", "state_numbers"), [("sgd", 1505), ("adamw", 2 * 1505 + 2)])
def test_parts_are_those_worked_out_by_hand(optimizer: str, state_numbers: int) -> None:
    module = MSRNModule(Flat(), ("a", "b", "c", "d", "e"), optimizer=OptimizerSettings(optimizer))
    estimate = count(module, 1000, (10, 10))
    assert estimate.parameter_bytes == estimate.gradient_bytes == 4 * 1505
    assert estimate.optimizer_bytes == 4 * state_numbers  # AdamW: two averages, and a count of steps a tensor
    # An image as read, and its pixels in a row; its labels and number; logits, labels as numbers and which are known.
    assert estimate.activation_bytes_per_image == 2 * 4 * 300 + 8 * (5 + 1) + 5 * (4 + 4 + 1)
    assert estimate.peak_bytes >= estimate.parameter_bytes * 2 + estimate.optimizer_bytes + estimate.activation_bytes


@pytest.mark.parametrize(("options", "optimizer"), [({}, "sgd"), (PUBLISHED, "adamw")])
def test_peak_is_that_of_pytorchs_tracker(label_graph: LabelGraph, options: dict[str, Any], optimizer: str) -> None:
    module = make_module(label_graph, optimizer, **{**options, "dim": 8})
    estimate = count(module, 16)
    with FakeTensorMode(allow_non_fake_inputs=True), _LiveStorages(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fake = without_data(module, "cpu")
        moving = build_optimizer(fake.model, fake.optimizer_settings)
        tracker = MemTracker()
        tracker.track_external(fake, moving)
        with tracker:
            for _ in range(2):
                batch = _empty_batch(16, (64, 64), 6, "cpu")
                loss = fake.training_step(batch, 0)
                moving.zero_grad()
                loss.backward()
                moving.step()
                tracker.reset_mod_stats()
                del loss, batch
    # Theirs rounds every storage up to 512 bytes.
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert estimate.peak_bytes <= peak <= estimate.peak_bytes + 512 * 500


def test_memory_grows_linearly_with_the_batch(label_graph: LabelGraph) -> None:
    module = make_module(label_graph)
    few, many = count(module, 8), count(module, 500)
    assert few.parameter_bytes == many.parameter_bytes
    assert few.optimizer_bytes == many.optimizer_bytes
    assert many.activation_bytes == few.activation_bytes + 492 * few.activation_bytes_per_image
    # The peak may move to another point of the step, never below the line.
    line = few.peak_bytes + 492 * few.peak_bytes_per_image
    assert line <= many.peak_bytes <= 1.05 * line


@pytest.mark.slow
def test_largest_batch_fits_and_one_more_does_not(label_graph: LabelGraph) -> None:
    """With the joint classifier weights decide the peak of a small batch, activations that of a large one."""
    module = make_module(label_graph, **{**PUBLISHED, "dim": 64, "classifier_dim": 2048})
    available = 10**9
    largest = count(module, 2).largest_batch(available)
    while (fitting := count(module, largest).largest_batch(available)) < largest:
        largest = fitting
    assert count(module, largest).expected_bytes <= available < count(module, largest + 1).expected_bytes
    assert count(module, 2).largest_batch(available) <= 1.25 * largest  # lines alone tell nearly as much


def test_too_little_memory_leaves_no_batch(estimate: MemoryEstimate) -> None:
    assert estimate.largest_batch(1000) == 0


def test_batch_of_one_is_on_the_line(label_graph: LabelGraph) -> None:
    module = make_module(label_graph)
    one, two = count(module, 1, (32, 32)), count(module, 2, (32, 32))  # 1 x 1 positions: no batch norm takes one image
    assert two.peak_bytes - one.peak_bytes == one.peak_bytes_per_image


def test_module_stays_as_it_is(label_graph: LabelGraph) -> None:
    module = make_module(label_graph)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    count(module)
    after = module.state_dict()
    assert all(type(value) is Tensor and torch.equal(value, before[name]) for name, value in after.items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_tensors_used_twice_are_counted_once() -> None:
    model = Flat()
    model.again = model.linear
    model.weight = model.linear.weight
    assert count(MSRNModule(model, tuple("abcde")), 2, (10, 10)).parameter_bytes == 4 * 1505


def test_mixed_precision_keeps_smaller_activations(label_graph: LabelGraph) -> None:
    module = make_module(label_graph)
    full, half = count(module, 32), count(module, 32, precision="bf16-mixed")
    assert 0.4 < half.activation_bytes_per_image / full.activation_bytes_per_image < 0.75
    assert half.parameter_bytes == full.parameter_bytes
    assert count(module, 32, precision="16-mixed") == half  # Lightning takes bfloat16 on a CPU


@pytest.mark.parametrize(
    "options",
    [
        {"keep_last_layers": True, "freeze_batch_norm": True, "backbone": "mobilenetv2_035"},
        {"backbone": "vit_tiny_patch16_224", "backbone_options": {"img_size": 64, "depth": 4, "drop_path_rate": 0.1}},
        {"backbone": "swin_tiny_patch4_window7_224", "backbone_options": SMALL_SWIN},
    ],
    ids=lambda options: options["backbone"],
)
def test_other_backbones_are_counted(label_graph: LabelGraph, options: dict[str, Any]) -> None:
    estimate = count(make_module(label_graph, **{"backbone_options": {}, **options}), 2)
    assert estimate.peak_bytes_per_image >= estimate.activation_bytes_per_image > 10**5


def test_pooled_head_is_counted(label_graph: LabelGraph, estimate: MemoryEstimate) -> None:
    model = build_pooled(6, backbone="resnet10t", backbone_options=SMALL["backbone_options"])
    pooled = count(MSRNModule(model, label_graph.label_names))
    assert 0 < pooled.activation_bytes < estimate.activation_bytes


def test_frozen_stages_take_less(label_graph: LabelGraph, estimate: MemoryEstimate) -> None:
    frozen = count(make_module(label_graph, frozen_stages=3))
    assert frozen.gradient_bytes < estimate.gradient_bytes
    assert frozen.optimizer_bytes < estimate.optimizer_bytes
    assert frozen.activation_bytes_per_image < 0.8 * estimate.activation_bytes_per_image
    assert frozen.parameter_bytes == estimate.parameter_bytes


@pytest.mark.slow
def test_merged_batch_norms_keep_less(label_graph: LabelGraph) -> None:
    options = {"backbone": "mobilenetv2_035", "backbone_options": {}}
    plain, merged = (
        count(make_module(label_graph, freeze_batch_norm=is_frozen, **options)) for is_frozen in (False, True)
    )
    assert merged.activation_bytes_per_image < 0.7 * plain.activation_bytes_per_image


def test_size_that_the_backbone_does_not_take_is_named(label_graph: LabelGraph) -> None:
    module = make_module(label_graph, backbone="vit_tiny_patch16_224", backbone_options={"depth": 4})
    with pytest.raises(ModelError, match=r"does not take images of 64 x 64"):
        count(module)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainingError, match=r"no GPU here\. Set trainer\.accelerator=cpu"):
        training_device_type(TrainerSettings(accelerator="gpu"))
    assert training_device_type(TrainerSettings()) == "cpu"


def test_numbers_for_json(estimate: MemoryEstimate) -> None:
    values = json.loads(json.dumps(estimate.to_dict()))
    assert values["expected_bytes"] == estimate.expected_bytes > values["peak_bytes"]
    assert {"parameter_bytes", "gradient_bytes", "optimizer_bytes", "activation_bytes", "batch_size"} < values.keys()


# What is free


def write_system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


VERSION_1 = {
    "memory.limit_in_bytes": "9223372036854771712\n",
    "memory.usage_in_bytes": "100\n",
    "memory.stat": "cache 5\ntotal_inactive_file 7\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 8000 * 1024),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "5000\n",
                "sys/fs/cgroup/a/memory.current": "3000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 500\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "3000\n",
                "sys/fs/cgroup/a/b/memory.stat": "anon 1\ninactive_file 500\n",
            },
            2500,
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/host/path\n0::/\n",
                **{f"sys/fs/cgroup/memory/{name}": text for name, text in VERSION_1.items()},
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000\n",
            },
            4000 - 100 + 7,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/\n",
                **{f"sys/fs/cgroup/memory/{name}": text for name, text in VERSION_1.items()},
            },
            8000 * 1024,
        ),
        (
            {
                "proc/self/cgroup": "0::/\n",
                "sys/fs/cgroup/memory.max": "10\n",
                "sys/fs/cgroup/memory.current": "20\n",
                "sys/fs/cgroup/memory.stat": "",
            },
            0,
        ),
    ],
    ids=["no group", "version 2, limit above", "version 1, path of the host", "version 1, no limit", "over its limit"],
)
def test_free_memory_is_within_the_limits_of_control_groups(tmp_path: Path, files: dict[str, str], free: int) -> None:
    assert free_memory_bytes("cpu", root=write_system(tmp_path, files)) == free


def test_all_memory_where_no_file_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_memory_bytes("cpu", root=tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.delattr(os, "sysconf")
    assert free_memory_bytes("cpu", root=tmp_path) is None


# Estimated and measured


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """benchmarks/memory.py, which measures what a process takes."""
    folder = Path(__file__).parents[2] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec = importlib.util.spec_from_file_location("memory", folder / "memory.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


needs_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")


@pytest.mark.slow
@needs_linux
def test_count_is_what_a_step_takes(benchmark: Any) -> None:
    """With an allocator that returns what tensors have left at once."""
    case = benchmark.make_case(160, 8, backbone="mobilenetv2_100", **{**PUBLISHED, "classifier_dim": 512})
    estimate = benchmark.estimate(case)
    assert estimate.peak_bytes > 250_000_000
    assert benchmark.measure(case, **benchmark.RETURNING) == pytest.approx(estimate.peak_bytes, rel=0.08)


@needs_linux
@pytest.mark.slow
@pytest.mark.parametrize("number", range(7))
def test_expectation_is_what_a_process_takes(benchmark: Any, number: int) -> None:
    case = list(benchmark.CASES.values())[number]
    assert benchmark.measure(case) == pytest.approx(benchmark.estimate(case).expected_bytes, rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("options", [{}, PUBLISHED])
def test_count_is_what_a_gpu_takes(label_graph: LabelGraph, options: dict[str, Any], precision: Any) -> None:
    """The peak of PyTorch's own account over the third step."""
    module = make_module(label_graph, **{"dim": 512, "backbone": "resnet18", "backbone_options": {}, **options})
    settings = TrainerSettings(precision=precision, accelerator="gpu")
    estimate = estimate_training_memory(module, settings, size=(224, 224), batch_size=16)
    before = torch.cuda.memory_allocated()
    module.cuda()
    optimizer = build_optimizer(module.model, module.optimizer_settings)
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats()
            images, target = (
                torch.randn(16, 3, 224, 224, device="cuda"),
                torch.ones(16, 6, dtype=torch.long, device="cuda"),
            )
            context = contextlib.nullcontext() if precision == "32-true" else torch.autocast("cuda", dtype=dtype)
            with context:
                loss = module.training_step({"images": images, "target": target, "index": target[:, 0]}, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del loss
    measured = torch.cuda.max_memory_allocated() - before
    print(f"measured {measured / 1e9:.3f} GB, peak {estimate.peak_bytes / 1e9:.3f}")
    assert measured == pytest.approx(estimate.peak_bytes, rel=0.2)
