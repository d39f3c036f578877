"""Files from strangers: code in them is not run, names in them lead nowhere else."""

import contextlib
import hashlib
import importlib
import io
import json
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from image_files import bomb, tile_bomb
from PIL import EpsImagePlugin, Image
from records import make_record
from tiny_bundle import TINY, noise

from msrn.bulk.sources import find_images
from msrn.bulk.writers import FORMATS, About, write_csv
from msrn.compare import HEADS, ComparisonFolder, Plan, build_comparison, frame_of, write_comparison
from msrn.data import open_source
from msrn.data.cells import sorted_labels
from msrn.data.images import read_image
from msrn.data.packed import TarMember
from msrn.data.source import LabelledImages
from msrn.data.split_table import verify_split, write_split
from msrn.errors import DataError, ModelError, MSRNError, UnreadableImageError
from msrn.export import OnnxPredictor
from msrn.files import write_json
from msrn.recipes.load import without_paths

Lost = Callable[[Any, Any, str], None]
TRAIN = [
    "data.size=[32,32]", "data.batch_size=4", "data.num_workers=0", "data.test=null",
    "trainer.max_epochs=1", "trainer.accelerator=cpu",
    f"model.backbone={TINY['backbone']}", "model.backbone_options={channels: [8, 8, 16, 16]}", "model.dim=8",
]  # fmt: skip


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What a payload leaves behind once it has run; that it would is shown on the way."""
    marker = tmp_path / "the payload ran"
    pickle.loads(pickle.dumps(Payload(marker)))
    marker.rmdir()
    return marker


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["path,labels,split"]
    for number in range(8):
        noise(number).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'cat' if number % 2 else 'cat|dog'},{'val' if number > 5 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


def train(capsys: Any, photos: Path, *more: str) -> tuple[int, str, str]:
    return run(capsys, "train", "scenes", f"data.root={photos}", *TRAIN, "--out", photos.parent / "run", *more)


def evil_torch(path: Path, marker: Path, *, zipped: bool = True) -> None:
    torch.save(
        {"state_dict": {"x": torch.zeros(1)}, "more": Payload(marker)}, path, _use_new_zipfile_serialization=zipped
    )


def evil_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"adj": Payload(marker), "nums": [1, 2]}))


def evil_numpy(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Payload(marker)], dtype=object), allow_pickle=True)


PLACES: dict[str, tuple[str, Callable[[Path, Path], None], list[str]]] = {
    "label graph of a recipe": ("evil.pkl", evil_pickle, ["labels.graph={}"]),
    "label graph that is called JSON": ("evil.json", evil_pickle, ["labels.graph={}"]),
    "word vectors of a recipe": ("evil.pkl", evil_pickle, ["labels.vectors={}"]),
    "word vectors that are called safetensors": ("evil.safetensors", evil_torch, ["labels.vectors={}"]),
    "weights of the backbone": ("evil.pth", evil_torch, ["model.pretrained=true", "model.weights={}"]),
    "weights of the backbone, old format": (
        "evil.bin",
        lambda path, marker: evil_torch(path, marker, zipped=False),
        ["model.pretrained=true", "model.weights={}"],
    ),
    "weights that are called safetensors": ("evil.safetensors", evil_torch, ["model.pretrained=true", "model.weights={}"]),
    "weights of NumPy": ("evil.npz", evil_numpy, ["model.pretrained=true", "model.weights={}"]),
    "a run to start from": ("evil.ckpt", evil_torch, ["model.init_from={}"]),
}  # fmt: skip


@pytest.mark.fault("code in a file that a recipe names")
@pytest.mark.parametrize("place", PLACES)
def test_files_that_a_recipe_names(capsys: Any, photos: Path, marker: Path, lost: Lost, place: str) -> None:
    name, make, overrides = PLACES[place]
    evil = photos.parent / name
    make(evil, marker)
    before = files_of(photos)
    code, _, errors = train(capsys, photos, *(text.format(evil) for text in overrides))
    assert not marker.exists()
    assert code == 1
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    assert "did not expect" not in errors
    assert name in errors
    lost(before, files_of(photos), "files")


@pytest.mark.fault("code in weights that a library would run")
@pytest.mark.parametrize(
    "name", ["evil.pth", "evil.bin", "evil.npz", "evil.pt", "evil", "evil-zip.pth", "evil-nothing.pth"]
)
def test_weights_before_timm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, marker: Path, lost: Lost, name: str
) -> None:
    """Some versions of timm unpickle the file that they are given; they are not given this one."""
    import timm.models._builder as builder

    from msrn.models import backbone

    def unpickle(path: str, *_: Any, **__: Any) -> Any:
        return torch.load(path, weights_only=False)["state_dict"]

    evil_torch(tmp_path / name, marker, zipped=name not in ("evil.bin", "evil-zip.pth", "evil-nothing.pth"))
    if "-" in name:  # behind it an archive of NumPy's, or of nothing, which is all that `zipfile` sees
        with zipfile.ZipFile(tmp_path / name, "a") as archive:
            if name == "evil-zip.pth":
                archive.writestr("x.npy", b"")
    unpickle(str(tmp_path / name))
    marker.rmdir()  # so it would run
    monkeypatch.setattr(builder, "load_state_dict", unpickle)
    monkeypatch.setattr(backbone, "load_state_dict", unpickle)
    before = files_of(tmp_path)
    with pytest.raises(ModelError, match=rf"{name} does not hold weights .* nothing in it was run\. Give the weights"):
        backbone.Backbone("resnet10t", weights=tmp_path / name)
    assert not marker.exists()
    lost(before, files_of(tmp_path), "files")


@pytest.mark.fault("code beside a backbone that a recipe names by its folder")
def test_backbone_of_a_folder(capsys: Any, photos: Path, marker: Path, lost: Lost) -> None:
    """timm would read the folder, and some of its versions unpickle what lies in it."""
    folder = photos.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architecture": TINY["backbone"], "num_classes": 0}))
    evil_torch(folder / "pytorch_model.bin", marker)
    before = files_of(folder)
    for name in (f"local-dir:{folder}", "hf-hub:someone/else"):
        code, _, errors = train(capsys, photos, f"model.backbone={name}", "model.pretrained=true")
        assert not marker.exists()
        assert code == 1
        assert f"'{name}' is no model that comes with timm" in errors
    lost(before, files_of(folder), "files")


@pytest.mark.slow  # importing sentence-transformers takes seconds
@pytest.mark.fault("code in a folder of a sentence model")
@pytest.mark.parametrize("what", ["weights", "module"])
def test_sentence_model(capsys: Any, photos: Path, marker: Path, lost: Lost, what: str) -> None:
    importlib.import_module("msrn._torchvision")  # first: transformers imports torchvision
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    embedding = StaticEmbedding(tokenizer, embedding_weights=np.eye(3, 5, dtype=np.float32))
    folder = photos.parent / "model"
    SentenceTransformer(modules=[embedding], device="cpu").save(str(folder))
    command = ("labels", "vectors", photos / "labels.csv", "--from", folder, "--out", photos.parent / "v.safetensors")
    code, _, errors = run(capsys, *command)
    assert code == 0, errors
    if what == "weights":
        (weights,) = folder.rglob("model.safetensors")
        weights.unlink()
        evil_torch(weights.with_name("pytorch_model.bin"), marker)
    else:
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["type"] = "evil.Module"
        (folder / "modules.json").write_text(json.dumps(modules))
    before = files_of(folder)
    code, _, errors = run(capsys, *command)
    assert not marker.exists()
    assert code == 1
    assert "the folder holds no sentence model" in errors
    lost(before, files_of(folder), "files")


@pytest.mark.fault("code in a checkpoint that a run goes on from")
@pytest.mark.parametrize("which", ["last.ckpt", "best.ckpt"])
def test_checkpoints(capsys: Any, photos: Path, marker: Path, lost: Lost, which: str) -> None:
    assert train(capsys, photos)[0] == 0
    run_dir = photos.parent / "run"
    evil_torch(run_dir / "checkpoints" / which, marker)
    shutil.rmtree(run_dir / "bundle")  # as if it had been killed before its end
    before = files_of(run_dir / "checkpoints")
    code, _, errors = train(capsys, photos, "--resume")
    assert not marker.exists()
    assert code == 1
    assert which in errors
    assert "did not expect" not in errors
    lost(before, files_of(run_dir / "checkpoints"), "files of the run")


@pytest.mark.fault("code in a bundle")
def test_bundle(capsys: Any, photos: Path, bundle_dir: Path, marker: Path, lost: Lost) -> None:
    evil = photos.parent / "bundle"
    shutil.copytree(bundle_dir, evil)
    for name in ("pytorch_model.bin", "model.pkl", "custom.py"):  # nobody asks for these
        evil_torch(evil / name, marker)
    before = run(capsys, "predict", bundle_dir, photos, "--json", "-")[1].splitlines()
    lost(before, run(capsys, "predict", evil, photos, "--json", "-")[1].splitlines(), "answers")
    table = photos / "labels.csv"
    commands = (
        ["predict", evil, photos],
        ["labels", "groups", evil],
        ["export", evil, "--out", photos.parent / "x.onnx"],
        ["evaluate", evil, "--data", table, "--split", "val"],
        ["thresholds", evil, "--data", table, "--split", "val"],
        ["report", evil, "--data", table, "--split", "val", "--out", photos.parent / "report"],
        ["explain", evil, photos / "0.png", "--out", photos.parent / "why"],
        ["serve", evil, "--port", "0"],
    )
    places: list[tuple[str, Callable[[Path, Path], None]]] = [
        ("model.safetensors", evil_torch),
        ("model.safetensors", evil_pickle),
        ("config.json", evil_pickle),
    ]
    for name, make in places:
        shutil.rmtree(evil)
        shutil.copytree(bundle_dir, evil)
        make(evil / name, marker)
        for command in commands:
            code, _, errors = run(capsys, *command)
            assert code == 1, command
            assert name in errors
            assert "did not expect" not in errors
    assert not marker.exists()


@pytest.mark.fault("code in a published checkpoint, graph or vectors")
@pytest.mark.parametrize("which", ["checkpoint", "graph", "vectors"])
def test_published_files(capsys: Any, tmp_path: Path, marker: Path, lost: Lost, which: str) -> None:
    torch.save({"state_dict": {"fc1.weight": torch.zeros(2, 2)}}, tmp_path / "checkpoint")
    (tmp_path / "graph").write_bytes(pickle.dumps({"adj": np.zeros((2, 2)), "nums": np.ones(2)}))
    (tmp_path / "vectors").write_bytes(pickle.dumps(np.ones((2, 300))))
    (evil_torch if which == "checkpoint" else evil_pickle)(tmp_path / which, marker)
    before = files_of(tmp_path)
    options = [
        "--labels",
        "a,b",
        "--graph",
        tmp_path / "graph",
        "--vectors",
        tmp_path / "vectors",
        "--out",
        tmp_path / "out",
    ]
    code, _, errors = run(capsys, "import-published", tmp_path / "checkpoint", *options)
    assert not marker.exists()
    assert code == 1
    assert "nothing in this file was run" in errors
    lost(before, files_of(tmp_path), "files")


def without(values: dict[str, Any], *keys: str, put: Any = None) -> bytes:
    """JSON in which the value below these keys is another, or is not there."""
    changed = json.loads(json.dumps(values))
    below = changed
    for key in keys[:-1]:
        below = below[key]
    del below[keys[-1]]
    if put is not None:
        below[keys[-1]] = put
    return json.dumps(changed).encode()


# What a file holds in place of a run's record or of the comparison, and what is said of it.
COMPARISON_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], bytes], str]] = {
    "an empty object": (lambda values: b"{}", "is damaged, or of something else ("),
    "a list": (lambda values: b"[]", "is damaged, or of something else ("),
    "nothing": (lambda values: b"", "cannot be read: "),
    "half of it": (lambda values: json.dumps(values).encode()[:-40], "cannot be read: "),
    "no UTF-8": (lambda values: b"\xff" + json.dumps(values).encode(), "cannot be read: "),
    "lists 100,000 deep": (lambda values: b"[" * 100_000, "cannot be read: "),
    "lists 60 deep": (
        lambda values: json.dumps({**values, "more": json.loads("[" * 60 + "]" * 60)}).encode(), "more than 50 deep"
    ),
    "a number that is none": (lambda values: json.dumps({**values, "more": float("nan")}).encode(), "a number that is none"),
    "a number that is infinite": (lambda values: json.dumps({**values, "more": 0}).encode()[:-2] + b"1e999}", "beyond 1e+100"),
    "a number of 400 digits": (lambda values: json.dumps({**values, "more": 10**400}).encode(), "beyond 1e+100"),
    "a number of 5,000 digits": (lambda values: b"1" * 5000, "beyond 1e+100"),
    "the other file": (lambda values: json.dumps(make_record("avg_pool", 0, 0.5)["splits"]).encode(), "of something else ("),
}  # fmt: skip


@pytest.fixture
def comparison(tmp_path: Path) -> ComparisonFolder:
    plan = Plan("scenes", (), (HEADS["avg_pool"],), num_seeds=2, reference="avg_pool")
    records = {run.name: make_record("avg_pool", run.seed, 0.5, lr=0.002) for run in plan.final_runs({})}
    records = {
        run.name: {**records[run.name], "recipe": without_paths(plan.recipe_of(run))} for run in plan.final_runs({})
    }
    folder = ComparisonFolder(tmp_path / "comparison")
    for name, record in records.items():
        write_json(folder.path / "runs" / f"{name}.json", record)
    write_comparison(folder, build_comparison(frame_of(plan), list(records.values())), picture=False)
    return folder


@pytest.mark.fault("a comparison whose files are damaged, or of something else")
@pytest.mark.parametrize("what", COMPARISON_FAULTS)
def test_comparison(capsys: Any, comparison: ComparisonFolder, lost: Lost, what: str) -> None:
    """By all that read it: the report, going on, the list of runs, the rates of an earlier one."""
    make, words = COMPARISON_FAULTS[what]
    heads = ["compare", "scenes", "--heads", "avg_pool", "--reference", "avg_pool", "--seeds", "2"]
    given = {
        "--report": ["compare", "--report", comparison.path],
        "--out": [*heads, "--out", comparison.path],
        "--dry-run": [*heads, "--dry-run", "--out", comparison.path],
        "--lr-from": [*heads, "--lr-from", comparison.path, "--dry-run", "--out", comparison.path.parent / "new"],
    }
    before = files_of(comparison.path)
    for name in ("runs/avg_pool-seed1.json", "comparison.json"):
        file = comparison.path / name
        whole = file.read_bytes()
        file.write_bytes(make(json.loads(whole)))
        for option in given if name == "comparison.json" else list(given)[:3]:
            code, _, errors = run(capsys, *given[option])
            assert code == 1
            assert errors.startswith(f"error: {file}")
            assert words in errors
            other = f"give another folder by {'--out' if option == '--dry-run' else option}."
            advice = (
                f"Bring it back as it was, or {other}"
                if name == "comparison.json"
                else "Delete it; the run will be made anew."
            )
            assert errors.endswith(f" {advice}\n")
        file.write_bytes(whole)
    lost(before, files_of(comparison.path), "files")


@pytest.mark.parametrize(
    ("name", "keys", "put"),
    [
        ("runs/avg_pool-seed1.json", ("val_mAP",), "0.5"),
        ("runs/avg_pool-seed1.json", ("seed",), True),
        ("runs/avg_pool-seed1.json", ("lr",), None),
        ("runs/avg_pool-seed1.json", ("recipe", "trainer"), []),
        ("runs/avg_pool-seed1.json", ("test", "labels", "cat"), "all"),
        ("runs/avg_pool-seed1.json", ("splits", "val", "sha256"), 7),
        ("runs/avg_pool-seed1.json", ("machine", "versions", "torch"), None),
        ("comparison.json", ("variants", "avg_pool", "title"), {}),
        ("comparison.json", ("protocol", "settings", "data", "size"), [8]),
        ("comparison.json", ("protocol", "seeds"), "01"),
        ("comparison.json", ("skipped",), []),
    ],
)
def test_comparison_with_another_value(
    capsys: Any, comparison: ComparisonFolder, name: str, keys: Any, put: Any
) -> None:
    file = comparison.path / name
    file.write_bytes(without(json.loads(file.read_text()), *keys, put=put))
    code, _, errors = run(capsys, "compare", "--report", comparison.path)
    assert code == 1
    assert errors.startswith(f"error: {file} is damaged, or of something else ({'.'.join(keys)}")


@pytest.mark.fault("code in a recipe")
@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir [{}]", "!!python/object/new:os.mkdir [{}]", "!!python/name:os.mkdir"]
)
@pytest.mark.parametrize("place", ["recipe", "override", "variants"])
def test_yaml(capsys: Any, photos: Path, marker: Path, lost: Lost, tag: str, place: str) -> None:
    import yaml

    value = tag.format(json.dumps(str(marker)))
    if "{}" in tag and "apply" in tag:
        yaml.unsafe_load(value)
        marker.rmdir()
    before = files_of(photos)
    file = photos.parent / "evil.yaml"
    file.write_text(f"# Mine.\ndata: {value}\n" if place == "recipe" else f"# Mine.\nvariants: {value}\n")
    if place == "recipe":
        code, _, errors = run(capsys, "train", file, "--out", photos.parent / "run")
    elif place == "override":
        code, _, errors = train(capsys, photos, f"model.backbone_options={value}")
    else:
        options = ["--variants", file, "--out", photos.parent / "compared"]
        code, _, errors = run(capsys, "compare", "scenes", f"data.root={photos}", *options)
    assert not marker.exists()
    assert code == 1
    assert "is not YAML" in errors
    assert ("line 1" if place == "override" else "line 2") in errors
    lost(before, files_of(photos), "files")


@pytest.mark.fault("code beside a data set")
def test_loading_script(capsys: Any, photos: Path, marker: Path, lost: Lost) -> None:
    for name in ("photos.py", "labels.py", "__init__.py", "conftest.py"):
        (photos / name).write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    with tarfile.open(photos / "0.tar", "w") as tar:
        for name, data in (
            ("0.pkl", pickle.dumps(Payload(marker))),
            ("0.png", (photos / "0.png").read_bytes()),
            ("0.cls", b"0"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert len(open_source(photos).read("train")) == 6
    assert len(open_source(photos / "0.tar").read("train")) == 1
    assert not marker.exists()
    lost(range(6), range(len(open_source(photos).read("train"))), "images")


@pytest.mark.fault("an ONNX file that is none, or points out of its folder")
def test_onnx(tmp_path: Path, marker: Path, lost: Lost) -> None:
    import onnx

    (tmp_path / "secret").write_bytes(np.full(4, 7, dtype=np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    before = files_of(tmp_path)
    tensor = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [tensor])
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(MSRNError, match=r"model\.onnx"):
        OnnxPredictor(folder / "model.onnx")
    evil_pickle(folder / "model.onnx", marker)
    with pytest.raises(MSRNError, match=r"model\.onnx"):
        OnnxPredictor(folder / "model.onnx")
    assert not marker.exists()
    (folder / "model.onnx").unlink()
    lost(before, files_of(tmp_path), "files")


@pytest.mark.fault("members of archives that lead out of their folder")
def test_archives(capsys: Any, tmp_path: Path, lost: Lost) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    image = io.BytesIO()
    noise(0).save(image, "PNG")
    names = ("../../evil.png", "/tmp/msrn-evil.png", "x/../../evil.png", "ok.png")
    with tarfile.open(inside / "0.tar", "w") as tar:
        for name in names:
            for suffix, data in ((".png", image.getvalue()), (".cls", b"1")):
                info = tarfile.TarInfo(name.removesuffix(".png") + suffix)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with zipfile.ZipFile(inside / "glove.zip", "w") as archive:
        archive.writestr("../../evil.txt", "cat 1 2 3\ndog 4 5 6\n")
    before = files_of(tmp_path)
    with pytest.raises(DataError, match=r"'\.\./\.\./evil\.png', which would lie outside of it"):
        open_source(inside / "0.tar")
    options = ["--from", inside / "glove.zip", "--out", tmp_path / "vectors.safetensors"]
    (inside / "names.txt").write_text("cat\ndog\n")
    code, _, errors = run(capsys, "labels", "vectors", inside / "names.txt", *options)
    assert code == 1
    assert "glove.zip is a zip archive. Unpack it and give one of the text files in it." in errors
    assert not (tmp_path / "vectors.safetensors").exists()
    (inside / "names.txt").unlink()
    assert not Path("/tmp/msrn-evil.png").exists()
    lost(before, files_of(tmp_path), "files")


@pytest.mark.fault("paths in a table that lead out of its folder")
def test_paths(capsys: Any, photos: Path, bundle_dir: Path, lost: Lost) -> None:
    noise(0).save(photos.parent / "secret.png")
    before = files_of(photos.parent)
    table = [file for file in before if file[0] == "photos/labels.csv"]
    (photos / "labels.csv").write_text("path,labels,split\n0.png,cat,train\n../secret.png,dog,val\n")
    code, _, errors = train(capsys, photos)
    assert code == 1
    assert "lie outside of" in errors
    options = ["--out", photos.parent / "tags.csv", "--workers", "0"]
    code, _, errors = run(capsys, "predict", bundle_dir, photos / "labels.csv", *options)
    assert code == 1
    assert "lies outside of" in errors
    assert not (photos.parent / "tags.csv").exists()
    (photos / "labels.csv").unlink()
    lost(set(before) - set(table), [file for file in files_of(photos.parent) if ".parts" not in file[0]], "other files")


def parquet_of_paths(folder: Path, path: Path) -> Path:
    """A data set of Hugging Face's that holds no image, only where one lies."""
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    folder.mkdir()
    table = pa.table({"image": pa.array([{"bytes": None, "path": str(path)}], kind), "label": ["cat"]})
    parquet.write_table(table, folder / "train.parquet")
    return folder


