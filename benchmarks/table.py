"""Print the tables of README and docs from the JSON files under benchmarks/results/.

python benchmarks/table.py             # print them
python benchmarks/table.py --write     # put them into their pages, between the two markers
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from msrn.compare import HEADS
from msrn.compare.summary import by_mAP, in_percent, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Results of `msrn compare`: a folder results/NAME with comparison.json and runs/.
DATA = {
    "voc160": "part of VOC 2007, MobileNetV2 at 160 px",
    "voc224": "part of VOC 2007, MobileNetV2 at 224 px",
    "scenes": "scenes, narrow ResNet-10 from scratch at 96 px",
}
COMPARISONS = [name for name in DATA if (RESULTS / name / "comparison.json").exists()]
# The same of MSRN as it was before its paths had a loss each.
BOUNDS_DATA = {"voc2007-mobilenet": DATA["voc160"], "scenes": DATA["scenes"]}
BOUNDS = {"": "bounded: norm and bound (default)", "-unbounded": "norm, no bound", "-plain": "neither, as published"}
FORMS = {
    "attention reference": "plain form (`reference`)",
    "attention cpu": "exact, tiled (`cpu`)",
    "attention nodes": "`nodes`",
    "attention auto": "attention as the network runs it (`auto`)",
    "head": "whole head",
    "inference head": "whole head, ready for inference",
    "ML-Decoder": "ML-Decoder, for comparison",
}


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def lines(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def percent(found: dict[str, Any], name: str) -> str:
    return in_percent(found[name])


def heads() -> str:
    """MSRN, average pooling and the best other head of every comparison; docs/parts.md has them all."""
    rows = []
    for name in COMPARISONS:
        title, summary = DATA[name], read(f"{name}/comparison")["summary"]
        best = by_mAP({head: own for head, own in summary.items() if head in HEADS})
        shown = {"msrn", "avg_pool", next(head for head in best if head not in ("msrn", "avg_pool", "msrn_published"))}
        for head in (head for head in best if head in shown):
            own = summary[head]
            difference = own.get("difference", {}).get("mAP")
            cells = [
                percent(own, "mAP"),
                "" if difference is None else in_percent(difference, sign="+"),
                *(percent(own, metric) for metric in ("CF1", "OF1")),
                str(len(own["seeds"])),
                f"{own['parameters'] / 1e6:.2f} M",
                f"{own['train_seconds'] / 60:.0f} min",
            ]
            rows.append([title, HEADS[head].title, *cells])
    header = ["data and backbone", "head", "mAP", "minus MSRN", "CF1", "OF1", "seeds", "parameters", "training"]
    return lines(header, rows)


def comparison(name: str) -> str:
    """Everything a comparison says: protocol, table, notes."""
    return markdown(read(f"{name}/comparison"))


def parts(name: str) -> str:
    """What a trained MSRN does without each of its parts."""
    rows = [
        [
            part,
            in_percent(own["mAP"]),
            f"{own['mean_change']['mean']:.4f} ± {own['mean_change']['std']:.4f}",
            f"{own['greatest_change']['mean']:.2f}",
            f"{100 * own['first_label_changes']['mean']:.1f} %",
        ]
        for part, own in read(f"parts-{name}")["without"].items()
    ]
    return lines(["without", "mAP", "a probability moves by", "at most", "first label changes"], rows)


def bounds() -> str:
    """MSRN with and without bounded scores."""
    rows = []
    for name, title in BOUNDS_DATA.items():
        for suffix, what in BOUNDS.items():
            found = read(f"bounds/{name}{suffix}")
            runs = [run for run in found["runs"] if run["head"] == "msrn"]
            validation = sum(run["val_mAP"] for run in runs) / len(runs)
            own = found["summary"]["msrn"]
            rows.append([title, what, percent(own, "mAP"), f"{100 * validation:.1f}", str(len(own["seeds"]))])
    return lines(["data and backbone", "scores", "test mAP", "validation mAP", "seeds"], rows)


def entry(network: str, num_labels: int, state: str) -> dict[str, Any]:
    found = [
        own
        for own in read("attention")["networks"]
        if (own["network"], own["num_labels"], own["state"]) == (network, num_labels, state)
    ]
    return found[0]


def share(found: dict[str, Any], work: str) -> str:
    """Median and range over rounds, in percent of the backbone."""
    own = found["times"].get(work)
    if own is None:
        return found["left_out"].get(work, "")
    low, high = own["share_range"]
    return f"{100 * own['share_of_backbone']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def attention_times() -> str:
    rows = []
    for found in read("attention")["networks"]:
        for prefix, title in FORMS.items():
            forward, step = share(found, f"{prefix} forward"), share(found, f"{prefix} step")
            rows.append([found["network"], f"{found['num_labels']:,}", found["state"], title, forward, step])
    return lines(["network", "labels", "embeddings", "what", "forward, % of backbone", "step, % of backbone"], rows)


def attention_memory() -> str:
    rows = []
    for found in read("attention")["networks"]:
        if "memory" not in found:
            continue
        for prefix, title in FORMS.items():
            cells = []
            for work, field in (
                ("forward", "peak_bytes"),
                ("step", "peak_bytes"),
                ("step", "kept_for_backward_bytes"),
            ):
                own = found["memory"].get(f"{prefix} {work}", {})
                cells.append(
                    f"{own[field] / 2**20:,.0f}"
                    if field in own
                    else own.get("left_out", ("failed" if "failed" in own else "not measured") if own else "")
                )
            if any(cells):
                rows.append([found["network"], f"{found['num_labels']:,}", title, *cells])
    header = ["network", "labels", "what", "forward, peak MiB", "step, peak MiB", "kept for backward, MiB"]
    return lines(header, rows)


def attention_goals() -> str:
    def worst(network: str, num_labels: int, work: str) -> float:
        own = [f for f in read("attention")["networks"] if (f["network"], f["num_labels"]) == (network, num_labels)]
        return max(found["times"][work]["share_of_backbone"] for found in own)

    def activations(network: str, num_labels: int) -> float:
        memory = entry(network, num_labels, "initial")["memory"]
        kept = [memory[work]["kept_for_backward_bytes"] for work in ("head step", "attention reference step")]
        share: float = kept[0] / kept[1]
        return share

    rows = [
        ("attention forward, default, 80 labels", worst("default", 80, "attention auto forward"), 0.04),
        ("attention forward, published, 80 labels", worst("published", 80, "attention auto forward"), 0.15),
        ("head forward (for inference), default, 80 labels", worst("default", 80, "inference head forward"), 0.12),
        ("head step, default, 80 labels", worst("default", 80, "head step"), 0.15),
        ("head step, published, 80 labels", worst("published", 80, "head step"), 0.50),
        ("head forward (for inference), default, 9,605 labels", worst("default", 9605, "inference head forward"), 0.25),
        (
            "activations that the head keeps / that plain attention alone keeps, default, 80 labels",
            activations("default", 80),
            0.10,
        ),
        ("activations, the same, published, 80 labels", activations("published", 80), 0.10),
        ("ML-Decoder forward, 80 labels", worst("default", 80, "ML-Decoder forward"), None),
        ("ML-Decoder forward, 9,605 labels", worst("default", 9605, "ML-Decoder forward"), None),
    ]
    return lines(
        ["what", "measured, %", "goal, %", ""],
        [
            [
                what,
                f"{100 * value:.1f}",
                *(["", "peer"] if goal is None else [f"{100 * goal:.0f}", "met" if value <= goal else "missed"]),
            ]
            for what, value, goal in rows
        ],
    )


def attention_takeover() -> str:
    rows = []
    for found in read("attention")["takeover"]:
        cells = [
            f"{found[f'{kind}_ms'][form]:.1f}" for kind in ("forward", "step") for form in ("cpu", "nodes", "auto")
        ]
        rows.append([str(found["positions"]), str(found["labels"]), *cells])
    forms = [f"{kind} `{form}`, ms" for kind in ("forward", "step") for form in ("cpu", "nodes", "auto")]
    return lines(["positions", "labels", *forms], rows)


def memory() -> str:
    rows = []
    for name, own in read("memory")["cases"].items():
        peak, expected, measured, returning = (
            own[f"{what}_bytes"] for what in ("peak", "expected", "measured", "measured_returning")
        )
        sizes = [f"{size / 1e9:.3f} GB" for size in (peak, expected, measured)]
        rows.append([name, *sizes, f"{measured / expected:.2f}", f"{returning / peak:.2f}"])
    header = ["network", "peak counted", "expected", "measured", "measured / expected", "returning allocator / peak"]
    return lines(header, rows)


SPLITTERS = {"msrn": "msrn data split", "first_step": "iterative stratification alone", "random": "random"}


def stratification() -> str:
    """The largest deviations: the worst of several seeds, a random split's on average."""
    found = read("stratification")
    rows = []
    for title, own in found["compared"].items():
        name, _, shares = title.partition("; ")
        for splitter, figures in own["deviations"].items():
            cells = (f"{100 * figures['largest_share']:.2f}", f"{figures['largest_count']:.1f}")
            rows.append([name, shares, SPLITTERS.get(splitter, splitter), *cells])
    for title, what in (("split_images", ""), ("split_images, grouped", ", in groups")):
        own = found["million"][title]
        for key, splitter in (("deviations", "msrn"), ("random_deviations", "random")):
            cells = (f"{100 * own[key]['largest_share']:.2f}", f"{own[key]['largest_count']:.1f}")
            rows.append([f"long tail, 1,000,000 images{what}", "0.8, 0.1, 0.1", SPLITTERS[splitter], *cells])
    return lines(["images", "shares", "splitter", "off by, % of a label's positives", "off by, images"], rows)


