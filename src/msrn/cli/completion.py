"""What the shell may complete besides commands, options and paths."""


def complete_recipe(incomplete: str) -> list[str]:
    """Names of the recipes that come with msrn; where none fits, shells offer files."""
    from msrn.recipes import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


def complete_key(incomplete: str) -> list[str]:
    """Keys of a recipe that take a value, each with its `=`."""
    from msrn.recipes.schema import known_keys

    keys = known_keys()
    sections = {key.rpartition(".")[0] for key in keys}
    return [f"{key}=" for key in keys if key not in sections and key.startswith(incomplete)]