@pytest.mark.fault("paths in a table that lead into archives and data sets elsewhere")
@pytest.mark.parametrize("cell", ["../secret.png", "../secret.tar/0.png", "../set/train/0", "{}/secret.tar/0.png"])
def test_packed_paths(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, photos: Path, bundle_dir: Path, lost: Lost, cell: str
) -> None:
    """Nor does a path into an archive or a data set; neither is opened."""
    from msrn.data import huggingface

    secret = photos.parent / "secret.png"
    noise(0).save(secret)
    with tarfile.open(photos.parent / "secret.tar", "w") as tar:
        tar.add(secret, "0.png")
    parquet_of_paths(photos.parent / "set", secret)
    loaded: list[str] = []
    monkeypatch.setattr(huggingface, "_load", lambda path: loaded.append(path) or {})
    table = photos / "labels.csv"
    table.write_text(f"path,labels,split\n0.png,cat,train\n{cell.format(photos.parent)},dog,val\n")
    source = open_source(table)
    assert len(source.read("train")) == 1
    with pytest.raises(DataError, match=r"1 images of .* lie outside of .*--allow-outside"):
        source.read("val")
    code, out, _ = run(capsys, "data", "check", table, "--json", "-")
    assert code == 1
    (problem,) = [problem for problem in json.loads(out)["problems"] if problem["kind"] == "outside"]
    assert problem["line"] == 3
    code, _, errors = run(capsys, "evaluate", bundle_dir, "--data", table, "--split", "val")
    assert code == 1
    assert "lie outside of" in errors
    sidecar = {"splits": {"val": {"images": 1, "sha256": ""}}, "sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
    table.with_suffix(".split.json").write_text(json.dumps(sidecar))
    code, _, errors = run(capsys, "data", "split", table, "--check")
    assert code == 1
    assert "lie outside of" in errors
    assert loaded == []
    lost([1], [len(open_source(table, allow_outside=True).read("val"))], "images that are allowed")


@pytest.mark.fault("rows of a data set that hold a path in place of an image")
@pytest.mark.parametrize("is_absolute", [True, False])
def test_paths_in_a_data_set(photos: Path, lost: Lost, is_absolute: bool) -> None:
    """A row of Parquet may hold a path in place of an image."""
    pytest.importorskip("datasets")
    secret = photos.parent / "secret.png"
    noise(0).save(secret)
    folder = parquet_of_paths(photos.parent / "set", secret if is_absolute else Path("../secret.png"))
    (image,) = open_source(folder).read("train").paths
    with pytest.raises(
        UnreadableImageError, match=r"set/train/0: the row names .* outside of .*set\. .*--allow-outside"
    ):
        read_image(image)
    (folder.parent / "t.csv").write_text("path,labels\nset/train/0,cat\n")
    (image,) = open_source(folder.parent / "t.csv").read("train").paths
    with pytest.raises(UnreadableImageError, match="outside of"):
        read_image(image)
    (image,) = open_source(folder, allow_outside=True).read("train").paths
    lost([noise(0).tobytes()], [read_image(image).tobytes()], "images that are allowed")


SAVED: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "a relative path": (lambda state, _: [{"filename": "../secret/data.arrow"}], r"names '\.\./secret/data\.arrow'"),
    "an absolute path": (lambda state, secret: [{"filename": str(secret)}], r"names '/"),
    "a pipe": (lambda state, _: os.mkfifo(state.parent / "pipe.arrow") or [{"filename": "pipe.arrow"}], "no regular file"),
    "a device": (
        lambda state, _: (state.parent / "zero").symlink_to("/dev/zero") or [{"filename": "zero"}],
        "zero is no regular file",
    ),
    "no names": (lambda state, _: 7, r"state\.json is damaged"),
    "a path as a split": (lambda state, _: None, r"dataset_dict\.json names '\.\./secret'"),
}  # fmt: skip


