"""`msrn recipe COMMAND`."""

from pathlib import Path
from typing import Annotated

import typer

from msrn.cli.completion import complete_key, complete_recipe

LIST_EPILOG = """Examples:

  msrn recipe list

  msrn recipe list --json - | jq 'keys'"""
SHOW_EPILOG = """Examples:

  msrn recipe show photos

  msrn recipe show voc2007 data.batch_size=16 > mine.yaml"""
CHECK_EPILOG = """Examples:

  msrn recipe check mine.yaml

  msrn recipe check photos data.root=photos.csv optimizer.lr=0.02"""

Name = Annotated[
    str, typer.Argument(help="Name of a recipe, or a path that ends in .yaml.", autocompletion=complete_recipe)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys to change.", autocompletion=complete_key),
]

app = typer.Typer(
    no_args_is_help=True, help="Look at recipes: what there is, what they say, and whether they can be read."
)


@app.command("list", epilog=LIST_EPILOG)
def list_(
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write names and titles as JSON; '-' prints them.")
    ] = None,
) -> None:
    """Print the recipes that come with msrn."""
    from msrn.cli.output import check_outputs, make_console
    from msrn.files import write_json
    from msrn.recipes import list_recipes
    from msrn.recipes.load import recipe_title

    check_outputs((), **{"--json": json_file})
    titles = {name: recipe_title(name) for name in list_recipes()}
    console = make_console(json_file)
    width = max(map(len, titles))
    for name, title in titles.items():
        console.print(f"{name:<{width}}  {title}", highlight=False, markup=False, soft_wrap=True)
    if json_file is not None:
        write_json(json_file, {"recipes": titles})


@app.command(epilog=SHOW_EPILOG)
def show(recipe: Name, overrides: Overrides = None) -> None:
    """Print a recipe with every key, as a run would take it."""
    from msrn.recipes import load_recipe
    from msrn.recipes.yaml_text import dump_yaml

    values = load_recipe(recipe, overrides or ()).model_dump(mode="json")
    typer.echo(dump_yaml(values), nl=False)


@app.command(epilog=CHECK_EPILOG)
def check(recipe: Name, overrides: Overrides = None) -> None:
    """Read a recipe, and say what is wrong with it: unknown keys with the nearest, values with what was expected.

    Data are not looked at: `msrn train RECIPE --dry-run` does.
    """
    from msrn.cli.output import printable
    from msrn.recipes import load_recipe

    found = load_recipe(recipe, overrides or ())
    typer.echo(printable(f"{recipe}: fine, {found.model.head} on {found.model.backbone}, data {found.data.root}"))
