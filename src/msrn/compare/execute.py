"""Carry out a comparison: a process a run, in order, each leaving its JSON; what is done stays done.

Ctrl-C or SIGTERM once lets the runs at work save the step that they are in; twice ends them at once.
"""

import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from msrn.compare.folder import JOB_FILE, LOG_FILE, ComparisonFolder, Record
from msrn.compare.plan import Plan, Run, shown_overrides
from msrn.compare.report import check_splits
from msrn.compare.summary import best_rates, duration
from msrn.errors import DataError, TrainingError
from msrn.files import write_json
from msrn.recipes.load import without_paths
from msrn.recipes.splits import read_splits

WORKER = (sys.executable, "-m", "msrn.compare.worker")
_NOTICE = (
    b"\nstopping: each run finishes its step and saves it first. Once more stops now, with the last checkpoints.\n"
)
# How a run's process ends that was told to: by itself, or by the system before it trains and after.
_STOPPED = {code: number for number in (signal.SIGINT, signal.SIGTERM) for code in (128 + number, -number)}


class Executor:
    """Runs a plan in its folder.

    Args:
        plan: What is compared.
        folder: Where.
        console: Where a line is printed as a run begins and as it ends.
        num_jobs: Runs at a time.
        keep: Whether run folders stay, with checkpoints and bundle.
        keep_predictions: Whether the probabilities of each test split are written.
        after_run: Called when a run has ended.
    """

    def __init__(
        self,
        plan: Plan,
        folder: ComparisonFolder,
        console: Console,
        *,
        num_jobs: int = 1,
        keep: bool = False,
        keep_predictions: bool = False,
        after_run: Callable[[], object] = lambda: None,
    ) -> None:
        self.plan, self.folder, self.console = plan, folder, console
        self.num_jobs, self.keep, self.keep_predictions = num_jobs, keep, keep_predictions
        self.after_run = after_run
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()  # a signal may come while this thread holds it
        self._is_asked = False
        self._stopped_by: int | None = None
        self._num_begun = 0
        self._today: list[Record] = []

    def check(self) -> None:
        """Read the data, and refuse runs that were made with another recipe or on other images.

        Raises:
            TrainingError: A run was made, or begun, with another recipe, or tries of the learning rate took other epochs.
            DataError: The data cannot be read, has changed, or has no test split.
        """
        records = self.folder.records()
        self._check_budget(records)
        finals = self.plan.final_runs(best_rates(records))
        self.folder.check(self.plan, [*self.plan.search_runs(), *finals])
        splits = read_splits(self.plan.base, self.console)
        if splits.test is None:
            raise DataError(
                "a comparison reads a test split once a run, and there is none. Name one as data.test, as in data.test=val; "
                "validation images are then held out of train."
            )
        self._today = [{"splits": splits.record()}]
        check_splits([*records, *self._today])

    def _check_budget(self, records: Iterable[Record]) -> None:
        epochs = self.plan.search_epochs or self.plan.base.trainer.max_epochs
        before = {record["recipe"]["trainer"]["max_epochs"] for record in records if record["is_search"]}
        if self.plan.rates and before - {epochs}:
            raise TrainingError(
                f"{self.folder.path} holds tries of learning rates of {min(before - {epochs})} epochs, these would take {epochs}. "
                "Give --search-epochs as before, or another folder by --out."
            )

    def run(self) -> None:
        """Search the learning rates, then train every variant with every seed.

        Raises:
            TrainingError: A run was made with another learning rate than the search finds now.
            DataError: Runs saw other images.
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: After SIGTERM.
        """
        self._num_begun = progress(self.plan, self.folder)[0]
        with self._listening():
            self._run_all(self.plan.search_runs())
            finals = self.plan.final_runs(best_rates(self.folder.records()))
            self.folder.check(self.plan, finals)
            self._run_all(finals)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM, which only the first thread can."""
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self._is_asked:
            self._kill()
            _end(number)
        self._is_asked = True
        os.write(2, _NOTICE)  # printing is not safe while the program may be printing
        self._stop(number)

    def _stop(self, number: int) -> None:
        """Begin no more runs, and pass a signal on to those at work; to a run it is the same whether it comes once or twice."""
        with self._lock:
            self._stopped_by = self._stopped_by or number
            for process in self._processes.values():
                with suppress(ValueError):  # Windows, whose console tells them
                    process.send_signal(number)

    def _kill(self) -> None:
        """End all runs at once; they go on from their last checkpoints."""
        with self._lock:
            self._stopped_by = self._stopped_by or signal.SIGTERM
            for process in self._processes.values():
                process.kill()

    def _run_all(self, runs: list[Run]) -> None:
        pending = [run for run in runs if not self.folder.is_done(run)]
        for run in runs:
            if run in pending:
                self.folder.record_file(run).unlink(missing_ok=True)  # a failure, which is tried again
            elif not self.folder.is_kept(run):
                self.folder.clear(run)  # what a comparison that was killed could not clear
        pool = ThreadPoolExecutor(self.num_jobs)
        try:
            for future in as_completed([pool.submit(self._run_one, run) for run in pending]):
                if future.result():
                    check_splits([*self.folder.records(), *self._today])
                    self.after_run()
        except BaseException:
            self._kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        if self._stopped_by is not None:
            _end(self._stopped_by)

    def _run_one(self, run: Run) -> bool:
        """Carry a run out; False where it has not come to its end, which a stop has kept it from."""
        with self._lock:
            if self._stopped_by is not None:
                return False
            self._num_begun += 1
            _, num_all, left_s = progress(self.plan, self.folder)
            left = "" if left_s is None else f"; about {duration(left_s / self.num_jobs)} left"
            self._print(f"run {self._num_begun} of {num_all}: {run}{left}")
        training_dir, record_file = self.folder.training_dir(run), self.folder.record_file(run)
        training_dir.mkdir(parents=True, exist_ok=True)
        recipe = self.plan.recipe_of(run)
        record: Record = {
            "variant": run.variant.name,
            "seed": run.seed,
            "is_search": run.is_search,
            "lr": recipe.optimizer.lr,
            "overrides": shown_overrides((*self.plan.overrides, *run.variant.overrides)),
            "recipe": without_paths(recipe),
        }
        keeps_predictions = self.keep_predictions and not run.is_search
        job = {
            "record": record,
            "recipe": recipe.model_dump(mode="json"),
            "keep": self.keep,
            "run_dir": str((training_dir / "run").resolve()),
            "record_file": str(record_file.resolve()),
            "predictions": str(self.folder.predictions_file(run).resolve()) if keeps_predictions else None,
        }
        write_json(training_dir / JOB_FILE, job)
        code = self._start(run, training_dir)
        found = self.folder.record(run)
        if found is None:
            if code in _STOPPED:  # whoever told it means the comparison
                self._stop(_STOPPED[code])
            if self._stopped_by is not None:
                return False
            log = training_dir / LOG_FILE
            found = {**record, "failed": f"its process {_ending(code)}; see {log.relative_to(self.folder.path)}"}
            write_json(record_file, found)
        if "failed" in found:
            self._print(f"  {run.name} failed: {found['failed']}", style="red")
            return True
        test_mAP = found["test"] and found["test"]["mAP"]
        test = "" if test_mAP is None else f", test mAP {100 * test_mAP:.2f}"
        self._print(
            f"  {run.name}: validation mAP {100 * found['val_mAP']:.2f} at epoch {found['best_epoch'] + 1}{test}, "
            f"{duration(found['process_seconds'])}"
        )
        if not self.keep:
            self.folder.clear(run)
        return True

    def _start(self, run: Run, training_dir: Path) -> int:
        """Run the process and wait for it."""
        environment = dict(os.environ)
        if self.num_jobs > 1:
            share = max(1, len(os.sched_getaffinity(0)) // self.num_jobs) if hasattr(os, "sched_getaffinity") else 1
            environment.setdefault("OMP_NUM_THREADS", str(share))
        command = [*WORKER, str(training_dir / JOB_FILE)]
        with (training_dir / LOG_FILE).open("ab") as log:
            with self._lock:
                if self._stopped_by is not None:
                    return 1
                # The pipe tells the process when this one has ended, however it did.
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
                )
                self._processes[run.name] = process
            with process:
                code = process.wait()
        with self._lock:
            del self._processes[run.name]
        return code

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True, style=style)


def all_runs(plan: Plan, folder: ComparisonFolder) -> list[Run]:
    """Every run of a plan; where a rate is still searched, final runs have the first of them."""
    found = best_rates(folder.records())
    guesses = {variant.name: plan.rates[0] for variant in plan.variants if plan.rates}
    return [*plan.search_runs(), *plan.final_runs(guesses | found)]


def progress(plan: Plan, folder: ComparisonFolder) -> tuple[int, int, float | None]:
    """Runs done, runs altogether, and the time that the others will take, as far as those before them tell."""
    runs = all_runs(plan, folder)
    pending = [run for run in runs if not folder.is_done(run)]
    estimates = [estimate_s(run, plan, folder.records()) for run in pending]
    known = [seconds for seconds in estimates if seconds is not None]
    left_s = statistics.fmean(known) * len(pending) if known else None
    return len(runs) - len(pending), len(runs), left_s


def estimate_s(run: Run, plan: Plan, records: Iterable[Record]) -> float | None:
    """Seconds that a run may take: an epoch of the same variant, or of any, as often as it has epochs."""
    epochs = plan.recipe_of(run).trainer.max_epochs
    by_variant: dict[str, list[float]] = {}
    for record in records:
        if "failed" not in record:
            seconds = record["train_seconds"] / max(1, len(record["val_mAP_by_epoch"]))
            by_variant.setdefault(record["variant"], []).append(seconds)
    every = [seconds for own in by_variant.values() for seconds in own]
    own = by_variant.get(run.variant.name, every)
    return epochs * statistics.fmean(own) if own else None


def _end(number: int) -> NoReturn:
    """End as a signal would have."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with {code}"
    name = signal.Signals(-code).name
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"