@pytest.mark.fault("a saved data set that names files elsewhere")
@pytest.mark.parametrize("what", SAVED)
def test_saved_data_set(photos: Path, lost: Lost, what: str) -> None:
    """The library `datasets` opens whatever the JSON files of such a folder name."""
    datasets = pytest.importorskip("datasets")
    kind = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [str(photos / f"{number}.png") for number in range(2)], "label": ["cat", "dog"]}
    folder, secret = photos.parent / "set", photos.parent / "secret"
    for path in (folder, secret):
        datasets.Dataset.from_dict(rows, features=kind).save_to_disk(path)
    (arrow,) = secret.glob("*.arrow")
    arrow.rename(secret / "data.arrow")
    state = json.loads((secret / "state.json").read_text())
    (secret / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": "data.arrow"}]}))
    assert open_source(secret).label_names == ("cat", "dog")
    assert open_source(folder).label_names == ("cat", "dog")
    before = files_of(secret)
    change, message = SAVED[what]
    names = change(folder / "state.json", secret / "data.arrow")
    if names is None:
        (folder / "state.json").unlink()
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["../secret"]}))
    else:
        (folder / "state.json").write_text(json.dumps({**state, "_data_files": names}))
    with pytest.raises(DataError, match=rf"set cannot be loaded \(.*{message}.*\)\. Save or download it again"):
        open_source(folder)
    lost(before, files_of(secret), "files")


