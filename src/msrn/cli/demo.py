"""`msrn demo`."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Examples:

  msrn demo

  msrn demo --out my-demo --json demo.json"""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, bundle and page.")] = Path("msrn-demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs a head, instead of the recipe's.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write both heads' test metrics; '-' prints them.")
    ] = None,
) -> None:
    """Draw a data set, train MSRN and a pooled head on it, compare them, and write a page with pictures.

    Takes about five minutes on two cores and downloads nothing. Run again, it goes on where it stopped.
    """
    from rich.progress import Progress

    from msrn.bundle import load_bundle, save_bundle
    from msrn.cli.output import check_outputs, make_console, print_evaluation, shown_labels
    from msrn.data import open_source
    from msrn.data.scenes import write_scenes
    from msrn.files import write_json
    from msrn.predict import Predictor
    from msrn.recipes import load_recipe
    from msrn.recipes.run import RECIPE_FILE, train_recipe
    from msrn.report import HeadResult, write_demo_page

    check_outputs((), **{"--json": json_file})
    console = make_console(json_file)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("drawing scenes", total=None)
        write_scenes(out / "data", progress=lambda _: progress.advance(task))
    heads = []
    for name, head in (("MSRN", "msrn"), ("average pooling", "avg_pool")):
        overrides = [f"data.root={out / 'data'}", f"model.head={head}"]
        recipe = load_recipe("scenes", overrides if epochs is None else [*overrides, f"trainer.max_epochs={epochs}"])
        run_dir = out / "runs" / head
        result = train_recipe(recipe, run_dir, resume=(run_dir / RECIPE_FILE).exists(), console=console)
        if result.test is None:
            raise AssertionError("the scenes recipe reads a test split")
        heads.append(HeadResult(name, result.test, result.training["parameters"], result.training["train_seconds"]))
    bundle = load_bundle(out / "runs" / "msrn" / "bundle")
    save_bundle(bundle, out / "bundle")
    for trained in heads:
        print_evaluation(console, trained.test, title=f"{trained.name} on the test split, read once")
    predictor = Predictor(bundle)
    test = open_source(out / "data").read("test")
    for prediction in predictor.predict(test.paths[:3]):
        console.print(f"{prediction.path}: {shown_labels(prediction)}", markup=False, highlight=False, soft_wrap=True)
    page = write_demo_page(out / "index.html", predictor, test, heads).resolve()
    if json_file is not None:
        write_json(json_file, {"page": str(page), "heads": {head.name: head.test for head in heads}})
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
