"""`msrn train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.recipes.dry_run import DryRun

EPILOG = """Examples:

  msrn train scenes

  msrn train scenes trainer.max_epochs=3 optimizer.lr=0.001 --out runs/short

  msrn train voc2007-mobilenet data.root=/data/VOCdevkit model.weights=mobilenetv2_100.safetensors

  msrn train my-recipe.yaml --out runs/mine --resume

  msrn train my-recipe.yaml data.batch_size=64 --dry-run"""


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that comes with msrn, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/RECIPE.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: say how much memory it takes and which batch fits.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' prints it.")
    ] = None,
) -> None:
    """Train a model by a recipe: best epoch by validation mAP, test split read once, a bundle at the end."""
    from msrn.cli.output import make_console, print_evaluation
    from msrn.files import write_json
    from msrn.recipes import load_recipe
    from msrn.recipes.run import train_recipe

    loaded = load_recipe(recipe, overrides or [])
    console = make_console(json_file)
    if dry_run:
        from msrn.recipes.dry_run import dry_run as count_memory

        run = count_memory(loaded, console=console)
        print_dry_run(console, run)
        if json_file is not None:
            write_json(json_file, run.to_dict())
        return
    result = train_recipe(loaded, out or Path("runs") / loaded.name, resume=resume, console=console)
    console.print(f"best epoch {result.best_epoch + 1}, validation mAP {100 * result.best_mAP:.2f}", highlight=False)
    if result.test is not None:
        split = result.training["splits"]["test"]["split"]
        print_evaluation(console, result.test, title=f"{loaded.name}, test split '{split}', read once")
    console.print(f"bundle: {result.bundle_dir}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        summary = {"bundle": str(result.bundle_dir), "best_epoch": result.best_epoch, "val_mAP": result.best_mAP}
        write_json(json_file, {**summary, "test": result.test, "training": result.training})


def print_dry_run(console: "Console", run: "DryRun") -> None:
    """Print what a training step takes and which batch fits."""
    recipe, estimate = run.recipe, run.estimate
    device = "CPU" if estimate.device_type == "cpu" else "GPU"
    height, width = recipe.data.size
    lines = [
        f"a training step: {estimate.batch_size} images of {height} x {width} on the {device}, {recipe.trainer.precision}",
        f"  parameters and buffers   {_gigabytes(estimate.parameter_bytes)}",
        f"  gradients                {_gigabytes(estimate.gradient_bytes)}",
        f"  optimizer state          {_gigabytes(estimate.optimizer_bytes)}",
        f"  batch and activations    {_gigabytes(estimate.activation_bytes)}, "
        f"{estimate.activation_bytes_per_image / 1e6:.1f} MB an image",
        f"  peak                     {_gigabytes(estimate.peak_bytes)}",
        f"  expected                 {_gigabytes(estimate.expected_bytes)}, with what the allocator keeps",
    ]
    console.print("\n".join(lines), highlight=False, markup=False)
    console.print(_verdict(run), highlight=False, markup=False, soft_wrap=True)


def _verdict(run: "DryRun") -> str:
    """Whether the batch fits, and which one does."""
    batch, largest = run.estimate.batch_size, run.largest_batch
    if largest is None or run.free_bytes is None:
        return "this system does not tell how much memory is free"
    free = f"{_gigabytes(run.free_bytes).strip()} are free"
    if largest == 0:
        return f"{free}: not even one image fits. Choose a smaller data.size or model.backbone, or free some memory."
    if not run.fits:
        return f"{free}: {batch} images do not fit. Set data.batch_size={largest}, the largest batch that fits."
    limit = ", all training images" if largest == run.num_images else ""
    return f"{free}: the batch fits; the largest that fits is data.batch_size={largest}{limit}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:7.3f} GB"