@pytest.mark.slow  # half a minute
@pytest.mark.fault("a table whose labels would fill the memory")
def test_labels_that_would_fill_the_memory(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, photos: Path, lost: Lost
) -> None:
    """A label for each of 23,000 rows takes a target of 0.5 GB, and many times that for the graph."""
    captions = photos / "captions.csv"
    captions.write_text("path,labels\n" + "".join(f"{row}.png,a cat that is {row}\n" for row in range(23_000)))
    monkeypatch.setattr("msrn.machine.free_ram_bytes", lambda: 400_000_000)
    before = files_of(photos)
    for command in ("data", "check", captions, "--json", "-"), ("labels", "graph", captions):
        code, out, errors = run(capsys, *command)
        assert code == 1
        assert (
            "23,000 labels of 23,000 images take 0.5 GB of memory, and 0.4 GB are free. Check that the column"
            in out + errors
        )
    monkeypatch.setattr("msrn.machine.free_ram_bytes", lambda: 2_000_000_000)
    code, _, errors = run(capsys, "labels", "graph", captions)
    assert code == 1
    assert "to count 23,000 labels together takes 12.7 GB of memory, and 2.0 GB are free" in errors
    lost(before, files_of(photos), "files")


PARQUET: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "a path": (
        lambda pa: {"path": ["a" * 2_000_000], "labels": ["cat"]}, "a path in column 'path', got a value of 2,000,000 bytes"
    ),
    "a text that every row repeats": (
        lambda pa: {"path": [f"{row}.png" for row in range(4096)], "labels": repeated(pa, "cat" * 200_000, 4096)},
        "labels such as .*, got a value of 600,000 bytes",
    ),
    "a list of one label": (
        lambda pa: {"path": ["a.png"], "labels": pa.ListArray.from_arrays([0, 10**6], repeated(pa, "cat", 10**6))},
        "labels such as .*, got a value of 4,000,000 bytes",
    ),
    "a list of long labels": (
        lambda pa: {"path": ["a.png"], "labels": pa.ListArray.from_arrays([0, 5000], repeated(pa, "cat" * 20_000, 5000))},
        "labels such as .*, got a value of 300,005,000 bytes",
    ),
}  # fmt: skip


