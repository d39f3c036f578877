"""Readers of files that strangers may hand in, each with files that it takes and a way to give it any bytes."""

import asyncio
import functools
import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from image_files import encoded, odd_images
from onnx_files import small_onnx
from PIL import Image
from records import make_record
from rich.console import Console
from safetensors.torch import save

from msrn.bulk import FORMATS, find_images
from msrn.bulk.parts import Parts
from msrn.bulk.writers import About
from msrn.bundle import load_bundle
from msrn.cli.train import print_result
from msrn.compare import HEADS, ComparisonFolder, Plan, Run, build_comparison, frame_of
from msrn.compare.execute import estimate_s
from msrn.compare.folder import JOB_FILE
from msrn.compare.summary import markdown
from msrn.compare.variants import read_variants
from msrn.data import Source, open_source, read_image
from msrn.data.voc import VOC_LABELS
from msrn.errors import MSRNError
from msrn.export import OnnxPredictor
from msrn.files import json_text
from msrn.labels.graph_file import read_graph, write_graph
from msrn.labels.label_vectors import LabelVectors, VectorOrigin
from msrn.labels.pickles import read_published_graph, read_published_vectors
from msrn.labels.sets import read_label_names
from msrn.labels.vector_file import read_vectors, write_vectors
from msrn.labels.word_file import find_words
from msrn.metrics import evaluate_predictions
from msrn.models.published import read_published_checkpoint
from msrn.recipes import load_recipe
from msrn.recipes.load import without_paths
from msrn.recipes.run import _check_same_splits, _finished_run
from msrn.training.fit import read_checkpoint, shapes_of

# Values that make PyYAML's own constructors raise what is no error of YAML, or that grow.
YAML_VALUES = [
    "2024-13-45", "0x_", "1" * 5000, "!!timestamp x", "!!bool x", "!!int ''", "!!float x", "[" * 3000, "&a {b: *a}", "&a [*a]",
    "0x" + "f" * 5000, "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a]", '"\\ud800"',
]  # fmt: skip
YAML_FAULTS = [f"a: {value}\n".encode() for value in YAML_VALUES] + [
    b"name: !!bool x\n", b"model: {backbone_options: &a {b: *a}}\n", b"? [a]\n: 1\n", b"? {a: 1}\n: 1\n", b"!!int x",
    b"\xff", b"a: \0",
]  # fmt: skip

_JSON_FAULTS = [
    b"{}", b"[]", b"null", b"1", b"", b"\xff", b"NaN", b"{", b"[" * 100_000, b'{"a":' * 100_000, b'{"record": 1}', b"1" * 5000,
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: Of the file that is given to it.
        seeds: Files that it takes.
        read: Reads the file at a path; what it raises has to be one of our errors.
        runs: Inputs of a long run.
        faults: Files that it refuses, from which mutations start too.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    runs: int = 500_000
    faults: Callable[[], list[bytes]] = list

    def inputs(self) -> list[bytes]:
        """Where mutations start."""
        return [*self.seeds(), *self.faults()]


def _read_all(path: Path) -> None:
    _beside(path, "a.jpg")
    _read_source(open_source(path, allow_outside=True))


def _read_with_problems(path: Path) -> None:
    """As `msrn data check` does: what is wrong is gathered."""
    _beside(path, "a.jpg")
    _read_source(open_source(path, allow_outside=True, problems=[]))


def _read_source(source: Source) -> None:
    for split in source.splits:
        source.read(split)


def _beside(path: Path, *names: str) -> None:
    """Images that files name."""
    for name in names:
        file = path.parent / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(Image.new("RGB", (4, 4)), "JPEG"))


def _read_voc(path: Path) -> None:
    """One label's list among those of the others."""
    root = path.parent / "voc"
    lists = root / "ImageSets" / "Main"
    if not lists.exists():
        lists.mkdir(parents=True)
        _beside(path, "voc/JPEGImages/000001.jpg", "voc/JPEGImages/000002.jpg")
        for label in VOC_LABELS:
            (lists / f"{label}_train.txt").write_text("000001 1\n000002 -1\n")
    (lists / "cat_train.txt").write_bytes(path.read_bytes())
    _read_source(open_source(root))
    _read_source(open_source(root, problems=[]))


