"""What is read again of the JSON files of a comparison; whatever else they hold is passed over."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from msrn.errors import TrainingError
from msrn.files import read_bounded

# Far above what comparisons of 10,000 labels take.
_MAX_BYTES, _MAX_DEPTH, _MAX_NUMBER = 64_000_000, 50, 1e100


class _Stored(BaseModel):
    """Takes no text for a number, and no number for text."""

    model_config = ConfigDict(strict=True, protected_namespaces=())


class _Trainer(_Stored):
    max_epochs: int


class _RunRecipe(_Stored):
    trainer: _Trainer


class _Split(_Stored):
    split: str
    images: int
    sha256: str


class _Run(_Stored):
    variant: str
    seed: int
    is_search: bool
    lr: float
    recipe: _RunRecipe
    splits: dict[str, _Split] = {}


class _FailedRun(_Run):
    failed: str
    diverged: bool = False


class _TestProtocol(_Stored):
    read: str = ""
    resize: str = ""
    unknown: str = ""
    threshold: str = ""
    pretraining: str = ""


class _Test(_Stored):
    mAP: float | None
    CF1: float | None
    OF1: float | None
    labels: dict[str, float | None]
    protocol: _TestProtocol = _TestProtocol()


class _Versions(_Stored):
    torch: str | None


class _Machine(_Stored):
    processor: str
    threads: int
    gpu: str | None
    python: str
    versions: _Versions


class _FinishedRun(_Run):
    splits: dict[str, _Split]
    val_mAP: float
    best_epoch: int
    val_mAP_by_epoch: list[float]
    test: _Test | None
    parameters: int
    flops: int
    train_seconds: float
    images_per_s: float | None
    process_seconds: float
    peak_memory_bytes: int | None
    chosen_by: str
    machine: _Machine


def check_run(values: Any) -> None:
    """Refuse what is no record of a run, finished or failed."""
    kind = _FailedRun if isinstance(values, dict) and "failed" in values else _FinishedRun
    kind.model_validate(values)


class _JobRecord(_Stored):
    recipe: dict[str, Any]


class _Job(_Stored):
    record: _JobRecord
    keep: bool = False


def check_job(values: Any) -> None:
    """Refuse what is no job of a run's process."""
    _Job.model_validate(values)


class _Model(_Stored):
    backbone: str


class _Data(_Stored):
    size: Annotated[list[int], Field(min_length=2, max_length=2)]


class _Optimizer(_Stored):
    lr: float


class _Settings(_Stored):
    model: _Model
    data: _Data
    trainer: _Trainer
    optimizer: _Optimizer


class _Search(_Stored):
    rates: list[float]
    epochs: int
    seed: int


class _Protocol(_Stored):
    recipe: str
    overrides: list[str]
    settings: _Settings
    seeds: list[int]
    search: _Search | None
    rates_from: str | None
    reference: str


class _Variant(_Stored):
    title: str
    overrides: list[str]
    rate_from: str
    rates: list[float]
    lr: float | None


class _Comparison(_Stored):
    protocol: _Protocol
    variants: dict[str, _Variant]
    skipped: dict[str, str]


def check_comparison(values: Any) -> None:
    """Refuse what is no comparison; what its runs say is not read from it."""
    _Comparison.model_validate(values)


def read_checked(path: Path, check: Callable[[Any], None], *, advice: str) -> dict[str, Any]:
    """The content of a JSON file.

    Args:
        path: The file.
        check: Refuses values by pydantic's error.
        advice: What to do about a file that is refused.

    Raises:
        TrainingError: It cannot be read, or holds something else.
    """
    try:
        values: dict[str, Any] = json.loads(read_bounded(path, _MAX_BYTES).decode("utf-8"), parse_int=_whole_number)
        _check_values(values)
        check(values)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))[:200]
        reason = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise TrainingError(f"{path} is damaged, or of something else ({reason}). {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path} cannot be read: {error}. {advice}") from None
    return values


def _whole_number(digits: str) -> float:
    """Python reads no number of thousands of digits."""
    return int(digits) if len(digits) < 300 else math.inf


def _check_values(values: Any, depth: int = 0) -> None:
    """Refuse what could be read and not be counted with or written again."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"it holds values more than {_MAX_DEPTH} deep within each other")
    if isinstance(values, int | float) and not abs(values) < _MAX_NUMBER:
        what = "a number that is none" if math.isnan(values) else f"a number beyond {_MAX_NUMBER:g}"
        raise ValueError(f"it holds {what}")
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            _check_values(value, depth + 1)
