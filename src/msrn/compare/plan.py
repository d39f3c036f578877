"""Which runs a comparison takes: one recipe, the same seeds, budget and search of the learning rate for every variant."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from msrn.compare.variants import REFERENCE, Variant
from msrn.errors import RecipeError
from msrn.recipes import Recipe, load_recipe
from msrn.recipes.load import PATH_KEYS, without_paths
from msrn.recipes.schema import SPEED_KEYS, changed_values, validate_recipe

SEARCH_SEED = 0
# What may change between the runs of a comparison.
_FREE_KEYS = ("name", *SPEED_KEYS)
# Keys of the model that matter beside its architecture.
_START_KEYS = ("head", "pretrained", "weights", "init_from")


@dataclass(frozen=True)
class Run:
    """One training run of a comparison.

    Attributes:
        variant: What is trained.
        seed: Seed of weights, order and augmentation.
        lr: Learning rate; None is the recipe's.
        is_search: Whether it only tries the rate, on validation images.
    """

    variant: Variant
    seed: int
    lr: float | None
    is_search: bool = False

    @property
    def name(self) -> str:
        """What its files are called.

        Example:
            >>> Run(Variant("msrn", "MSRN", ()), 0, 0.1, is_search=True).name
            'msrn-seed0-search-lr0.1'
        """
        search = f"-search-lr{self.lr:g}" if self.is_search else ""
        return f"{self.variant.name}-seed{self.seed}{search}"

    def __str__(self) -> str:
        rate = "" if self.lr is None else f", lr {self.lr:g}"
        return f"{self.variant.title}, {'search' if self.is_search else f'seed {self.seed}'}{rate}"


@dataclass(frozen=True)
class Plan:
    """What is compared, and how.

    Attributes:
        recipe: Name or path of the recipe that all share.
        overrides: What the comparison changes in it, as `key=value`.
        variants: What is compared.
        num_seeds: Runs a variant, with seeds from 0.
        rates: Learning rates that every variant tries on validation images; with none, the recipe's is taken.
        search_epochs: Epochs of a try; None takes the recipe's.
        searches_all: Whether variants that would take another's rate search their own.
        known_rates: Rates found by an earlier comparison, by variant; what is here is not searched.
        rates_from: What that comparison is called.
        skipped: Reasons by the name of what is left out.
        reference: Name of the variant that the others are measured against.
    """

    recipe: str
    overrides: tuple[str, ...]
    variants: tuple[Variant, ...]
    num_seeds: int = 3
    rates: tuple[float, ...] = ()
    search_epochs: int | None = None
    searches_all: bool = False
    known_rates: dict[str, float] = field(default_factory=dict)
    rates_from: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    reference: str = REFERENCE

    @cached_property
    def base(self) -> Recipe:
        """The recipe that all share."""
        return load_recipe(self.recipe, self.overrides)

    def recipe_of(self, run: Run) -> Recipe:
        """The whole recipe of one run.

        Raises:
            RecipeError: The variant's overrides do not fit.
        """
        overrides = [*self.overrides, *run.variant.overrides, f"trainer.seed={run.seed}"]
        if run.lr is not None:
            overrides.append(f"optimizer.lr={run.lr!r}")
        if run.is_search:
            overrides.append("data.test=null")
            if self.base.data.val == "auto" and self.base.data.test == "val":
                overrides.append(
                    "data.val=held_out"
                )  # what the final runs choose by: 'auto' would take the test split here
            if self.search_epochs is not None:
                overrides.append(f"trainer.max_epochs={self.search_epochs}")
        return load_recipe(self.recipe, overrides)

    def rate_source(self, variant: Variant) -> str:
        """Where the learning rate of a variant comes from: "earlier", "search", "recipe" or another variant's name."""
        if variant.name in self.known_rates:
            return "earlier"
        with_rate = {other.name for other in self.variants if self.rates} | self.known_rates.keys()
        if variant.rate_of in with_rate and not (self.searches_all and self.rates):
            return str(variant.rate_of)
        return "search" if self.rates else "recipe"

    def search_runs(self) -> list[Run]:
        """Every try of a learning rate."""
        searching = [variant for variant in self.variants if self.rate_source(variant) == "search"]
        return [Run(variant, SEARCH_SEED, lr, True) for variant, lr in itertools.product(searching, self.rates)]

    def final_runs(self, found: dict[str, float]) -> list[Run]:
        """The runs whose test split is read, seed by seed, so that a comparison that was stopped has a little of each.

        Args:
            found: Best rate by the name of a variant that searched; those without one are left out.
        """
        rates = {variant.name: self._rate(variant, found) for variant in self.variants}
        return [
            Run(variant, seed, rate)
            for seed, variant in itertools.product(range(self.num_seeds), self.variants)
            if (rate := rates[variant.name]) is not None or self.rate_source(variant) == "recipe"
        ]

    def _rate(self, variant: Variant, found: dict[str, float]) -> float | None:
        rates = found | self.known_rates
        source = self.rate_source(variant)
        return rates.get(variant.name if source in ("earlier", "search") else source)


def drop_repeated(plan: Plan) -> Plan:
    """Leave out variants that would train exactly what one before them, or the reference, trains.

    Raises:
        RecipeError: Variants do not fit the recipe; the message names them all.
    """
    seen: dict[str, str] = {}
    skipped, problems = dict(plan.skipped), []
    for variant in sorted(plan.variants, key=lambda own: (own.name != plan.reference, own.rate_of is not None)):
        try:
            recipe = plan.recipe_of(Run(variant, 0, None))
        except RecipeError as error:
            problems.append(f"{variant.name}: {error}")
            continue
        same = seen.setdefault(str(settings(recipe)), variant.name)
        if same != variant.name:
            skipped[variant.name] = f"the same as {same} here"
    if problems:
        raise RecipeError("; ".join(problems))
    return replace(plan, variants=tuple(own for own in plan.variants if own.name not in skipped), skipped=skipped)


def settings(recipe: Recipe) -> dict[str, Any]:
    """What decides the result of a run: its recipe by dotted keys, without what its head does not look at."""
    values = without_paths(recipe)
    start = {key: value for key, value in values["model"].items() if key in _START_KEYS}
    values["model"] = {**start, **recipe.model.architecture()}
    flat = {"name": values.pop("name")}
    for section, below in values.items():
        flat |= {f"{section}.{key}": value for key, value in below.items()}
    return {key: value for key, value in flat.items() if key not in _FREE_KEYS}


def differences(before: dict[str, Any], recipe: Recipe) -> list[str]:
    """How a recipe differs from the one that a run was made with, in words.

    Args:
        before: The values that the run wrote down; keys that a later version added have their default.
        recipe: The recipe of today.
    """
    try:
        old = settings(validate_recipe(before))
    except RecipeError as error:
        return [str(error)]
    return changed_values(old, settings(recipe))


def shown_overrides(overrides: Sequence[str]) -> list[str]:
    """Overrides for others to read: files by their name alone."""
    shown = []
    for text in overrides:
        key, _, value = text.partition("=")
        shown.append(f"{key}={value.rstrip('/').rpartition('/')[2]}" if key in PATH_KEYS else text)
    return shown
