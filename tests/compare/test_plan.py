"""Which runs a comparison takes, and when two runs are the same."""

from dataclasses import replace

import pytest

from msrn.compare import ABLATIONS, HEADS, Plan, Run, Variant, drop_repeated
from msrn.compare.plan import differences, shown_overrides
from msrn.errors import RecipeError
from msrn.models import PUBLISHED
from msrn.recipes import load_recipe
from msrn.recipes.load import without_paths

POOLED, MSRN, JOINT = HEADS["avg_pool"], HEADS["msrn"], ABLATIONS["classifier_joint"]
PLAN = Plan("scenes", ("data.num_workers=0",), (POOLED, MSRN, JOINT), num_seeds=2, rates=(0.1, 0.3), search_epochs=3)


def names(runs: list[Run]) -> list[str]:
    return [run.name for run in runs]


def test_every_head_tries_every_rate_and_ablations_take_that_of_msrn() -> None:
    searches = ["avg_pool-seed0-search-lr0.1", "avg_pool-seed0-search-lr0.3"]
    assert names(PLAN.search_runs()) == [*searches, "msrn-seed0-search-lr0.1", "msrn-seed0-search-lr0.3"]
    runs = PLAN.final_runs({"avg_pool": 0.1, "msrn": 0.3})
    assert names(runs) == [f"{name}-seed{seed}" for seed in (0, 1) for name in ("avg_pool", "msrn", "classifier_joint")]
    assert [run.lr for run in runs[:3]] == [0.1, 0.3, 0.3]
    assert PLAN.rate_source(JOINT) == "msrn"
    assert replace(PLAN, searches_all=True).rate_source(JOINT) == "search"
    assert replace(PLAN, variants=(JOINT,)).rate_source(JOINT) == "search"  # whose rate it would take is not compared


def test_what_found_no_rate_is_not_trained() -> None:
    assert names(PLAN.final_runs({"avg_pool": 0.1})) == ["avg_pool-seed0", "avg_pool-seed1"]


def test_without_rates_all_take_the_recipes() -> None:
    plan = replace(PLAN, rates=())
    assert plan.search_runs() == []
    assert [run.lr for run in plan.final_runs({})] == [None] * 6
    assert plan.recipe_of(plan.final_runs({})[0]).optimizer.lr == plan.base.optimizer.lr


def test_rates_of_an_earlier_comparison() -> None:
    plan = replace(PLAN, known_rates={"msrn": 0.03}, rates=())
    assert [plan.rate_source(variant) for variant in plan.variants] == ["recipe", "earlier", "msrn"]
    assert [run.lr for run in plan.final_runs({})[:3]] == [None, 0.03, 0.03]
    plan = replace(plan, rates=(0.1,))  # only what is not known is searched
    assert names(plan.search_runs()) == ["avg_pool-seed0-search-lr0.1"]


def test_a_try_reads_no_test_split_and_has_the_budget_of_tries() -> None:
    search, final = PLAN.search_runs()[1], PLAN.final_runs({"avg_pool": 0.3})[1]
    tried, trained = PLAN.recipe_of(search), PLAN.recipe_of(final)
    assert (tried.data.test, tried.trainer.max_epochs, tried.optimizer.lr) == (None, 3, 0.3)
    assert (trained.data.test, trained.trainer.max_epochs, trained.optimizer.lr) == ("auto", 8, 0.3)
    assert (tried.trainer.seed, trained.trainer.seed) == (0, 1)


@pytest.mark.parametrize(
    ("overrides", "val"), [((), "held_out"), (("data.test=null",), "auto"), (("data.test=test",), "auto")]
)
def test_a_try_chooses_by_the_images_of_the_final_runs_never_by_those_of_the_test(
    overrides: tuple[str, ...], val: str
) -> None:
    plan = replace(PLAN, recipe="voc2007-mobilenet", overrides=overrides)  # whose test split is val
    made = plan.recipe_of(plan.search_runs()[0])
    assert (made.data.test, made.data.val) == (None, val)


def test_a_variant_that_would_train_the_same_is_left_out() -> None:
    again = Variant("again", "again", (*MSRN.overrides, "model.csra_lambda=0.5"))  # a key that MSRN does not look at
    plan = drop_repeated(replace(PLAN, variants=(again, POOLED, MSRN, JOINT)))
    assert [variant.name for variant in plan.variants] == ["avg_pool", "msrn", "classifier_joint"]
    assert plan.skipped == {"again": "the same as msrn here"}


def test_every_variant_that_does_not_fit_is_named_at_once() -> None:
    wrong = [Variant(name, name, (f"model.{name}=1",)) for name in ("depth", "height")]
    with pytest.raises(RecipeError, match=r"depth: .*'model.depth'.*; height: .*'model.height'"):
        drop_repeated(replace(PLAN, variants=(MSRN, *wrong)))


def test_a_recipe_is_the_same_wherever_its_files_lie_and_however_they_are_read() -> None:
    made = without_paths(load_recipe("scenes", ["data.root=/here/data", "model.weights=/here/net.safetensors"]))
    same = load_recipe("scenes", ["data.root=/there/data", "model.weights=net.safetensors", "data.num_workers=3"])
    assert differences(made, same) == []
    changed = load_recipe(
        "scenes", ["data.root=data", "model.weights=net.safetensors", "optimizer.lr=0.5", "model.dim=8"]
    )
    assert differences(made, changed) == ["model.dim 128 -> 8", "optimizer.lr 0.002 -> 0.5"]


def test_keys_that_a_head_does_not_look_at_make_no_difference() -> None:
    made = without_paths(load_recipe("scenes", ["model.head=avg_pool"]))
    assert differences(made, load_recipe("scenes", ["model.head=avg_pool", "model.dim=8"])) == []


def test_a_run_of_an_older_version_has_the_defaults_of_keys_it_did_not_know() -> None:
    made = without_paths(load_recipe("scenes"))
    del made["trainer"]["ema_decay"]
    assert differences(made, load_recipe("scenes")) == []
    assert "unknown key 'trainer.once'" in differences({**made, "trainer": {"once": 1}}, load_recipe("scenes"))[0]


def test_overrides_are_shown_without_paths() -> None:
    shown = shown_overrides(["data.root=/data/VOCdevkit/", "model.weights=net.safetensors", "optimizer.lr=0.1"])
    assert shown == ["data.root=VOCdevkit", "model.weights=net.safetensors", "optimizer.lr=0.1"]


def test_a_rate_of_an_earlier_comparison_stands_against_old_tries() -> None:
    plan = Plan("scenes", (), (POOLED, MSRN), num_seeds=1, known_rates={"msrn": 0.03, "avg_pool": 0.1})
    assert [run.lr for run in plan.final_runs({"msrn": 0.3})] == [0.1, 0.03]


@pytest.mark.parametrize("recipe", ["scenes", "voc2007-mobilenet"])
def test_msrn_as_published_is_the_published_network_under_every_recipe(recipe: str) -> None:
    published = HEADS["msrn_published"]
    architecture = Plan(recipe, (), (published,)).recipe_of(Run(published, 0, None)).model.architecture()
    assert {key: architecture[key] for key in PUBLISHED} == PUBLISHED
