"""`msrn train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from msrn.cli.completion import complete_key, complete_recipe

if TYPE_CHECKING:
    from rich.console import Console

    from msrn.recipes.dry_run import DryRun
    from msrn.recipes.run import RunResult
    from msrn.recipes.schema import Recipe

EPILOG = """Examples:

  msrn train scenes

  msrn train scenes trainer.max_epochs=3 optimizer.lr=0.001 --out runs/short

  msrn train voc2007-mobilenet data.root=/data/VOCdevkit model.weights=mobilenetv2_100.safetensors

  msrn train my-recipe.yaml --out runs/mine --resume

  msrn train my-recipe.yaml trainer.devices=4

  msrn train my-recipe.yaml data.batch_size=64 --dry-run

  msrn train my-recipe.yaml --find lr --picture lr.png"""


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="Name of a recipe that comes with msrn, or path of a YAML file.", autocompletion=complete_recipe
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Keys of the recipe to change.",
            show_default=False,
            autocompletion=complete_key,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/RECIPE.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try a few batches, keep nothing: FLOPs, memory, time, largest batch.")
    ] = False,
    find: Annotated[
        Literal["lr", "batch_size"] | None,
        typer.Option(help="Keep nothing: find optimizer.lr or data.batch_size by a short trial.", show_default=False),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --find lr: draw its curve, as .svg or .png.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; '-' prints it.")
    ] = None,
) -> None:
    """Train a model by a recipe: best epoch by validation mAP, test split read once, a bundle at the end."""
    from msrn.cli.output import check_outputs, make_console
    from msrn.errors import MSRNError
    from msrn.files import write_json
    from msrn.processes import is_first_process
    from msrn.recipes import load_recipe
    from msrn.recipes.run import train_recipe

    if picture is not None and find != "lr":
        raise MSRNError(f"--picture {picture} goes with --find lr. Leave it out.")
    if find is not None and (resume or dry_run or out is not None):
        raise MSRNError("--find keeps no run. Leave --out, --resume and --dry-run out.")
    loaded = load_recipe(recipe, overrides or [])
    check_outputs((recipe, loaded.data.root), **{"--json": json_file})
    console = make_console(json_file)
    if dry_run:
        from msrn.recipes.dry_run import dry_run as count_memory

        run = count_memory(loaded, console=console)
        print_dry_run(console, run)
        if json_file is not None:
            write_json(json_file, run.to_dict())
        return
    if find is not None:
        print_found(console, loaded, find, picture, json_file)
        return
    result = train_recipe(loaded, out or Path("runs") / loaded.name, resume=resume, console=console)
    if not is_first_process():
        return
    print_result(console, loaded.name, result)
    if json_file is not None:
        summary = {"bundle": str(result.bundle_dir), "best_epoch": result.best_epoch, "val_mAP": result.best_mAP}
        write_json(json_file, {**summary, "test": result.test, "training": result.training})


def print_result(console: "Console", name: str, result: "RunResult") -> None:
    """Print what a run left."""
    from msrn.cli.output import print_evaluation

    console.print(f"best epoch {result.best_epoch + 1}, validation mAP {100 * result.best_mAP:.2f}", highlight=False)
    if result.test is not None:
        split = result.training["splits"]["test"]["split"]
        print_evaluation(console, result.test, title=f"{name}, test split '{split}', read once")
    console.print(f"bundle: {result.bundle_dir}", markup=False, highlight=False, soft_wrap=True)


def print_found(
    console: "Console",
    recipe: "Recipe",
    find: Literal["lr", "batch_size"],
    picture: Path | None,
    json_file: Path | None,
) -> None:
    """Find a learning rate or a batch size, and print, draw and write what was found."""
    from msrn.cli.output import check_outputs
    from msrn.files import write_json
    from msrn.recipes.find import find_recipe_batch_size, find_recipe_learning_rate
    from msrn.report.label_graph import check_picture
    from msrn.report.learning_rate import save_learning_rate_curve

    check_outputs(recipe.data.root, **{"--json": json_file, "--picture": picture})
    if picture is not None:
        check_picture(picture)
    if find == "lr":
        curve = find_recipe_learning_rate(recipe, console=console)
        found = {"optimizer.lr": curve.suggestion, "rates": list(curve.rates), "losses": list(curve.losses)}
        console.print(
            f"loss was lowest at {curve.lowest:.2g} ({len(curve.rates)} steps from {curve.rates[0]:.2g} to {curve.rates[-1]:.2g}, "
            f"the backbone at {recipe.optimizer.backbone_factor:g} of it)\n"
            f"a tenth of it: optimizer.lr={curve.suggestion:.2g}",
            highlight=False,
            soft_wrap=True,
        )
        if picture is not None:
            save_learning_rate_curve(curve.rates, curve.losses, curve.suggestion, picture)
            console.print(f"picture: {picture}", highlight=False, markup=False, soft_wrap=True)
    else:
        sizes = find_recipe_batch_size(recipe, console=console)
        found = {"data.batch_size": sizes.suggestion, "fastest": sizes.fastest, "images_per_s": sizes.images_per_s}
        for size, rate in sizes.images_per_s.items():
            console.print(f"  {size:>6} images a batch   {rate:.1f} images/s", highlight=False)
        console.print(
            f"largest that could be trained with: data.batch_size={sizes.suggestion}; fastest: {sizes.fastest}",
            highlight=False,
        )
    if json_file is not None:
        write_json(json_file, {"recipe": recipe.name, **found})


def print_dry_run(console: "Console", run: "DryRun") -> None:
    """Print what a training step takes, which batch fits, and how long a run would be."""
    recipe, estimate, trial = run.recipe, run.estimate, run.trial
    device = "CPU" if estimate.device_type == "cpu" else "GPU"
    height, width = recipe.data.size
    lines = [
        f"an image forward: {run.num_flops / 1e9:.2f} GFLOPs, a multiply-add counted as 2; "
        f"{run.num_parameters / 1e6:.2f} M parameters",
        f"a training step: {estimate.batch_size} images of {height} x {width} on the {device}, {recipe.trainer.precision}",
        f"  parameters and buffers   {_gigabytes(estimate.parameter_bytes)}",
        f"  gradients                {_gigabytes(estimate.gradient_bytes)}",
        f"  optimizer state          {_gigabytes(estimate.optimizer_bytes)}",
        f"  batch and activations    {_gigabytes(estimate.activation_bytes)}, "
        f"{estimate.activation_bytes_per_image / 1e6:.1f} MB an image",
        f"  peak                     {_gigabytes(estimate.peak_bytes)}",
        f"  expected                 {_gigabytes(estimate.expected_bytes)}, with what the allocator keeps",
        _verdict(run),
    ]
    if trial is None:
        lines.append("no batch was tried")
    else:
        how = f"median of {trial.timed_batches} after one of {trial.warm_up_s:.2f} s to warm up"
        lines += [
            f"tried: loss {trial.loss:.4f}, {trial.step_s:.2f} s a batch, reading included "
            f"({how if trial.timed_batches else 'the only one, warming up'})",
            *(
                []
                if trial.peak_bytes is None
                else [f"  held at most             {_gigabytes(trial.peak_bytes)}, {_whose(device)}"]
            ),
            f"an epoch: {_duration(run.epoch_seconds)} (batches: {run.num_batches}, and {run.num_val_batches} of validation); "
            f"the run: {_duration(run.run_seconds)} (epochs: {recipe.trainer.max_epochs})",
        ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _whose(device: str) -> str:
    return "the whole process with Python and its libraries" if device == "CPU" else "tensors of the GPU"


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


def _duration(seconds: float | None) -> str:
    """As people say it: 40 s, 12 min, 3.5 h.

    Example:
        >>> [_duration(seconds) for seconds in (0.4, 99, 660, 12600)]
        ['0.4 s', '99 s', '11 min', '3.5 h']
    """
    if seconds is None:
        return "unknown"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:7.3f} GB"
