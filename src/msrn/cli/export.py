"""`msrn export`."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from msrn.bundle import Bundle
    from msrn.export import Check, Export

EPILOG = """Examples:

  msrn export runs/scenes/bundle --out model.onnx

  msrn export BUNDLE --out model.onnx --calibration photos/ --check more-photos/

  msrn export BUNDLE --out small.onnx --precision int8 --check photos/

  msrn export BUNDLE --out model.pt2"""

_MOST_CALIBRATION = 64
_MOST_CHECKED = 256
_MOST_DIFFERENCE = 1e-4  # of a probability, in fp32


def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or hub:OWNER/NAME.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File to write: .onnx, or .pt2 (torch.export).", show_default=False)
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES",
            help="Images as varied as those to come, of which up to 64 fix the attention's nodes; by default the validation images "
            "of the bundle's run.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32; for .onnx also fp16 (half the size, for GPUs) or int8 (smaller, for processors).")
    ] = "fp32",
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES",
            help="Run the file and the original on these images, up to 256; by default on the calibration images.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a pass of the check, beside 1.")] = 8,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was exported and checked; '-' prints it.")
    ] = None,
) -> None:
    """Write a trained model as one file for other programs, and show that it says what the original says.

    An ONNX file takes batches of any number and size of images, and has labels, thresholds and preprocessing in its metadata;
    msrn.export.OnnxPredictor runs it without PyTorch.
    """
    import torch

    from msrn.cli.output import check_outputs, make_console
    from msrn.data.images import list_images, read_image
    from msrn.errors import MSRNError
    from msrn.export import check_export, export_model
    from msrn.export.write import check_request
    from msrn.files import check_can_write, folder_beside, replace_file, write_json
    from msrn.predict import load

    check_request(out, precision)
    check_can_write("--out", out)
    if json_file is not None and json_file.resolve() == out.resolve():
        raise MSRNError(f"--out and --json name the same file, {out}. Give each its own.")
    check_outputs((), **{"--json": json_file})
    predictor = load(bundle, device="cpu")
    paths = _calibration_images(predictor.bundle, bundle) if calibration is None else list_images(calibration)
    chosen = _spread(paths, _MOST_CALIBRATION)
    images = torch.stack([predictor.bundle.preprocessing(read_image(path)) for path in chosen])
    console = make_console(json_file)

    def tell(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    is_device = out.exists() and not out.is_file()
    beside = out.resolve()  # where a link leads
    # What the check refuses takes no earlier file's place.
    with tempfile.TemporaryDirectory() if is_device else folder_beside(beside) as folder:
        written = Path(folder, out.name)
        with console.status("exporting"):
            found = export_model(predictor.bundle, written, images, precision=precision)
        for line in _found_lines(found, out, precision, len(chosen)):
            tell(line)
        checked_images = list(chosen) if check is None else _spread(list_images(check), _MOST_CHECKED)
        with console.status("checking"):
            checked = check_export(written, predictor, checked_images, batch_size=batch_size)
        for line in _check_lines(checked, precision):
            tell(line)
        if precision == "fp32" and checked.largest_difference > _MOST_DIFFERENCE:
            raise MSRNError(
                f"probabilities differ by up to {checked.largest_difference:.1e}, more than {_MOST_DIFFERENCE}: the calibration "
                f"images are unlike those checked. {out} was not written. Export again with --calibration on images like them."
            )
        accuracy = _accuracy(predictor.bundle, bundle, written) if precision != "fp32" else None
        with replace_file(out) as temporary:
            shutil.move(written, temporary)
    if accuracy is not None:
        tell(
            f"mAP on {accuracy['images']} validation images: {100 * accuracy['exported']:.2f}, original "
            f"{100 * accuracy['original']:.2f}"
        )
    if json_file is not None:
        summary: dict[str, Any] = {
            "out": str(out),
            "precision": precision,
            "bytes": found.num_bytes,
            "size": list(found.size),
            "is_dynamic": found.is_dynamic,
            "is_folded": found.is_folded,
            "plain_stages": [stage + 1 for stage in found.plain_stages],
            "check": checked.to_dict(),
            "mAP": accuracy,
        }
        write_json(json_file, summary)


def _found_lines(found: "Export", out: Path, precision: str, num_chosen: int) -> list[str]:
    sizes = "any size" if found.is_dynamic else "that size alone: this backbone takes no other"
    height, width = found.size
    lines = [f"{out}: {found.num_bytes / 1e6:,.1f} MB, {precision}; trained at {height} x {width} px, takes {sizes}"]
    if found.is_folded is not None:
        way = "folded into one linear layer" if found.is_folded else "interpolated from nodes"
        if not found.is_folded and found.plain_stages:
            way = f"in the plain formulation at stages {', '.join(str(stage + 1) for stage in found.plain_stages)}"
        lines.append(f"attention: {way}, fixed by {num_chosen} calibration images")
    return lines


def _calibration_images(bundle: "Bundle", folder: Path) -> list[Any]:
    from msrn.errors import DataError
    from msrn.recipes.validation import validation_images

    try:
        return list(validation_images(bundle, folder).paths)
    except DataError:
        raise DataError(
            f"{folder} does not lie in the folder of its run, or the run's data has changed, so that there are no validation "
            "images to fix the attention by. Give images as varied as those to come by --calibration."
        ) from None


def _spread(paths: list[Any], most: int) -> list[Any]:
    """So many of them at equal distances."""
    return [paths[len(paths) * number // most] for number in range(most)] if len(paths) > most else paths


def _check_lines(checked: "Check", precision: str) -> list[str]:
    lines = [
        f"on {checked.num_images} images, batches of {' and '.join(map(str, sorted(checked.speed)))}: the largest difference of a "
        f"probability is {checked.largest_difference:.1e}, {len(checked.changed)} decisions changed"
    ]
    lines += [f"left out: {reason}" for reason in checked.unreadable[:10]]
    for own in checked.changed[:10]:
        lines.append(f"  {own.image}: {own.label} {own.original:.4f} -> {own.exported:.4f}")
    if len(checked.changed) > 10:
        lines.append(f"  and {len(checked.changed) - 10} more")
    times = [
        f"{1000 * checked.seconds[size]:.1f} ms an image at batch {size}, {speed:.2f} times as fast as PyTorch here"
        for size, speed in checked.speed.items()
    ]
    return [*lines, "; ".join(times)]


def _accuracy(bundle: "Bundle", folder: Path, out: Path) -> dict[str, Any] | None:
    """MAP of both on the validation images of the bundle's run, where there are any."""
    import numpy as np
    import torch

    from msrn.data.images import read_image
    from msrn.errors import MSRNError
    from msrn.export import OnnxPredictor
    from msrn.metrics import mean_average_precision
    from msrn.predict import Predictor
    from msrn.recipes.validation import validation_images

    try:
        images = validation_images(bundle, folder)
    except MSRNError:
        return None
    original, exported = Predictor(bundle, device="cpu"), OnnxPredictor(out)
    scores: dict[str, list[Any]] = {"original": [], "exported": []}
    for start in range(0, len(images), 32):
        batch = torch.stack([bundle.preprocessing(read_image(path)) for path in images.paths[start : start + 32]])
        scores["original"].append(original.probs(batch).numpy())
        scores["exported"].append(exported.probs(batch.numpy()))
    target = torch.from_numpy(images.target).long()
    means = {
        name: float(mean_average_precision(torch.from_numpy(np.concatenate(own)), target))
        for name, own in scores.items()
    }
    return {"images": len(images), **means}
