"""The command on the reference network (a real ResNet-101, as large as that is) and on files that do not fit."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from command_line import check_may_be_replaced
from typer.testing import CliRunner

from msrn.bundle import load_bundle
from msrn.cli import import_published
from msrn.errors import MSRNError
from msrn.labels import LabelGraph
from msrn.models import MSRN, msrn_resnet101, published

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
LABELS = ("black", "blue", "brown", "green", "red", "white", "dress", "pants", "shirt", "shoes", "shorts")

app = typer.Typer()
app.command(epilog=import_published.EPILOG)(import_published.import_published)


def arguments(folder: Path, **changed: str) -> list[str]:
    options = {
        "labels": str(folder / "names.txt"),
        "graph": str(folder / "x_adj.pkl"),
        "vectors": str(folder / "x_glove_word2vec.pkl"),
        "out": str(folder / "bundle"),
        **changed,
    }
    return [
        str(folder / "model_best.pth.tar"),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    ]


def failure(*words: str) -> str:
    """The message of the error that a call raises; `msrn.cli.main` prints it on one line."""
    result = CliRunner().invoke(app, list(words))
    assert isinstance(result.exception, MSRNError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def case() -> dict:
    if not REFERENCE.is_dir():
        pytest.skip("the reference outputs are not at ../shared/reference")
    spec = importlib.util.spec_from_file_location("reference_weights", REFERENCE / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.case("case_b")


def write_files(
    folder: Path, labels: tuple[str, ...], counts: np.ndarray, both: np.ndarray, vectors: np.ndarray
) -> None:
    (folder / "names.txt").write_text("\n".join(labels))
    (folder / "x_adj.pkl").write_bytes(pickle.dumps({"nums": counts, "adj": both}, 2))
    (folder / "x_glove_word2vec.pkl").write_bytes(pickle.dumps(vectors, 2))


@pytest.fixture
def small(tmp_path) -> Path:
    """Files that agree on 3 labels, with the heads of a network but no backbone."""
    state = {f"{layer}.{leaf}": torch.zeros(512, 1) for layer in import_layers() for leaf in ("W", "a")}
    for name in ("resnet_101.conv_buffer1", "resnet_101.conv_buffer2", "ProjectM.0", "ProjectM.1", "ProjectM.2"):
        state |= {f"{name}.weight": torch.zeros(1), f"{name}.bias": torch.zeros(1)}
    state |= {"fc_label.weight": torch.zeros(256, 300), "fc_label.bias": torch.zeros(256)}
    state |= {"fc1.weight": torch.zeros(2, 4 * 1536), "fc1.bias": torch.zeros(2)}
    state |= {"fc2.weight": torch.zeros(3, 2), "fc2.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "model_best.pth.tar")
    write_files(tmp_path, ("cat", "dog", "sofa"), np.array([3, 2, 1]), np.zeros((3, 3)), np.ones((3, 300)))
    return tmp_path


def import_layers() -> tuple[str, ...]:
    return (
        "label_embed.layers.0",
        "label_embed.layers.1",
        "group_embed.layers.0.embed",
        "group_embed.layers.0.assign_mat",
    )


def in_authors_names(model: MSRN) -> dict[str, torch.Tensor]:
    """Our weights as the authors would have saved them."""
    ours = model.state_dict()
    names = {name: theirs for theirs, name in published._NAMES.items()}
    state = {names[name]: value for name, value in ours.items() if name in names}
    for theirs, layer in published._GRAPH_LAYERS.items():
        halves = [ours[f"{layer}.attention_{half}"].flatten() for half in ("target", "source")]
        state |= {f"{theirs}.W": ours[f"{layer}.projection.weight"].T, f"{theirs}.a": torch.cat(halves)[:, None]}
    backbone = "backbone.model."
    return state | {name.replace(backbone, "resnet_101."): ours[name] for name in ours if name.startswith(backbone)}


def test_imported_bundle_is_the_same_network(small):
    """Quick, without the reference: three labels and a classifier of width 8."""
    counts, both = torch.tensor([3, 2, 2]), torch.tensor([[0, 1, 0], [1, 0, 2], [0, 2, 0]])
    vectors = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    graph = LabelGraph(("cat", "dog", "sofa"), both, counts)
    model = msrn_resnet101(graph, vectors, group_ratio=0.7, classifier_dim=8).eval()
    torch.save({"state_dict": in_authors_names(model)}, small / "model_best.pth.tar")
    write_files(small, graph.label_names, counts.double().numpy(), both.double().numpy(), vectors.numpy())
    result = CliRunner().invoke(app, arguments(small))
    assert result.exit_code == 0, result.exception
    bundle = load_bundle(small / "bundle")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(bundle.model(images), model(images))
    assert torch.equal(bundle.label_graph.co_occurrence, both)
    assert bundle.architecture["group_ratio"] * 3 // 1 == 2
    remove_weights(small)


def remove_weights(folder: Path) -> None:
    """Pytest keeps its folders, and these files have hundreds of megabytes."""
    for path in (folder / "bundle" / "model.safetensors", folder / "model_best.pth.tar"):
        path.unlink()


@pytest.mark.slow
def test_imported_bundle_returns_the_authors_logits(case, tmp_path):
    outputs = case["outputs"]
    write_files(tmp_path, LABELS, outputs["label_counts"], outputs["cooccurrence"], outputs["word_vectors"])
    state = {f"module.{name}": torch.as_tensor(value) for name, value in case["state_dict"].items()}
    torch.save({"epoch": 30, "state_dict": state, "best_score": np.float64(0.5)}, tmp_path / "model_best.pth.tar")
    del state
    result = CliRunner().invoke(app, [*arguments(tmp_path), "--json", str(tmp_path / "result.json")])
    assert result.exit_code == 0, result.exception
    assert "11 labels in 2 groups" in result.output.replace("\n", " ")
    report = json.loads((tmp_path / "result.json").read_text())
    check_may_be_replaced((tmp_path / "result.json").read_text())
    origin = "imported from model_best.pth.tar"
    assert report == {"bundle": str(tmp_path / "bundle"), "labels": list(LABELS), "num_groups": 2, "origin": origin}
    bundle = load_bundle(tmp_path / "bundle")
    with torch.no_grad():
        logits = bundle.model(torch.as_tensor(case["images"]))
    assert float((logits - torch.as_tensor(outputs["logits"])).abs().max()) < 1e-4
    assert np.array_equal(bundle.label_graph.adjacency.numpy(), outputs["adjacency"])
    assert bundle.label_names == LABELS
    assert bundle.preprocessing.size == (448, 448)
    assert bundle.training == {"origin": origin}
    assert origin in (tmp_path / "bundle" / "README.md").read_text()
    remove_weights(tmp_path)


def test_mismatches_are_all_named(small):
    write_files(small, ("cat", "dog"), np.array([3, 2, 1, 1]), np.zeros((4, 4)), np.ones((5, 200)))
    message = failure(*arguments(small))
    assert f"--labels {small / 'names.txt'} has 2 labels, the checkpoint knows 3" in message
    assert f"--graph {small / 'x_adj.pkl'} has 4 labels, the checkpoint knows 3" in message
    assert f"--vectors {small / 'x_glove_word2vec.pkl'} has 5 labels, the checkpoint knows 3" in message
    assert "has vectors of width 200, the checkpoint takes 300" in message
    assert "--labels coco2014 has 80 labels" in failure(*arguments(small, labels="coco2014"))
    assert not (small / "bundle").exists()


def test_unreadable_files_are_all_named(small):
    (small / "model_best.pth.tar").write_bytes(b"nothing")
    (small / "x_adj.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (small / "x_glove_word2vec.pkl").unlink()
    message = failure(*arguments(small, labels="voc2070"))
    for part in (
        f"{small / 'model_best.pth.tar'} is not a checkpoint that can be read safely",
        "'voc2070' is neither a label set nor a file. Did you mean 'voc2007'?",
        f"{small / 'x_adj.pkl'} asks for os.system",
        f"{small / 'x_glove_word2vec.pkl'} does not exist",
    ):
        assert part in message


def test_a_checkpoint_of_another_network_is_named(small):
    checkpoint = small / "model_best.pth.tar"
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, checkpoint)
    message = failure(*arguments(small))
    assert message.startswith(f"{checkpoint}: not a checkpoint of the published MSRN: 24 names are missing")


def test_help_shows_what_to_type():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "--labels voc2007" in result.output
