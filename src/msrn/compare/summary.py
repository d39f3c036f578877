"""What the runs of a comparison say together: means, deviations and paired differences, as values and as tables."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from msrn.compare.folder import Record, is_diverged
from msrn.markdown import plain

# Counts of a test report; everything else that is a number is a metric.
_COUNTS = ("num_images", "num_unknown", "images", "threshold")
# Metrics that are not fractions, or whose percentage nobody gives.
_NO_PERCENT = ("coverage_error", "ranking_loss")


def is_failure(record: Record) -> bool:
    """Whether a run has to be made again: it failed, and not by trying a rate at which training diverges."""
    return "failed" in record and not (record["is_search"] and is_diverged(record))


def best_rates(records: Iterable[Record]) -> dict[str, float]:
    """The learning rate with the best validation mAP of every variant whose search is complete; the lower one of equals.

    Example:
        >>> tries = [{"variant": "msrn", "is_search": True, "lr": lr, "val_mAP": mAP} for lr, mAP in ((0.1, 0.7), (0.3, 0.8))]
        >>> best_rates(tries)
        {'msrn': 0.3}
    """
    tries: dict[str, list[Record]] = {}
    incomplete = set()
    for record in records:
        if record["is_search"]:
            if is_failure(record):
                incomplete.add(record["variant"])
            elif "failed" not in record:
                tries.setdefault(record["variant"], []).append(record)
    return {
        name: max(own, key=lambda record: (record["val_mAP"], -record["lr"]))["lr"]
        for name, own in tries.items()
        if name not in incomplete
    }


def summarise(records: Iterable[Record], reference: str) -> dict[str, Any]:
    """Every variant's metrics over its seeds, what it takes, and its difference to the reference seed by seed.

    Args:
        records: What the runs wrote down; searches and failed runs are passed over.
        reference: Name of the variant that the others are measured against.

    Returns:
        For each variant and metric `mean` and `std` (of the sample, None for one seed); `labels`, the same of each label's
        average precision; `difference`, variant - reference over the seeds that both have; `seeds`, `lr`, `parameters`, `flops`,
        the medians of `train_seconds` and `images_per_s` and the greatest `peak_memory_bytes`.
    """
    runs: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: int(record["seed"])):
        if not record["is_search"] and "failed" not in record and record["test"] is not None:
            runs.setdefault(record["variant"], []).append(record)
    return {name: _summary(own, None if name == reference else runs.get(reference, [])) for name, own in runs.items()}


def _summary(own: list[Record], reference: list[Record] | None) -> dict[str, Any]:
    values = [_metrics(record) for record in own]
    labels = own[0]["test"]["labels"]
    speeds = [record["images_per_s"] for record in own if record["images_per_s"] is not None]
    peaks = [record["peak_memory_bytes"] for record in own if record["peak_memory_bytes"] is not None]
    summary = {
        **{name: mean_and_std([value.get(name) for value in values]) for name in values[0]},
        "labels": {label: mean_and_std([record["test"]["labels"].get(label) for record in own]) for label in labels},
        "seeds": [record["seed"] for record in own],
        "lr": own[0]["lr"],
        "parameters": own[0]["parameters"],
        "flops": own[0]["flops"],
        "train_seconds": statistics.median(record["train_seconds"] for record in own),
        "images_per_s": statistics.median(speeds) if speeds else None,
        "peak_memory_bytes": max(peaks, default=None),
    }
    if reference:
        summary["difference"] = _difference(own, reference)
    return summary


def _metrics(record: Record) -> dict[str, float | None]:
    """Every metric of a run's test split, and the validation mAP that chose its epoch."""
    test = {
        name: value
        for name, value in record["test"].items()
        if name not in _COUNTS and (value is None or isinstance(value, (int, float)))
    }
    return {**test, "val_mAP": record["val_mAP"]}


def _difference(own: list[Record], reference: list[Record]) -> dict[str, Any]:
    others = {record["seed"]: _metrics(record) for record in reference}
    pairs = [(_metrics(record), others[record["seed"]]) for record in own if record["seed"] in others]
    found: dict[str, Any] = {
        name: mean_and_std([_minus(mine.get(name), theirs.get(name)) for mine, theirs in pairs])
        for name in (pairs[0][0] if pairs else ())
    }
    return {**found, "seeds": [record["seed"] for record in own if record["seed"] in others]}


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def mean_and_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation of a sample (n - 1); None where a value is missing or one value has no deviation.

    Example:
        >>> mean_and_std([1.0, 3.0])
        {'mean': 2.0, 'std': 1.4142135623730951}
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(known), "std": statistics.stdev(known) if len(known) > 1 else None}


def by_mAP(summary: dict[str, Any]) -> list[str]:
    """The variants, best test mAP first."""
    return sorted(summary, key=lambda name: -(summary[name]["mAP"]["mean"] or 0.0))


METRICS_HEADER = ("mAP", "difference", "CF1", "OF1", "val mAP")
COSTS_HEADER = ("seeds", "lr", "parameters", "GFLOPs", "training", "memory")
HEADER = ("head", *METRICS_HEADER, *COSTS_HEADER)


