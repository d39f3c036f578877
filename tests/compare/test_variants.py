"""What can be compared, and how one's own variants are read."""

from pathlib import Path

import pytest

from msrn.compare import ABLATIONS, HEADS, Variant, choose_variants, read_variants
from msrn.compare.plan import Plan, Run, drop_repeated
from msrn.errors import RecipeError
from msrn.recipes.schema import known_keys


@pytest.mark.parametrize("name", HEADS)
def test_every_head_fits_the_recipes(name: str) -> None:
    for recipe in ("scenes", "voc2007"):
        plan = Plan(recipe, (), (HEADS[name],))
        made = plan.recipe_of(Run(HEADS[name], 1, 0.25))
        assert (made.trainer.seed, made.optimizer.lr) == (1, 0.25)
        assert made.model.head in (name, "msrn")


def test_msrn_of_a_published_recipe_is_the_default_one() -> None:
    plan = Plan("voc2007", (), tuple(HEADS.values()))
    published, default = (plan.recipe_of(Run(HEADS[name], 0, None)) for name in ("msrn_published", "msrn"))
    assert (published.model.classifier, default.model.classifier) == ("joint", "per_label")
    assert (published.labels.rule, default.labels.rule) == ("threshold", "top-k")
    of_photos = Plan("photos", (), (HEADS["msrn_published"],)).recipe_of(Run(HEADS["msrn_published"], 0, None))
    assert (of_photos.labels.rule, of_photos.labels.threshold) == ("threshold", 0.4)


@pytest.mark.parametrize("recipe", ["voc2007", "coco2014", "nuswide", "apparel", "voc2007-from-coco"])
def test_the_graph_of_a_published_recipe_can_be_ablated(recipe: str) -> None:
    names = ("msrn", "graph_identity", "graph_published")
    plan = drop_repeated(Plan(recipe, (), tuple((HEADS | ABLATIONS)[name] for name in names)))
    assert tuple(variant.name for variant in plan.variants) == names
    assert plan.recipe_of(Run(HEADS["msrn"], 0, None)).labels.rule == "top-k"


def test_ablations_change_msrn_by_known_sections_and_take_its_rate() -> None:
    sections = {key.partition(".")[0] for key in known_keys() if "." in key}
    for variant in ABLATIONS.values():
        assert variant.rate_of == "msrn"
        assert variant.overrides[: len(HEADS["msrn"].overrides)] == HEADS["msrn"].overrides
        assert {text.partition(".")[0] for text in variant.overrides} <= sections


@pytest.mark.parametrize(
    ("recipe", "as_msrn_does"), [("scenes", "stages_attached"), ("voc2007-mobilenet", "stages_detached")]
)
def test_every_ablation_fits_and_is_not_msrn_itself(recipe: str, as_msrn_does: str) -> None:
    chosen, _ = choose_variants([*HEADS], ablations=True, word_vectors="glove.safetensors")
    plan = drop_repeated(Plan(recipe, (), tuple(chosen)))
    assert plan.skipped == {as_msrn_does: "the same as msrn here"}


def test_chosen_by_name_without_repetition() -> None:
    own = [Variant("wide", "wide", ("model.dim=1024",))]
    chosen, skipped = choose_variants(["csra", "msrn", "csra", "no_groups"], own=own)
    assert [variant.name for variant in chosen] == ["csra", "msrn", "no_groups", "wide"]
    assert skipped == {}
    with pytest.raises(RecipeError, match="no variant is named 'cara'"):
        choose_variants(["cara"])


def test_all_ablations_and_the_file_of_vectors_that_one_needs() -> None:
    chosen, skipped = choose_variants(["msrn"], ablations=True)
    assert len(chosen) == len(ABLATIONS)  # with msrn, without the vectors
    assert "--word-vectors" in skipped["vectors_file"]
    chosen, skipped = choose_variants(["msrn"], ablations=True, word_vectors="glove=1.safetensors")
    assert skipped == {}
    with_file = next(variant for variant in chosen if variant.name == "vectors_file")
    made = Plan("scenes", (), (with_file,)).recipe_of(Run(with_file, 0, None))
    assert made.labels.vectors == "glove=1.safetensors"


def test_own_variants_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("wide: [model.dim=1024]\nwide_no_groups:\n  - model.dim=1024\n  - loss.group_weight=0\n")
    assert read_variants(path) == [
        Variant("wide", "wide", ("model.dim=1024",)),
        Variant("wide_no_groups", "wide_no_groups", ("model.dim=1024", "loss.group_weight=0")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no variants"),
        ("[a, b]", "holds no variants"),
        ("a: [", "is not YAML: .*line 1"),
        ("msrn: [model.dim=8]", "'msrn' is a variant that comes with msrn"),
        ("a/b: [model.dim=8]", "'a/b' names a file"),
        ("wide: model.dim=8", "'wide' takes a list of key=value"),
        ("wide: [model.dim]", "'wide' takes a list of key=value"),
        ("wide: [trainer.max_epochs=8]", "'wide' sets trainer.max_epochs, which is the same for all"),
        ("wide: [data.val_fraction=0.5]", "'wide' sets data.val_fraction"),
    ],
)
def test_what_is_no_variant_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_variants(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_variants(tmp_path / "none.yaml")
