"""Time and memory of every form of semantic attention, of whole heads and of the backbone, in one run.

    python benchmarks/attention.py --coco COCO --json benchmarks/results/attention.json --picture docs/images/attention.png

COCO is a folder with instances JSON files and photos (MS-COCO, or a part of it). The network is an MSRN on ResNet-101 at 448 px,
two photos a batch, backbone channels_last. Word vectors and graph of 20 and 80 labels come from the photos' annotations; for 1,000
and 9,605 labels both are drawn. "trained" are networks, random ones at first, after --steps training steps on the photos at 224 px.

Times are taken in turn, round by round; a ratio is taken within its round, and the median and the range over rounds are kept.
Memory is measured in a process of its own: the peak of the resident set above what was there before, and the bytes that autograd
keeps for the backward pass. Each finished network is written at once; started again, the script goes on where it stopped.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msrn.data.images import read_image
from msrn.data.transforms import Preprocessing
from msrn.files import write_json
from msrn.labels import LabelGraph
from msrn.machine import machine
from msrn.models import PUBLISHED, InferenceMSRN, build_msrn, use_channels_last
from msrn.ops import semantic_guided_attention
from msrn.training.losses import multilabel_soft_margin_loss

FORMS = ("reference", "cpu", "nodes", "auto")
BACKBONE = "resnet101"
SIZE, BATCH = 448, 2
NETWORKS = [
    *(("default", labels, state) for labels in (20, 80) for state in ("initial", "trained")),
    *(("published", labels, state) for labels in (20, 80) for state in ("initial", "trained")),
    *(("default", labels, "initial") for labels in (1000, 9605)),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_photos(folder: Path) -> tuple[list[Path], Tensor, list[str]]:
    """Photos, their labels (N, 80), and the labels' names."""
    photos = {path.name: path for path in sorted(folder.rglob("*.jpg"))}
    names: dict[int, str] = {}
    present: dict[str, set[int]] = {}
    for file in sorted(folder.rglob("instances*.json")):
        found = json.loads(file.read_text())
        names |= {category["id"]: category["name"] for category in found["categories"]}
        files = {image["id"]: image["file_name"] for image in found["images"]}
        for entry in found["annotations"]:
            present.setdefault(files[entry["image_id"]], set()).add(entry["category_id"])
    used = [name for name in sorted(present) if name in photos]
    columns = {category: column for column, category in enumerate(sorted(names))}
    target = torch.zeros(len(used), len(names))
    for row, name in enumerate(used):
        target[row, [columns[category] for category in present[name]]] = 1
    return [photos[name] for name in used], target, [names[category] for category in sorted(names)]


def load(paths: list[Path], size: int) -> Tensor:
    preprocessing = Preprocessing((size, size), MEAN, STD)
    images = torch.stack([preprocessing(read_image(path)) for path in paths])
    return images.contiguous(memory_format=torch.channels_last)


def drawn_graph(num_labels: int) -> LabelGraph:
    """Label counts by Zipf's law, some twenty companions a label."""
    generator = torch.Generator().manual_seed(0)
    counts = (20_000 / torch.arange(1, num_labels + 1) ** 0.7).long().clamp(min=5)
    both = torch.zeros(num_labels, num_labels, dtype=torch.long)
    first = torch.randint(num_labels, (10 * num_labels,), generator=generator)
    second = torch.randint(num_labels, (10 * num_labels,), generator=generator)
    together = (torch.minimum(counts[first], counts[second]) * torch.rand(len(first), generator=generator)).long()
    both[first, second] = together
    both = torch.maximum(both, both.T).fill_diagonal_(0)
    return LabelGraph(tuple(f"label {i}" for i in range(num_labels)), both, counts)