def table_rows(comparison: dict[str, Any]) -> list[list[str]]:
    """A row a variant under `HEADER`, best mAP first; metrics in percent, mean ± standard deviation."""
    summary, variants = comparison["summary"], comparison["variants"]
    rows = []
    for name in by_mAP(summary):
        own = summary[name]
        difference = own.get("difference", {}).get("mAP")
        rows.append(
            [
                variants[name]["title"],
                in_percent(own["mAP"]),
                "" if difference is None else in_percent(difference, sign="+"),
                *(in_percent(own[metric]) for metric in ("CF1", "OF1", "val_mAP")),
                str(len(own["seeds"])),
                f"{own['lr']:g}",
                f"{own['parameters'] / 1e6:.2f} M",
                f"{own['flops'] / 1e9:.2f}",
                duration(own["train_seconds"]),
                "-" if own["peak_memory_bytes"] is None else f"{own['peak_memory_bytes'] / 1e9:.1f} GB",
            ]
        )
    return rows


def in_percent(value: dict[str, float | None], sign: str = "") -> str:
    """Mean ± standard deviation in percent with one decimal.

    Example:
        >>> in_percent({"mean": 0.7512, "std": 0.0034}), in_percent({"mean": 0.5, "std": None}, sign="+")
        ('75.1 ± 0.3', '+50.0')
    """
    if value["mean"] is None:
        return "-"
    return f"{100 * value['mean']:{sign}.1f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.1f}")


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(42), duration(600), duration(9000)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def markdown_table(comparison: dict[str, Any]) -> str:
    """The table for a page."""
    rows = [HEADER, ["---"] * len(HEADER), *([plain(title), *values] for title, *values in table_rows(comparison))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def protocol_lines(comparison: dict[str, Any]) -> list[str]:
    """How the numbers came about, a sentence a line."""
    protocol = comparison["protocol"]
    model, data, trainer = (protocol["settings"][section] for section in ("model", "data", "trainer"))
    overrides = f" with {', '.join(protocol['overrides'])}" if protocol["overrides"] else ""
    height, width = data["size"]
    lines = [
        f"recipe {protocol['recipe']}{overrides}",
        f"{model['backbone']} at {height} x {width} px, {trainer['max_epochs']} epochs a run",
    ]
    for use, split in protocol["splits"].items():
        lines.append(f"{use}: {split['images']} images of split '{split['split']}', sha256 {split['sha256'][:16]}")
    lines += [value if name == "read" else f"{name}: {value}" for name, value in protocol["evaluation"].items()]
    if protocol["chosen_by"]:
        lines.append(f"epoch: chosen by {protocol['chosen_by']}")
    lines.append(_rate_line(protocol))
    ordered = ", ".join(str(seed) for seed in protocol["seeds"])
    lines.append(
        f"seeds {ordered}; mean ± standard deviation over them; difference to {protocol['reference']}, seed by seed"
    )
    lines += [f"machine: {_machine(own)}" for own in protocol["machines"]]
    return lines


def _rate_line(protocol: dict[str, Any]) -> str:
    search = protocol["search"]
    parts = []
    if protocol["rates_from"] is not None:
        parts.append(f"learning rates found by {protocol['rates_from']}")
    if search is not None:
        rates = ", ".join(f"{rate:g}" for rate in search["rates"])
        parts.append(
            f"learning rate of every head: the best of {rates} by validation mAP, {search['epochs']} epochs each, "
            f"seed {search['seed']}"
        )
    return "; ".join(parts) or f"learning rate {protocol['settings']['optimizer']['lr']:g} for all, the recipe's"


def note_lines(comparison: dict[str, Any]) -> list[str]:
    """What a reader has to know beside the table."""
    lines = []
    searched = (comparison["protocol"]["search"] or {}).get("rates")
    followers: dict[str, list[str]] = {}
    for variant in comparison["variants"].values():
        title = variant["title"]
        diverged = [f"{tried['lr']:g}" for tried in variant["search"] if tried["val_mAP"] is None]
        if variant["rates"] and variant["rates"] != searched:
            lines.append(f"{title} tried lr {', '.join(f'{rate:g}' for rate in variant['rates'])}")
        if diverged:
            lines.append(f"{title} diverged at lr {', '.join(diverged)}")
        if variant["edge"] is not None:
            lines.append(
                f"{title} is best at lr {variant['lr']:g}, the {variant['edge']} that was tried: beyond may be better; widen --lrs"
            )
        if variant["rate_from"] not in ("search", "recipe", "earlier"):
            followers.setdefault(variant["rate_from"], []).append(title)
    lines += [f"at the learning rate of {name}: {', '.join(titles)}" for name, titles in followers.items()]
    lines += [f"left out: {name}, {reason}" for name, reason in comparison["skipped"].items()]
    for failed in comparison["failed"]:
        what = f"search, lr {failed['lr']:g}" if failed["is_search"] else f"seed {failed['seed']}"
        lines.append(f"failed: {failed['variant']}, {what}: {failed['failed']}")
    if comparison["pending"]:
        lines.append(f"not trained yet: {comparison['pending']} runs")
    if len(comparison["protocol"]["machines"]) > 1:
        lines.append("the runs come from several machines or settings of them: times and memory do not compare")
    return lines


def markdown(comparison: dict[str, Any]) -> str:
    """The comparison for a page: protocol, table, notes."""
    parts = [
        "\n".join(f"- {plain(line)}" for line in protocol_lines(comparison)),
        markdown_table(comparison),
    ]
    if notes := note_lines(comparison):
        parts.append("\n".join(f"- {plain(line)}" for line in notes))
    return "\n\n".join(parts)


def _machine(own: dict[str, Any]) -> str:
    where = own["gpu"] or f"{own['processor']}, {own['threads']} {'thread' if own['threads'] == 1 else 'threads'}"
    return f"{where}; Python {own['python']}, torch {own['versions']['torch']}"
