"""The folder of a comparison: a JSON file a run, what is being trained, and the comparison that is made of them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msrn.compare.plan import Plan, Run, differences
from msrn.compare.schema import check_comparison, check_job, check_run, read_checked
from msrn.errors import TrainingError

Record = dict[str, Any]
COMPARISON_FILE = "comparison.json"
TABLE_FILE = "comparison.md"
PICTURE_FILE = "comparison.svg"
JOB_FILE = "job.json"
LOG_FILE = "log.txt"


class ComparisonFolder:
    """Where a comparison lies.

    Args:
        path: Holds `runs/` (a JSON file a run), `training/` (a folder a run, until it is finished), `predictions/` where they are
            kept, and `comparison.json`, `.md` and `.svg`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def record_file(self, run: Run) -> Path:
        """What a run found, or why it failed."""
        return self.path / "runs" / f"{run.name}.json"

    def training_dir(self, run: Run) -> Path:
        """Where a run is trained."""
        return self.path / "training" / run.name

    def predictions_file(self, run: Run) -> Path:
        """Probabilities and target of a run's test split."""
        return self.path / "predictions" / f"{run.name}.npz"

    def record(self, run: Run) -> Record | None:
        """What a run left, or None if it has not ended yet."""
        path = self.record_file(run)
        return _read_record(path) if path.exists() else None

    def records(self) -> list[Record]:
        """What every run left, by name."""
        return [_read_record(path) for path in sorted((self.path / "runs").glob("*.json"))]

    def earlier(self, option: str = "--out") -> dict[str, Any] | None:
        """The comparison that was made of the runs so far.

        Args:
            option: Which option gave the folder, for the error.

        Raises:
            TrainingError: The folder holds other things.
        """
        if (self.path / COMPARISON_FILE).is_file():
            advice = f"Bring it back as it was, or give another folder by {option}."
            return read_checked(self.path / COMPARISON_FILE, check_comparison, advice=advice)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise TrainingError(f"{self.path} is not empty and holds no comparison. Give another folder by {option}.")
        return None

    def is_done(self, run: Run) -> bool:
        """Whether nothing is left to do for a run; a rate at which training diverged has been tried."""
        record = self.record(run)
        return record is not None and ("failed" not in record or (run.is_search and is_diverged(record)))

    def check(self, plan: Plan, runs: list[Run]) -> None:
        """Refuse runs that were made, or begun, with another recipe.

        Raises:
            TrainingError: Names the first of them and the difference.
        """
        for run in runs:
            record = self.record(run)
            path = self.record_file(run)
            if record is None or "failed" in record:
                path = self.training_dir(run)
                if not (path / JOB_FILE).is_file():
                    continue
                record = _read_job(path / JOB_FILE)["record"]
            if changed := differences(record["recipe"], plan.recipe_of(run)):
                raise TrainingError(
                    f"{path} was made with another recipe: {', '.join(changed)}. Go on with the recipe as it was, delete what "
                    "is to be made anew, or give another folder by --out."
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second comparison out of the folder.

        Raises:
            TrainingError: One is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self.path / ".lock"
        with lock.open("w") as file:
            with suppress(ModuleNotFoundError):  # Windows has none
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise TrainingError(
                        f"another msrn compare is at work in {self.path}. Wait for it, or give another folder by --out."
                    ) from None
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
                with suppress(OSError):
                    self.path.rmdir()  # where nothing came of it

    def is_kept(self, run: Run) -> bool:
        """Whether checkpoints and bundle of a run were asked to stay."""
        job_file = self.training_dir(run) / JOB_FILE
        return job_file.is_file() and bool(_read_job(job_file).get("keep"))

    def clear(self, run: Run) -> None:
        """Remove checkpoints and bundle of a run."""
        shutil.rmtree(self.training_dir(run), ignore_errors=True)
        with suppress(OSError):
            self.training_dir(run).parent.rmdir()


def is_diverged(record: Record) -> bool:
    """Whether a run failed because its loss became NaN or infinite, as it would again."""
    return bool(record.get("diverged"))


def _read_record(path: Path) -> Record:
    return read_checked(path, check_run, advice="Delete it; the run will be made anew.")


def _read_job(path: Path) -> dict[str, Any]:
    return read_checked(path, check_job, advice="Delete its folder; the run will be made anew.")
