"""Do the maps point at the objects? On PASCAL VOC, which has boxes.

pip install grad-cam
python benchmarks/pointing.py BUNDLE VOCdevkit SPLIT --json benchmarks/results/pointing-voc.json [--curves 400]

Pointing game (Zhang et al., https://arxiv.org/abs/1608.00507): for every present label of every image, whether the peak of the
map lies in a box of that label. Beside each stage, the residual and all together: Grad-CAM on the last stage of the same
network, by the grad-cam package, and the centre of the image. Peaks are found on a grid of 64 x 64 cells, in the map as it is and
in the map as seen through the window of `msrn.explain.contributions.smooth`, which is what `msrn explain` calls the peak.

Deletion and insertion (Petsiuk et al., https://arxiv.org/abs/1806.07421) on the first --curves pairs: the label's probability as
the most important tenths of the pixels, by the map, are replaced by the image's mean colour, or put into an image of that colour;
the mean over the steps. Lower is better for deletion, higher for insertion.
"""

import argparse
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msrn.data.images import read_image
from msrn.explain import explain_logits
from msrn.explain.contributions import grow, smooth
from msrn.files import write_json
from msrn.machine import machine
from msrn.models import MSRN
from msrn.predict import load, read_labelled
from msrn.recipes.validation import validation_images

GRID = 64
NUM_STEPS = 10


