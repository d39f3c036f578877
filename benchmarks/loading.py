"""Images a second of the training loader, beside a plain loop, and what reduced decoding and the cache add.

    python benchmarks/loading.py --voc VOCdevkit --json benchmarks/results/loading.json

Everything runs on two cores. "plain" is two processes of one thread that each read, crop and normalise half of the images and
stack them into batches, which nobody receives; the loader's two workers do the same for this process. Runs that are compared
take turns; given are the medians, and of the ratios of neighbouring runs median and range. Photos of VOC 2007 are small (in
some copies 256 px wide): the large JPEGs are enlarged from them to 2048 px.
"""

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msrn.data import LabelledImages, open_source
from msrn.data.images import read_image
from msrn.data.loader import BatchDataset, build_loader
from msrn.data.transforms import Preprocessing, TrainTransform
from msrn.files import write_json
from msrn.machine import machine

NUM_WORKERS = 2
BATCH_SIZE = 32
LARGE_SIDE = 2048
CACHE_BYTES = 2 * 10**9
Run = Callable[[], float]


def take_turns(runs: dict[str, Run], repeats: int) -> dict[str, Any]:
    """Rates of two runs that alternate, after one of each that does not count, and the ratios of the first to the second."""
    for run in runs.values():
        run()
    rates = [[run() for run in runs.values()] for _ in range(repeats)]
    ratios = sorted(one / other for one, other in rates)
    medians = [round(statistics.median(column), 1) for column in zip(*rates, strict=True)]
    return {
        "images_per_s": dict(zip(runs, medians, strict=True)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "repeats": repeats,
    }


def loader_run(images: LabelledImages, transform: TrainTransform, **options: Any) -> Run:
    loader = build_loader(images, transform, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS, shuffle=True, **options)

    def run() -> float:
        start_s = time.perf_counter()
        num_images = sum(len(batch["images"]) for batch in loader)
        return num_images / (time.perf_counter() - start_s)

    return run


class PlainLoop:
    """Processes that wait to be told to read their share of the images once more."""

    def __init__(self, images: LabelledImages, transform: TrainTransform) -> None:
        self.num_images = len(images) // BATCH_SIZE * BATCH_SIZE
        self.processes, self.ends = [], []
        context = multiprocessing.get_context("fork")
        for number in range(NUM_WORKERS):
            ours, theirs = context.Pipe()
            share = images.paths[: self.num_images][number::NUM_WORKERS]
            process = context.Process(target=self._serve, args=(theirs, share, transform), daemon=True)
            process.start()
            self.processes.append(process)
            self.ends.append(ours)

    @staticmethod
    def _serve(end: Connection, paths: Sequence[Any], transform: TrainTransform) -> None:
        torch.set_num_threads(1)
        while end.recv():
            for start in range(0, len(paths), BATCH_SIZE):
                torch.stack([transform(read_image(path)) for path in paths[start : start + BATCH_SIZE]])
            end.send(True)

    def __call__(self) -> float:
        start_s = time.perf_counter()
        for end in self.ends:
            end.send(True)
        for end in self.ends:
            end.recv()
        return self.num_images / (time.perf_counter() - start_s)

    def stop(self) -> None:
        for end, process in zip(self.ends, self.processes, strict=True):
            end.send(False)
            process.join()


def enlarge(images: LabelledImages, folder: Path) -> LabelledImages:
    paths = []
    for number, path in enumerate(images.paths):
        image = read_image(path)
        factor = LARGE_SIDE / max(image.size)
        paths.append(folder / f"{number}.jpg")
        size = (round(image.width * factor), round(image.height * factor))
        image.resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return LabelledImages(tuple(paths), images.target, images.label_names, images.split)


def first(images: LabelledImages, count: int) -> LabelledImages:
    return LabelledImages(images.paths[:count], images.target[:count], images.label_names, images.split)


# Where the time goes


class OnesDataset(BatchDataset):
    """Batches that only have to be filled and handed over."""

    def _view(self, epoch: int, index: int, **out: Tensor) -> Tensor:
        return out["out"].fill_(1)


def parts(images: LabelledImages, size: int) -> dict[str, float]:
    """Milliseconds an image of each part, in one thread, each part over all images at once."""
    transform = TrainTransform(Preprocessing((size, size)), rand_augment=2, erase=0.25)
    assert transform.erase is not None
    crop, flip, rand_augment = transform.augment.transforms
    read = [Path(path).read_bytes() for path in images.paths]
    decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in read]
    cropped = [crop(image) for image in decoded]
    batch = torch.empty(len(images), size, size, 3).permute(0, 3, 1, 2)
    views = [transform.preprocessing.normalize(image, out=out) for image, out in zip(cropped, batch, strict=True)]
    pairs = list(zip(cropped, batch, strict=True))
    steps: dict[str, tuple[Callable[[Any], Any], Sequence[Any]]] = {
        "read": (lambda path: Path(path).read_bytes(), images.paths),
        "decode": (lambda data: Image.open(io.BytesIO(data)).convert("RGB"), read),
        "crop and resize": (crop, decoded),
        "flip": (flip, cropped),
        "RandAugment, 2 operations (if on)": (rand_augment, cropped),
        "to tensor and normalise": (lambda pair: transform.preprocessing.normalize(pair[0], out=pair[1]), pairs),
        "erase, a quarter of the images (if on)": (transform.erase, views),
    }
    times = {
        name: median_ms(lambda step=step, over=over: list(map(step, over))) for name, (step, over) in steps.items()
    }
    loader = build_loader(images, transform, batch_size=BATCH_SIZE, num_workers=1)
    loader.dataset.__class__ = OnesDataset
    list(map(len, loader))
    times["fill with ones, and hand over"] = median_ms(lambda: list(map(len, loader)))
    times["fill with ones"] = median_ms(
        lambda: [batch[start : start + BATCH_SIZE].fill_(1) for start in starts(images)]
    )
    return {name: round(milliseconds / len(images), 4) for name, milliseconds in times.items()}


