"""Readers of files that strangers may hand in, each with files that it takes and a way to give it any bytes."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_files import encoded, odd_images
from PIL import Image
from safetensors.torch import save

from msrn.bulk import find_images
from msrn.bundle import load_bundle
from msrn.compare.variants import read_variants
from msrn.data import open_source, read_image
from msrn.export import OnnxPredictor
from msrn.labels.graph_file import read_graph, write_graph
from msrn.labels.pickles import read_published_graph, read_published_vectors
from msrn.labels.sets import read_label_names
from msrn.labels.vector_file import read_vectors
from msrn.labels.word_file import find_words
from msrn.models.published import read_published_checkpoint
from msrn.recipes import load_recipe

# Values that make PyYAML's own constructors raise what is no error of YAML, or that grow.
YAML_VALUES = [
    "2024-13-45", "0x_", "1" * 5000, "!!timestamp x", "!!bool x", "!!int ''", "!!float x", "[" * 3000, "&a {b: *a}", "&a [*a]",
    "0x" + "f" * 5000, "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a]", '"\\ud800"',
]  # fmt: skip
YAML_FAULTS = [f"a: {value}\n".encode() for value in YAML_VALUES] + [
    b"name: !!bool x\n", b"model: {backbone_options: &a {b: *a}}\n", b"? [a]\n: 1\n", b"? {a: 1}\n: 1\n", b"!!int x",
    b"\xff", b"a: \0",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: Of the file that is given to it.
        seeds: Files that it takes.
        read: Reads the file at a path; what it raises has to be one of our errors.
        runs: Inputs of a long run.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    runs: int = 500_000


def _read_all(path: Path) -> None:
    source = open_source(path, allow_outside=True)
    for split in source.splits:
        source.read(split)


def _read_table_of_paths(path: Path) -> None:
    list(find_images([path]))


def _read_override(path: Path) -> None:
    base = path.with_name("base.yaml")
    if not base.exists():
        base.write_text("model: {dim: 8}\n")
    load_recipe(base, path.read_text(encoding="utf-8", errors="replace").split("\n")[:3])


def _pickled_vectors() -> list[bytes]:
    return [*(pickle.dumps(np.ones((2, 3)), protocol) for protocol in (0, 2, 5)), pickle.dumps([[1.0, 2.0]])]


def _parquet() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [
        pa.table({"path": ["a.jpg", "b.jpg"], "labels": [["cat"], ["dog", "cat"]]}),
        pa.table({"path": ["a.jpg"], "cat": [1], "split": ["val"]}),
    ]
    found = []
    for table in tables:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        found.append(buffer.getvalue())
    return found


def _tar() -> list[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (
            ("0.png", encoded(Image.new("RGB", (2, 2)))),
            ("0.json", b'["cat"]'),
            ("1.png", b"x"),
            ("1.cls", b"2"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return [buffer.getvalue()]


def _graph() -> list[bytes]:
    from tempfile import TemporaryDirectory

    from msrn.labels import LabelGraph
    from msrn.labels.graph_file import CountedGraph

    graph = LabelGraph.from_target(torch.tensor([[1, 1, 0], [1, 0, 1]]), ["a", "b", "c"])
    with TemporaryDirectory() as folder:
        write_graph(Path(folder) / "g.json", CountedGraph(graph, 2, "train", None))
        return [(Path(folder) / "g.json").read_bytes()]


def _coco() -> bytes:
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
            "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 2, "name": "cat"}],
        }
    ).encode()


def _label_studio() -> bytes:
    choice = {"type": "choices", "from_name": "l", "to_name": "i", "value": {"choices": ["cat"]}}
    return json.dumps([{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [choice]}]}]).encode()


def _checkpoint(*, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"fc1.weight": torch.zeros(2, 2)}}, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def _bundle_seeds(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_bundle() / name).read_bytes()]


_BUNDLES: list[Path] = []


def _bundle() -> Path:
    from tempfile import mkdtemp

    from tiny_bundle import save_tiny_bundle

    if not _BUNDLES:
        _BUNDLES.append(save_tiny_bundle(Path(mkdtemp()) / "bundle"))
    return _BUNDLES[0]


def _read_bundle_with(name: str) -> Callable[[Path], object]:
    """A bundle in which one file is the given one."""

    def read(path: Path) -> None:
        folder = path.parent / "bundle"
        if not folder.exists():
            folder.mkdir()
            for file in _bundle().iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
        (folder / name).write_bytes(path.read_bytes())
        load_bundle(folder)

    return read


TARGETS: dict[str, Target] = {
    "label graph of a pickle": Target(
        "x.pkl", lambda: [pickle.dumps({"adj": np.ones((2, 2)), "nums": np.ones(2)}, n) for n in (0, 2, 4)], read_published_graph
    ),
    "word vectors of a pickle": Target(
        "x.pkl", _pickled_vectors, read_published_vectors
    ),
    "label graph": Target("g.json", _graph, read_graph),
    "word vectors": Target("v.safetensors", lambda: [save({"vectors": torch.zeros(2, 3)}, {"labels": '["a", "b"]'})], read_vectors),
    "file of words": Target("w.txt", lambda: [b"cat 1 2 3\ndog 4 5 6\n", b"2 3\ncat 1 2 3\n"], lambda p: find_words(p, ["cat"])),
    "binary file of words": Target("w.bin", lambda: [b"1 2\ncat " + bytes(8) + b"\n"], lambda p: find_words(p, ["cat"])),
    "label names": Target("l.txt", lambda: [b"cat\ndog\n", b"\xef\xbb\xbfa\n"], read_label_names),
    "table, CSV": Target("t.csv", lambda: [b"path,labels,split\na.jpg,cat|dog,train\n", b"path,cat\na.jpg,1\n"], _read_all),
    "table, JSON Lines": Target("t.jsonl", lambda: [b'{"path": "a", "labels": ["cat"]}\n', b'{"path": "a", "x": 1}\n'], _read_all),
    "table, Parquet": Target("t.parquet", _parquet, _read_all),
    "table of paths": Target("t.csv", lambda: [b"path\na.jpg\n", b"file_name;x\nb;1\n"], _read_table_of_paths),
    "COCO": Target("instances_train.json", lambda: [_coco()], _read_all),
    "Label Studio": Target("export.json", lambda: [_label_studio()], _read_all),
    "WebDataset": Target("0.tar", _tar, _read_all),
    "recipe": Target("r.yaml", lambda: [b"data:\n  root: x\n", b"name: a\nmodel: {dim: 8}\n"], load_recipe),
    "override of a recipe": Target(
        "o.txt", lambda: [b"data.size=[8,8]", b"model.dim=3\noptimizer.lr=1e-3", b"trainer.seed=7"], _read_override
    ),
    "variants": Target("v.yaml", lambda: [b"- name: a\n  overrides: [model.dim=8]\n", b"a: [model.dim=8]\n"], read_variants),
    "bundle, configuration": Target("c.json", _bundle_seeds("config.json"), _read_bundle_with("config.json")),
    "bundle, weights": Target("w", _bundle_seeds("model.safetensors"), _read_bundle_with("model.safetensors")),
    "published checkpoint": Target("x.pth", lambda: [_checkpoint(new=True), _checkpoint(new=False)], read_published_checkpoint),
    "ONNX": Target("m.onnx", lambda: [_onnx()], OnnxPredictor),
    "image": Target("i.png", lambda: _images(), read_image, runs=100_000),
}  # fmt: skip


def _onnx() -> bytes:
    import onnx

    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["images"], ["logits"])
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [value("images", onnx.TensorProto.FLOAT, [1, 2])],
        [value("logits", onnx.TensorProto.FLOAT, [1, 2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    for key in ("labels", "thresholds", "preprocessing", "version"):
        model.metadata_props.add(key=key, value="[]")
    data: bytes = model.SerializeToString()
    return data


def _images() -> list[bytes]:
    small = Image.effect_noise((9, 7), 90)
    more = [encoded(small.convert("RGB"), kind) for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")]
    return more + [
        data for name, (data, _) in odd_images().items() if len(data) < 2000 and name != "decompression bomb"
    ]


def mutate(data: bytes, edits: list[tuple[int, int, int]]) -> bytes:
    """Change, insert or remove bytes."""
    changed = bytearray(data)
    for kind, place, value in edits:
        at = place % (len(changed) + 1)
        if kind == 0 and at < len(changed):
            changed[at] = value
        elif kind == 1:
            changed.insert(at, value)
        elif kind == 2:
            del changed[at : at + 1 + value % 16]
        else:
            changed[at:at] = changed[at : at + value]
    return bytes(changed)


def try_reading(target: Target, path: Path, data: bytes) -> Any:
    """None, or the error of a reader that is none of ours."""
    from msrn.errors import MSRNError

    path.write_bytes(data)
    try:
        target.read(path)
    except MSRNError as error:
        if not str(error):
            return error
    except Exception as error:
        return error
    return None