class Case:
    """A network, two photos, and what the backbone makes of them."""

    def __init__(self, args: argparse.Namespace, network: str, num_labels: int, state: str) -> None:
        paths, target, names = read_photos(args.coco)
        torch.manual_seed(0)
        word_vectors = None
        if num_labels <= len(names):
            chosen = target.sum(dim=0).argsort(descending=True, stable=True)[:num_labels]
            target = target[:, chosen]
            graph = LabelGraph.from_target(target.int(), [names[i] for i in chosen.tolist()])
        else:
            graph, word_vectors = drawn_graph(num_labels), torch.randn(num_labels, 300)
            target = (torch.rand(len(paths), num_labels) < 0.003).float()
        preset: dict[str, Any] = (
            {} if network == "default" else {**PUBLISHED, "group_ratio": 0.2 if num_labels == 20 else 0.05}
        )
        self.model = build_msrn(graph, word_vectors, backbone=BACKBONE, **preset)
        use_channels_last(self.model)
        self.target = target
        if state == "trained":
            self.train(args, paths, args.work / f"{network}-{num_labels}.pt")
        self.set_statistics(load(paths[:8], SIZE))
        self.images = load(paths[:BATCH], SIZE)

    def train(self, args: argparse.Namespace, paths: list[Path], file: Path) -> None:
        if file.exists():
            self.model.load_state_dict(torch.load(file, weights_only=True))
            return
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.model.train()
        for step in range(args.steps):
            rows = torch.randperm(len(paths), generator=torch.Generator().manual_seed(step))[:8]
            loss = self.loss(self.model.backbone(load([paths[row] for row in rows], 224)), rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"\r  step {step + 1} of {args.steps}, loss {loss.item():.3f}", end="", flush=True)
        print()
        args.work.mkdir(parents=True, exist_ok=True)
        torch.save(self.model.state_dict(), file)

    def loss(self, feature_maps: list[Tensor], rows: Any) -> Tensor:
        label_groups = self.model.embed()
        logits = self.model.head(feature_maps, label_groups)
        return multilabel_soft_margin_loss(logits, self.target[rows]) + self.model.group_loss(label_groups)

    @torch.no_grad()
    def set_statistics(self, images: Tensor) -> None:
        """Batch norm statistics of real photos, as a trained network would have."""
        norms = [module for module in self.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.model.train()
        for batch in images.split(4):
            for stage, feature_map in zip(self.model.attention.stages, self.model.backbone(batch), strict=True):
                stage(feature_map)
        self.model.eval()
        for norm in norms:
            norm.momentum = 0.1

    def works(self, *, only: str | None = None) -> dict[str, Callable[[], object]]:
        """Everything that is timed, by name; each is called in turn."""
        model = self.model.eval()
        with torch.no_grad():
            feature_maps = [feature_map.detach() for feature_map in model.backbone(self.images)]
            projected = [stage.detach() for stage in model.attention.project(feature_maps)]
            label_groups = model.embed()
        embeddings = [own.detach() for own in label_groups[:2]]
        if model.attention.is_bounded:  # as the network takes them
            embeddings = [torch.cat(embeddings)]
        self.inputs = [*feature_maps, *projected, *embeddings]
        map_grads = [torch.randn_like(feature_map) for feature_map in feature_maps]
        works: dict[str, Callable[[], object]] = {
            "backbone forward": lambda: model.backbone(self.images),
            "backbone step": lambda: self.backbone_step(map_grads),
        }
        for form in FORMS:
            works[f"attention {form} forward"] = lambda form=form: attend(projected, embeddings, form)
            works[f"attention {form} step"] = lambda form=form: attend_step(projected, embeddings, form)
        works["head forward"] = lambda: model.head(feature_maps)
        if only in (None, "inference head forward"):
            inference = InferenceMSRN(model)
            use_channels_last(inference)
            works["inference head forward"] = lambda: inference.head(feature_maps)
        works["head step"] = lambda: self.head_step(feature_maps)
        if only is None:
            decoder = ml_decoder(model.backbone.channels[-1], len(label_groups[0]))
            works["ML-Decoder forward"] = lambda: decoder(feature_maps[-1])
        return works

    def backbone_step(self, map_grads: list[Tensor]) -> None:
        self.model.train()
        torch.autograd.backward(self.model.backbone(self.images), map_grads)

    def head_step(self, feature_maps: list[Tensor]) -> None:
        self.model.train()
        inputs = [feature_map.detach().requires_grad_() for feature_map in feature_maps]
        self.loss(inputs, slice(0, BATCH)).backward()


def attend(projected: list[Tensor], embeddings: list[Tensor], form: str) -> list[Tensor]:
    return [semantic_guided_attention(stage, rows, backend=form) for stage in projected for rows in embeddings]


def attend_step(projected: list[Tensor], embeddings: list[Tensor], form: str) -> None:
    stages = [stage.detach().requires_grad_() for stage in projected]
    rows = [own.detach().requires_grad_() for own in embeddings]
    pooled = attend(stages, rows, form)
    torch.autograd.backward(pooled, [torch.ones_like(own) for own in pooled])


def ml_decoder(channels: int, num_labels: int) -> torch.nn.Module:
    """The peer: Ridnik et al., ML-Decoder, https://arxiv.org/abs/2111.12933, in timm's implementation."""
    from timm.layers.ml_decoder import MLDecoder

    decoder = MLDecoder(num_labels, initial_num_features=channels).eval()
    # PyTorch 2.13's stack of layers asks its layers for a self-attention, which these leave out.
    decoder.decoder = decoder.decoder.layers[0]
    return decoder


def measure_takeover(repeats: int) -> list[dict[str, Any]]:
    """From how many labels on nodes are faster than the exact form, and what "auto" takes; bounded entries, normal features."""
    rows = []
    for side in (7, 14, 28):
        for count in (8, 12, 16, 20, 24, 32, 48, 80, 160, 320):
            torch.manual_seed(0)
            stage = torch.randn(BATCH, 512, side, side).contiguous(memory_format=torch.channels_last)
            embeddings = 0.3 * torch.randn(count, 512).tanh()
            found: dict[str, Any] = {"positions": side * side, "labels": count}
            for kind, work in (("forward", attend), ("step", attend_step)):
                times: dict[str, list[float]] = {"cpu": [], "nodes": [], "auto": []}
                for turn in range(repeats + 1):
                    for form, seconds in times.items():
                        start = time.perf_counter()
                        with torch.inference_mode(kind == "forward"):
                            work([stage], [embeddings], form)
                        if turn:
                            seconds.append(time.perf_counter() - start)
                found[f"{kind}_ms"] = {form: round(1e3 * statistics.median(own), 3) for form, own in times.items()}
            rows.append(found)
            print(f"  {found}", flush=True)
    return rows


def is_step(work: str) -> bool:
    return work.endswith("step")


def run(work: str, call: Callable[[], object]) -> None:
    if is_step(work):
        call()
    else:
        with torch.inference_mode():
            call()


def plain_bytes(case: Case, work: str) -> int:
    """What the plain form's largest tensors take together; a step keeps scores, weights and products."""
    rows = sum(len(own) for own in case.model.embed()[:2])
    positions = (SIZE // 16) ** 2 + (SIZE // 32) ** 2 + (SIZE // 64) ** 2
    if not is_step(work):
        positions = (SIZE // 16) ** 2  # one stage at a time
    return BATCH * rows * positions * case.model.attention.stages[0].projection.out_channels * 4 * 3


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) * 1024


def measure_times(case: Case, repeats: int) -> dict[str, Any]:
    works = case.works()
    times: dict[str, list[float]] = {}
    left_out = {
        work: f"needs about {plain_bytes(case, work) / 1e9:.0f} GB"
        for work in works
        if work.startswith("attention reference") and plain_bytes(case, work) > 0.5 * free_bytes()
    }
    works = {work: call for work, call in works.items() if work not in left_out}
    for work, call in works.items():  # first calls compile, allocate and choose
        case.model.eval()
        run(work, call)
    for _ in range(repeats):
        for work, call in works.items():
            case.model.eval()
            case.model.zero_grad(set_to_none=False)
            start = time.perf_counter()
            run(work, call)
            times.setdefault(work, []).append(time.perf_counter() - start)
    result: dict[str, Any] = {}
    for work, seconds in times.items():
        base = times["backbone step" if is_step(work) else "backbone forward"]
        shares = sorted(own / beside for own, beside in zip(seconds, base, strict=True))
        result[work] = {
            "median_ms": round(1e3 * statistics.median(seconds), 3),
            "range_ms": [round(1e3 * min(seconds), 3), round(1e3 * max(seconds), 3)],
            "share_of_backbone": round(statistics.median(shares), 5),
            "share_range": [round(shares[0], 5), round(shares[-1], 5)],
        }
    return {"times": result, "left_out": left_out}


def measure_memory(args: argparse.Namespace, network: str, num_labels: int, state: str) -> dict[str, Any]:
    """Every work in a fresh process whose allocator gives freed blocks back, so that the peak is the work's own."""
    names = ["backbone forward", "backbone step", "head forward", "inference head forward", "head step"]
    names += [f"attention {form} {kind}" for form in FORMS for kind in ("forward", "step")]
    result = {}
    for name in names:
        command = [sys.executable, __file__, "--coco", str(args.coco), "--work", str(args.work), "--memory-of"]
        command += [network, str(num_labels), state, name]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        result[name] = (
            json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-300:]}
        )
    return result


