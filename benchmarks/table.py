"""Print the README's table of results from the JSON files that benchmarks/heads.py wrote.

python benchmarks/table.py             # print it
python benchmarks/table.py --write     # put it into README.md, between the two markers
"""

import argparse
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"
DATA = {
    "voc2007-mobilenet": "VOC 2007, MobileNetV2 at 160 px",
    "scenes": "scenes, narrow ResNet-10 from scratch at 96 px",
}
HEADS = {"msrn": "MSRN", "avg_pool": "average pooling", "max_pool": "max pooling"}


def row(data: str, head: str, summary: dict[str, Any]) -> str:
    def cell(name: str) -> str:
        mean, std = summary[name]["mean"], summary[name]["std"]
        return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")

    minutes, millions = summary["train_seconds"] / 60, summary["parameters"] / 1e6
    cells = [data, head, *(cell(name) for name in ("mAP", "CF1", "OF1"))]
    return f"| {' | '.join(cells)} | {len(summary['seeds'])} | {millions:.2f} M | {minutes:.0f} min |"


def table() -> str:
    """Every head of every comparison, best mAP first."""
    lines = ["| data and backbone | head | mAP | CF1 | OF1 | seeds | parameters | training |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, title in DATA.items():
        summary = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["summary"]
        for head in sorted(summary, key=lambda head: -summary[head]["mAP"]["mean"]):
            lines.append(row(title, HEADS[head], summary[head]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        page = ROOT / "README.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
