"""A signal once: the step is finished and saved. Twice: training ends at once."""

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_training import last_weights, make_spy, read_rows, run, same, without_times

from msrn.data import LabelledImages

END = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """A shell's background jobs start without a handler of Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: signal.Signals, *, times: int = 1, at: tuple[int, int]) -> Any:
    """What a spy does before its steps: at one of them, signal this process."""

    def before_step(epoch: int, batch: int) -> None:
        if (epoch, batch) == at:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return before_step


@pytest.mark.parametrize("number", END)
@pytest.mark.parametrize(
    ("at", "trained", "settings"),
    [
        ((1, 1), 10, {}),
        ((1, 7), 16, {}),  # the last of an epoch, which is validated first
        ((1, 3), 14, {"accumulate": 3, "ema_decay": 0.9}),
    ],
    ids=["within an epoch", "at its end", "within an accumulated step"],
)
def test_one_signal_lets_the_step_finish_and_saves_it(
    images: LabelledImages,
    tmp_path: Path,
    number: signal.Signals,
    at: tuple[int, int],
    trained: int,
    settings: dict[str, Any],
) -> None:
    """Eight batches an epoch; what was trained before the signal is not trained again."""
    options: dict[str, Any] = {"epochs": 3, "batch_size": 2, "trainer": settings}
    whole = make_spy(images, drop_path=0.3)
    once = run(images, tmp_path / "once", module=whole, **options)
    handlers = [signal.getsignal(one) for one in END]
    spy = make_spy(images, drop_path=0.3)
    spy.before_step = send(number, at=at)
    with pytest.raises(END[number]) as stop:
        run(images, tmp_path / "twice", module=spy, **options)
    if isinstance(stop.value, SystemExit):
        assert stop.value.code == 128 + number
    assert [signal.getsignal(one) for one in END] == handlers
    assert len(spy.seen) == trained
    again = make_spy(images, drop_path=0.3)
    twice = run(images, tmp_path / "twice", module=again, resume=True, **options)
    assert [*spy.seen, *again.seen] == whole.seen
    assert same(last_weights(tmp_path / "once"), last_weights(tmp_path / "twice"))
    assert same(once.state_dict, twice.state_dict)
    assert without_times(twice.rows) == without_times(once.rows)


@pytest.mark.parametrize("number", END)
def test_two_signals_end_it_at_once(images: LabelledImages, tmp_path: Path, number: signal.Signals) -> None:
    spy = make_spy(images)
    spy.before_step = send(number, times=2, at=(1, 1))
    with pytest.raises(END[number]):
        run(images, tmp_path, module=spy)
    assert [epoch for epoch, _ in spy.seen] == [0, 0, 0, 0, 1]  # the step was not even begun
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert len(read_rows(tmp_path)) == 1


def test_it_says_what_a_signal_does(images: LabelledImages, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spy = make_spy(images)
    spy.before_step = send(signal.SIGINT, at=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        run(images, tmp_path, module=spy, console=Console(file=io.StringIO()))
    assert capfd.readouterr().err.strip().startswith("stopping: this step is finished and saved first. Once more")


def test_a_signal_to_a_worker_is_left_to_the_first_process(images: LabelledImages, tmp_path: Path) -> None:
    """A terminal signals those that read images too; here they are the children of this process."""
    spy = make_spy(images)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    signalled = []

    def to_workers(epoch: int, batch: int) -> None:
        if (epoch, batch) != (0, 1):
            return
        for child in map(int, children.read_text().split()):
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                for number in END:
                    os.kill(child, number)
                signalled.append(child)

    spy.before_step = to_workers
    result = run(images, tmp_path, module=spy, workers=1, epochs=2)
    assert signalled
    assert len(result.rows) == 2
