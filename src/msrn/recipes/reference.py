"""The reference of every recipe key, made from the schema: `python -m msrn.recipes.reference > docs/recipes.md`."""

from typing import Any, Literal, get_args, get_origin

from msrn.recipes.load import list_recipes, recipe_title
from msrn.recipes.schema import Recipe, Section

_HEAD = """# Recipes

A recipe is a YAML file; `msrn train RECIPE key=value ...` takes one by name or path and changes any key. Unknown keys are
errors. A run folder's `recipe.yaml` holds every key as it was used.

| recipe | what it trains |
|---|---|
{recipes}

Each opens with its command, where its data come from, what it takes and, where known, its mAP; [Training](training.md#recipes)
has what they take side by side.

This page is made from the program by `python -m msrn.recipes.reference`.
"""


def recipe_reference() -> str:
    """Markdown: a table a section, with each key's default and meaning."""
    lines = [_HEAD.format(recipes="\n".join(f"| `{name}` | {recipe_title(name)} |" for name in list_recipes()))]
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            lines += [
                f"## {name}",
                "",
                (section.__doc__ or "").splitlines()[0],
                "",
                "| key | default | meaning |",
                "|---|---|---|",
            ]
            for key, below in section.model_fields.items():
                lines.append(
                    f"| `{name}.{key}` | `{_shown(below.default)}` | {_cell(below.description, _choices(below.annotation))} |"
                )
            lines.append("")
    return "\n".join(lines)


def _choices(annotation: Any) -> str:
    """The words that a key takes, where it takes no others of its kind."""
    words = [f"`{word}`" for word in _words(annotation)]
    return f" One of {', '.join(words)}." if len(words) > 1 else ""


def _words(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return list(dict.fromkeys(word for own in get_args(annotation) for word in _words(own)))


def _cell(*texts: str | None) -> str:
    """Texts as a cell of a table holds them."""
    return "".join(text or "" for text in texts).replace("|", "\\|")


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    print(recipe_reference(), end="")
