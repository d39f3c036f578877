"""A comparison out of the runs of a folder: `comparison.json`, its table and its picture."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from msrn.compare.folder import COMPARISON_FILE, PICTURE_FILE, TABLE_FILE, ComparisonFolder, Record
from msrn.compare.plan import SEARCH_SEED, Plan, shown_overrides
from msrn.compare.summary import best_rates, is_failure, markdown, summarise
from msrn.errors import DataError, MissingDependencyError, TrainingError
from msrn.files import write_json, write_text
from msrn.markdown import plain
from msrn.recipes.load import without_paths

_FAILED_KEYS = ("variant", "seed", "is_search", "lr", "failed")
_RUN_KEYS = ("variant", "seed", "lr", "val_mAP", "best_epoch", "train_seconds")
_RUN_METRICS = ("mAP", "CF1", "OF1")


def frame_of(plan: Plan, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a comparison says before its runs do: protocol and variants; those of an earlier call in the same folder stay."""
    before = earlier or {"protocol": {"seeds": []}, "variants": {}, "skipped": {}}
    variants = {
        variant.name: {
            "title": variant.title,
            "overrides": shown_overrides(variant.overrides),
            "rate_from": (source := plan.rate_source(variant)),
            "rates": list(plan.rates) if source == "search" else [],
        }
        for variant in plan.variants
    }
    search = {
        "rates": list(plan.rates),
        "epochs": plan.search_epochs or plan.base.trainer.max_epochs,
        "seed": SEARCH_SEED,
    }
    return {
        "protocol": {
            "recipe": plan.base.name,
            "overrides": shown_overrides(plan.overrides),
            "settings": without_paths(plan.base),
            "seeds": sorted({*before["protocol"]["seeds"], *range(plan.num_seeds)}),
            "search": search if plan.rates else before["protocol"].get("search"),
            "rates_from": plan.rates_from or before["protocol"].get("rates_from"),
            "reference": plan.reference,
        },
        "variants": before["variants"] | variants,
        "skipped": {name: why for name, why in {**before["skipped"], **plan.skipped}.items() if name not in variants},
    }


def build_comparison(frame: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """The whole comparison: its frame (`frame_of`, or an earlier comparison), and what the runs so far say.

    Raises:
        DataError: Runs saw other images.
    """
    check_splits(records)
    records = [record for record in records if record["variant"] in frame["variants"]]
    finished = [record for record in records if "failed" not in record]
    finals = [record for record in finished if not record["is_search"]]
    summary = summarise(finished, frame["protocol"]["reference"])
    rates = best_rates(records)
    variants = {}
    for name, own in frame["variants"].items():
        tries = sorted((one for one in records if one["variant"] == name and one["is_search"]), key=_rate)
        is_searched = set(own["rates"]) <= {one["lr"] for one in tries}
        lr = summary[name]["lr"] if name in summary else rates.get(name) if is_searched else None
        variants[name] = {
            **{key: own[key] for key in ("title", "overrides", "rate_from", "rates")},
            "lr": lr,
            "edge": _edge(lr, [one["lr"] for one in tries]) if own["rate_from"] == "search" else None,
            "search": [
                {"lr": one["lr"], "val_mAP": one.get("val_mAP"), "best_epoch": one.get("best_epoch")}
                for one in tries
                if not is_failure(one)
            ],
        }
    longest = max(finished, key=lambda record: len(record["splits"]), default=None)
    return {
        "protocol": {
            **frame["protocol"],
            "chosen_by": longest and longest["chosen_by"],
            "evaluation": _evaluation(longest),
            "splits": longest["splits"] if longest else {},
            "machines": _distinct([_without_own_version(record["machine"]) for record in finished]),
        },
        "variants": variants,
        "summary": summary,
        "runs": [
            {key: run[key] for key in _RUN_KEYS} | {name: run["test"][name] for name in _RUN_METRICS}
            for run in finals
            if run["test"] is not None
        ],
        "skipped": frame["skipped"],
        "failed": [{key: one[key] for key in _FAILED_KEYS} for one in records if is_failure(one)],
        "pending": _num_pending(frame, records),
    }


def write_comparison(folder: ComparisonFolder, comparison: dict[str, Any], *, picture: bool = True) -> None:
    """Write `comparison.json` and `comparison.md`, and the picture where matplotlib is installed."""
    write_json(folder.path / COMPARISON_FILE, comparison)
    title = f"# {plain(comparison['protocol']['recipe'])}: heads under one protocol"
    write_text(folder.path / TABLE_FILE, f"{title}\n\n{markdown(comparison)}\n")
    if picture and comparison["summary"]:
        from msrn.report import save_comparison

        with suppress(MissingDependencyError):
            save_comparison(comparison, folder.path / PICTURE_FILE)


def rebuild(folder: ComparisonFolder) -> dict[str, Any]:
    """Make the comparison of a folder anew from its runs.

    Raises:
        TrainingError: The folder holds no comparison.
        DataError: Its runs saw other images.
    """
    earlier = folder.earlier("--report")
    if earlier is None:
        raise TrainingError(f"{folder.path} holds no comparison. Give the folder of an msrn compare by --report.")
    comparison = build_comparison(earlier, folder.records())
    write_comparison(folder, comparison)
    return comparison


def check_splits(records: Sequence[Record]) -> None:
    """Refuse to compare runs on other images.

    Raises:
        DataError: Names two runs and the split.
    """
    seen: dict[str, Record] = {}
    for record in records:
        for use, split in record.get("splits", {}).items():
            first = seen.setdefault(use, record)
            if first["splits"][use]["sha256"] != split["sha256"]:
                names = [_who(one) for one in (first, record)]
                raise DataError(
                    f"{names[0]} and {names[1]} have other {use} images: the data has changed in between. Bring back the data "
                    "as it was, or start a new comparison with another --out."
                )


def _evaluation(record: Record | None) -> dict[str, str]:
    """How the test split was measured: what the protocols of all runs share."""
    protocol = ((record or {}).get("test") or {}).get("protocol", {})
    return {
        name: protocol[name] for name in ("read", "resize", "unknown", "threshold", "pretraining") if name in protocol
    }


def _who(record: Record) -> str:
    return f"{record['variant']} with seed {record['seed']}" if "seed" in record else "the data of today"


def _edge(lr: float | None, tried: list[float]) -> str | None:
    """Whether the best rate is the "least" or "greatest" of those tried, beyond which a better one may lie."""
    if lr is None or len(tried) < 2 or min(tried) < lr < max(tried):
        return None
    return "least" if lr == min(tried) else "greatest"


def _num_pending(frame: dict[str, Any], records: Sequence[Record]) -> int:
    """Runs that have not ended yet."""
    ended = {(one["variant"], one["seed"], one["lr"] if one["is_search"] else None) for one in records}
    planned = {(name, seed, None) for name in frame["variants"] for seed in frame["protocol"]["seeds"]}
    planned |= {(name, SEARCH_SEED, rate) for name, own in frame["variants"].items() for rate in own["rates"]}
    return len(planned - ended)


def _rate(record: Record) -> float:
    return float(record["lr"])


def _without_own_version(machine: dict[str, Any]) -> dict[str, Any]:
    """A machine and what is installed there, apart from msrn itself: its version says nothing of times."""
    versions = {name: version for name, version in machine["versions"].items() if name != "msrn"}
    return {**machine, "versions": versions}


def _distinct(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [value for index, value in enumerate(values) if value not in values[:index]]