def _read_nuswide(name: str) -> Callable[[Path], None]:
    """One list among the others, `ImageList/TrainImagelist.txt` or that of a concept."""

    def read(path: Path) -> None:
        root = path.parent / "nus"
        files = {
            "Concepts81.txt": "cat\ndog\n",
            "ImageList/TrainImagelist.txt": "a\\1.jpg\nb\\2.jpg\n",
            "Groundtruth/TrainTestLabels/Labels_cat_Train.txt": "1\n0\n",
            "Groundtruth/TrainTestLabels/Labels_dog_Train.txt": "0\n1\n",
        }
        _beside(path, "nus/images/a/1.jpg", "nus/images/b/2.jpg")
        for other, text in files.items():
            if not (root / other).exists():
                (root / other).parent.mkdir(parents=True, exist_ok=True)
                (root / other).write_text(text)
        (root / name).write_bytes(path.read_bytes())
        _read_source(open_source(root))
        _read_source(open_source(root, problems=[]))

    return read


def _run_checkpoint(*, new: bool = True) -> bytes:
    state: dict[str, Any] = {
        "epoch": 0, "global_step": 1, "state_dict": dict(_MODULE.state_dict()), "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {
            "EpochTable": {"rows": [{"epoch": 0, "val/mAP": 0.5}]},
            "KeepCheckpoints": {"best_epoch": 0, "best_mAP": 0.5, "kept": "Epoch 1", "num_batches": 0},
        },
        "optimizer_states": [{"state": {}}], "lr_schedulers": [{"last_epoch": 1}],
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


_MODULE = torch.nn.Linear(2, 2)


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
        pa.table(
            {
                "path": ["a.jpg"],
                "labels": ["cat"],
                "day": pa.array([1], pa.date32()),
                "taken": pa.array([1], pa.timestamp("us", "Europe/Berlin")),
                "at": pa.array([1], pa.time64("ns")),
                "took": pa.array([1], pa.duration("ms")),
                "price": pa.array([Decimal("1.5")], pa.decimal128(9, 2)),
                "days": pa.array([[1]], pa.list_(pa.timestamp("ns"))),
            }
        ),
    ]
    found = []
    for table in tables:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        found.append(buffer.getvalue())
    return found


def _images_and_labels(labels: list[Any]) -> list[Any]:
    """Tables of two images each, the second with what may be missing."""
    import pyarrow as pa

    image = {"bytes": encoded(Image.new("RGB", (2, 2))), "path": "0.png"}
    rows = [[image, image], [{"bytes": b"", "path": None}, None]]
    return [
        pa.table(
            {
                "image": pa.array(of_table, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "labels": pa.array([labels, [] if number else None]),
                "day": pa.array([1, None], pa.date32()),
                "taken": pa.array([1, 2], pa.timestamp("us", "UTC")),
            }
        )
        for number, of_table in enumerate(rows)
    ]


def _parquet_with_images() -> list[bytes]:
    import pyarrow.parquet as pq

    found = []
    for table in [*_images_and_labels(["cat", "dog"]), _images_and_labels([9, 10])[0]]:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        found.append(buffer.getvalue())
    return found


def _read_with_images(path: Path) -> None:
    """All that may be asked of a data set: its labels, its groups, its images."""
    source = open_source(path, group_column="day")
    for split in source.splits:
        for image in source.read(split).paths:
            with suppress(OSError, MSRNError):
                image.read_bytes()


def _read_parquet_with_images(path: Path) -> None:
    """By the own reader of `datasets`, without the copy that it would make in its cache: looking after that takes far longer."""
    import datasets
    from datasets.packaged_modules.parquet.parquet import Parquet, ParquetConfig

    def load(kind: str, data_files: dict[str, list[str]]) -> Any:
        builder = object.__new__(Parquet)
        builder.config, builder.info = ParquetConfig(), datasets.DatasetInfo()
        builder.config.data_files = data_files
        files = SimpleNamespace(download=lambda given: given, download_config=SimpleNamespace())
        found = datasets.DatasetDict()
        for split in builder._split_generators(files):
            tables = [datasets.table.InMemoryTable(table) for _, table in builder._generate_tables(**split.gen_kwargs)]
            found[str(split.name)] = datasets.Dataset(
                datasets.table.concat_tables(tables), info=builder.info, fingerprint="0"
            )
        return found

    with patch.object(datasets, "load_dataset", load):
        _read_with_images(path)


def _saved_tables() -> list[bytes]:
    return [next(folder.glob("*.arrow")).read_bytes() for folder in _saved_sets()]


_SAVED: list[Path] = []


def _saved_sets() -> list[Path]:
    from tempfile import mkdtemp

    import datasets

    if not _SAVED:
        datasets.disable_progress_bars()
        features = {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=["cat", "dog"]))}
        for number, table in enumerate(_images_and_labels([0, 1])):
            dataset = datasets.Dataset(table)
            _SAVED.append(Path(mkdtemp()) / str(number))
            dataset.cast(datasets.Features({**dataset.features, **features})).save_to_disk(_SAVED[-1])
    return _SAVED