def starts(images: LabelledImages) -> Iterator[int]:
    return iter(range(0, len(images), BATCH_SIZE))


def median_ms(step: Callable[[], Any], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start_s))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True, help="folder of PASCAL VOC 2007")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num-images", type=int, default=1792, help="photos a run; a quarter of them at 448 px")
    parser.add_argument("--num-large", type=int, default=128, help="large JPEGs a run")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) > NUM_WORKERS:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_WORKERS])
    torch.set_num_threads(1)
    all_photos = first(open_source(args.voc).read("train"), args.num_images)
    found: dict[str, Any] = {"plain": {}, "reduced_decode": {}, "cache": {}, "parts_ms": {}}

    def note(kind: str, name: str, result: dict[str, Any]) -> None:
        found[kind][name] = result
        print(f"{kind}: {name}: {result}", flush=True)

    crops = {
        f"{size} px, {crop}": TrainTransform(Preprocessing((size, size)), crop=crop)
        for size, crop in ((448, "multi_scale"), (224, "random_resized"), (160, "random_resized"))
    }
    with tempfile.TemporaryDirectory() as folder:
        large = enlarge(first(all_photos, args.num_large), Path(folder))
        for name, transform in crops.items():
            photos = first(all_photos, args.num_images // (4 if transform.size[0] == 448 else 1))
            plain = PlainLoop(photos, transform)
            loader = loader_run(photos, transform)
            note("plain", name, take_turns({"loader": loader, "plain": plain}, args.repeats))
            plain.stop()
            cached = loader_run(photos, transform, cache_bytes=CACHE_BYTES)
            note("cache", name, take_turns({"cached": cached, "decoded": loader}, args.repeats))
            full = loader_run(large, transform)
            reduced = loader_run(large, transform, min_size=transform.min_size)
            note("reduced_decode", f"{name}, large JPEGs", take_turns({"reduced": reduced, "full": full}, args.repeats))
            cached = loader_run(large, transform, min_size=transform.min_size, cache_bytes=CACHE_BYTES)
            runs = {"cached": cached, "decoded": reduced}
            note("cache", f"{name}, large JPEGs reduced", take_turns(runs, args.repeats))
        for size in (448, 160):
            note("parts_ms", f"{size} px", parts(first(all_photos, 512), size))
        note("parts_ms", "160 px, large JPEGs", parts(first(large, 64), 160))
    sizes = np.array([read_image(path).size for path in all_photos.paths[:100]])
    if args.json:
        about = {
            "num_images": len(all_photos),
            "num_large": len(large),
            "batch_size": BATCH_SIZE,
            "num_workers": NUM_WORKERS,
            "median_photo": [int(side) for side in np.median(sizes, axis=0)],
        }
        write_json(args.json, {"machine": machine(), "about": about, **found})


if __name__ == "__main__":
    main()
