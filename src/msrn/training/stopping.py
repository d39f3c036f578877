"""End training when asked to: once, and the step is finished and saved; twice, and it ends at once."""

import os
import signal
import threading
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

_NOTICE = "\nstopping: this step is finished and saved first. Once more stops now, with the last checkpoint.\n"
_KEY = "msrn/stop"


class StopWhenAsked(pl.Callback):
    """Notes Ctrl-C and SIGTERM while training, and tells after which step of the optimizer to stop.

    Processes that train together stop after the same step: whoever is asked leaves a note with the number of the next step. Nobody
    finishes that step without the gradients of all others, hence not before the note is there.

    Attributes:
        asked: The signal, once it has come.
        has_begun: Whether training has come to its first step, with all that a checkpoint holds.
        ends_at_second: Whether a second signal ends training at once. Not in a process whose parent passes signals on, and kills it
            where it shall end at once: a terminal and a batch system send the same signal to both.

    Args:
        is_quiet: Say nothing when asked; only the first process of a run speaks.
    """

    ends_at_second: ClassVar[bool] = True

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet
        self.has_begun = False
        self.asked: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Listen to signals; Lightning's own teardown gives them back to whom they belonged before."""
        self.has_begun = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._note)
            self.is_quiet = self.is_quiet or not trainer.is_global_zero

    def is_over(self, trainer: pl.Trainer, *, is_epoch_end: bool = False) -> bool:
        """Whether to stop now, after a step of the optimizer or at the end of an epoch; the same in all processes.

        Args:
            trainer: Tells the step.
            is_epoch_end: All processes wait for each other here, and none of them goes on where one was asked.
        """
        if trainer.world_size == 1:
            return self.asked is not None
        store = dist.distributed_c10d._get_default_store()
        if self.asked is not None:
            store.compare_set(_KEY, "", f"{trainer.global_step + 1} {self.asked}")
        if is_epoch_end:
            trainer.strategy.barrier("stop")
        if not store.check([_KEY]):
            return False
        step, number = map(int, store.get(_KEY).split())
        self.asked = number
        return is_epoch_end or trainer.global_step >= step

    def stop(self) -> None:
        """End training the way the signal would have.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SIGTERMException: After SIGTERM.
        """
        raise (KeyboardInterrupt if self.asked == signal.SIGINT else SIGTERMException)

    def _note(self, number: int, frame: Any) -> None:
        if self.asked is not None:
            if not self.ends_at_second:
                return
            self.asked = number
            self.stop()
        self.asked = number
        if not self.is_quiet:
            os.write(2, _NOTICE.encode())  # printing is not safe while the program may be printing
