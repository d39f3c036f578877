"""ONNX files beside PyTorch: the largest difference of a probability, and the time, on photos.

    python benchmarks/export.py FOLDER_OF_PHOTOS --json benchmarks/results/export.json

MSRN by default and as published on ResNet-101 and MobileNetV2, 20 labels, 224 px, exported with 32 photos as calibration, compared
on others. The networks are random; a calibration scales each label's logits so that they spread by 2 over the photos, as trained
ones do. Both run with the same number of threads, in turn; the ratio is taken within a round, and the median and the range over
rounds are kept.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from msrn.bundle import Bundle
from msrn.data.images import list_images, read_image
from msrn.data.transforms import Preprocessing
from msrn.export import OnnxPredictor, export_model
from msrn.files import write_json
from msrn.labels import LabelGraph
from msrn.machine import machine
from msrn.metrics.calibration import ScaledLogits
from msrn.models import PUBLISHED, build_msrn
from msrn.predict import Predictor

NUM_LABELS, SIZE, SPREAD = 20, 224, 2.0
BATCHES = (1, 3, 8)
OTHER_SIZE = (288, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    preprocessing = Preprocessing((SIZE, SIZE))
    photos = list_images(args.photos)[:64]
    images = torch.stack([preprocessing(read_image(path)) for path in photos])
    calibration, compared = images[:32], images[32:]
    other = torch.nn.functional.interpolate(compared, OTHER_SIZE)
    torch.manual_seed(0)
    graph = LabelGraph.from_target((torch.rand(200, NUM_LABELS) < 0.2).int(), [f"l{i}" for i in range(NUM_LABELS)])
    found: dict[str, Any] = {
        "machine": machine(),
        "labels": NUM_LABELS,
        "size": SIZE,
        "other_size": list(OTHER_SIZE),
        "models": [],
    }
    for backbone in ("mobilenetv2_100", "resnet101"):
        for kind, options in (("default", {}), ("published", PUBLISHED)):
            torch.manual_seed(0)
            architecture = {**options, "backbone": backbone}
            model = build_msrn(graph, **architecture).eval()
            with torch.no_grad():
                logits = model(calibration).double()
            spread, middle = logits.std(dim=0), logits.mean(dim=0)
            scaled = ScaledLogits(
                tuple((SPREAD / spread).tolist()), tuple((-SPREAD * middle / spread).tolist()), "platt"
            )
            bundle = Bundle(model, graph, {"name": "msrn", **architecture}, preprocessing, calibration=scaled)
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                exported = export_model(bundle, Path(folder, "model.onnx"), calibration)
                seconds = time.perf_counter() - start
                ours, theirs = (
                    Predictor(bundle, device="cpu"),
                    OnnxPredictor(exported.path, num_threads=torch.get_num_threads()),
                )
                row: dict[str, Any] = {
                    "backbone": backbone,
                    "kind": kind,
                    "bytes": exported.num_bytes,
                    "export_seconds": seconds,
                    "is_folded": exported.is_folded,
                    "plain_stages": list(exported.plain_stages),
                    "is_dynamic": exported.is_dynamic,
                    "largest_difference": {},
                    "speed": {},
                }
                for name, own in ((f"{SIZE} x {SIZE}", compared), ("{} x {}".format(*OTHER_SIZE), other)):
                    for size in BATCHES:
                        pairs = [
                            (ours.probs(part).numpy(), theirs.probs(part.numpy())) for part in own[:24].split(size)
                        ]
                        row["largest_difference"][f"{name}, batch {size}"] = max(
                            float(np.abs(first - second).max()) for first, second in pairs
                        )
                for size in BATCHES:
                    batch = compared[:size]
                    ratios = []
                    for _ in range(args.rounds + 1):
                        start = time.perf_counter()
                        ours.probs(batch)
                        middle_time = time.perf_counter()
                        theirs.probs(batch.numpy())
                        ratios.append((middle_time - start) / (time.perf_counter() - middle_time))
                    del ratios[0]
                    row["speed"][str(size)] = {
                        "median": statistics.median(ratios),
                        "least": min(ratios),
                        "most": max(ratios),
                    }
            found["models"].append(row)
            print(backbone, kind, row["largest_difference"], row["speed"])
            write_json(args.json, found)


if __name__ == "__main__":
    main()