def boxes_of(annotation: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """Boxes of each label, in fractions of width and height."""
    root = ET.parse(annotation).getroot()
    width, height = (float(root.findtext(f"size/{side}") or 0) for side in ("width", "height"))
    found = defaultdict(list)
    for item in root.iter("object"):
        left, top, right, bottom = (
            float(item.findtext(f"bndbox/{name}") or 0) for name in ("xmin", "ymin", "xmax", "ymax")
        )
        found[item.findtext("name") or ""].append(
            ((left - 1) / width, (top - 1) / height, right / width, bottom / height)
        )
    return dict(found)


def is_hit(heat: Tensor, boxes: list[tuple[float, float, float, float]]) -> bool:
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    x, y = (column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0]
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def last_layer(model: MSRN) -> nn.Module:
    """The module whose output is the last stage."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda own, _, out: outputs.append((own, out)) if isinstance(out, Tensor) else None
        )
        for module in model.backbone.modules()
    ]
    stage = model.backbone(torch.zeros(1, 3, 224, 224))[-1]
    for hook in hooks:
        hook.remove()
    return next(module for module, out in reversed(outputs) if out.shape == stage.shape and torch.equal(out, stage))


@torch.no_grad()
def curve(model: nn.Module, image: Tensor, heat: Tensor, label: int, *, is_insertion: bool) -> float:
    """Mean probability as the most important pixels go away, or come."""
    order = (
        F.interpolate(heat[None, None], image.shape[-2:], mode="bilinear", align_corners=False)
        .flatten()
        .argsort(descending=True)
    )
    plain = image.mean(dim=(1, 2), keepdim=True).expand_as(image)
    steps = []
    for step in range(1, NUM_STEPS):
        chosen = torch.zeros(order.numel(), dtype=torch.bool)
        chosen[order[: order.numel() * step // NUM_STEPS]] = True
        chosen = chosen.reshape(image.shape[-2:])
        steps.append(torch.where(chosen == is_insertion, image, plain))
    return float(model(torch.stack(steps))[:, label].sigmoid().mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle")
    parser.add_argument("data", type=Path)
    parser.add_argument("split", help="or 'held-out': the validation images of the bundle's run")
    parser.add_argument("--curves", type=int, default=400, help="pairs of image and label for deletion and insertion")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    # After msrn, which brings torchvision in.
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    predictor = load(args.bundle, device="cpu")
    model = predictor.bundle.model
    assert isinstance(model, MSRN)
    model.detach_stages = False  # so that Grad-CAM sees all of the network
    if args.split == "held-out":
        images = validation_images(predictor.bundle, args.bundle)
    else:
        images = read_labelled(args.data, args.split, predictor.label_names)
    cam = GradCAM(model, [last_layer(model)])
    hits: dict[str, list[bool]] = defaultdict(list)
    window_hits: dict[str, list[bool]] = defaultdict(list)
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    rng = np.random.default_rng(0)
    middle = torch.zeros(GRID + 1, GRID + 1)
    middle[GRID // 2, GRID // 2] = 1
    for path, target in zip(images.paths, images.target, strict=True):
        path = Path(path)
        labels = [int(label) for label in (target == 1).nonzero()[0]]
        if not labels:
            continue
        boxes = boxes_of(path.parents[1] / "Annotations" / f"{path.stem}.xml")
        tensor = predictor.bundle.preprocessing(read_image(path))
        batch = tensor.unsqueeze(0)
        parts = explain_logits(model, batch, labels)
        for column, label in enumerate(labels):
            own = boxes[predictor.label_names[label]]
            chosen = [*parts.stage_maps(), *([] if parts.residual is None else [parts.residual])]
            names = [*(f"stage {index + 1}" for index in range(len(parts.own))), "residual"]
            maps = {
                name: grow(own[:, [column]], (GRID, GRID), shift)[0, 0]
                for name, own, shift in zip(names, chosen, parts.shifts, strict=False)
            }
            maps["all together"] = parts.combined((GRID, GRID))[0, column]
            seen = cam(input_tensor=batch, targets=[ClassifierOutputTarget(label)])[0]
            maps["Grad-CAM"] = torch.from_numpy(np.ascontiguousarray(seen))
            # Its cells moved to where the backbone looks, as ours are; the package leaves them where they seem to be.
            pixels = parts.shifts[-1] * maps["Grad-CAM"].shape[0] / parts.own[-1].shape[-1]
            maps["Grad-CAM, aligned as ours"] = grow(maps["Grad-CAM"][None, None], (GRID, GRID), pixels)[0, 0]
            for name, heat in maps.items():
                grown = F.interpolate(heat[None, None].float(), (GRID, GRID), mode="bilinear", align_corners=False)[
                    0, 0
                ]
                hits[name].append(is_hit(grown, own))
                window_hits[name].append(is_hit(smooth(grown), own))
            hits["centre of the image"].append(is_hit(middle, own))
            if len(curves["all together"]) < args.curves:
                maps["random order"] = torch.from_numpy(rng.random((7, 7))).float()
                for name, heat in maps.items():
                    both = [curve(model, tensor, heat.float(), label, is_insertion=how) for how in (False, True)]
                    curves[name].append((both[0], both[1]))
    found: dict[str, Any] = {
        "machine": machine(),
        "pairs": len(hits["all together"]),
        "pointing": {name: float(np.mean(values)) for name, values in hits.items()},
        "split": args.split,
        "pointing_through_window": {name: float(np.mean(values)) for name, values in window_hits.items()},
        "curve_pairs": len(curves["all together"]),
        "deletion": {name: float(np.mean([own[0] for own in values])) for name, values in curves.items()},
        "insertion": {name: float(np.mean([own[1] for own in values])) for name, values in curves.items()},
    }
    window_hits["centre of the image"] = hits["centre of the image"]
    ours = np.array(window_hits["all together"], dtype=float)
    for name in ("Grad-CAM", "Grad-CAM, aligned as ours", "centre of the image"):
        difference = ours - np.array(window_hits[name], dtype=float)
        error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
        found.setdefault("all_together_minus_through_window", {})[name] = {
            "mean": float(difference.mean()),
            "standard_error": error,
        }
    for index, kind in enumerate(("deletion", "insertion") if args.curves > 1 else ()):
        ours = np.array([own[index] for own in curves["all together"]])
        for name in ("Grad-CAM", "Grad-CAM, aligned as ours", "residual", "random order"):
            difference = ours - np.array([own[index] for own in curves[name]])
            error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
            found.setdefault(f"all_together_minus_{kind}", {})[name] = {
                "mean": float(difference.mean()),
                "standard_error": error,
            }
    write_json(args.json, found)
    for name, value in found["pointing"].items():
        deletion, insertion = (found[kind].get(name, float("nan")) for kind in ("deletion", "insertion"))
        through = 100 * found["pointing_through_window"].get(name, float("nan"))
        print(
            f"{name:20} {100 * value:.1f} %, through the window {through:.1f} %  deletion {deletion:.3f}  insertion {insertion:.3f}"
        )


if __name__ == "__main__":
    main()
