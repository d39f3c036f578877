"""YAML of strangers: plain values, or an error of ours."""

import os
from pathlib import Path

import pytest
from fuzz_targets import YAML_FAULTS, YAML_VALUES
from hypothesis import given
from hypothesis import strategies as st

from msrn.compare.variants import read_variants
from msrn.errors import RecipeError
from msrn.recipes import load_recipe, save_recipe
from msrn.recipes.yaml_text import MAX_BYTES, dump_yaml, safe_yaml

pytestmark = pytest.mark.usefixtures("typing_off")


@pytest.mark.fault("YAML that no reader of YAML expects")
@pytest.mark.parametrize("number", range(len(YAML_FAULTS)))
@pytest.mark.parametrize("read", [load_recipe, read_variants])
def test_odd_files(tmp_path, lost, number, read):
    path = tmp_path / "odd.yaml"
    path.write_bytes(YAML_FAULTS[number])
    with pytest.raises(RecipeError, match=r"odd\.yaml") as caught:
        read(path)
    assert len(str(caught.value)) < 1500
    lost(["odd.yaml"], [file.name for file in tmp_path.iterdir()], "files")


@pytest.mark.parametrize("value", YAML_VALUES)
@pytest.mark.parametrize("key", ["data.size", "model.dim", "model.backbone_options", "data.label_names"])
def test_odd_overrides(key, value):
    with pytest.raises(RecipeError, match=key) as caught:
        load_recipe("scenes", [f"{key}={value}"])
    assert len(str(caught.value)) < 1500


def test_growing_aliases_are_refused_before_they_grow():
    text = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    with pytest.raises(RecipeError, match=r"an anchor or alias, 'a0' in line 1, is not read"):
        safe_yaml(text)


@given(
    st.dictionaries(
        st.text(), st.text(st.characters(codec=None)) | st.integers(-(2**63), 2**63) | st.none() | st.booleans()
    )
)
def test_what_is_written_is_read_and_shows(values):
    text = dump_yaml(values)
    assert safe_yaml(text) == values
    assert text.replace("\n", "").isprintable()


def test_letters_of_any_script_stay():
    assert dump_yaml({"root": "船 café"}) == "root: 船 café\n"


def test_a_value_that_stands_in_two_places_is_written_twice(tmp_path):
    same = [1, 2]
    assert safe_yaml(dump_yaml({"a": same, "b": same})) == {"a": same, "b": same}
    recipe = load_recipe("scenes", ["model.backbone_options={a: [1, 2]}", "data.root=\udcff\u202e"])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.fault("a pipe, a device or a huge file as a recipe or variants")
@pytest.mark.parametrize("read", [load_recipe, read_variants])
def test_what_is_no_small_file(tmp_path, lost, read):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, message in {
        "pipe": "no regular file",
        "zero": "no regular file",
        "huge": "more than 1,000,000 bytes",
    }.items():
        with pytest.raises(RecipeError, match=message):
            read(tmp_path / f"{name}.yaml")
    with pytest.raises(RecipeError, match="null"):
        read(Path("a/\0.yaml"))
    lost(["huge.yaml", "pipe.yaml", "zero.yaml"], [file.name for file in tmp_path.iterdir()], "files")


@pytest.mark.parametrize(
    "override", ["model.dim=1e18", "data.size=[200000,200000]", "data.batch_size=1e10", "model.num_stages=1e9"]
)
def test_numbers_above_all_sense(override):
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        load_recipe("scenes", [override])