def doctor() -> str:
    """What `msrn data check` takes for a table of small files."""
    own = read("doctor")
    cells = [
        f"{own['num_images']:,}",
        f"{own['num_labels']}",
        f"{own['seconds']:.0f} s",
        f"{own['peak_memory_mb'] / 1e3:.1f} GB",
    ]
    found = f"{sum(own['found'].values())} of {sum(own['planted'].values())}"
    return lines(["images", "labels", "time", "peak memory", "planted faults found"], [[*cells, found]])


def loading() -> str:
    """Ratios of images a second, median and range of alternating runs."""
    found = read("loading")
    titles = (
        ("plain", ("loader", "plain"), "loader / plain loop, two workers and two processes"),
        ("reduced_decode", ("reduced", "full"), "reduced decoding / full"),
        ("cache", ("cached", "decoded"), "second epoch from the cache / decoded"),
    )
    rows = []
    for name, (ours, other), title in titles:
        for settings, own in found[name].items():
            low, high = own["ratio_range"]
            speeds = [f"{own['images_per_s'][which]:,.0f}" for which in (ours, other)]
            rows.append([title, settings, *speeds, f"{own['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    return lines(["what", "images", "images/s", "beside", "ratio"], rows)


def loading_parts() -> str:
    """Where the time of one thread goes, in ms an image."""
    parts = read("loading")["parts_ms"]
    hand_over, ones = "fill with ones, and hand over", "fill with ones"
    names = [name for name in next(iter(parts.values())) if name not in (ones, hand_over)]
    rows = [[name, *(f"{own[name]:.3f}" for own in parts.values())] for name in names]
    # Of large JPEGs there are a few batches only, among which the first one's start would count.
    handed = ("" if "large" in settings else f"{own[hand_over] - own[ones]:.3f}" for settings, own in parts.items())
    return lines(["part", *parts], [*rows, ["hand over to the main process", *handed]])


def recipes() -> str:
    """What the recipes of the published data sets take, as counted."""
    rows = []
    for name, own in read("recipes").items():
        height, _ = own["size"]
        run_flops = own["run_flops"]
        rows.append(
            [
                f"`{name}`",
                f"{own['backbone'].partition('.')[0]}, {height} px",
                f"{own['parameters'] / 1e6:.1f} M",
                f"{own['flops_per_image'] / 1e9:.1f}",
                f"{own['expected_bytes'] / 1e9:.1f} GB for {own['batch_size']}",
                f"{own['epochs']} x {own['images']:,}",
                f"{run_flops / 1e15:,.0f}" if run_flops > 1e15 else f"{run_flops / 1e15:.2f}",
            ]
        )
    header = [
        "recipe",
        "backbone",
        "parameters",
        "GFLOPs an image",
        "memory of a step",
        "epochs x images",
        "PFLOPs a run",
    ]
    return lines(header, rows)


THRESHOLDS = ("thresholds-long-tail", "thresholds-heavy-tail", "thresholds-voc", "thresholds-scenes")


def spread(own: dict[str, float]) -> str:
    return f"{100 * own['mean']:.2f} ± {100 * own['std']:.2f}"


def _labels_there(own: dict[str, Any]) -> str:
    names = ("labels_predicted", "labels_met", "labels_out_of_reach")
    return ", ".join(f"{own['precision'][name]['mean']:.1f}" for name in names)


def thresholds() -> str:
    """Macro F1 and precision on images that fitted nothing."""
    found = [read(name) for name in THRESHOLDS]
    rows = [[f"macro F1, {name}", *(spread(own["macro_F1"][name]) for own in found)] for name in found[0]["macro_F1"]]
    rows += [
        ["fitted minus 0.5", *(spread(own["gain_over_fixed"]) for own in found)],
        ["fitted minus naive", *(spread(own["gain_over_naive"]) for own in found)],
        ["precision, asked for 90", *(spread(own["precision"]["precision"]) for own in found)],
        ["recall there", *(spread(own["precision"]["recall"]) for own in found)],
        [
            "resamples whose 95 % interval reaches 90",
            *(f"{own['precision_met']} of {own['resamples']}" for own in found),
        ],
        ["labels predicted there, whose own interval reaches 90, out of reach", *map(_labels_there, found)],
    ]
    header = [f"{own['title']}, {own['fitted_on']} images to fit" for own in found]
    return lines(["%, mean ± deviation of 20 resamples", *header], rows)


def calibrations() -> str:
    """Calibration error on images that fitted nothing."""
    found = [read(name) for name in THRESHOLDS]
    rows = [
        [name, *(spread(own["calibration"][name][kind]) for own in found for kind in ("ECE", "ECE_by_label"))]
        for name in found[0]["calibration"]
    ]
    header = [f"{own['title']}, {kind}" for own in found for kind in ("all entries", "mean over labels")]
    return lines(["calibration error, %", *header], rows)


def annotation_errors() -> str:
    """Average precision of rankings of flipped labels."""
    found = [read(f"annotation-errors-{name}") for name in ("voc", "scenes")]
    rows = [
        [name, *(spread(own["average_precision"][name]) for own in found)] for name in found[0]["average_precision"]
    ]
    return lines(["average precision, %", *(own["title"] for own in found)], rows)


def pointing() -> str:
    """Whether the maps point at the objects."""
    found = read("pointing-voc")
    through = found["pointing_through_window"]
    rows = [
        [
            name,
            f"{100 * share:.1f}",
            f"{100 * through[name]:.1f}" if name in through else "",
            *(f"{found[kind][name]:.3f}" if name in found[kind] else "" for kind in ("deletion", "insertion")),
        ]
        for name, share in found["pointing"].items()
    ]
    return lines(
        [
            "map",
            "greatest cell in a box, %",
            "greatest region in a box, %",
            "deletion, lower is better",
            "insertion, higher is better",
        ],
        rows,
    )


def explain_time() -> str:
    """How long explaining takes beside prediction."""
    found = read("explain-time")
    ways = dict(found)
    for count, own in found.get("untrained", {}).items():
        ways[f"predict {count} labels, untrained"] = own["predict"]
        ways[f"explain all {count} labels, untrained"] = own["explain all labels"]
    rows = [
        [
            name,
            f"{1000 * own['seconds']:.0f}",
            "{median:.2f} ({least:.2f} to {most:.2f})".format(**own["times_prediction"]),
        ]
        for name, own in ways.items()
        if isinstance(own, dict) and "times_prediction" in own
    ]
    return lines(["for one image", "ms", "times prediction"], rows)


def serving() -> str:
    """The server under load."""
    found = read("serving")
    rounds = found["rounds"]

    def over_rounds(values: list[float], form: str) -> str:
        return ", ".join(form.format(value) for value in values)

    answers = {status for own in rounds for status in own["statuses"]}
    rows = [
        ["`predict` in a loop, images a second", over_rounds(found["loop_rate"], "{:.1f}")],
        [
            f"{found['clients']} clients, images a second, {found['seconds']:.0f} s a round",
            over_rounds([own["rate"] for own in rounds], "{:.1f}"),
        ],
        ["their ratio", over_rounds(found["ratio"], "{:.2f}")],
        ["time of a request, median, ms", over_rounds([own["p50_ms"] for own in rounds], "{:.0f}")],
        ["time of a request, 99th percentile, ms", over_rounds([own["p99_ms"] for own in rounds], "{:.0f}")],
        ["statuses", f"{', '.join(sorted(answers))} ({sum(own['statuses']['200'] for own in rounds):,} requests)"],
    ]
    for name, own in found["overload"].items():
        total = sum(own["statuses"].values())
        shares = ", ".join(f"{status} {100 * count / total:.0f} %" for status, count in sorted(own["statuses"].items()))
        memory = " → ".join(f"{value:.0f}" for value in own["megabytes_before_and_after_each_third"])
        rows += [
            [f"{own['clients']} clients, {name}: answers", f"{shares}; {own['rate']:.1f} images a second"],
            [f"{own['clients']} clients, {name}: memory, MB", memory],
        ]
    return lines(["measured", "found"], rows)


def tagging() -> str:
    """How fast many files are tagged, and what kills cost."""
    found = read("tagging")
    height, width = found["size"]
    rows = [
        ["files, real photos repeated under distinct names", f"{found['count']:,}"],
        ["network, processors", f"{found['backbone']} at {height} x {width} px, {found['machine']['processors']}"],
        [
            "bare network on tensors in memory, images a second, before every start and after the last",
            ", ".join(f"{own:.1f}" for own in found["bare_rate"]),
        ],
        ["the job, images a second, each start", ", ".join(f"{own:.1f}" for own in found["job_rate"])],
        [
            "a start's share of the mean of the bare network before and behind it, median (least to most)",
            "{median:.2f} ({least:.2f} to {most:.2f})".format(**found["share_of_bare"]),
        ],
        ["kills, behind how many images", ", ".join(f"{own['images_in_parts']:,}" for own in found["kills"])],
        ["rows, distinct rows", f"{found['rows']:,}, {found['distinct_rows']:,}"],
        ["most memory of the job and its workers, MB", f"{found['memory']['peak'] / 1e6:,.0f}"],
    ]
    return lines(["", ""], rows)


def tagging_memory() -> str:
    """What tagging holds in memory, behind how many images."""
    rows = [
        [f"{row['images']:,}", *(f"{row[name] / 1e6:,.0f}" for name in ("least", "median", "most"))]
        for row in read("tagging-memory")["rows"]
    ]
    return lines(["up to image", "least, MB", "median, MB", "most, MB"], rows)


def export() -> str:
    """ONNX beside PyTorch."""
    rows = []
    for own in read("export")["models"]:
        way = "folded" if own["is_folded"] else "nodes"
        speed = ", ".join("{median:.2f} ({least:.2f} to {most:.2f})".format(**value) for value in own["speed"].values())
        rows.append(
            [
                f"{own['backbone']}, {own['kind']}",
                way,
                f"{own['bytes'] / 1e6:,.0f}",
                f"{max(own['largest_difference'].values()):.0e}",
                speed,
            ]
        )
    return lines(
        ["MSRN", "attention", "MB", "largest difference of a probability", "times as fast as PyTorch at batch 1, 3, 8"],
        rows,
    )


# Page and marker of every table.
def attention_errors() -> str:
    """The forms of attention beside the plain formula in float64."""
    found = read("attention-errors")
    names = ("pooled", "gradient to features", "gradient to embeddings")
    forms = {"reference": "plain form", "cpu": "`cpu`", "nodes": "`nodes`"}
    rows = [
        [row["embeddings"], forms[row["form"]], row["dtype"]]
        + [f"{row[name]['error']:.1e} of {row[name]['greatest']:.2g}" for name in names]
        for row in found["rows"]
    ]
    return lines(["embeddings", "form", "numbers", *names], rows)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "heads": ("README.md", heads),
    **{f"comparison-{name}": ("docs/parts.md", partial(comparison, name)) for name in COMPARISONS},
    **{
        f"parts-{name}": ("docs/parts.md", partial(parts, name))
        for name in COMPARISONS
        if (RESULTS / f"parts-{name}.json").exists()
    },
    "bounds": ("docs/attention.md", bounds),
    "attention-errors": ("docs/attention.md", attention_errors),
    "goals": ("docs/attention.md", attention_goals),
    "times": ("docs/attention.md", attention_times),
    "memory": ("docs/attention.md", attention_memory),
    "takeover": ("docs/attention.md", attention_takeover),
    "thresholds": ("docs/thresholds.md", thresholds),
    "calibration": ("docs/thresholds.md", calibrations),
    "annotation-errors": ("docs/evaluation.md", annotation_errors),
    "pointing": ("docs/explain.md", pointing),
    "explain-time": ("docs/explain.md", explain_time),
    "tagging": ("docs/tagging.md", tagging),
    **({"tagging-memory": ("docs/tagging.md", tagging_memory)} if (RESULTS / "tagging-memory.json").exists() else {}),
    **({"export": ("docs/export.md", export)} if (RESULTS / "export.json").exists() else {}),
    **({"serving": ("docs/serving.md", serving)} if (RESULTS / "serving.json").exists() else {}),
    "training-memory": ("docs/memory.md", memory),
    "recipes": ("docs/training.md", recipes),
    "loading": ("docs/data.md", loading),
    "loading-parts": ("docs/data.md", loading_parts),
    "doctor": ("docs/data.md", doctor),
    "stratification": ("docs/data.md", stratification),
}


def block(name: str) -> str:
    """A table between its markers, as it stands in its page."""
    return f"<!-- {name}: made by benchmarks/table.py -->\n{TABLES[name][1]()}\n<!-- end of {name} -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name, (page, _) in TABLES.items():
        made = block(name)
        if not write:
            print(f"{page}\n{made}\n")
            continue
        path = ROOT / page
        before, begin, rest = path.read_text(encoding="utf-8").partition(made.splitlines()[0])
        _, end, after = rest.partition(made.splitlines()[-1])
        if not begin or not end:
            raise SystemExit(
                f"{page} has no markers for the table '{name}'. Put its first and last line where it belongs."
            )
        path.write_text(before + made + after, encoding="utf-8")


if __name__ == "__main__":
    main()