def repeated(pa: Any, text: str, num: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * num, pa.int32()), [text])


@pytest.mark.fault("a Parquet table of few bytes that would fill the memory")
@pytest.mark.parametrize("what", PARQUET)
def test_parquet_that_would_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, photos: Path, lost: Lost, what: str
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    make, message = PARQUET[what]
    table = photos / "t.parquet"
    pq.write_table(pa.table(make(pa)), table, compression="zstd", store_schema=False)
    assert table.stat().st_size < 50_000
    before = files_of(photos)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(DataError, match=rf"t\.parquet:1: expected {message}\."):
            open_source(table)
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 30_000_000
    problems: list[Any] = []
    with contextlib.suppress(MSRNError):  # of what is left
        open_source(table, problems=problems)
    assert len(problems) == (4096 if what == "a text that every row repeats" else 1)
    if what == "a path":
        with pytest.raises(DataError, match=r"t\.parquet:1: expected a path in the column 'path', got a value of 2,0"):
            list(find_images([table]))
    monkeypatch.setattr("msrn.machine._LARGE_BYTES", 100_000)
    monkeypatch.setattr("msrn.machine.free_ram_bytes", lambda: 200_000)
    with pytest.raises(
        DataError, match=r"t\.parquet: rows that are read at once take 0\.0 GB of memory, and 0\.0 GB are free"
    ):
        open_source(table)
    lost(before, files_of(photos), "files")


