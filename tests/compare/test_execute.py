"""How a comparison goes through its runs: in order, around failures, and on from where it was killed.

The runs' processes are stand-ins that leave a record without training.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import msrn.compare.execute as execute
from msrn.compare import HEADS, ComparisonFolder, Executor, Plan, build_comparison, frame_of
from msrn.compare.execute import estimate_s, progress
from msrn.errors import DataError, TrainingError

STAND_IN = str(Path(__file__).parents[1] / "helpers" / "stand_in_worker.py")
PLAN = Plan("scenes", (), (HEADS["avg_pool"], HEADS["msrn"]), num_seeds=2, rates=(0.1, 0.3))
SEARCHES = [f"{name}-seed0-search-lr{lr}" for name in ("avg_pool", "msrn") for lr in (0.1, 0.3)]
FINALS = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("avg_pool", "msrn")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ComparisonFolder:
    monkeypatch.setattr(execute, "WORKER", (sys.executable, "-I", STAND_IN))
    return ComparisonFolder(tmp_path / "comparison")


def behave(folder: ComparisonFolder, **runs: str) -> None:
    """What the runs of these names do; a dash and a dot are written as two and three underscores."""
    names = {name.replace("___", ".").replace("__", "-"): does for name, does in runs.items()}
    (folder.path.parent / "behaviour.json").write_text(json.dumps(names))


def started(folder: ComparisonFolder) -> list[str]:
    """The runs that were started since this was asked last."""
    path = folder.path.parent / "started.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.split()[0] for line in lines]


def run(folder: ComparisonFolder, plan: Plan = PLAN, **options: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    Executor(plan, folder, console, **options).run()
    text: str = console.file.getvalue()
    return text


def test_searches_come_first_and_then_seed_after_seed(folder: ComparisonFolder) -> None:
    said = run(folder)
    assert started(folder) == [*SEARCHES, *FINALS]
    assert sorted(path.stem for path in (folder.path / "runs").iterdir()) == sorted([*SEARCHES, *FINALS])
    assert not (folder.path / "training").exists()  # nothing is left of finished runs
    assert {record["lr"] for record in folder.records() if not record["is_search"]} == {0.3}
    assert "run 1 of 8: average pooling, search, lr 0.1\n" in said
    assert "run 5 of 8: average pooling, seed 0, lr 0.3; about" in said
    run(folder)
    assert started(folder) == []


def test_more_seeds_and_heads_take_only_what_is_new(folder: ComparisonFolder) -> None:
    run(folder)
    started(folder)
    run(folder, replace(PLAN, num_seeds=3, variants=(*PLAN.variants, HEADS["csra"])))
    new = ["csra-seed0-search-lr0.1", "csra-seed0-search-lr0.3", "csra-seed0", "csra-seed1"]
    assert started(folder) == [*new, "avg_pool-seed2", "msrn-seed2", "csra-seed2"]


def test_a_run_that_fails_is_recorded_and_the_others_go_on(folder: ComparisonFolder) -> None:
    behave(folder, avg_pool__seed0="crashes", msrn__seed1="fails")
    said = run(folder)
    assert started(folder) == [*SEARCHES, *FINALS]
    comparison = build_comparison(frame_of(PLAN), folder.records())
    failed = {f"{one['variant']}-seed{one['seed']}": one["failed"] for one in comparison["failed"]}
    assert failed["msrn-seed1"] == "the disk is full"
    ended = "its process was ended by SIGKILL, perhaps for want of memory; see training/avg_pool-seed0/log.txt"
    assert failed["avg_pool-seed0"] == ended
    assert "msrn-seed1 failed: the disk is full" in said
    assert comparison["summary"]["msrn"]["seeds"] == [0]
    assert comparison["pending"] == 0
    behave(folder)
    run(folder)
    assert started(folder) == ["avg_pool-seed0", "msrn-seed1"]
    assert build_comparison(frame_of(PLAN), folder.records())["failed"] == []
    assert not (folder.path / "training").exists()


def test_a_rate_at_which_training_diverges_is_out_of_the_search_and_not_tried_again(folder: ComparisonFolder) -> None:
    behave(folder, msrn__seed0__search__lr0___3="diverges")
    run(folder)
    rates = {record["variant"]: record["lr"] for record in folder.records() if not record["is_search"]}
    assert rates == {"avg_pool": 0.3, "msrn": 0.1}
    assert build_comparison(frame_of(PLAN), folder.records())["failed"] == []
    started(folder)
    run(folder)
    assert started(folder) == []


def test_a_head_whose_search_failed_is_not_trained_at_a_rate_that_others_searched_better(
    folder: ComparisonFolder,
) -> None:
    behave(folder, msrn__seed0__search__lr0___3="fails")
    run(folder)
    assert [name for name in started(folder) if "search" not in name] == ["avg_pool-seed0", "avg_pool-seed1"]
    behave(folder)
    run(folder)
    assert started(folder) == ["msrn-seed0-search-lr0.3", "msrn-seed0", "msrn-seed1"]


def test_what_was_kept_stays_when_more_is_asked_for(folder: ComparisonFolder) -> None:
    run(folder, replace(PLAN, num_seeds=1), keep=True)
    run(folder)
    kept = sorted(path.name for path in (folder.path / "training").iterdir())
    assert kept == sorted([*SEARCHES, *FINALS[:2]])


def test_several_at_a_time(folder: ComparisonFolder) -> None:
    run(folder, num_jobs=3)
    names = started(folder)
    assert sorted(names[:4]) == sorted(SEARCHES)  # no final run before its rate is known
    assert sorted(names[4:]) == sorted(FINALS)


def test_another_recipe_is_refused_with_the_difference(folder: ComparisonFolder) -> None:
    run(folder)
    changed = replace(PLAN, overrides=("optimizer.weight_decay=0.5", "data.num_workers=0"))
    with pytest.raises(
        TrainingError, match=r"lr0.1.json was made with another recipe: optimizer.weight_decay 0.05 -> 0.5\."
    ):
        folder.check(changed, changed.search_runs())
    with pytest.raises(TrainingError, match=r"trainer\.max_epochs 8 -> 4"):
        folder.check(replace(PLAN, search_epochs=4), PLAN.search_runs())
    folder.check(replace(PLAN, overrides=("data.num_workers=0",)), PLAN.search_runs())  # as fast as one likes


def test_a_rate_that_wins_later_is_refused(folder: ComparisonFolder) -> None:
    run(folder)
    with pytest.raises(
        TrainingError, match=r"avg_pool-seed0.json was made with another recipe: optimizer.lr 0.3 -> 0.9"
    ):
        run(folder, replace(PLAN, rates=(0.3, 0.9)))


def test_a_run_that_was_begun_with_another_recipe_is_refused(folder: ComparisonFolder) -> None:
    behave(folder, avg_pool__seed0__search__lr0___1="crashes")
    run(folder)
    with pytest.raises(TrainingError, match=r"training.avg_pool-seed0-search-lr0.1 was made with another recipe"):
        folder.check(replace(PLAN, overrides=("data.size=[32,32]",)), PLAN.search_runs())


def test_one_comparison_at_a_time_and_no_folder_of_others(folder: ComparisonFolder, tmp_path: Path) -> None:
    assert folder.earlier() is None
    with folder.alone(), pytest.raises(TrainingError, match="another msrn compare is at work"), folder.alone():
        pass
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with pytest.raises(TrainingError, match="is not empty and holds no comparison"):
        ComparisonFolder(tmp_path / "photos").earlier()


def test_the_time_that_is_left(folder: ComparisonFolder) -> None:
    assert progress(PLAN, folder) == (0, 8, None)
    behave(folder, avg_pool__seed0="fails")
    run(folder)
    assert progress(PLAN, folder) == (7, 8, 8 * 60.0)  # eight epochs of a minute
    csra = replace(PLAN, variants=(HEADS["csra"],)).search_runs()[0]
    assert estimate_s(csra, replace(PLAN, search_epochs=2), folder.records()) == 2 * 60.0


KILLED = f"""
import sys
import msrn.compare.execute as execute
execute.WORKER = (sys.executable, "-I", {STAND_IN!r})
from rich.console import Console
from msrn.compare import HEADS, ComparisonFolder, Executor, Plan
plan = Plan("scenes", (), (HEADS["avg_pool"], HEADS["msrn"]), num_seeds=2, rates=(0.1, 0.3))
Executor(plan, ComparisonFolder(sys.argv[1]), Console()).run()
"""


def test_killed_in_the_middle_it_takes_its_run_along_and_goes_on_with_it(
    folder: ComparisonFolder, tmp_path: Path
) -> None:
    behave(folder, avg_pool__seed0="hangs")
    process = subprocess.Popen([sys.executable, "-c", KILLED, folder.path], stdout=subprocess.DEVNULL)
    path = tmp_path / "started.txt"
    end_s = time.monotonic() + 600
    while not path.exists() or "avg_pool-seed0 " not in path.read_text():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pid = int(path.read_text().split()[-1])
    while time.monotonic() < end_s and is_alive(pid):
        time.sleep(0.05)
    assert not is_alive(pid)
    assert len(folder.records()) == 4
    started(folder)
    behave(folder)
    run(folder)
    assert started(folder) == FINALS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how_often", ["once", "twice", "alone"])
def test_a_signal_ends_it_with_the_run_at_work_which_has_not_failed(
    folder: ComparisonFolder, capfd: pytest.CaptureFixture[str], number: signal.Signals, how_often: str
) -> None:
    """To the comparison once or twice, or to the run's process alone."""
    handler = signal.getsignal(number)
    behave(folder, avg_pool__seed0=f"{number.name} {how_often}")
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as stop:
        run(folder)
    assert number == signal.SIGINT or stop.value.code == 143
    assert signal.getsignal(number) is handler
    assert capfd.readouterr().err.count("each run finishes its step and saves it first") == (how_often != "alone")
    log = folder.path / "training" / "avg_pool-seed0" / "log.txt"
    assert log.read_text() == ("" if how_often == "alone" else "told\n")
    assert len(folder.records()) == 4
    assert started(folder) == [*SEARCHES, "avg_pool-seed0"]
    behave(folder)
    run(folder)
    assert started(folder) == FINALS