def memory_of(args: argparse.Namespace) -> dict[str, Any]:
    network, num_labels, state, work = args.memory_of
    case = Case(args, network, int(num_labels), state)
    if work.startswith("attention reference") and plain_bytes(case, work) > 0.5 * free_bytes():
        return {"left_out": f"needs about {plain_bytes(case, work) / 1e9:.0f} GB"}
    call = case.works(only=work)[work]
    for parameter in case.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if not work.startswith("attention reference"):
        run(work, call)  # first calls choose and fold; their memory stays
    kept: dict[int, int] = {}
    given = [
        *case.model.state_dict(keep_vars=True).values(),
        *case.inputs,
    ]  # parameters, and what the backbone holds anyway
    own = {tensor.untyped_storage().data_ptr() for tensor in given}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run(work, call)
    return {
        "peak_bytes": status("VmHWM") - before,
        "kept_for_backward_bytes": sum(kept.values()) if is_step(work) else 0,
    }


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def draw(result: dict[str, Any], path: Path) -> None:
    """Share of the backbone's time, and peak memory, against the number of labels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = sorted({entry["num_labels"] for entry in result["networks"]})
    by_labels = {
        e["num_labels"]: e for e in result["networks"] if e["network"] == "default" and e["state"] == "initial"
    }
    shown = {
        "attention reference": ("plain form", "#b0413e", "s--"),
        "attention cpu": ("exact, tiled (cpu)", "#d98e04", "o-"),
        "attention nodes": ("nodes", "#2a6f97", "^-"),
        "attention auto": ("auto", "#12355b", "D-"),
        "head": ("whole head", "#4f772d", "v-"),
        "inference head": ("whole head, folded", "#90a955", "P-"),
    }
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.2))
    kinds = [("times", "forward"), ("times", "step"), ("memory", "forward"), ("memory", "step")]
    for axis, (what, kind) in zip(axes, kinds, strict=True):
        for prefix, (title, colour, style) in shown.items():
            points = []
            for count in labels:
                found = by_labels.get(count, {}).get(what, {}).get(f"{prefix} {kind}", {})
                value = found.get("share_of_backbone") if what == "times" else found.get("peak_bytes")
                if value:
                    points.append((count, 100 * value if what == "times" else value / 2**20))
            if points:
                axis.plot(*zip(*points, strict=True), style, color=colour, label=title, markersize=5, linewidth=1.6)
        axis.set(xscale="log", yscale="log", xlabel="labels")
        axis.set_xticks(labels, [f"{count:,}" for count in labels])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_title(
            f"{kind}: " + ("time, % of the backbone's" if what == "times" else "peak memory, MiB"), fontsize=10
        )
        if what == "times":
            axis.axhline(100, color="0.5", linewidth=1, linestyle=":")
    axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(
        f"Semantic attention, {BACKBONE} at {SIZE} px, batch {BATCH}, three stages, {result['machine']['threads']} CPU threads",
        fontsize=11,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True, help="folder with photos and instances JSON files")
    parser.add_argument("--json", type=Path, help="result, also what is gone on from")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/attention"), help="where trained networks are kept")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--only", nargs="+", default=[], help="networks such as default-80-initial")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(args)))
        return
    result: dict[str, Any] = {"networks": []}
    if args.json and args.json.exists():
        result = json.loads(args.json.read_text())
    result |= {"machine": machine(), "backbone": BACKBONE, "size": SIZE, "batch": BATCH}
    for network, num_labels, state in NETWORKS:
        name = f"{network}-{num_labels}-{state}"
        key = {"network": network, "num_labels": num_labels, "state": state}
        is_done = any(all(entry[field] == value for field, value in key.items()) for entry in result["networks"])
        if is_done or (args.only and name not in args.only):
            continue
        print(name, flush=True)
        case = Case(args, network, num_labels, state)
        entry = {**key, "num_groups": len(case.model.embed().group_embeddings)}
        rounds = args.repeats if num_labels < 1000 else max(3, args.repeats // 3)
        entry |= {"machine": machine(), "rounds": rounds} | measure_times(case, rounds)
        del case
        gc.collect()
        if state == "initial":  # trained networks differ in the number of nodes at most
            entry["memory"] = measure_memory(args, network, num_labels, state)
        result["networks"].append(entry)
        for work, found in entry["times"].items():
            print(
                f"  {work:28} {found['median_ms']:9.1f} ms  {100 * found['share_of_backbone']:7.2f} % of the backbone's"
            )
        if args.json:
            write_json(args.json, result)
    if "takeover" not in result and not args.only:
        result["takeover"] = measure_takeover(args.repeats)
        if args.json:
            write_json(args.json, result)
    if args.picture:
        draw(result, args.picture)


if __name__ == "__main__":
    main()