@pytest.mark.fault("addresses in a table")
def test_addresses(capsys: Any, monkeypatch: pytest.MonkeyPatch, photos: Path, bundle_dir: Path, lost: Lost) -> None:
    """A table makes nobody fetch anything."""
    fetched: list[Any] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda request, **_: fetched.append(request) or io.BytesIO(b""))
    (photos / "labels.csv").write_text("path\n0.png\nhttp://127.0.0.1/secret.png\n")
    options = ["--out", photos.parent / "tags.jsonl", "--workers", "0"]
    code, _, errors = run(capsys, "predict", bundle_dir, photos / "labels.csv", *options)
    assert code == 1
    assert "labels.csv:3: http://127.0.0.1/secret.png lies outside of" in errors
    assert "--allow-outside" in errors
    assert fetched == []
    assert not (photos.parent / "tags.jsonl").exists()
    assert run(capsys, "predict", bundle_dir, photos / "labels.csv", *options, "--allow-outside")[0] == 0
    assert len(fetched) == 1
    answered = [json.loads(line)["path"] for line in (photos.parent / "tags.jsonl").read_text().splitlines()]
    lost([f"{photos}/0.png"], answered, "images of the folder")


@pytest.mark.fault("an image that claims more pixels than memory holds")
def test_bombs(capsys: Any, photos: Path, bundle_dir: Path, lost: Lost) -> None:
    (photos / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (photos / "tile.tif").write_bytes(tile_bomb(16_384, 16_384))
    code, out, errors = run(capsys, "predict", bundle_dir, photos, "--json", "-")
    assert code == 1
    for name in ("bomb.png", "tile.tif"):
        assert re.search(rf"{name}: .*exceeds limit of 178,?956,?970 pixels", errors), errors
    answered = [Path(json.loads(line)["path"]).name for line in out.splitlines() if "error" not in json.loads(line)]
    lost([f"{number}.png" for number in range(8)], answered, "other images")


@pytest.mark.fault("an image of a format whose reader starts a program")
def test_formats(
    capsys: Any, monkeypatch: pytest.MonkeyPatch, photos: Path, bundle_dir: Path, marker: Path, lost: Lost
) -> None:
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    (photos.parent / "bin").mkdir()
    program = photos.parent / "bin" / "gs"
    program.write_text(f"#!/bin/sh\nmkdir -p '{marker}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what was found before
    evil = photos / "evil.png"
    evil.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with Image.open(evil) as image, pytest.raises(OSError, match="cannot"):
        image.load()
    marker.rmdir()  # so it would run
    packed = io.BytesIO(evil.read_bytes())
    with tarfile.open(photos.parent / "0.tar", "w") as tar:
        info = tarfile.TarInfo("evil.png")
        info.size = len(packed.getvalue())
        tar.addfile(info, packed)
    for path in (evil, TarMember(photos.parent / "0.tar", "evil.png")):
        with pytest.raises(UnreadableImageError, match=r"evil\.png: not an image that msrn reads \(JPEG, PNG"):
            read_image(path, min_size=(4, 4))
    code, out, errors = run(capsys, "predict", bundle_dir, photos, "--json", "-")
    assert code == 1
    assert "evil.png: not an image that msrn reads" in errors
    answered = [Path(json.loads(line)["path"]).name for line in out.splitlines() if "error" not in json.loads(line)]
    lost([f"{number}.png" for number in range(8)], answered, "other images")
    assert run(capsys, "explain", bundle_dir, evil, "--out", photos.parent / "why")[0] == 1
    with (photos / "labels.csv").open("a") as table:
        table.write("\nevil.png,cat,train")
    code, out, _ = run(capsys, "data", "check", photos, "--decode", "all")
    assert code == 1
    assert "unreadable image" in out
    assert not marker.exists()


@pytest.mark.fault("pipes and devices that are called images, and names that no file can have")
def test_pipes(capsys: Any, photos: Path, bundle_dir: Path, lost: Lost) -> None:
    """Whoever opens a pipe waits for ever; these commands end."""
    os.mkfifo(photos / "pipe.png")
    (photos / "device.png").symlink_to("/dev/zero")
    os.mkfifo(photos / "t.csv")
    os.mkfifo(photos / "0.tar")
    code, out, errors = run(capsys, "predict", bundle_dir, photos, "--json", "-")
    assert code == 1
    assert "pipe.png: a pipe or a device, expected an image file" in errors
    answered = [Path(json.loads(line)["path"]).name for line in out.splitlines() if "error" not in json.loads(line)]
    lost([f"{number}.png" for number in range(8)], answered, "other images")
    long = f"{'a' * 5000}.png"
    rows = [
        "pipe.png",
        "device.png",
        "0.tar/0.png",
        long,
        f"b.tar/{long}",
        f"{'c' * 5000}.tar/0.png",
        "d/" * 2000 + "train/0",
    ]
    with (photos / "labels.csv").open("a") as table:
        table.write("".join(f"\n{name},cat,train" for name in rows))
    code, out, errors = run(capsys, "data", "check", photos, "--json", "-")
    assert code == 1
    assert "did not expect" not in errors
    found = [problem for problem in json.loads(out)["problems"] if problem["severity"] == "error"]
    lost(
        rows,
        [name for name in rows for problem in found if problem["message"].startswith(f"{photos}/{name}")],
        "problems",
    )
    options = ["--out", photos.parent / "tags.jsonl", "--workers", "0"]
    assert run(capsys, "predict", bundle_dir, photos / "labels.csv", *options)[0] == 0
    failed = [json.loads(line)["path"] for line in (photos.parent / "tags.jsonl.errors.jsonl").read_text().splitlines()]
    lost([f"{photos}/{name}" for name in rows], failed, "images that are listed as unreadable")
    code, _, errors = run(capsys, "data", "check", photos / "t.csv")
    assert code == 1
    assert "Traceback" not in errors


@pytest.mark.fault("formulas in the cells of a CSV")
def test_formulas(tmp_path: Path, lost: Lost) -> None:
    """Spreadsheets run what begins with one of these."""
    import csv

    names = ["=1+1", "+1", "-2", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://example.org")', "cat"]
    rows = [{"path": f"{name}.jpg", "labels": [{"name": name, "probability": 0.5}]} for name in names]
    write_csv(rows, tmp_path / "tags.csv", About(tuple(names), "m"))
    with (tmp_path / "tags.csv").open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell[:1] in set("=+-@\t\r")] == []
    with (tmp_path / "tags.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lost([f"{name}.jpg" for name in names], [row["path"].removeprefix("./") for row in rows], "paths")
    images = open_source(tmp_path / "tags.csv").read("train")
    found = [images.label_names[row.argmax()] for row in images.target]
    lost([name.strip() for name in names], found, "labels")  # blanks around a label are no part of it in any table
    about = About(("cat", "-1"), "m")
    with pytest.raises(MSRNError, match="the label '-1' means in tables that nothing is known"):
        FORMATS["csv"].check(about, tmp_path / "tags.csv", [])


@pytest.mark.fault("formulas in a table of splits")
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_formulas_in_splits(tmp_path: Path, lost: Lost, suffix: str) -> None:
    """`msrn data split` writes what it read elsewhere."""
    import csv

    signs = ("=1+1", "+x", "-y", "@SUM(A1)", '=HYPERLINK("http://example.org")', "cat")
    names = sorted_labels(signs)
    paths = tuple(tmp_path / f"{name.replace('/', ':')}.jpg" for name in names)
    part = LabelledImages(paths, np.eye(len(names), dtype=np.int8), names, "train")
    table = tmp_path / f"split.{suffix}"
    write_split(table, [part])
    with table.open(newline="", encoding="utf-8") as file:
        cells = [cell for row in csv.reader(file, delimiter="\t" if suffix == "tsv" else ",") for cell in row]
    assert [cell for cell in cells if cell[:1] in set("=+-@\t\r")] == []
    verify_split(table)
    found = open_source(table).read("train")
    lost(names, found.label_names, "labels")
    lost(paths, found.paths, "paths")
    assert (found.target == part.target).all()
    half_known = LabelledImages(paths, part.target - np.eye(len(names), k=1, dtype=np.int8), names, "train")
    with pytest.raises(
        DataError, match=r"the label '.*' cannot head a column .* formula\. Rename it, or write a \.parquet"
    ):
        write_split(table, [half_known], overwrite=True)
    write_split(tmp_path / "other.parquet", [half_known])
    groups = ("group", {"train": ["=1+1"] * len(names)})
    with pytest.raises(DataError, match=r"the group '=1\+1' cannot"):
        write_split(table, [part], extra_column=groups, overwrite=True)
    verify_split(table)  # what was there is left


@pytest.mark.fault("label and file names with markup on pages")
def test_markup(capsys: Any, tmp_path: Path, browser: Any, lost: Lost) -> None:
    from msrn.bundle import Bundle, save_bundle
    from msrn.data.transforms import Preprocessing
    from msrn.labels import LabelGraph
    from msrn.models import build_msrn

    names = [
        "<script>document.title='run'</script>",
        "<img src=x onerror=\"document.title='run'\">",
        "a & b",
        "'\"><b>",
    ]
    torch.manual_seed(0)
    graph = LabelGraph.from_target((torch.rand(20, 4) < 0.5).int(), names)
    bundle = save_bundle(
        Bundle(build_msrn(graph, **TINY), graph, {"name": "msrn", **TINY}, Preprocessing((32, 32))), tmp_path / "b"
    )
    data = tmp_path / "data"
    data.mkdir()
    columns = [json.dumps([names[number % 4], names[(number + 1) % 4]]) for number in range(8)]
    lines = []
    for number, labels in enumerate(columns):
        name = f"<img src=x onerror=document.title='run'>{number}.png"
        noise(number).save(data / name)
        lines.append(json.dumps({"path": name, "labels": json.loads(labels), "split": "test"}))
    (data / "t.jsonl").write_text("\n".join(lines))
    assert run(capsys, "report", bundle, "--data", data / "t.jsonl", "--out", tmp_path / "report")[0] == 0
    assert run(capsys, "data", "check", data / "t.jsonl", "--out", tmp_path / "check" / "page.html")[0] in (0, 1)
    images = [str(path) for path in data.glob("*.png")][:2]
    assert run(capsys, "explain", bundle, *images, "--top", "4", "--out", tmp_path / "why")[0] == 0
    pages = {path.parent.name: path for path in tmp_path.glob("*/*.html")}
    assert pages.keys() == {"report", "check", "why"}
    shown = []
    for kind, path in pages.items():
        page = browser.new_page()
        page.goto(path.as_uri())
        page.wait_for_timeout(300)
        assert page.title() != "run", path
        assert page.locator("script:has-text('document.title')").count() == 0
        text = page.locator("body").inner_text()  # what people see, without scripts
        shown += [(kind, name) for name in names if name in text]
        page.close()
    lost([(kind, name) for kind in pages for name in names], shown, "names, shown as they are written")