def test_all_runs_at_work_are_told(folder: ComparisonFolder) -> None:
    behave(folder, avg_pool__seed0__search__lr0___1="SIGTERM once", avg_pool__seed0__search__lr0___3="hangs")
    with pytest.raises(SystemExit):
        run(folder, num_jobs=2)
    lines = (folder.path.parent / "started.txt").read_text().splitlines()
    assert not any(is_alive(int(line.split()[1])) for line in lines)
    assert sorted(started(folder)) == SEARCHES[:2]
    assert folder.records() == []


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What is refused before anything is trained


def test_tries_of_another_budget_are_refused(folder: ComparisonFolder) -> None:
    run(folder, replace(PLAN, search_epochs=2))
    started(folder)
    with pytest.raises(
        TrainingError, match=r"holds tries of learning rates of 2 epochs, these would take 3\. Give --search-ep"
    ):
        Executor(replace(PLAN, search_epochs=3, rates=(0.2,)), folder, Console(file=io.StringIO())).check()
    with pytest.raises(TrainingError, match="of 2 epochs, these would take 8"):
        Executor(PLAN, folder, Console(file=io.StringIO())).check()


def test_a_comparison_needs_a_test_split(folder: ComparisonFolder) -> None:
    plan = replace(PLAN, overrides=("data.test=null",))
    with pytest.raises(DataError, match=r"reads a test split once a run, and there is none\. Name one as data\.test"):
        Executor(plan, folder, Console(file=io.StringIO())).check()
