"""Which of the processes that train one model together this one is."""

import os

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