def _read_saved(path: Path) -> None:
    """The table of a saved data set, the other files as `datasets` wrote them."""
    folder = path.parent / "saved"
    if not folder.exists():
        shutil.copytree(_saved_sets()[0], folder)
    (table,) = folder.glob("*.arrow")
    table.unlink()  # it may still be mapped into memory
    table.write_bytes(path.read_bytes())
    _read_with_images(folder)


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


def _vectors() -> list[bytes]:
    from tempfile import TemporaryDirectory

    found = LabelVectors(("cat", "dog"), torch.ones(2, 3), (VectorOrigin("words"),) * 2, "glove.txt")
    with TemporaryDirectory() as folder:
        write_vectors(Path(folder) / "v.safetensors", found)
        return [(Path(folder) / "v.safetensors").read_bytes()]


def _coco() -> bytes:
    return json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 4}],
            "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1]}],
            "categories": [{"id": 2, "name": "cat"}],
        }
    ).encode()


_LABEL_STUDIO_MIN = (
    b'[{"id": 1, "image": "a.jpg", "l": {"choices": ["cat", "dog"]}, "annotation_id": 1, "annotator": 1}]'
)


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


_PLAN = Plan("scenes", (), (HEADS["avg_pool"], HEADS["msrn"]), num_seeds=1, rates=(0.3,))
_SEARCH, _FINAL = _PLAN.search_runs()[0], _PLAN.final_runs({"avg_pool": 0.3})[0]


@functools.cache
def _record(run: Run) -> dict[str, Any]:
    made = make_record(run.variant.name, run.seed, 0.5, is_search=run.is_search)
    return {**made, "recipe": without_paths(_PLAN.recipe_of(run))}


def _failed() -> dict[str, Any]:
    made = make_record(_FINAL.variant.name, _FINAL.seed, None, diverged=True)
    return {**made, "recipe": _record(_FINAL)["recipe"]}


def _runs() -> list[bytes]:
    return [json.dumps(record).encode() for record in (_record(_FINAL), _failed())]


def _jobs() -> list[bytes]:
    return [json.dumps({"record": _record(_FINAL), **more}).encode() for more in ({}, {"keep": True})]


def _comparisons() -> list[bytes]:
    plans = (_PLAN, Plan("scenes", ("model.dim=8",), _PLAN.variants))
    made = [build_comparison(frame_of(plan), [_record(_SEARCH), _record(_FINAL)]) for plan in plans]
    return [json.dumps(comparison).encode() for comparison in made]


