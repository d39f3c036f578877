"""Exported models against the original: probabilities, labels, any batch and size, with and without calibration."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import check_may_be_replaced, run
from PIL import Image
from torch import Tensor

from msrn.bundle import Bundle, load_bundle, save_bundle
from msrn.data.packed import TarMember
from msrn.data.transforms import Preprocessing
from msrn.errors import BundleError, MSRNError, UnreadableImageError
from msrn.export import OnnxPredictor, check_export, export_model
from msrn.export.write import Exportable
from msrn.labels import LabelGraph
from msrn.metrics.calibration import PiecewiseLinear, ScaledLogits
from msrn.models import PUBLISHED, build_msrn, build_pooled
from msrn.predict import Predictor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY: dict[str, Any] = {"backbone": "resnet10t", "backbone_options": {"channels": [8, 8, 16, 16]}}
HEADS: dict[str, Callable[[LabelGraph], torch.nn.Module]] = {
    "default": lambda graph: build_msrn(graph, dim=8, **TINY),
    "published": lambda graph: build_msrn(graph, **{**PUBLISHED, **TINY, "dim": 8, "classifier_dim": 16}),
    "average pooling": lambda graph: build_pooled(graph.num_labels, **TINY),
}
NAMES = ["boat", "car", "cat", "dog", "person", "sun & <sea>"]


def noise(seed: int, height: int = 70, width: int = 90) -> Image.Image:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (height, width, 3)) * rng.random(3)  # a colour of its own
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), box=(0, 0, 9 + seed, 7 + seed))


def prepared(preprocessing: Preprocessing, count: int) -> Tensor:
    return torch.stack([preprocessing(noise(seed)) for seed in range(count)])


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    made: dict[str, Bundle] = {}

    def make(head: str = "default") -> Bundle:
        if head not in made:
            torch.manual_seed(0)
            graph = LabelGraph.from_target((torch.rand(40, 6) < 0.4).int(), NAMES)
            model = HEADS[head](graph)
            for name, parameter in model.named_parameters():
                if not name.startswith("label_group"):
                    torch.nn.init.normal_(parameter, std=0.3)
            preprocessing = Preprocessing((128, 160), interpolation="bicubic")
            logits = model.eval()(prepared(preprocessing, 12)).detach().double()
            spread, middle = logits.std(dim=0).clamp(min=1e-3), logits.mean(dim=0)
            calibration = ScaledLogits(tuple((2 / spread).tolist()), tuple((-2 * middle / spread).tolist()), "platt")
            made[head] = Bundle(model, graph, {"name": "msrn"}, preprocessing, calibration=calibration)
        return made[head]

    return make


@pytest.fixture(scope="module")
def exported(build: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def make(head: str = "default") -> Path:
        if head not in made:
            bundle = build(head)
            made[head] = tmp_path_factory.mktemp("export") / f"{head}.onnx"
            export_model(bundle, made[head], prepared(bundle.preprocessing, 8))
        return made[head]

    return make


@pytest.mark.parametrize("head", HEADS)
def test_onnx_equals_pytorch(build: Callable[..., Bundle], exported: Callable[..., Path], head: str) -> None:
    original, model = Predictor(build(head), device="cpu"), OnnxPredictor(exported(head))
    images = prepared(original.bundle.preprocessing, 11)
    expected = original.probs(images).numpy()
    assert expected.std(axis=0).min() > 0.02  # images differ
    for size in (1, 3, 8):
        batches = [model.probs(batch.numpy()) for batch in images.split(size)]
        np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-4)
    larger = torch.nn.functional.interpolate(images, (160, 96))
    np.testing.assert_allclose(model.probs(larger.numpy()), original.probs(larger).numpy(), atol=1e-4)


def test_same_picture_same_answer(build: Callable[..., Bundle], exported: Callable[..., Path], tmp_path: Path) -> None:
    original, model = Predictor(build(), device="cpu"), OnnxPredictor(exported())
    paths = []
    for seed, kind in enumerate(("a.png", "b.jpg", "c.webp", "d.gif")):
        paths.append(tmp_path / kind)
        noise(seed, 50 + seed, 120).save(paths[-1])
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "deep.png")
    (tmp_path / "damaged.jpg").write_bytes(b"no image")
    paths += [tmp_path / "deep.png", tmp_path / "damaged.jpg"]
    options: list[dict[str, Any]] = [{}, {"threshold": 0.0}, {"top_k": 2}, {"threshold": 0.4, "top_k": 3}]
    for own in options:
        for ours, theirs in zip(original.predict(paths, **own), model.predict(paths, batch_size=4, **own), strict=True):
            assert (theirs.path, theirs.error) == (ours.path, ours.error)
            expected = {label.name: label.probability for label in ours.labels}
            assert {label.name: label.probability for label in theirs.labels} == pytest.approx(expected, abs=1e-4)
            found = [label.probability for label in theirs.labels]
            assert found == sorted(found, reverse=True)
    image = noise(1)
    assert np.array_equal(model.preprocess(image), original.bundle.preprocessing(image).numpy())
    with pytest.raises(ValueError, match="top_k is at least 1"):
        model.predict(image, top_k=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.predict(image, threshold=2)


def test_metadata_and_operators(build: Callable[..., Bundle], exported: Callable[..., Path]) -> None:
    import onnx

    model = onnx.load(exported())
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert set(metadata) == {"labels", "thresholds", "preprocessing", "version"}
    assert metadata["labels"] == NAMES
    assert metadata["thresholds"] == [0.5] * 6
    assert metadata["preprocessing"] == build().preprocessing.to_dict()
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}  # standard operators
    assert [value.name for value in model.graph.output] == ["probabilities", "logits"]


@pytest.mark.parametrize("kind", ["none", "temperature", "isotonic"])
def test_calibrations_are_in_the_graph(build: Callable[..., Bundle], kind: str) -> None:
    logits = torch.linspace(-6, 6, 600).reshape(100, 6)
    knots = tuple((-3.0, -1.0 + 0.1 * label, 2.0)[: 2 + label % 2] for label in range(6))
    isotonic = PiecewiseLinear(knots, tuple((0.05, 0.4, 0.9)[: len(own)] for own in knots))
    calibration = {"none": None, "temperature": ScaledLogits((0.5,) * 6, (0.0,) * 6), "isotonic": isotonic}[kind]
    bundle = replace(build(), calibration=calibration)
    exportable = Exportable(bundle, prepared(bundle.preprocessing, 2))
    torch.testing.assert_close(
        exportable.calibration(logits).double(), bundle.probs(logits.double()), atol=1e-6, rtol=0
    )


def test_the_loader_needs_no_pytorch(exported: Callable[..., Path], tmp_path: Path) -> None:
    noise(3).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'lightning', 'jaxtyping', 'pydantic'): sys.modules[name] = None\n"
        "from msrn.export import OnnxPredictor\n"
        "print(len(OnnxPredictor(sys.argv[1]).predict(sys.argv[2], threshold=0.0)[0].labels))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, exported(), tmp_path / "a.png"], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "6"


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.05), ("int8", 0.5)])
def test_smaller_precisions_of_msrn(label_graph: LabelGraph, tmp_path: Path, precision: str, share: float) -> None:
    torch.manual_seed(0)
    bundle = Bundle(build_msrn(label_graph, dim=8, **TINY), label_graph, {"name": "msrn"}, Preprocessing((128, 160)))
    images = prepared(bundle.preprocessing, 8)
    found = export_model(bundle, tmp_path / "small.onnx", images, precision=precision)
    expected = Predictor(bundle, device="cpu").probs(images).numpy()
    difference = np.abs(OnnxPredictor(found.path).probs(images.numpy()) - expected).mean()
    assert 0 < difference < share * expected.std(axis=0).mean()  # a share of what tells images apart


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.05), ("int8", 0.5)])
def test_smaller_precisions(label_graph: LabelGraph, tmp_path: Path, precision: str, share: float) -> None:
    torch.manual_seed(0)
    bundle = Bundle(build_pooled(6, **TINY), label_graph, {"name": "pooled", **TINY}, Preprocessing((128, 160)))
    images = prepared(bundle.preprocessing, 8)
    whole, small = (
        export_model(bundle, tmp_path / f"{own}.onnx", images, precision=own) for own in ("fp32", precision)
    )
    expected = Predictor(bundle, device="cpu").probs(images).numpy()
    difference = np.abs(OnnxPredictor(small.path).probs(images.numpy()) - expected).mean()
    assert 0 < difference < share * expected.std(axis=0).mean()  # a share of what tells images apart
    if precision == "fp16":
        assert small.num_bytes < 0.7 * whole.num_bytes


@pytest.mark.slow
def test_a_package_of_torch_export(build: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = build()
    images = prepared(bundle.preprocessing, 5)
    found = export_model(bundle, tmp_path / "model.pt2", images)
    assert found.is_dynamic
    extra = {"msrn.json": ""}
    module = torch.export.load(found.path, extra_files=extra).module()
    for batch in (images, images[:1]):
        expected = Predictor(bundle, device="cpu").probs(batch)
        torch.testing.assert_close(module(batch)[0].double(), expected, atol=1e-4, rtol=0)
    assert json.loads(json.loads(extra["msrn.json"])["labels"]) == NAMES


@pytest.mark.slow
def test_a_backbone_of_one_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = LabelGraph.from_target((torch.rand(40, 6) < 0.4).int(), NAMES)
    options: dict[str, Any] = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    model = build_msrn(
        graph, dim=8, backbone="swin_tiny_patch4_window7_224", backbone_options={**options, "img_size": 64}
    )
    bundle = Bundle(model, graph, {"name": "msrn"}, Preprocessing((64, 64)))
    images = prepared(bundle.preprocessing, 4)
    found = export_model(bundle, tmp_path / "swin.onnx", images)
    expected = Predictor(bundle, device="cpu").probs(images).numpy()
    for size in (1, 4):
        np.testing.assert_allclose(OnnxPredictor(found.path).probs(images[:size].numpy()), expected[:size], atol=1e-4)


def test_check_names_what_changed(build: Callable[..., Bundle], exported: Callable[..., Path], tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(5)]
    for seed, path in enumerate(paths):
        noise(seed).save(path)
    predictor = Predictor(build(), device="cpu")
    found = check_export(exported(), predictor, paths, batch_size=3)
    assert (found.num_images, found.batch_size, found.changed) == (5, 3, ())
    assert 0 < found.largest_difference < 1e-4
    assert set(found.speed) == set(found.seconds) == {1, 3}
    # Another model than the file came from.
    shifted = replace(predictor.bundle, calibration=ScaledLogits((1.0,) * 6, (30.0,) * 6, "platt"))
    found = check_export(exported(), Predictor(shifted, device="cpu"), paths, batch_size=3)
    assert found.largest_difference > 0.5
    assert len(found.changed) > 5
    assert all((own.original >= 0.5) != (own.exported >= 0.5) for own in found.changed)
    with pytest.raises(UnreadableImageError, match="none of 1 images can be read"):
        check_export(exported(), predictor, [tmp_path / "none.png"])
    readable = check_export(exported(), Predictor(shifted, device="cpu"), paths[1:3], batch_size=3)
    found = check_export(
        exported(), Predictor(shifted, device="cpu"), [tmp_path / "none.png", *paths[1:3]], batch_size=3
    )
    assert found.num_images == 2
    assert "none.png: no such file" in found.unreadable[0]
    assert found.changed == readable.changed != ()
    assert {own.image for own in found.changed} <= {str(path) for path in paths[1:3]}


def test_check_tells_of_changes_at_any_batch_size(
    build: Callable[..., Bundle], exported: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        noise(seed).save(path)
    whole = OnnxPredictor.probs
    monkeypatch.setattr(
        OnnxPredictor, "probs", lambda self, images: whole(self, images) * (0 if len(images) == 1 else 1)
    )
    predictor = Predictor(build(), device="cpu")
    found = check_export(exported(), predictor, paths, batch_size=3)
    assert {own.exported for own in found.changed} == {0.0}


def test_packed_images_are_checked(build: Callable[..., Bundle], exported: Callable[..., Path], tmp_path: Path) -> None:
    for seed in range(2):
        noise(seed).save(tmp_path / f"{seed}.png")
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for seed in range(2):
            archive.add(tmp_path / f"{seed}.png", f"{seed}.png")
    members = [TarMember(tmp_path / "0.tar", f"{seed}.png") for seed in range(2)]
    predictor = Predictor(build(), device="cpu")
    packed = check_export(exported(), predictor, members, batch_size=2)
    plain = check_export(exported(), predictor, [tmp_path / "0.png", tmp_path / "1.png"], batch_size=2)
    assert (packed.num_images, packed.largest_difference) == (2, plain.largest_difference)


def test_files_of_others_are_refused(tmp_path: Path, exported: Callable[..., Path]) -> None:
    import onnx

    (tmp_path / "no.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"no ONNX model .*Export it again by msrn export"):
        OnnxPredictor(tmp_path / "no.onnx")
    model = onnx.load(exported())
    values = {entry.key: entry.value for entry in model.metadata_props}
    for changed, message in (
        ({key: value for key, value in values.items() if key != "labels"}, "no 'labels' in its metadata"),
        ({**values, "thresholds": "[0.5]"}, "does not fit together"),
        ({**values, "preprocessing": "{}"}, "metadata is damaged"),
    ):
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, changed)
        onnx.save(model, tmp_path / "changed.onnx")
        with pytest.raises(BundleError, match=message):
            OnnxPredictor(tmp_path / "changed.onnx")


def test_requests_that_cannot_be_met(build: Callable[..., Bundle], tmp_path: Path) -> None:
    images = prepared(build().preprocessing, 2)
    with pytest.raises(MSRNError, match=r"expected an ending of \.onnx or \.pt2"):
        export_model(build(), tmp_path / "model.pb", images)
    with pytest.raises(MSRNError, match="there is no precision 'int4'"):
        export_model(build(), tmp_path / "model.onnx", images, precision="int4")
    with pytest.raises(MSRNError, match="in fp32 only"):
        export_model(build(), tmp_path / "model.pt2", images, precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_command(
    capsys: pytest.CaptureFixture[str], label_graph: LabelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build_pooled(label_graph.num_labels, **TINY)  # exported in a quarter of the time
    bundle = Bundle(model, label_graph, {"name": "pooled", **TINY}, Preprocessing((64, 64)))
    folder = save_bundle(bundle, tmp_path / "bundle")
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        noise(seed).save(tmp_path / "photos" / f"{seed}.png")
    out = tmp_path / "model.onnx"
    code, _, err = run(capsys, "export", folder, "--out", out)
    assert (code, "Give images as varied as those to come by --calibration" in err) == (1, True)
    code, shown, err = run(
        capsys, "export", folder, "--out", out, "--calibration", tmp_path / "photos", "--json", tmp_path / "e.json"
    )
    assert code == 0, err
    assert "takes any size" in shown
    assert "0 decisions changed" in shown
    report = json.loads((tmp_path / "e.json").read_text())
    check_may_be_replaced((tmp_path / "e.json").read_text())
    assert report["check"]["largest_difference"] < 1e-4
    names = load_bundle(folder).label_names
    assert OnnxPredictor(out).label_names == names
    # What the check refuses takes no earlier file's place.
    before, options = out.read_bytes(), ("--calibration", tmp_path / "photos")
    monkeypatch.setattr("msrn.cli.export._MOST_DIFFERENCE", 0.0)
    code, _, err = run(capsys, "export", folder, "--out", out, *options)
    assert (code, "model.onnx was not written. Export again with --calibration" in err) == (1, True)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "e.json", "model.onnx", "photos"]
    code, _, err = run(capsys, "export", folder, "--out", out, "--json", out, *options)
    assert (code, "name the same file" in err) == (1, True)
    code, _, err = run(capsys, "export", folder, "--out", tmp_path / "model.txt")
    assert (code, "expected an ending of .onnx or .pt2" in err) == (1, True)
