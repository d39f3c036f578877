import re
from pathlib import Path

import pytest
import yaml

import msrn.recipes
from msrn.errors import RecipeError
from msrn.recipes import Recipe, list_recipes, load_recipe, save_recipe

FOLDER = Path(msrn.recipes.__file__).parent
PACKAGED = sorted(FOLDER.rglob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_recipe_validates_by_path_and_by_name(path: Path) -> None:
    assert load_recipe(path) == load_recipe(path.stem)
    assert load_recipe(path).name == path.stem


def test_list_names_every_packaged_recipe() -> None:
    assert list_recipes() == sorted(path.stem for path in PACKAGED)
    assert {"scenes", "voc2007"} <= set(list_recipes())


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_packaged_recipe_opens_with_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1].startswith(f"#   msrn train {path.stem}")


@pytest.mark.parametrize("name", list_recipes())
def test_a_saved_recipe_loads_as_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["optimizer.lr=0.05", "model.bound=null", "data.root=/data/héhé", "trainer.seed=3"])
    save_recipe(recipe, tmp_path / "run" / "recipe.yaml")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_a_saved_recipe_names_every_key(tmp_path: Path) -> None:
    save_recipe(Recipe(), tmp_path / "recipe.yaml")
    values = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert set(values) == set(Recipe.model_fields)
    assert set(values["data"]) == set(type(Recipe().data).model_fields)


@pytest.mark.parametrize("name", list_recipes())
def test_a_saved_recipe_builds_the_same_architecture(name: str, tmp_path: Path) -> None:
    save_recipe(load_recipe(name), tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").model.architecture() == load_recipe(name).model.architecture()


def test_an_empty_file_is_the_default_recipe(file: Path) -> None:
    file.write_text("# nothing\n")
    assert load_recipe(file) == Recipe(name="mine")


# Names and keys


def test_unknown_name_gets_the_nearest_and_the_list() -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe is named 'voc207'\. Did you mean 'voc2007.*'\? There are: apparel, "
    ):
        load_recipe("voc207")
    with pytest.raises(RecipeError, match=r"no recipe is named 'qqq'\. There are: "):
        load_recipe("qqq")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.dim=8", r"unknown key 'modle', did you mean 'model'\?"),
        ("model.dims=8", r"unknown key 'model\.dims', did you mean 'model\.dim'\?"),
        ("optimizer.learning_rate=1", r"unknown key 'optimizer\.learning_rate'"),
        (
            "optimizer.wieght_decay=1",
            r"unknown key 'optimizer\.wieght_decay', did you mean 'optimizer\.weight_decay'\?",
        ),
        ("trainer.epochs=3", r"unknown key 'trainer\.epochs', did you mean 'trainer\.max_epochs'\?"),
        ("lr=3", "unknown key 'lr'"),
    ],
)
def test_unknown_key_names_the_nearest(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"recipe 'scenes': {message}"):
        load_recipe("scenes", [override])


@pytest.mark.parametrize(
    ("recipe", "overrides", "rule"),
    [
        ("scenes", [], "top-k"),
        ("scenes", ["labels.threshold=0.3"], "threshold"),
        ("scenes", ["labels.significance=0.1"], "lift"),
        ("voc2007", [], "threshold"),
        ("voc2007", ["labels.top_k=5"], "top-k"),
        ("voc2007", ["model.preset=default"], "top-k"),
        ("voc2007", ["labels.rule=identity"], "identity"),
    ],
)
def test_the_setting_of_a_rule_chooses_it(recipe: str, overrides: list[str], rule: str) -> None:
    assert load_recipe(recipe, overrides).labels.rule == rule


@pytest.mark.parametrize("recipe", ["photos", "voc2007"])
def test_settings_of_two_rules_are_refused(recipe: str) -> None:
    message = r"threshold is a setting of rule threshold and top_k is a setting of rule top-k, and a graph has one rule"
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe, ["labels.threshold=0.3", "labels.top_k=5"])
    chosen = load_recipe(recipe, ["labels.threshold=0.3", "labels.top_k=5", "labels.rule=top-k"]).labels
    assert (chosen.rule, chosen.top_k) == ("top-k", 5)


