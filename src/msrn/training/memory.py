"""How much memory a training step takes, counted without taking it: the step runs on tensors that have shapes but no data."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from msrn.data.loader import Batch
from msrn.errors import TrainingError, is_out_of_memory
from msrn.machine import free_ram_bytes
from msrn.models.flops import without_data
from msrn.training.fit import DeviceType, TrainerSettings, training_device_type
from msrn.training.module import MSRNModule
from msrn.training.optim import build_optimizer

# What allocators keep of memory that tensors have left, and libraries load when they are first used. Measured on Linux with a CPU
# (docs/memory.md); assumed for GPUs.
_KEPT_SHARE = 0.15
_KEPT_BYTES = 150_000_000


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training step takes, as counted, and what follows for other batch sizes.

    Attributes:
        device_type: Where the step would run: "cpu" or "cuda".
        batch_size: Images of the batch that was counted.
        parameter_bytes: Parameters and buffers.
        gradient_bytes: Gradients; those of the step before are held until the backward pass begins.
        optimizer_bytes: Optimizer state.
        activation_bytes: The batch, and what the forward pass keeps for the backward pass.
        activation_bytes_per_image: What one image more adds to that.
        peak_bytes: The greatest sum of all tensors alive at one time.
        peak_bytes_per_image: What one image more adds to that.

    Example:
        >>> estimate = MemoryEstimate(
        ...     "cpu", 10, parameter_bytes=10**7, gradient_bytes=10**7, optimizer_bytes=10**7, activation_bytes=9 * 10**8,
        ...     activation_bytes_per_image=9 * 10**7, peak_bytes=10**9, peak_bytes_per_image=10**8,
        ... )
        >>> estimate.expected_bytes    # 1 GB, and 15 % and 0.15 GB more for what the allocator keeps
        1300000000
        >>> estimate.largest_batch(2_450_000_000)    # (2.45 - 0.15) / 1.15 = 2.0 GB for tensors
        20
    """

    device_type: DeviceType
    batch_size: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    activation_bytes_per_image: int
    peak_bytes: int
    peak_bytes_per_image: int

    @property
    def expected_bytes(self) -> int:
        """The peak, and what the allocator keeps beside it."""
        return round((1 + _KEPT_SHARE) * self.peak_bytes) + _KEPT_BYTES

    def largest_batch(self, available_bytes: int) -> int:
        """Most images a batch for which this much memory is enough, or 0.

        Exact where the peak comes at the same point of the step as in the counted batch, or at the end of the forward pass;
        otherwise a little too many. A count at the answer tells.
        """
        at_most = (available_bytes - _KEPT_BYTES) / (1 + _KEPT_SHARE)
        forward_bytes = self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes
        lines = ((self.peak_bytes, self.peak_bytes_per_image), (forward_bytes, self.activation_bytes_per_image))
        return max(0, min(self.batch_size + int((at_most - total) // max(1, slope)) for total, slope in lines))

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, for JSON."""
        return {**asdict(self), "expected_bytes": self.expected_bytes}


def estimate_training_memory(
    module: MSRNModule, settings: TrainerSettings, *, size: tuple[int, int], batch_size: int
) -> MemoryEstimate:
    """Count what a training step of a module takes under the settings that `fit` would be given.

    Steps run as `fit` runs them, on copies of the module's tensors that have a device, a type and a shape but no data: nothing
    is computed, no GPU is needed, and the module stays as it is. Counted are storages, from the operator that returns one to the
    moment the last tensor lets it go; what an operator takes and gives back within itself is not seen.

    Args:
        module: Model, loss and optimizer settings.
        settings: Of these, the precision and where to train matter.
        size: Height and width of the images.
        batch_size: Images a batch.

    Raises:
        TrainingError: The settings ask for a GPU that PyTorch does not find.
        ModelError: The backbone does not take images of this size.

    Source: https://dev-discuss.pytorch.org/t/how-to-measure-memory-usage-from-your-model-without-running-it/2024.
    """
    device_type = training_device_type(settings)
    with FakeTensorMode(allow_non_fake_inputs=True), _LiveStorages() as live, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*self.log", category=UserWarning)  # there is no trainer to log to
        module = without_data(module, device_type)
        parameter_bytes = live.bytes
        optimizer = build_optimizer(module.model, module.optimizer_settings)
        for group in optimizer.param_groups:
            group["foreach"] = device_type == "cuda"  # PyTorch's choice, which it cannot see on tensors without data

        def count(num_images: int) -> tuple[int, int]:
            """Run a step; what is alive after its forward pass, and its peak."""
            live.peak_bytes = live.bytes
            batch = _empty_batch(num_images, size, len(module.val_metrics.label_names), device_type)
            with _autocast(settings, device_type):
                loss = module.training_step(batch, 0)
            after_forward = live.bytes
            optimizer.zero_grad()  # as Lightning does it: after the forward pass
            loss.backward()
            optimizer.step()
            return after_forward, live.peak_bytes

        few = max(2, batch_size)  # batch norms know no batch of one value
        count(few)  # the first step makes gradients and optimizer state, which all others hold
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        gradient_bytes = sum(gradient.untyped_storage().nbytes() for gradient in gradients)
        del gradients
        held_bytes = live.bytes
        (forward, peak), (more_forward, higher_peak) = count(few), count(few + 1)
    activations_per_image, peak_per_image = more_forward - forward, higher_peak - peak
    return MemoryEstimate(
        device_type,
        batch_size,
        parameter_bytes=parameter_bytes,
        gradient_bytes=gradient_bytes,
        optimizer_bytes=held_bytes - parameter_bytes - gradient_bytes,
        activation_bytes=forward - held_bytes + (batch_size - few) * activations_per_image,
        activation_bytes_per_image=activations_per_image,
        peak_bytes=peak + (batch_size - few) * peak_per_image,
        peak_bytes_per_image=peak_per_image,
    )


@contextmanager
def explaining_out_of_memory(
    module: MSRNModule, settings: TrainerSettings, *, size: tuple[int, int], batch_size: int
) -> Iterator[None]:
    """Around training: where memory runs out, say how much a step takes by estimate, how much is free, and what to lower.

    Raises:
        TrainingError: Memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sentences = [f"memory ran out while training with {batch_size} images of {size[0]} x {size[1]} a batch."]
        with suppress(Exception):  # where there is no memory, there may be none for counting it
            estimate = estimate_training_memory(module, settings, size=size, batch_size=batch_size)
            free_bytes = free_memory_bytes(estimate.device_type)
            has = "" if free_bytes is None else f"; {free_bytes / 1e9:.1f} GB are free now"
            sentences.append(f"By estimate a step takes {estimate.expected_bytes / 1e9:.1f} GB{has}.")
        raise TrainingError(
            f"{' '.join(sentences)} Lower data.batch_size (trainer.accumulate makes steps as large as before of smaller batches) "
            "or data.size, or set trainer.precision=bf16-mixed; --dry-run finds the largest batch."
        ) from error


def free_memory_bytes(device_type: DeviceType, *, root: Path = Path("/")) -> int | None:
    """Memory that training could take now: of the GPU, or of the machine within the limits of its control groups.

    Args:
        device_type: "cpu" or "cuda".
        root: Where Linux shows `proc` and `sys`.

    Returns:
        Bytes; all memory of the machine where the system does not tell how much is free; None where it tells neither.
    """
    if device_type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return free_ram_bytes(root=root)


class _LiveStorages(TorchDispatchMode):
    """Adds up the storages that operators returned and that are still alive.

    `torch.distributed._tools.mem_tracker.MemTracker` finds the same sums (a test compares them), but is private, several times
    slower and needs torch.distributed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # "is the loss finite?": a tensor without data cannot say
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.peak_bytes = max(self.peak_bytes, self.bytes)
            finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _empty_batch(num_images: int, size: tuple[int, int], num_labels: int, device_type: DeviceType) -> Batch:
    return {
        "images": torch.empty(num_images, 3, *size, device=device_type),
        "target": torch.empty(num_images, num_labels, dtype=torch.long, device=device_type),
        "index": torch.empty(num_images, dtype=torch.long, device=device_type),
    }


def _autocast(settings: TrainerSettings, device_type: DeviceType) -> torch.autocast:
    """Mixed precision as Lightning sets it; on a CPU it takes bfloat16 for either."""
    is_half = settings.precision == "16-mixed" and device_type == "cuda"
    dtype = torch.float16 if is_half else torch.bfloat16
    return torch.autocast(device_type, dtype=dtype, enabled=settings.precision != "32-true")