def _read_comparison_with(name: str) -> Callable[[Path], object]:
    """A comparison in which one file is the given one: told anew as by --report, and gone on with."""

    def read(path: Path) -> None:
        folder = ComparisonFolder(path.parent / "comparison")
        if not folder.path.exists():
            (folder.path / "runs").mkdir(parents=True)
            folder.record_file(_SEARCH).write_text(json.dumps(_record(_SEARCH)))
            (folder.path / "comparison.json").write_bytes(_comparisons()[0])
            folder.training_dir(_FINAL).mkdir(parents=True)
        (folder.path / name).write_bytes(path.read_bytes())
        if not name.endswith(JOB_FILE):  # which is read only to go on
            records, earlier = folder.records(), folder.earlier()
            for frame in (earlier, frame_of(_PLAN, earlier)):
                assert frame is not None
                comparison = build_comparison(frame, records)
                json_text(comparison, indent=2)
                markdown(comparison).encode()
            estimate_s(_FINAL, _PLAN, records)
        folder.is_kept(_FINAL)
        folder.check(_PLAN, [_FINAL])

    return read


_JOB = {"model": "ab", "sources": ["photos"], "threshold": None}
_IMAGES = ("a.png", "b.png")


def _job_files() -> dict[str, bytes]:
    """What an unfinished job leaves: its state, and a part."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        with Parts(Path(folder) / "parts", _JOB) as parts:
            label = {"name": "cat", "probability": 0.5}
            parts.add(
                [{"path": "a.png", "labels": [label]}, {"path": "b.png", "labels": [], "error": "b.png: damaged."}]
            )
            parts.flush()
        return {path.name: path.read_bytes() for path in (Path(folder) / "parts").glob("*.json*")}


def _read_job(name: str) -> Callable[[Path], None]:
    """What goes on with a job in which one file is the given one, and writes its results."""
    files = functools.cache(_job_files)

    def read(path: Path) -> None:
        folder = path.parent / "parts"
        folder.mkdir(exist_ok=True)
        for other, data in {**files(), name: path.read_bytes()}.items():
            (folder / other).write_bytes(data)
        with Parts(folder, _JOB) as parts:
            parts.skip(iter(_IMAGES))
            for kind in ("jsonl", "csv", "xmp"):
                writer = FORMATS[kind]
                writer.write(map(writer.fit, parts.rows()), path.parent / f"out.{kind}", About(("cat",), "m"))

    return read


_FORM = (
    b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png\r\n\r\nx\r\n'
    b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--b--\r\n'
)


def _read_request(content_type: str) -> Callable[[Path], object]:
    """The body of a request to the server."""

    def read(path: Path) -> None:
        from starlette.requests import Request

        from msrn.server.body import Bodies, read_request
        from msrn.server.problems import ProblemError
        from msrn.server.schemas import PredictOptions
        from msrn.server.settings import ServerSettings

        messages = [{"type": "http.request", "body": path.read_bytes(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def ask() -> None:
            headers = [(b"content-type", content_type.encode())]
            request = Request({"type": "http", "method": "POST", "query_string": b"", "headers": headers}, receive)
            with Bodies(10**8).share() as share:
                await read_request(request, PredictOptions, ServerSettings(), share, max_images=32)

        try:
            _loop().run_until_complete(ask())
        except ProblemError as problem:
            if problem.status >= 500:
                raise
            problem.response()
            raise MSRNError(f"{problem.title} {problem.detail}") from None

    return read


def _run_files() -> dict[str, bytes]:
    """What a run leaves that has ended."""
    splits = {name: {"split": name, "images": 2, "sha256": "ab" * 32} for name in ("train", "val", "test")}
    protocol = {**splits["test"], "seed": 0, "epoch": 2, "epoch_chosen_by": "mAP"}
    report = evaluate_predictions(
        torch.tensor([[0.9, 0.1], [0.2, 0.3]]), torch.tensor([[1, 0], [0, 0]]), ["cat", "dog"]
    )
    training = {"best_epoch": 1, "val_mAP": 0.5, "parameters": 3, "train_seconds": 1.5, "splits": splits}
    values = {
        "splits.json": splits,
        "test.json": {**report, "protocol": protocol},
        "bundle/config.json": {"training": training},
    }
    return {name: json.dumps(value).encode() for name, value in values.items()}


def _read_run(name: str) -> Callable[[Path], None]:
    """What goes on with a run in which one file is the given one, and shows what it left."""
    files = functools.cache(_run_files)

    def read(path: Path) -> None:
        folder = path.parent / "run"
        (folder / "bundle").mkdir(parents=True, exist_ok=True)
        for other, data in {**files(), name: path.read_bytes()}.items():
            (folder / other).write_bytes(data)
        if name == "splits.json":
            _check_same_splits(json.loads(files()[name]), folder)
        elif (result := _finished_run(folder)) is not None:
            print_result(Console(file=io.StringIO()), "run", result)
            json_text([result.test, result.training])

    return read


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


TARGETS: dict[str, Target] = {
    "label graph of a pickle": Target(
        "x.pkl", lambda: [pickle.dumps({"adj": np.ones((2, 2)), "nums": np.ones(2)}, n) for n in (0, 2, 4)], read_published_graph
    ),
    "word vectors of a pickle": Target(
        "x.pkl", _pickled_vectors, read_published_vectors
    ),
    "label graph": Target("g.json", _graph, read_graph),
    "word vectors": Target(
        "v.safetensors", _vectors, read_vectors, faults=lambda: [save({"vectors": torch.zeros(2, 3)}, {"labels": '["a", "b"]'})]
    ),
    "file of words": Target("w.txt", lambda: [b"cat 1 2 3\ndog 4 5 6\n", b"2 3\ncat 1 2 3\n"], lambda p: find_words(p, ["cat"])),
    "binary file of words": Target("w.bin", lambda: [b"1 2\ncat " + bytes(8) + b"\n"], lambda p: find_words(p, ["cat"])),
    "label names": Target("l.txt", lambda: [b"cat\ndog\n", b"\xef\xbb\xbfa\n"], read_label_names),
    "table, CSV": Target("t.csv", lambda: [b"path,labels,split\na.jpg,cat|dog,train\n", b"path,cat\na.jpg,1\n"], _read_all),
    "table, TSV": Target("t.tsv", lambda: [b"path\tlabels\na.jpg\tcat,dog\n", b"path\tcat\na.jpg\t1\n"], _read_all),
    "table, JSON Lines": Target("t.jsonl", lambda: [b'{"path": "a", "labels": ["cat"]}\n', b'{"path": "a", "x": 1}\n'], _read_all),
    "table, Parquet": Target("t.parquet", _parquet, _read_all),
    "Hugging Face, Parquet with images": Target("t.parquet", _parquet_with_images, _read_parquet_with_images),
    "Hugging Face, a saved table": Target("t.arrow", _saved_tables, _read_saved),
    "table of paths": Target("t.csv", lambda: [b"path\na.jpg\n", b"file_name;x\nb;1\n"], _read_table_of_paths),
    "table, CSV, problems gathered": Target(
        "t.csv", lambda: [b"path,labels,split\na.jpg,cat|dog,train\n", b"path,cat\na.jpg,1\n"], _read_with_problems
    ),
    "table, JSON Lines, problems gathered": Target(
        "t.jsonl", lambda: [b'{"path": "a.jpg", "labels": ["cat"]}\n', b'{"path": "a.jpg", "x": 1}\n'], _read_with_problems
    ),
    "VOC, a list": Target("l.txt", lambda: [b"000001 1\n000002 -1\n", b"000001  0\r\n000002 -1"], _read_voc),
    "NUS-WIDE, images": Target(
        "l.txt", lambda: [b"a\\1.jpg\nb\\2.jpg\n", b"\xef\xbb\xbfa/1.jpg\r\nb/2.jpg\r\n"],
        _read_nuswide("ImageList/TrainImagelist.txt"),
    ),
    "NUS-WIDE, a concept": Target(
        "l.txt", lambda: [b"1\n0\n", b"0\r\n1"], _read_nuswide("Groundtruth/TrainTestLabels/Labels_cat_Train.txt")
    ),
    "checkpoint of a run": Target(
        "last.ckpt", lambda: [_run_checkpoint()], lambda p: read_checkpoint(p, shapes_of(_MODULE)),
        faults=lambda: [_checkpoint(new=True), _run_checkpoint(new=False)],
    ),
    "job, its state": Target("job.json", lambda: [_job_files()["job.json"]], _read_job("job.json")),
    "job, a part": Target("part.jsonl", lambda: [_job_files()["000000.jsonl"]], _read_job("000000.jsonl")),
    "run, its splits": Target("splits.json", lambda: [_run_files()["splits.json"]], _read_run("splits.json")),
    "run, its test": Target("test.json", lambda: [_run_files()["test.json"]], _read_run("test.json")),
    "run, its bundle": Target("config.json", lambda: [_run_files()["bundle/config.json"]], _read_run("bundle/config.json")),
    "COCO": Target("instances_train.json", lambda: [_coco()], _read_all),
    "Label Studio": Target("export.json", lambda: [_label_studio(), _LABEL_STUDIO_MIN], _read_all),
    "WebDataset": Target("0.tar", _tar, _read_all),
    "recipe": Target(
        "r.yaml", lambda: [b"data:\n  root: x\n", b"name: a\nmodel: {dim: 8}\n"], load_recipe, faults=lambda: YAML_FAULTS
    ),
    "override of a recipe": Target(
        "o.txt", lambda: [b"data.size=[8,8]", b"model.dim=3\noptimizer.lr=1e-3", b"trainer.seed=7"], _read_override,
        faults=lambda: [f"model.dim={value}".encode() for value in YAML_VALUES],
    ),
    "variants": Target(
        "v.yaml", lambda: [b"a: [model.dim=8]\n", b"a:\n  - model.dim=8\nb: [model.head=csra]\n"], read_variants,
        faults=lambda: [b"- name: a\n  overrides: [model.dim=8]\n", *YAML_FAULTS],
    ),
    "comparison": Target(
        "c.json", _comparisons, _read_comparison_with("comparison.json"), faults=lambda: [*_JSON_FAULTS, *_runs()]
    ),
    "comparison, a run": Target(
        "r.json", _runs, _read_comparison_with(f"runs/{_FINAL.name}.json"), faults=lambda: [*_JSON_FAULTS, *_comparisons()]
    ),
    "comparison, a job": Target(
        "j.json", _jobs, _read_comparison_with(f"training/{_FINAL.name}/{JOB_FILE}"), faults=lambda: [*_JSON_FAULTS, *_runs()]
    ),
    "bundle, configuration": Target("c.json", _bundle_seeds("config.json"), _read_bundle_with("config.json")),
    "bundle, weights": Target("w", _bundle_seeds("model.safetensors"), _read_bundle_with("model.safetensors")),
    "published checkpoint": Target("x.pth", lambda: [_checkpoint(new=True), _checkpoint(new=False)], read_published_checkpoint),
    "ONNX": Target("m.onnx", lambda: [small_onnx()], OnnxPredictor, faults=lambda: [small_onnx(labels="[]")]),
    "request, JSON": Target(
        "r.json", lambda: [b'{"images": ["eA=="], "top_k": 3}', b'{"images": ["eA\\n==", "eA=="], "threshold": 0.5}'],
        _read_request("application/json"), faults=lambda: [b'{"images": ["\\ud800"]}', b'{"images": []}', b"[", b'{"x": 1e999}'],
    ),
    "request, form": Target("r.txt", lambda: [_FORM], _read_request("multipart/form-data; boundary=b"), faults=lambda: [b"--b"]),
    "image": Target("i.png", lambda: _images(good=True), read_image, runs=100_000, faults=lambda: _images(good=False)),
}  # fmt: skip


def _images(*, good: bool) -> list[bytes]:
    odd = [
        data for data, status in odd_images().values() if len(data) < 2000 and (status == 200) == good and status != 413
    ]
    if not good:
        return odd
    small = Image.effect_noise((9, 7), 90)
    return [encoded(small.convert("RGB"), kind) for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")] + odd


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
    path.write_bytes(data)
    try:
        target.read(path)
    except MSRNError as error:
        if not str(error):
            return error
    except Exception as error:
        return error
    return None