def test_all_problems_are_told_at_once(file: Path) -> None:
    file.write_text("optimizer:\n  lr: -1\n  nmae: sgd\ndata: {val_fraction: 2}\ntrainer: {max_epochs: many}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, ["labels.threshold=0"])
    message = str(caught.value)
    assert f"recipe '{file}': 5 problems: " in message
    for part in (
        "optimizer.lr: input should be greater than 0, got -1",
        "unknown key 'optimizer.nmae', did you mean 'optimizer.name'?",
        "data.val_fraction: input should be less than 1, got 2",
        "trainer.max_epochs: input should be a valid integer",
        "labels.threshold: input should be greater than 0, got 0",
    ):
        assert part in message
    assert "\n" not in message


def test_a_choice_lists_what_is_allowed() -> None:
    with pytest.raises(
        RecipeError, match=r"model\.head: input should be 'msrn', 'avg_pool', .* or 'ml_decoder', got 'mlp'"
    ):
        load_recipe("scenes", ["model.head=mlp"])


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\\\b", "", " ", "..", ".", "\\0", "a\\nb", "\\u007f", "é" * 101])
def test_a_name_is_that_of_one_folder(file: Path, name: str) -> None:
    file.write_text(f'name: "{name}"\n')
    with pytest.raises(RecipeError, match=r"name: expected the name of a folder, without /"):
        load_recipe(file)


@pytest.mark.parametrize("name", ["birds", "Vögel 2", "...", "-1", "é" * 100, "a|b$c$"])
def test_names_of_folders(file: Path, name: str) -> None:
    file.write_text(f'name: "{name}"\n', encoding="utf-8")
    assert load_recipe(file).name == name


def test_splits_must_differ() -> None:
    with pytest.raises(RecipeError, match=r"share the split 'train'; each may be used once"):
        load_recipe("scenes", ["data.val=train"])


@pytest.mark.parametrize("text", ["- a\n- b\n", "word\n", "3\n"])
def test_file_without_keys(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.yaml holds (list|str|int), expected keys and values"):
        load_recipe(file)


@pytest.mark.parametrize("text", ["null: 1", "3: 1", "model: {null: 1}", "model: {backbone_options: {3: 1}}"])
def test_a_key_that_is_no_text(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"mine.*(None|3).*string, got|strings, got"):
        load_recipe(file)


@pytest.mark.parametrize("text", ["model: [", "a: b: c", "\tx: 1", "model: !!python/object:os.system {}", "\x07"])
def test_file_that_is_not_yaml(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.yaml is not YAML: ") as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("typing_off")
@pytest.mark.parametrize("text", ["model: 3", "model:\n", "data: [a]", "1: 2", "null: 1"])
def test_sections_that_are_no_sections(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe '.*mine.yaml': "):
        load_recipe(file)


def test_file_that_cannot_be_read(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"no recipe file .*mine\.yaml\. Give an existing YAML file or one of: apparel, "
    ):
        load_recipe(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"mine\.yaml cannot be read: .*codec"):
        load_recipe(file)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RecipeError, match=r"folder\.yaml cannot be read"):
        load_recipe(tmp_path / "folder.yaml")


# Overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optimizer.lr=0.05", 0.05),
        ("optimizer.lr=1e-4", 1e-4),
        ("optimizer.lr=1", 1.0),
        ("data.size=[64, 96]", (64, 96)),
        ("data.train=[train]", ("train",)),
        ("data.test=null", None),
        ("data.flip=false", False),
        ("data.root=/a/b=c", "/a/b=c"),
        ("model.pooling=[max, avg, none]", ("max", "avg", "none")),
        ("model.pooling=avg", "avg"),
        ("model.backbone_options={img_size: 96}", {"img_size": 96}),
        ("model.backbone_options.drop_path_rate=0.1", 0.1),
        ("name=first try", "first try"),
    ],
)
def test_override_values_are_read_as_yaml(override: str, value: object) -> None:
    recipe = load_recipe("voc2007", [override])
    received: object = recipe
    for key in override.partition("=")[0].split("."):
        received = received[key] if isinstance(received, dict) else getattr(received, key)
    assert received == value
    assert type(received) is type(value)


def test_later_overrides_win_and_leave_the_rest() -> None:
    recipe = load_recipe("scenes", ["optimizer.lr=1", "optimizer.lr=2"])
    assert recipe.optimizer.lr == 2
    assert recipe.optimizer.name == load_recipe("scenes").optimizer.name


@pytest.mark.parametrize("override", ["optimizer.lr", "=3", "", "optimizer.lr 3"])
def test_malformed_override(override: str) -> None:
    with pytest.raises(RecipeError, match=rf"reads key=value, as in optimizer\.lr=0\.05; got '{override}'"):
        load_recipe("scenes", [override])


def test_override_whose_value_is_not_yaml() -> None:
    with pytest.raises(RecipeError, match=r"the value of 'data\.size' is not YAML: '\[64'\. Quote it"):
        load_recipe("scenes", ["data.size=[64"])


def test_override_below_a_value() -> None:
    with pytest.raises(RecipeError, match=r"'optimizer\.lr\.x' goes below 'lr', which is a value"):
        load_recipe("scenes", ["optimizer.lr.x=3"])


@pytest.mark.parametrize("override", ["optimizer.=3", ".lr=3", "optimizer..lr=3"])
def test_override_with_an_empty_part(override: str) -> None:
    with pytest.raises(RecipeError):
        load_recipe("scenes", [override])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", ".nan", ".inf"])
def test_numbers_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"optimizer\.lr: input should be a finite number"):
        load_recipe("scenes", [f"optimizer.lr={value}"])


