"""How far the forms of semantic attention are from the plain formula in float64, on features of real photos.

    python benchmarks/attention_errors.py BUNDLE IMAGE ... --json benchmarks/results/attention-errors.json

The stages of the bundle's network see the photos. Embeddings are those of its labels and groups, then as many drawn with their
spread, and drawn ten times as wide, where attention is sharp. Errors are greatest absolute differences over all entries, beside the
greatest value: of what is pooled, and of the gradients that a random direction gives to features and embeddings.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msrn.data.images import read_image
from msrn.files import write_json
from msrn.machine import machine
from msrn.models import MSRN
from msrn.ops import semantic_guided_attention
from msrn.ops.semantic_attention import Backend
from msrn.predict import load

FORMS: tuple[Backend, ...] = ("reference", "cpu", "nodes")


def pooled_and_gradients(stage: Tensor, embeddings: Tensor, form: Backend, dtype: torch.dtype) -> list[Tensor]:
    """What a form pools, and the gradients to features and embeddings, in float64."""
    stage, embeddings = (own.detach().to(dtype).requires_grad_() for own in (stage, embeddings))
    pooled = semantic_guided_attention(stage, embeddings, backend=form)
    direction = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pooled.backward(direction.to(dtype))
    assert stage.grad is not None
    assert embeddings.grad is not None
    return [own.detach().double() for own in (pooled, stage.grad, embeddings.grad)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--labels", type=int, nargs="+", default=[80, 1000, 9605])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    predictor = load(args.bundle, device="cpu")
    model = predictor.bundle.model
    assert isinstance(model, MSRN)
    images = torch.stack([predictor.bundle.preprocessing(read_image(path)) for path in args.images])
    with torch.no_grad():
        stages = model.attention.project(model.backbone(images))
        groups = model.embed()
    own = torch.cat([groups.label_embeddings, groups.group_embeddings])
    cases: dict[str, Tensor] = {f"{len(own)}, trained": own}
    generator = torch.Generator().manual_seed(0)
    for count in args.labels:
        drawn = torch.randn(count, own.shape[1], generator=generator) * own.std(dim=0) + own.mean(dim=0)
        cases[f"{count:,}, as wide"] = drawn
        cases[f"{count:,}, ten times as wide"] = 10 * drawn
    rows: list[dict[str, Any]] = []
    for case, embeddings in cases.items():
        exact = [pooled_and_gradients(stage, embeddings, "reference", torch.float64) for stage in stages]
        for form in FORMS:
            for dtype in (torch.float32, torch.float64):
                if form == "reference" and dtype == torch.float64:
                    continue
                worst = torch.zeros(3, 2, dtype=torch.float64)
                for stage, truth in zip(stages, exact, strict=True):
                    found = pooled_and_gradients(stage, embeddings, form, dtype)
                    for number, (mine, true) in enumerate(zip(found, truth, strict=True)):
                        pair = torch.stack([(mine - true).abs().max(), true.abs().max()])
                        worst[number] = torch.maximum(worst[number], pair)
                names = ("pooled", "gradient to features", "gradient to embeddings")
                errors = {
                    name: {"error": error, "greatest": greatest}
                    for name, (error, greatest) in zip(names, worst.tolist(), strict=True)
                }
                rows.append({"embeddings": case, "form": form, "dtype": str(dtype).removeprefix("torch."), **errors})
                print(
                    case,
                    form,
                    rows[-1]["dtype"],
                    {name: f"{value['error']:.1e}" for name, value in errors.items()},
                    flush=True,
                )
    shapes = [list(stage.shape[1:]) for stage in stages]
    write_json(args.json, {"machine": machine(), "images": len(images), "stages": shapes, "rows": rows})


if __name__ == "__main__":
    main()
