"""What a result says about the machine that made it, and what a process took of it."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

_EXTRAS = {
    "train": "training",
    "report": "pages and pictures",
    "data": "Parquet, Hugging Face data sets",
    "vectors": "word vectors of sentence models",
    "server": "msrn serve and its page",
    "export": "ONNX",
    "ray": "tagging on a cluster",
    "kernels": "fused attention on GPUs",
}
_LARGE_BYTES = 500_000_000
_PACKAGES = ("msrn", "torch", "torchvision", "timm", "lightning", "numpy", "pillow", "triton")


def machine() -> dict[str, Any]:
    """Processor, threads, GPU, and the versions of Python and of the packages that numbers depend on."""
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def describe_installation() -> dict[str, Any]:
    """What `machine` says, and GPUs, memory, where weights are kept, and for each extra what is installed of it."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        **machine(),
        "num_processors": os.cpu_count(),
        "free_memory_bytes": free_ram_bytes(),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
        "weights_cache": HF_HUB_CACHE,
        "extras": {
            name: {"purpose": purpose, "missing": _missing(name), "install": f"pip install 'msrn[{name}]'"}
            for name, purpose in _EXTRAS.items()
        },
    }


def _missing(extra: str) -> list[str]:
    """The packages of an extra that are not installed."""
    found = []
    for text in requires("msrn") or ():
        requirement = Requirement(text)
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        if requirement.marker.evaluate({"extra": ""}) or requirement.name == "msrn":
            continue
        if _version(requirement.name) is None:
            found.append(requirement.name)
    return found


def process_peak_bytes() -> int | None:
    """The most memory that this process has held so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    # Not on Linux, where it starts from what the parent process held.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def lack_of_room(num_bytes: int) -> str | None:
    """What a large amount of memory is beside what is free, in words, where it is more; None where there is room."""
    if num_bytes < _LARGE_BYTES:  # not worth asking the system
        return None
    free = free_ram_bytes()
    if free is None or num_bytes <= free:
        return None
    return f"{num_bytes / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"


def free_ram_bytes(*, root: Path = Path("/")) -> int | None:
    """Memory of the machine that is free, within the limits of its control groups.

    Args:
        root: Where Linux shows `proc` and `sys`.

    Returns:
        Bytes; all memory of the machine where the system does not tell how much is free; None where it tells neither.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):
            return None
    return max(0, min([available, *_control_group_rooms(root)]))


def _control_group_rooms(root: Path) -> Iterator[int]:
    """What each limited control group of this process has left, of either version; pages of files can be given back."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.strip("/")
        # A container may see the path of its host: what exists on the way to the top is ours.
        for group in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
            try:
                limit, used = ((group / name).read_text().strip() for name in names[:2])
                stat = dict(pair.split() for pair in (group / "memory.stat").read_text().splitlines())
            except OSError:
                continue
            if limit != "max":
                yield int(limit) - int(used) + int(stat.get(names[2], 0))