# Presets


def test_published_preset_fills_only_what_is_not_said(file: Path) -> None:
    file.write_text("model: {preset: published, dim: 64}\n")
    architecture = load_recipe(file).model.architecture()
    assert (architecture["classifier"], architecture["has_buffers"], architecture["bound"]) == (
        *("joint", (True, True, False)),
        None,
    )
    assert architecture["dim"] == 64


@pytest.mark.parametrize(
    ("overrides", "is_detached"),
    [
        (["model.pretrained=true"], True),
        (["model.weights=mobilenetv2_100.safetensors"], True),
        (["model.init_from=runs/coco/bundle"], True),
        ([], False),
        (["model.pretrained=true", "model.preset=published"], False),
        (["model.pretrained=true", "model.residual=null"], False),
        (["model.pretrained=true", "model.supervision=sum"], False),
        (["model.pretrained=true", "model.detach_stages=false"], False),
        (["model.detach_stages=true"], True),
    ],
)
def test_stages_are_detached_where_the_backbone_starts_pretrained(overrides: list[str], is_detached: bool) -> None:
    assert load_recipe("scenes", overrides).model.architecture()["detach_stages"] is is_detached


@pytest.mark.parametrize(("head", "pooling"), [("avg_pool", "avg"), ("max_pool", "max")])
def test_pooled_heads(head: str, pooling: str) -> None:
    architecture = load_recipe("scenes", [f"model.head={head}"]).model.architecture()
    assert (architecture["name"], architecture["pooling"]) == ("pooled", pooling)
    assert "dim" not in architecture


def test_keys_of_other_heads_reach_their_builders() -> None:
    keys = ["model.csra_heads=4", "model.csra_lambda=0.4", "model.decoder_groups=7", "model.frozen_stages=2"]
    found = {
        head: load_recipe("scenes", [*keys, f"model.head={head}"]).model.architecture()
        for head in ("csra", "ml_gcn", "ml_decoder", "msrn")
    }
    assert (found["csra"]["num_heads"], found["csra"]["lam"]) == (4, 0.4)
    assert found["ml_decoder"]["num_groups"] == 7
    assert {architecture["frozen_stages"] for architecture in found.values()} == {2}
    assert all(architecture["name"] == head for head, architecture in found.items())
    assert not any(key.startswith(("csra", "decoder")) for key in found["msrn"])
    assert "num_heads" not in found["ml_gcn"]
    with pytest.raises(RecipeError, match=r"model\.csra_heads: input should be 1, 2, 4, 6 or 8, got 3"):
        load_recipe("scenes", ["model.csra_heads=3"])


def test_architecture_never_asks_for_pretrained_weights() -> None:
    architecture = load_recipe("scenes", ["model.pretrained=true", "model.weights=a.pth"]).model.architecture()
    assert {"pretrained", "weights"}.isdisjoint(architecture)


@pytest.mark.parametrize("text", ["|", ",", " ", "#", ":", "7"])
def test_text_is_taken_as_typed(text):
    assert load_recipe("scenes", [f"data.label_separator={text}"]).data.label_separator == text
    assert load_recipe("scenes", [f"data.root=a {text}b"]).data.root == f"a {text}b"
    assert load_recipe("scenes", ["data.label_separator=null"]).data.label_separator is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=1", "did you mean 'optimizer.lr'"),
        ("lr=1", "did you mean 'optimizer.lr'"),
        ("trainer.epochs=1", "did you mean 'trainer.max_epochs'"),
        ("data.crop_scale=[0.9,0.1]", "data.crop_scale is least, greatest"),
        ("data.train=[]", "data.train"),
        ("trainer.seed=99999999999999999999", "trainer.seed"),
    ],
)
def test_problems_are_named(override, words):
    with pytest.raises(RecipeError, match=re.escape(words)):
        load_recipe("scenes", [override])
