import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_bundle import noise

from msrn.bundle import Bundle, bundle, load_bundle, reset_decisions, save_bundle, save_decisions
from msrn.data.transforms import Preprocessing
from msrn.errors import BundleError, MSRNError
from msrn.labels import EdgeRule, LabelGraph
from msrn.metrics import Thresholds
from msrn.metrics.calibration import ScaledLogits
from msrn.models import PUBLISHED, build_model
from msrn.models.baselines import PooledHead
from msrn.predict import load
from msrn.server.app import create_app

TINY = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 8, 8], "stem_width": 8}}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {"name": "msrn", **TINY, "dim": 8},
    "published": {"name": "msrn", **PUBLISHED, "backbone": "resnet18", "dim": 16, "classifier_dim": 8},
    "frozen": {"name": "msrn", **TINY, "dim": 8, "frozen_stages": 2, "freeze_batch_norm": True},
    "pooled": {"name": "pooled", **TINY, "pooling": "max"},
    "csra": {"name": "csra", **TINY, "num_heads": 4, "lam": 0.3},
    "ml_gcn": {"name": "ml_gcn", **TINY, "hidden_dim": 8},
    "ml_decoder": {"name": "ml_decoder", **TINY, "num_groups": 4, "dim": 16, "num_heads": 2, "hidden_dim": 8},
}
FILES = ["README.md", "config.json", "model.safetensors"]


