"""Find a recipe by name or path, apply `key=value` overrides, and check the result."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from msrn.errors import RecipeError
from msrn.files import write_text
from msrn.recipes.schema import Recipe, text_keys, validate_recipe
from msrn.recipes.yaml_text import dump_yaml, read_yaml_file, safe_yaml

# Keys that name files of this machine.
PATH_KEYS = ("data.root", "labels.graph", "labels.vectors", "model.weights", "model.init_from")


def list_recipes() -> list[str]:
    """Names of the recipes that come with msrn."""
    files = resources.files("msrn.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def recipe_title(name: str) -> str:
    """The first line of a recipe that comes with msrn: what it trains.

    Example:
        >>> recipe_title("scenes")
        'MSRN on `scenes`, the generated data set: nothing to download.'
    """
    return _read_packaged(name).partition("\n")[0].removeprefix("# ")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides like `optimizer.lr=0.05`, whose values are read as YAML.

    Raises:
        RecipeError: No such recipe, not YAML, an unknown key, an impossible value or a malformed override.

    Example:
        >>> load_recipe("scenes", ["optimizer.lr=0.05"]).optimizer.lr
        0.05
    """
    path = Path(name_or_path)
    is_path = path.suffix in (".yaml", ".yml") or path.parent != Path()
    text = _read(path) if is_path else _read_packaged(str(name_or_path))
    try:
        values = safe_yaml(text) or {}
    except RecipeError as error:
        raise RecipeError(f"{name_or_path} is not YAML: {error}. Mend the line it names.") from None
    if not isinstance(values, dict):
        raise RecipeError(
            f"{name_or_path} holds {type(values).__name__}, expected keys and values, as `msrn recipe show scenes` prints them."
        )
    values.setdefault("name", path.stem if is_path else str(name_or_path))
    for override in overrides:
        _apply(values, override)
    return validate_recipe(values, origin=f"recipe '{name_or_path}'")


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write every key with its value, so that the file alone repeats the run."""
    write_text(path, dump_yaml(recipe.model_dump(mode="json")))


def without_paths(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values for others to read: of files and folders their name alone, no path of this machine.

    Example:
        >>> without_paths(load_recipe("scenes", ["data.root=/data/scenes"]))["data"]["root"]
        'scenes'
    """
    values = recipe.model_dump(mode="json")
    for key in PATH_KEYS:
        section, _, leaf = key.partition(".")
        if values[section].get(leaf) is not None:
            values[section][leaf] = Path(values[section][leaf]).name
    return values


def _read(path: Path) -> str:
    try:
        return read_yaml_file(path)
    except FileNotFoundError:
        raise RecipeError(
            f"no recipe file {path}. Give an existing YAML file or one of: {', '.join(list_recipes())}."
        ) from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}. Give a readable YAML file.") from None


def _read_packaged(name: str) -> str:
    known = list_recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise RecipeError(f"no recipe is named '{name}'. {hint}There are: {', '.join(known)}; a path ends in .yaml.")
    return (resources.files("msrn.recipes") / f"{name}.yaml").read_text(encoding="utf-8")


def _apply(values: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"an override reads key=value, as in optimizer.lr=0.05; got '{override}'.")
    if key in text_keys() and text not in ("null", "~"):
        value: Any = text
    else:
        try:
            value = safe_yaml(text)
        except RecipeError as error:
            shown = text if len(text) <= 80 else f"{text[:80]}..."
            raise RecipeError(
                f"the value of '{key}' is not YAML: '{shown}'. Quote it, as in {key}='\"...\"' ({error})."
            ) from None
    if isinstance(value, str) and key not in text_keys() and _is_number(value):
        value = float(value)  # YAML 1.1 reads 1e-4 as text
    section = values
    *parents, leaf = key.split(".")
    for parent in parents:
        below = section.setdefault(parent, {})
        if not isinstance(below, dict):
            raise RecipeError(
                f"'{key}' goes below '{parent}', which is a value. `msrn recipe show scenes` lists all keys."
            )
        section = below
    section[leaf] = value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
