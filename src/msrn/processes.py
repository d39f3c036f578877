"""The processes of a run: which of those that train together this one is, and when those that read images end."""

import os
import signal
import sys
from types import TracebackType
from typing import Any

import torch.distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process, from 0, and of all that train together now; 0 and 1 where nothing is trained in several.

    Example:
        >>> rank_and_world_size()
        (0, 1)
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_first_process() -> bool:
    """Whether this process writes the files and speaks, also before it has found the others.

    torchrun, SLURM's srun and Lightning tell a process by its environment which one it is.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    names = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(os.environ.get(name, "0") in ("", "0") for name in names)


# The longest that a worker goes on after a SIGTERM, for the first process to finish its step.
_GRACE_S = 60


def leave_stopping_to_the_first(worker: int) -> None:
    """Let a worker that reads images go on when a signal comes to all processes; PyTorch's `worker_init_fn`.

    A terminal sends Ctrl-C, and a batch system SIGTERM, to workers too. The first process decides what is finished and then ends
    its workers, as their loader does when it ends and when its process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    sys.excepthook = _show_unless_alone


def _show_unless_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say nothing of a connection that broke: the first process, alone at its other end, is gone, and a batch half sent."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _end_later(number: int, frame: Any) -> None:
    for name in ("SIGTERM", "SIGALRM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    if hasattr(signal, "alarm"):
        signal.alarm(_GRACE_S)


def _end(number: int, frame: Any) -> None:
    os._exit(0)  # the first process takes any other end for a fault
