"""A model that starts from one of other labels: what it keeps, by label or whole, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from msrn.bundle import Bundle, Transfer, find_bundle, save_bundle, sharing, start_from, transfer
from msrn.bundle.transfer import _find_bonds
from msrn.data.transforms import Preprocessing
from msrn.errors import BundleError, ModelError
from msrn.labels import LabelGraph, vectors_from_co_occurrence
from msrn.labels.sets import read_label_names
from msrn.models import PUBLISHED, build_model

TINY = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 8, 8], "stem_width": 8}}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {"name": "msrn", **TINY, "dim": 8},
    "published": {"name": "msrn", **PUBLISHED, **TINY, "dim": 8, "classifier_dim": 8},
    "pooled": {"name": "pooled", **TINY, "pooling": "max"},
    "csra": {"name": "csra", **TINY},
    "ml_gcn": {"name": "ml_gcn", **TINY},
    "ml_decoder": {"name": "ml_decoder", **TINY},
}
OLD, NEW = ("cat", "dog", "dining table", "bird", "tree", "cup"), ("boat", "diningtable", "Cat", "person")
SHARED = ("diningtable", "Cat")
GIVEN_BUFFERS = ("word_vectors", "adjacency", "correlation")
WITHOUT_ROWS = ("published", "ml_gcn")  # nothing in them belongs to one label
GIVEN = {"recipe": {"labels": {"vectors": "vectors.safetensors"}}}


def graph_of(names: tuple[str, ...]) -> LabelGraph:
    target = torch.rand(60, len(names), generator=torch.Generator().manual_seed(len(names))) < 0.35
    return LabelGraph.from_target(target.int(), names)


def vectors_of(names: tuple[str, ...], width: int = 5) -> torch.Tensor:
    return torch.rand(len(names), width, generator=torch.Generator().manual_seed(0))


def scramble(model: nn.Module, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not name.endswith(GIVEN_BUFFERS):
            value.copy_(torch.rand_like(value) - 0.5 * (not name.endswith("running_var")))
    return model.eval()


def bundle_of(
    architecture: dict[str, Any], names: tuple[str, ...] = OLD, training: dict[str, Any] = GIVEN, width: int = 5
) -> Bundle:
    graph = graph_of(names)
    model = scramble(build_model(architecture, graph, vectors_of(names, width)), 1)
    return Bundle(model, graph, architecture, Preprocessing((64, 64)), training=training)


def begin(
    bundle: Bundle, architecture: dict[str, Any], names: tuple[str, ...] = NEW, *, given: bool = True, width: int = 5
) -> tuple[nn.Module, dict[str, torch.Tensor], Transfer]:
    """The new model, what it held before, and what it took."""
    graph = graph_of(names)
    vectors = vectors_of(names, width) if given else vectors_from_co_occurrence(graph)
    model = scramble(build_model(architecture, graph, vectors), 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    return model, before, start_from(bundle, model, architecture, graph, vectors, has_given_vectors=given)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_tensor_is_kept_taken_by_label_or_new(kind: str) -> None:
    bundle = bundle_of(ARCHITECTURES[kind])
    model, before, took = begin(bundle, ARCHITECTURES[kind])
    old, state = bundle.model.state_dict(), model.state_dict()
    given = {name for name in state if name.endswith(GIVEN_BUFFERS)}
    assert sorted(took.kept + took.by_label + took.new) == sorted(state.keys() - given)
    for name, value in state.items():
        if name in took.kept:
            assert torch.equal(value, old[name]), name
        elif name in took.by_label:
            assert torch.equal(value[1], old[name][2]), name  # the dining table
            assert torch.equal(value[2], old[name][0]), name  # the cat
            assert torch.equal(value[[0, 3]], before[name][[0, 3]]), name
        else:
            assert torch.equal(value, before[name]), name


def test_what_is_new_and_what_goes_by_label() -> None:
    taken = {kind: begin(bundle_of(one), one)[2] for kind, one in ARCHITECTURES.items()}
    assign = [f"label_group.pool.assign.{name}" for name in ("attention_target", "attention_source")]
    groups = (*assign, "label_group.pool.assign.projection.weight")
    default = taken["default"]
    assert default.labels == SHARED
    assert set(default.by_label) == {
        *("classifier.label_weight", "classifier.group_weight", "classifier.bias"),
        *("residual.linear.weight", "residual.linear.bias"),
    }
    assert default.new == () or set(default.new) == set(groups)  # 6 and 4 labels make one group each
    # The first layer of the published classifier reads all labels at once, so no row of the second means what it did.
    assert set(taken["published"].new) - set(groups) == {
        f"classifier.fc{n}.{what}" for n in (1, 2) for what in ("weight", "bias")
    }
    assert (taken["published"].by_label, taken["published"].labels) == ((), ())
    assert taken["pooled"].by_label == ("head.linear.weight", "head.linear.bias")
    assert set(taken["ml_decoder"].by_label) == {"head.queries", "head.weight", "head.bias"}
    assert taken["ml_gcn"].by_label == ()  # its classifiers are made from word vectors
    assert taken["csra"].labels == SHARED
    assert all(taken[kind].new == () for kind in ("pooled", "csra", "ml_gcn", "ml_decoder"))


def test_labels_that_share_a_query_start_anew() -> None:
    """Six labels in three groups, four in two: a query means a group of labels."""
    one = {**ARCHITECTURES["ml_decoder"], "num_groups": 3}
    took = begin(bundle_of(one), one)[2]
    assert (set(took.new), took.by_label) == ({"head.queries", "head.weight", "head.bias"}, ())
    assert "head.attention.in_proj_weight" in took.kept


def test_classifiers_of_several_heads_start_anew() -> None:
    took = begin(bundle_of({**ARCHITECTURES["csra"], "num_heads": 2}), {**ARCHITECTURES["csra"], "num_heads": 2})[2]
    assert (took.new, took.by_label) == (("head.classifiers.weight",), ())


def test_graph_convolutions_go_on_where_vectors_share_a_space() -> None:
    one = ARCHITECTURES["ml_gcn"]
    weights = {"head.weight1", "head.weight2"}
    assert weights <= set(begin(bundle_of(one), one)[2].kept)
    assert set(begin(bundle_of(one), one, given=False)[2].new) == weights


def test_groups_are_those_of_the_old_labels() -> None:
    """Two groups of six labels and two of four: as many, and others."""
    one = {**ARCHITECTURES["default"], "group_ratio": 0.4}
    other = {**one, "group_ratio": 0.5}
    for architecture in (one, other, {**one, "group_ratio": 1.0}):
        took = begin(bundle_of(one), architecture)[2]
        assert [name for name in took.new if "pool.assign" in name] == list(took.new) != []
        assert [name for name in took.kept if "pool.embed" in name]


@pytest.mark.parametrize(
    ("training", "given", "width", "is_kept"),
    [
        (GIVEN, True, 5, True),
        (GIVEN, True, 6, False),
        ({}, True, 5, True),  # published: its vectors came from a file
        (GIVEN, False, 4, False),  # co-occurrence of four labels, by chance as wide
        ({"recipe": {"labels": {"vectors": None}}}, True, 5, False),
    ],
)
def test_word_vectors_are_projected_as_before_where_they_share_a_space(
    training: dict[str, Any], given: bool, width: int, is_kept: bool
) -> None:
    one = ARCHITECTURES["default"]
    took = begin(bundle_of(one, training=training, width=5 if given else 4), one, given=given, width=width)[2]
    projection = {"label_group.projection.weight"}
    assert projection <= set(took.kept if is_kept else took.new)
    assert ("label_group.projection.bias" in took.kept) == is_kept
    assert "label_group.layers.0.projection.weight" in took.kept


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_same_labels_keep_all(kind: str) -> None:
    bundle = bundle_of(ARCHITECTURES[kind])
    model, _, took = begin(bundle, ARCHITECTURES[kind], OLD)
    assert (took.new, took.by_label) == ((), ())
    assert took.kept_numbers == took.all_numbers
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.eval()(images), bundle.model(images))


def test_as_many_labels_of_other_names_are_other_labels() -> None:
    names = ("cup", "tree", "lamp", "fork", "sofa", "car")
    for kind, one in ARCHITECTURES.items():
        _, _, took = begin(bundle_of(one), one, names)
        assert took.labels == (() if kind in WITHOUT_ROWS else ("cup", "tree"))
        if kind != "ml_gcn":
            assert not {"classifier.label_weight", "classifier.fc1.weight", "residual.linear.weight"} & set(took.kept)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_few_labels(num_labels: int) -> None:
    """As many as, or one more than, the model that is built to see what follows their number."""
    for kind, one in ARCHITECTURES.items():
        took = begin(bundle_of(one), one, ("tree", "lamp", "cat")[:num_labels])[2]
        assert took.labels == (() if kind in WITHOUT_ROWS else ("tree", "cat") if num_labels == 3 else ("tree",))


def test_statistics_of_norms_come_along_and_the_graph_does_not() -> None:
    bundle = bundle_of(ARCHITECTURES["default"])
    model, before, _ = begin(bundle, ARCHITECTURES["default"])
    state, old = model.state_dict(), bundle.model.state_dict()
    statistics = [name for name in state if name.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 10
    assert all(torch.equal(state[name], old[name]) for name in statistics)
    assert torch.equal(state["label_group.adjacency"], before["label_group.adjacency"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 16}, r"dim is 8 there and 16 here"),
        ({"num_stages": 2}, r"num_stages is None there and 2 here"),
        ({"backbone": "resnet18", "backbone_options": {}}, r"backbone is 'resnet10t' there and 'resnet18' here"),
        (
            {"supervision": "sum", "scale": 2.0},
            r"supervision is None there and 'sum' here, scale is None there and 2\.0 here",
        ),
        ({"attention": "label"}, r"attention is None there and 'label' here"),
    ],
)
def test_another_architecture_is_refused(change: dict[str, Any], message: str) -> None:
    one = ARCHITECTURES["default"]
    with pytest.raises(ModelError, match=rf"has another architecture: {message}.*Set these keys of the model"):
        begin(bundle_of(one), {**one, **change})


def test_another_head_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"another architecture: head is 'pooled' there and 'msrn' here\. Set these keys"
    ):
        begin(bundle_of(ARCHITECTURES["pooled"]), ARCHITECTURES["default"])


def test_only_what_matters_is_named() -> None:
    one = ARCHITECTURES["default"]
    with pytest.raises(ModelError, match=r"another architecture: dim is 8 there and 16 here\. Set these keys"):
        begin(bundle_of(one), {**one, "dim": 16, "detach_stages": True})


def test_settings_without_tensors_may_differ() -> None:
    one = ARCHITECTURES["default"]
    assert begin(bundle_of(one), {**one, "freeze_batch_norm": True, "gain": 0.5})[2].kept


def test_no_weight_of_the_bundle_is_changed_and_no_random_number_drawn() -> None:
    bundle = bundle_of(ARCHITECTURES["default"])
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    graph = graph_of(NEW)
    model = build_model(ARCHITECTURES["default"], graph, vectors_of(NEW))
    state = torch.get_rng_state()
    start_from(bundle, model, ARCHITECTURES["default"], graph, vectors_of(NEW))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in bundle.model.state_dict().items())


def test_it_says_what_it_did() -> None:
    took = begin(bundle_of(ARCHITECTURES["pooled"]), ARCHITECTURES["pooled"])[2]
    assert str(took).endswith("M parameters kept; of head.linear.weight, head.linear.bias the rows of 2 labels")
    assert took.to_dict() == {
        "labels_there": 6,
        "parameters_kept": took.kept_numbers,
        "labels_kept": ["diningtable", "Cat"],
        "kept_by_label": ["head.linear.weight", "head.linear.bias"],
        "new": [],
    }


def test_voc_and_coco_share_sixteen_names() -> None:
    rows = transfer._shared_labels(read_label_names("coco2014"), read_label_names("voc2007"))
    assert len(rows[0]) == 16


def test_signs_alone_are_a_name() -> None:
    assert transfer._shared_labels(("+", "-"), ("-", "+"))[0].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_bonds_are_those_of_building_with_real_labels(kind: str) -> None:
    """Against two real models: what differs between them in size is bound to labels, and nothing that does is missed."""
    one = ARCHITECTURES[kind]
    few, many = (build_model(one, graph_of(names), vectors_of(names)) for names in (NEW, tuple(map(str, range(30)))))
    bonds = _find_bonds(one, few.state_dict(), 5, len(NEW))
    sizes = {name: value.shape for name, value in many.state_dict().items()}
    differing = {name for name, value in few.state_dict().items() if value.shape != sizes[name]}
    assert differing - {name for name in differing if "pool.assign" in name} <= {
        name for name, bond in bonds.items() if bond.to_labels
    }


# Where the bundle lies


def test_a_path_is_a_path(tmp_path: Path) -> None:
    path = save_bundle(bundle_of(ARCHITECTURES["pooled"]), tmp_path / "bundle")
    assert find_bundle(str(path)) == path
    assert find_bundle("runs/of/nobody") == Path("runs/of/nobody")


def test_the_hub_is_asked_for_the_files_of_a_bundle_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        sharing, "download", lambda name, patterns, revision: asked.append((name, patterns)) or tmp_path
    )
    assert find_bundle("somebody/a-model") == tmp_path
    assert asked == [("somebody/a-model", ("model.safetensors", "config.json", "README.md"))]


def test_what_is_neither_here_nor_on_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, patterns: Any, revision: Any) -> Path:
        raise ConnectionError("no route")

    monkeypatch.setattr(sharing, "download", fail)
    with pytest.raises(BundleError, match=r"runs/bundle is no folder here, and was not found on the .* hub \(Conn"):
        find_bundle("runs/bundle")


@pytest.mark.parametrize("training", [{"recipe": None}, {"recipe": "voc2007"}, {"recipe": {"labels": None}}, {}])
def test_a_bundle_that_tells_no_recipe_has_its_vectors_from_a_file(training: dict[str, Any]) -> None:
    architecture = ARCHITECTURES["default"]
    _, _, took = begin(bundle_of(architecture, training=training), architecture)
    assert took == begin(bundle_of(architecture), architecture)[2]