def make(label_graph: LabelGraph, name: str = "default", seed: int = 0) -> Bundle:
    torch.manual_seed(seed)
    model = build_model(ARCHITECTURES[name], label_graph)
    model.train()(torch.rand(2, 3, 64, 64))  # batch norms that have seen something
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    preprocessing = Preprocessing((64, 96), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    training = {"recipe_name": "tiny", "val_mAP": 0.5, "recipe": {"name": "tiny"}}
    return Bundle(model.eval(), label_graph, ARCHITECTURES[name], preprocessing, threshold=0.3, training=training)


def predict(one: Bundle) -> torch.Tensor:
    with torch.inference_mode():
        return one.model(torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def saved(label_graph: LabelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that tests only read."""
    return save_bundle(make(label_graph), tmp_path_factory.mktemp("saved") / "bundle")


@pytest.fixture
def path(saved: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((path / "config.json").read_text())
    change(config)
    (path / "config.json").write_text(json.dumps(config))


# Save and load


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loaded_bundle_gives_identical_logits(label_graph: LabelGraph, tmp_path: Path, name: str) -> None:
    original = make(label_graph, name)
    assert save_bundle(original, tmp_path / "new" / "bundle") == tmp_path / "new" / "bundle"
    loaded = load_bundle(str(tmp_path / "new" / "bundle"))
    assert torch.equal(predict(loaded), predict(original))
    assert loaded.config() == json.loads(json.dumps(original.config()))
    assert loaded.label_names == label_graph.label_names
    assert torch.equal(loaded.label_graph.adjacency, label_graph.adjacency)
    assert loaded.preprocessing == original.preprocessing
    assert not loaded.model.training
    assert (loaded.threshold, loaded.training) == (0.3, original.training)


@pytest.mark.parametrize(
    "rule", [EdgeRule("top-k", top_k=2), EdgeRule("lift", significance=0.5), EdgeRule(threshold=0.7)]
)
def test_edges_of_every_rule_come_back(label_graph: LabelGraph, tmp_path: Path, rule: EdgeRule) -> None:
    counts = (label_graph.co_occurrence, label_graph.label_counts)
    graph = LabelGraph(label_graph.label_names, *counts, **rule.arguments(*counts, 40))
    save_bundle(make(graph), tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").label_graph
    assert torch.equal(loaded.adjacency, graph.adjacency)
    assert (loaded.edges is None) == (graph.edges is None)
    assert loaded.rule == graph.rule == str(rule)


def test_graph_of_a_threshold_is_saved_as_before(saved: Path) -> None:
    assert "graph_rule" not in json.loads((saved / "config.json").read_text())
    assert "label_graph.edges" not in load_file(saved / "model.safetensors")


@pytest.mark.parametrize("edges", [torch.zeros(2, 2).bool(), torch.eye(6).bool(), torch.zeros(6, 6)])
@pytest.mark.usefixtures("typing_off")
def test_damaged_edges(path: Path, edges: torch.Tensor) -> None:
    tensors = load_file(path / "model.safetensors")
    save_file({**tensors, "label_graph.edges": edges}, path / "model.safetensors")
    with pytest.raises(BundleError, match="the label graph is damaged"):
        load_bundle(path)


def test_holds_no_pickle(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == FILES
    assert "# MSRN on resnet10t, 6 labels" in (saved / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "title"),
    [("csra", "CSRA"), ("ml_gcn", "ML-GCN"), ("ml_decoder", "ML-Decoder"), ("pooled", "max-pooled head")],
)
def test_card_names_the_head(label_graph: LabelGraph, tmp_path: Path, name: str, title: str) -> None:
    save_bundle(make(label_graph, name), tmp_path / "bundle")
    assert f"# {title} on resnet10t, 6 labels" in (tmp_path / "bundle" / "README.md").read_text()


def test_saved_again_it_is_the_same_to_the_byte(saved: Path, tmp_path: Path) -> None:
    again = save_bundle(load_bundle(saved), tmp_path / "again")
    for name in FILES:
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_channels_last_and_shared_weights_are_saved_plainly(label_graph: LabelGraph, tmp_path: Path) -> None:
    original = make(label_graph)
    original.model.to(memory_format=torch.channels_last)
    original.model.classifier.group_weight = original.model.classifier.label_weight
    loaded = load_bundle(save_bundle(original, tmp_path / "bundle"))
    torch.testing.assert_close(predict(loaded), predict(original), rtol=1e-4, atol=1e-5)


def test_labels_of_every_script(tmp_path: Path) -> None:
    graph = LabelGraph.from_target(torch.eye(3).int(), ["chat noir", "猫", 'a "cat"\n'])
    loaded = load_bundle(save_bundle(make(graph), tmp_path / "bundle"))
    assert loaded.label_names == graph.label_names


# Writing


def test_an_older_bundle_is_replaced(label_graph: LabelGraph, path: Path) -> None:
    newer = make(label_graph, "pooled", seed=1)
    save_bundle(newer, path)
    assert sorted(file.name for file in path.iterdir()) == FILES
    assert torch.equal(predict(load_bundle(path)), predict(newer))
    assert [file.name for file in path.parent.iterdir()] == ["bundle"]


def test_what_lies_beside_a_bundle_is_left_alone(label_graph: LabelGraph, path: Path) -> None:
    (path / "notes.txt").write_text("mine")
    (path / ".git").mkdir()
    before = (path / "config.json").read_bytes()
    with pytest.raises(
        BundleError, match=r"holds other things too, which would be lost: \.git, notes\.txt\. Move them"
    ):
        save_bundle(make(label_graph, "pooled", seed=1), path)
    assert (path / "notes.txt").read_text() == "mine"
    assert (path / "config.json").read_bytes() == before


def test_a_model_of_another_library_is_no_bundle(label_graph: LabelGraph, tmp_path: Path) -> None:
    """Hugging Face's transformers keep theirs under the same names."""
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(BundleError, match="is not a bundle; it is left alone"):
        save_bundle(make(label_graph), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_with_some_configuration_is_no_bundle(label_graph: LabelGraph, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="is not a bundle; it is left alone"):
        save_bundle(make(label_graph), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(label_graph: LabelGraph, tmp_path: Path) -> None:
    assert load_bundle(save_bundle(make(label_graph), tmp_path)).threshold == 0.3


def test_what_is_no_bundle_is_left_alone(label_graph: LabelGraph, tmp_path: Path) -> None:
    photos, notes = tmp_path / "photos", tmp_path / "notes.txt"
    photos.mkdir()
    for file in (photos / "a.jpg", notes):
        file.write_text("precious")
    for path in (photos, notes):
        with pytest.raises(
            BundleError, match=rf"{path} exists and is not a bundle; it is left alone\. Give a new folder"
        ):
            save_bundle(make(label_graph), path)
    assert (photos / "a.jpg").read_text() == notes.read_text() == "precious"


@pytest.mark.parametrize(
    ("function", "error", "raised"),
    [
        ("save_file", OSError(28, "No space left on device"), MSRNError),
        ("save_file", SafetensorError("I/O error: No space left on device"), MSRNError),
        ("model_card", OSError(28, "No space left on device"), MSRNError),
        ("model_card", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_save_that_fails_leaves_the_old_bundle_whole(
    label_graph: LabelGraph, path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error, raised
) -> None:
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(bundle, function, fail)
    with pytest.raises(raised, match="cannot be written: .*No space left" if raised is MSRNError else None):
        save_bundle(make(label_graph, seed=1), path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["bundle"]


# Damage


def test_missing_folder_and_file_instead_of_a_folder(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere does not exist\. A bundle is the folder that training writes"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"model.safetensors is not a folder"):
        load_bundle(path / "model.safetensors")


def test_missing_files(path: Path) -> None:
    (path / "README.md").unlink()  # for people only
    load_bundle(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"has no model.safetensors, so it is not a whole bundle"):
        load_bundle(path)
    (path / "config.json").unlink()
    with pytest.raises(BundleError, match=r"has no config.json, so it is not a bundle"):
        load_bundle(path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights(path: Path, kept: float) -> None:
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged: .*\. Copy or save the bundle again"):
        load_bundle(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", "[]", "null", '"text"', "{}", '{"labels": NaN'])
def test_config_that_is_not_json_or_not_ours(path: Path, text: str) -> None:
    (path / "config.json").write_text(text)
    with pytest.raises(BundleError, match=r"config\.json (cannot be read|lacks format_version)"):
        load_bundle(path)


def test_config_in_another_encoding(path: Path) -> None:
    (path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match=r"cannot be read: .*codec"):
        load_bundle(path)


def test_missing_keys_are_named(path: Path) -> None:
    edit(path, lambda config: [config.pop(key) for key in ("labels", "threshold")])
    with pytest.raises(BundleError, match=r"config\.json lacks labels, threshold"):
        load_bundle(path)


@pytest.mark.parametrize("version", [5, "1", None, 0])
def test_other_format_version(path: Path, version: object) -> None:
    edit(path, lambda config: config.update(format_version=version))
    with pytest.raises(BundleError, match=rf"has format {version}, this msrn reads formats up to 4\. Update msrn"):
        load_bundle(path)


def test_other_number_of_labels(path: Path) -> None:
    edit(path, lambda config: config["labels"].append("owl"))
    with pytest.raises(BundleError, match=r"names 7 labels, model\.safetensors was trained with 6\. Take both files"):
        load_bundle(path)


@pytest.mark.parametrize("options", [{"dim": 16}, {"num_stages": 2}, {"classifier": "joint", "classifier_dim": 4}])
def test_weights_of_another_architecture(path: Path, options: dict[str, Any]) -> None:
    edit(path, lambda config: config["architecture"].update(options))
    with pytest.raises(BundleError, match=r"does not fit the architecture in config\.json: .* Take both files"):
        load_bundle(path)


@pytest.mark.usefixtures("typing_off")
@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"name": "transformer"}, "an architecture is named .*'ml_decoder', got 'transformer'"),
        ({"name": "msrn", "backbone": "resnet81"}, "timm knows no model 'resnet81'"),
        ({"name": "msrn", "colour": 1}, "unexpected keyword argument 'colour'"),
        ({"name": "msrn", "backbone": "resnet10t", "dim": "wide"}, "no model that can be built"),
        ({"name": "msrn", "backbone": "resnet10t", "dim": -1}, "no model that can be built"),
        ({"name": "msrn", "backbone": 7}, "no model that can be built"),
        (
            {"name": "msrn", "backbone": "resnet10t", "backbone_options": {"checkpoint_path": "x"}},
            "no option checkpoint_",
        ),
    ],
)
def test_architecture_that_cannot_be_built(path: Path, architecture: dict[str, Any], message: str) -> None:
    edit(path, lambda config: config.update(architecture=architecture))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_config_cannot_make_it_read_other_weights(path: Path) -> None:
    before = predict(load_bundle(path))
    edit(path, lambda config: config["architecture"].update(pretrained=True, weights="/etc/passwd"))
    assert torch.equal(predict(load_bundle(path)), before)


@pytest.mark.parametrize("missing", ["model.classifier.bias", "label_graph.label_counts"])
def test_missing_tensor(path: Path, missing: str) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors[missing]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(
        BundleError, match=rf"model\.safetensors (lacks|does not fit).*{missing.removeprefix('model.')}"
    ):
        load_bundle(path)


@pytest.mark.usefixtures("typing_off")
@pytest.mark.parametrize("shape", [(), (3,), (6, 2, 2), (5, 4)])
@pytest.mark.parametrize(
    "name", ["model.label_group.word_vectors", "label_graph.co_occurrence", "label_graph.label_counts"]
)
def test_tensor_of_another_shape(path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(BundleError):
        load_bundle(path)


@pytest.mark.usefixtures("typing_off")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("size", value) for value in (None, 64, [64], [64, 0], [64, 64.5], ["64", "64"], [64, True])],
        *[("mean", value) for value in ([0.5], "grey", [0, 0, None], [0, 0, 10**400], {"r": 1})],
        *[("std", value) for value in ([0, 1, 1], [-1, 1, 1], None, [1, 1, float("nan")])],
        *[("interpolation", value) for value in ("nearest", 2, None, ["bicubic"])],
    ],
)
def test_impossible_preprocessing_is_named(path: Path, key: str, value: object) -> None:
    edit(path, lambda config: config["preprocessing"].update({key: value}))
    with pytest.raises(BundleError, match=rf"preprocessing holds {key} = .* Expected size \(height and width\)"):
        load_bundle(path)


def test_unknown_preprocessing_is_refused(path: Path) -> None:
    edit(path, lambda config: config["preprocessing"].update(rotate=90))
    with pytest.raises(BundleError, match=r"preprocessing has other keys than expected: .*'rotate'"):
        load_bundle(path)


@pytest.mark.parametrize("threshold", [None, "0.5", [0.5], -0.1, 1.5, True, float("nan"), 10**400])
def test_impossible_threshold(path: Path, threshold: object) -> None:
    edit(path, lambda config: config.update(threshold=threshold))
    with pytest.raises(BundleError, match="threshold is a probability, got"):
        load_bundle(path)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.floats()
    | st.sampled_from(["", "msrn", "resnet10t", "avg", "x"]),
    lambda values: (
        st.lists(values, max_size=4) | st.dictionaries(st.sampled_from(["name", "size", "x"]), values, max_size=2)
    ),
    max_leaves=5,
)


def paths_of(config: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of the configuration stands."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    return [place for key, value in items for place in ((*above, key), *paths_of(value, (*above, key)))]


@pytest.mark.usefixtures("typing_off")
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_in_the_config_loads_or_is_a_bundle_error(path: Path, saved: Path, data) -> None:
    config = json.loads((saved / "config.json").read_text())
    changed = copy.deepcopy(config)
    place = data.draw(st.sampled_from(paths_of(config)))
    section = changed
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = data.draw(json_values)
    (path / "config.json").write_text(json.dumps(changed))
    try:
        loaded = load_bundle(path)
    except BundleError:
        return
    assert predict(loaded).shape == (2, 6)


@pytest.mark.parametrize(("version", "scale", "poolings"), [(1, 8.0, {"max"}), (2, 2.0, {"max", "none"})])
def test_what_a_former_format_left_out_means_what_it_meant(
    path: Path, version: int, scale: float, poolings: set[str]
) -> None:
    """Until format 3 a pooled head was added to the stages; until format 2 these were pooled by max, and the scale was 8."""

    def make_old(config: dict[str, Any]) -> None:
        config["format_version"] = version
        for key in ("scale", "pooling", "residual", "residual_attention", "supervision"):
            config["architecture"].pop(key, None)

    edit(path, make_old)
    model = load_bundle(path).model
    assert model.classifier.scale == pytest.approx(scale / model.classifier.label_weight.shape[1] ** 0.5)
    assert {stage.pooling for stage in model.attention.stages} == poolings
    assert isinstance(model.residual, PooledHead)
    assert model.residual.pooling == "avg"
    assert model.supervision == "sum"


DECIDED: dict[str, Any] = {
    "thresholds": Thresholds(
        (0.2, 0.3, 0.4, 0.5, 0.25, 0.25),
        0.25,
        (False,) * 4 + (True,) * 2,
        (True, *(False,) * 5),
        "f1",
        0.6,
        {"split": "val", "images": 40},
    ),
    "calibration": ScaledLogits((0.5,) * 6, (0.1,) * 6, "platt"),
}


def test_thresholds_and_calibration_come_back(label_graph: LabelGraph, tmp_path: Path) -> None:
    given = replace(make(label_graph), **DECIDED)
    loaded = load_bundle(save_bundle(given, tmp_path / "bundle"))
    assert loaded.thresholds == given.thresholds
    assert loaded.calibration == given.calibration
    logits = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(loaded.probs(logits), (0.5 * logits + 0.1).sigmoid())
    assert loaded.label_thresholds.tolist() == [0.2, 0.3, 0.4, 0.5, 0.25, 0.25]
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "at least its threshold, 0.20 to 0.50, fitted for f1 on 40 images of split 'val'" in card
    assert "2 labels share the threshold 0.25, 1 cannot meet the objective and are never predicted" in card
    assert "calibrated there too (platt)" in card
    assert "not calibrated" not in card


def test_decisions_are_replaced_and_taken_off_without_touching_the_weights(path: Path) -> None:
    before = (path / "config.json").read_text()
    weights = (path / "model.safetensors").stat()
    plain = load_bundle(path)
    save_decisions(replace(plain, **DECIDED), path)
    assert load_bundle(path).thresholds == DECIDED["thresholds"]
    save_decisions(plain, path)
    assert (path / "config.json").read_text() == before
    after = (path / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (weights.st_ino, weights.st_mtime_ns)


def test_decisions_of_other_labels_are_refused(path: Path, label_graph: LabelGraph) -> None:
    other = replace(label_graph, label_names=("a", "b", "c", "d", "e", "f"))
    with pytest.raises(BundleError, match="has other labels"):
        save_decisions(replace(load_bundle(path), label_graph=other), path)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("thresholds", {"values": [0.5]}, "values must be 6 probabilities, one a label"),
        ("thresholds", {"values": [0.5] * 5 + [1.5]}, "values must be 6 probabilities, one a label"),
        ("thresholds", {"shared": None}, "shared must be a probability, got None"),
        ("thresholds", {"is_shared": [0] * 6}, "is_shared must be 6 truth values"),
        ("thresholds", {"is_out_of_reach": None}, "is_out_of_reach must be 6 truth values"),
        ("thresholds", {"objective": 3}, "objective must be a word"),
        ("thresholds", {"crossfit": float("nan")}, "objective must be a word and crossfit a number"),
        ("thresholds", {"crossfit": True}, "objective must be a word and crossfit a number"),
        ("thresholds", {"fitted_on": []}, "fitted_on must be an object"),
        ("calibration", {"method": "magic"}, "'magic' is no calibration"),
        ("calibration", {"scales": [1.0] * 5}, "scales must be a list of 6 numbers"),
        ("calibration", {"scales": [0.0] * 6}, "scales must be above 0"),
    ],
)
def test_damaged_decisions_are_named(
    path: Path, label_graph: LabelGraph, key: str, change: dict[str, Any], message: str
) -> None:
    save_decisions(replace(load_bundle(path), **DECIDED), path)
    edit(path, lambda config: config[key].update(change))
    with pytest.raises(BundleError, match=rf"config\.json: {key} is damaged: {message}"):
        load_bundle(path)
    shutil.copytree(path, path.with_name("other"))
    assert reset_decisions(path.with_name("other")) == 0.3
    assert load_bundle(path.with_name("other")).thresholds is None
    edit(path, lambda config: config.update({key: 3}))
    with pytest.raises(BundleError, match=rf"config\.json: {key} is damaged: it must be an object"):
        load_bundle(path)


# What strangers write of the training


DEEP = "[" * 480 + "1" + "]" * 480
TRAININGS: dict[str, str] = {
    "no epoch": '{"best_epoch": null}',
    "an epoch in words": '{"best_epoch": "the third"}',
    "no recipe": '{"recipe": null}',
    "a recipe in words": '{"recipe": "voc2007"}',
    "halves of letters": '{"recipe_name": "\\ud800", "\\udfff": 1}',
    "lists within lists": f'{{"x": {DEEP}}}',
    "no numbers": '{"best_epoch": NaN, "chosen_by": Infinity, "recipe": {"trainer": {"seed": NaN}}, "x": [1e999]}',
    "halves of letters elsewhere": '{"chosen_by": "\\ud800", "recipe": {"trainer": {"seed": "\\ud800"}}}',
    "objects within objects": '{"x": ' + '{"a": ' * 480 + "1" + "}" * 481,
}


@pytest.mark.fault("a bundle that tells odd things of its training")
@pytest.mark.parametrize("what", TRAININGS)
def test_odd_words_of_the_training(path: Path, lost: Callable[[Any, Any, str], None], what: str) -> None:
    """Thresholds are saved and taken off, or the bundle stays as it was."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "training": "ODD"}).replace('"ODD"', TRAININGS[what]))
    loaded = load_bundle(path)
    steps: list[Callable[[], object]] = [
        lambda: save_decisions(replace(loaded, **DECIDED), path),
        lambda: reset_decisions(path),
        lambda: save_bundle(replace(loaded, **DECIDED), path),
    ]
    for step in steps:
        before = {name: (path / name).read_bytes() for name in FILES}
        message = ""
        try:
            step()
        except BundleError as error:
            message = str(error)
        assert load_bundle(path).training == loaded.training
        if message:
            assert "within" in what
            assert f"{path / 'config.json'} holds values too deep within each other" in message
            assert {name: (path / name).read_bytes() for name in FILES} == before
    lost(FILES, [file.name for file in path.iterdir()], "files")


@pytest.fixture(scope="module")
def photos(label_graph: LabelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rows = ["path,labels"]
    for number in range(3):
        noise(number).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(label_graph.label_names[number : number + 3])}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.fault("a bundle that tells odd things of its training, told on")
@pytest.mark.parametrize("what", TRAININGS)
def test_odd_words_of_the_training_are_told_on(
    path: Path, photos: Path, lost: Callable[[Any, Any, str], None], capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """By an evaluation, a report, and the server."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "training": "ODD"}).replace('"ODD"', TRAININGS[what]))
    on = ["--data", photos, "--split", "train"]
    told, page = path.parent / "evaluation.json", path.parent / "report"
    codes = [
        run(capsys, "evaluate", path, *on, "--json", told)[0],
        run(capsys, "report", path, *on, "--out", page)[0],
    ]
    json.loads(told.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (page / "index.html").exists()
    with TestClient(create_app({"odd": load(path, device="cpu")})) as client:
        answer = client.get("/v1/model")
    assert len(answer.json()["training"]) == len(load_bundle(path).training)
    lost([0, 0, 200], [*codes, answer.status_code], "accounts")


def test_thresholds_are_not_taken_off_a_bundle_that_is_damaged_elsewhere(path: Path) -> None:
    edit(path, lambda config: config.update(preprocessing={}))
    before = {name: (path / name).read_bytes() for name in FILES}
    with pytest.raises(BundleError, match=r"config\.json: preprocessing has other keys than expected"):
        reset_decisions(path)
    assert {name: (path / name).read_bytes() for name in FILES} == before


# What a configuration asks for


HUNGRY: dict[str, Callable[[dict[str, Any]], None]] = {
    "stages": lambda config: config["architecture"].update(num_stages=10**9),
    "stages within bounds": lambda config: config["architecture"].update(num_stages=10**6),
    "width": lambda config: config["architecture"].update(dim=10**8),
    "width within bounds": lambda config: config["architecture"].update(dim=10**6),
    "channels": lambda config: config["architecture"].update(backbone_options={"channels": [20_000] * 4}),
    "layers": lambda config: config["architecture"].update(backbone_options={"layers": [10**6] * 4}),
    "hidden width": lambda config: config["architecture"].update(classifier="joint", classifier_dim=10**9),
    "hidden width within bounds": lambda config: config["architecture"].update(
        classifier="joint", classifier_dim=10**6
    ),
    "a number of 400 digits": lambda config: config["architecture"].update(dim=10**400),
    "size": lambda config: config["preprocessing"].update(size=[200_000, 200_000]),
    "a long side": lambda config: config["preprocessing"].update(size=[1, 10**11]),
}


@pytest.mark.usefixtures("typing_off")
@pytest.mark.fault("a bundle whose configuration asks for any amount of memory")
@pytest.mark.parametrize("what", HUNGRY)
def test_what_a_configuration_asks_for_is_compared_before_memory_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch, lost: Callable[[Any, Any, str], None], what: str
) -> None:
    """No model is built but those of no memory."""
    built = []

    def build(*arguments: Any) -> Any:
        assert torch.empty(1).device.type == "meta"
        built.append(arguments)
        return build_model(*arguments)

    monkeypatch.setattr("msrn.bundle.bundle.build_model", build)
    before = sorted(file.name for file in path.iterdir())
    edit(path, HUNGRY[what])
    with pytest.raises(BundleError, match=r"config\.json"):
        load_bundle(path)
    lost(before, [file.name for file in path.iterdir()], "files")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": True}, "has format True"),
        ({"labels": ["\ud800", *"abcde"]}, r"the label '\\ud800' is no text that can be written"),
    ],
)
def test_configurations_that_only_seem_right(path: Path, change: dict[str, Any], message: str) -> None:
    edit(path, lambda config: config.update(change))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
@pytest.mark.fault("a pipe, a device or a huge file in a bundle")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_regular_file(path: Path, lost: Callable[[Any, Any, str], None], name: str) -> None:
    before = sorted(file.name for file in path.iterdir())
    for make_it in (os.mkfifo, lambda file: file.symlink_to("/dev/zero")):
        (path / name).unlink()
        make_it(path / name)
        with pytest.raises(BundleError, match="it is no regular file"):
            load_bundle(path)
    if name == "config.json":
        (path / name).unlink()
        (path / name).touch()
        os.truncate(path / name, 64_000_001)
        with pytest.raises(BundleError, match="it has more than 64,000,000 bytes"):
            load_bundle(path)
    lost(before, [file.name for file in path.iterdir()], "files")
