"""What a result says about the machine that made it, and what a process took of it."""

import os
import platform
import sys
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

    from msrn.training.memory import free_memory_bytes

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        **machine(),
        "num_processors": os.cpu_count(),
        "free_memory_bytes": free_memory_bytes("cpu"),
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
