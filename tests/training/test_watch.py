"""Stopping early, and the warning where a run is stuck."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import average_precision_score
from tiny_training import StoppedError, forget, make_spy, read_rows, run, same, stop_at, without_times

from msrn.data import LabelledImages
from msrn.training.meter import Meter
from msrn.training.table import EpochTable
from msrn.training.watch import WarnWhenStuck, best_epoch, chance_mean_average_precision


def make_stale(images: LabelledImages, *, after: int) -> object:
    """A module that is no better from this epoch on."""
    module = make_spy(images)

    def spoil(epoch: int, batch: int) -> None:
        if epoch >= after:
            forget(module)

    module.before_step = spoil
    return module


def test_run_stops_early_and_says_so(images: LabelledImages, tmp_path: Path) -> None:
    text = io.StringIO()
    module = make_stale(images, after=2)
    result = run(
        images,
        tmp_path,
        epochs=9,
        module=module,
        trainer={"early_stopping": 2},
        console=Console(file=text, width=200),
    )
    assert len(result.rows) == result.best_epoch + 3 < 9
    assert len(read_rows(tmp_path)) == len(result.rows)
    best = result.best_epoch + 1
    assert f"stopped early: no better val mAP for 2 epochs, since epoch {best}" in text.getvalue()


def test_a_run_that_has_stopped_early_is_over_when_resumed(images: LabelledImages, tmp_path: Path) -> None:
    settings = {"early_stopping": 1}
    once = run(images, tmp_path, epochs=9, module=make_stale(images, after=1), trainer=settings)
    assert len(once.rows) < 9
    again = make_spy(images)
    resumed = run(images, tmp_path, epochs=9, module=again, resume=True, trainer=settings)
    assert not hasattr(again, "seen")
    assert (resumed.rows, resumed.best_epoch) == (once.rows, once.best_epoch)
    assert same(resumed.state_dict, once.state_dict)


def test_patience_goes_on_where_a_run_was_stopped(images: LabelledImages, tmp_path: Path) -> None:
    settings = {"early_stopping": 2, "checkpoint_steps": 1}
    once = run(images, tmp_path / "once", epochs=9, module=make_stale(images, after=1), trainer=settings)
    module = make_stale(images, after=1)
    spoil = module.before_step
    stop = stop_at(len(once.rows) - 1, 2, StoppedError)
    module.before_step = lambda epoch, batch: (spoil(epoch, batch), stop(epoch, batch))
    with pytest.raises(StoppedError):
        run(images, tmp_path / "twice", epochs=9, module=module, trainer=settings)
    twice = run(images, tmp_path / "twice", epochs=9, module=make_stale(images, after=1), resume=True, trainer=settings)
    assert without_times(twice.rows) == without_times(once.rows)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], -1),
        ([float("nan"), 0.2, 0.3, 0.3, float("nan")], 2),
        ([float("nan")], -1),
        ([0.5, 0.4], 0),
    ],
)
def test_best_epoch_is_the_first_of_the_greatest(scores: list[float], expected: int) -> None:
    assert best_epoch([{"val/mAP": score} for score in scores]) == expected


def test_chance_is_the_mean_over_random_orders() -> None:
    rng = np.random.default_rng(0)
    target = torch.from_numpy((rng.random((12, 3)) < (0.1, 0.4, 0.8)).astype(int))
    target[0] = torch.tensor([1, 1, 0])
    target[3:6, 0] = -1  # unknown
    draws = []
    for _ in range(800):
        scores = rng.random(12)
        known = [column >= 0 for column in target.T.numpy()]
        draws.append([average_precision_score(c[k], scores[k]) for c, k in zip(target.T.numpy(), known, strict=True)])
    assert chance_mean_average_precision(target) == pytest.approx(np.mean(draws), abs=0.015)
    assert np.isnan(chance_mean_average_precision(torch.zeros(3, 2, dtype=torch.int)))


def watch(tmp_path: Path) -> WarnWhenStuck:
    return WarnWhenStuck(EpochTable(tmp_path / "metrics.csv", Meter()), 0.3, Console())


def test_what_there_is_to_warn_of_is_said_once(tmp_path: Path) -> None:
    stuck = watch(tmp_path)

    def told(scores: list[float]) -> list[str | None]:
        return [stuck.warning(scores[: count + 1]) for count in range(len(scores))]

    chance = told([0.3, 0.305, 0.3, 0.31, 0.4, 0.5])
    assert [text is not None for text in chance] == [False, False, True, False, False, False]
    still = told([0.3, 0.4, *[0.5] * 8, 0.6, *[0.6] * 5])
    assert [number for number, text in enumerate(still) if text] == [6, 14]
    assert still[6] == "val mAP has stayed at 50.00 for 5 epochs."
    assert not any(told([0.5, *[1.0] * 8]))  # nothing is left to learn
    assert not any(told([0.2, 0.4, 0.5, 0.55, 0.6, 0.61]))


def test_stuck_run_gives_advice(images: LabelledImages, tmp_path: Path) -> None:
    text = io.StringIO()
    run(images, tmp_path, epochs=3, module=make_stale(images, after=0), console=Console(file=text, width=400))
    line = next(line for line in text.getvalue().splitlines() if line.startswith("warning: "))
    assert "after 3 epochs, where chance gives" in line
    assert "msrn train RECIPE --find lr" in line
