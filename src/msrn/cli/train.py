"""`msrn train`."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Examples:

  msrn train scenes

  msrn train scenes trainer.max_epochs=3 optimizer.lr=0.001 --out runs/short

  msrn train voc2007-mobilenet data.root=/data/VOCdevkit model.weights=mobilenetv2_100.safetensors

  msrn train my-recipe.yaml --out runs/mine --resume"""


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe that comes with msrn, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe to change.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/RECIPE.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
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
    result = train_recipe(loaded, out or Path("runs") / loaded.name, resume=resume, console=console)
    console.print(f"best epoch {result.best_epoch + 1}, validation mAP {100 * result.best_mAP:.2f}", highlight=False)
    if result.test is not None:
        split = result.training["splits"]["test"]["split"]
        print_evaluation(console, result.test, title=f"{loaded.name}, test split '{split}', read once")
    console.print(f"bundle: {result.bundle_dir}", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        summary = {"bundle": str(result.bundle_dir), "best_epoch": result.best_epoch, "val_mAP": result.best_mAP}
        write_json(json_file, {**summary, "test": result.test, "training": result.training})
