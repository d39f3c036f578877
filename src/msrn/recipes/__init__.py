"""Recipes: a training run as a YAML file."""

import msrn._torchvision  # noqa: F401  (before Lightning, which imports torchvision)
from msrn.recipes.load import list_recipes, load_recipe, save_recipe
from msrn.recipes.schema import Recipe

__all__ = ["Recipe", "list_recipes", "load_recipe", "save_recipe"]
