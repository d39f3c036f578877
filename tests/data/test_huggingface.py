import io
import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.data import huggingface, packed
from msrn.data.huggingface import DatasetImage, HuggingFaceSource
from msrn.data.images import read_image
from msrn.data.loader import build_loader
from msrn.data.open import open_source
from msrn.data.source import LabelledImages, Problem
from msrn.data.split import check_files, split_images
from msrn.data.split_table import write_split
from msrn.data.table import TableSource
from msrn.data.transforms import Preprocessing
from msrn.errors import DataError, EmptySplitError, MissingDependencyError, SourceNotFoundError, UnreadableImageError

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the tests stays in the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setattr(datasets.config, name, folder / name)
    datasets.disable_progress_bars()
    return folder


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def dataset(
    num_images: int = 3, *, first: int = 0, features: dict[str, Any] | None = None, **columns: list[Any]
) -> Any:
    images = [{"bytes": jpeg(first + i), "path": f"{i}.jpg"} for i in range(num_images)]
    features = {"image": datasets.Image(), **(features or {})}
    for name in columns.keys() - features.keys():
        features[name] = datasets.Dataset.from_dict({name: columns[name]}).features[name]
    return datasets.Dataset.from_dict({"image": images, **columns}, features=datasets.Features(features))


def classes(*names: str) -> Any:
    return datasets.ClassLabel(names=list(names))


def test_saved_data_set(tmp_path: Path) -> None:
    saved = dataset(labels=[["cat", "a|b"], [], None])
    saved.save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert isinstance(source, HuggingFaceSource)
    assert source.label_names == ("a|b", "cat")
    assert source.splits == ("train",)
    train = source.read("train")
    assert train.target.tolist() == [[1, 1], [0, 0], [-1, -1]]
    assert [str(path) for path in train.paths] == [f"{tmp_path / 'set'}/train/{row}" for row in range(3)]
    assert [path.read_bytes() for path in train.paths if isinstance(path, DatasetImage)] == [jpeg(0), jpeg(1), jpeg(2)]
    assert train.paths[0].is_file()
    assert source.where("train", 1) == (tmp_path / "set", 2)


def test_saved_splits_and_class_labels(tmp_path: Path) -> None:
    features = {"labels": datasets.List(classes("dog", "cat", "owl"))}
    datasets.DatasetDict(
        {
            "validation": dataset(2, first=5, labels=[[0, 1], []], features=features),
            "train": dataset(labels=[[1], [0, 1], None], features=features),
        }
    ).save_to_disk(tmp_path)
    source = open_source(tmp_path)
    assert source.splits == ("train", "val")
    assert source.label_names == ("dog", "cat", "owl")
    assert source.names_every_label
    assert source.read("train").target.tolist() == [[0, 1, 0], [1, 1, 0], [-1] * 3]
    assert source.read("val").target.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert read_image(source.read("val").paths[1]).tobytes() == Image.open(io.BytesIO(jpeg(6))).tobytes()
    with pytest.raises(EmptySplitError, match="no split 'test'"):
        source.read("test")


@pytest.mark.parametrize(
    ("feature", "values", "names", "target"),
    [
        (None, ["cat|dog", "dog", ""], ("cat", "dog"), [[1, 1], [0, 1], [-1, -1]]),
        (None, [[10], [9, 10], []], ("9", "10"), [[0, 1], [1, 1], [0, 0]]),
        ("class", [1, 0, None], ("x, y", "z"), [[0, 1], [1, 0], [-1, -1]]),
        ("class", [1, 0, -1], ("x, y", "z"), [[0, 1], [1, 0], [-1, -1]]),
        ("objects", [[1, 1], [], [0]], ("x, y", "z"), [[0, 1], [0, 0], [1, 0]]),
        ("list of objects", [[1, 1], [], [0]], ("x, y", "z"), [[0, 1], [0, 0], [1, 0]]),
    ],
)
def test_kinds_of_label_columns(tmp_path: Path, feature: str | None, values: Any, names: Any, target: Any) -> None:
    kind = classes("x, y", "z")
    column = "label"
    features: dict[str, Any] = {}
    if feature == "class":
        features = {"label": kind}
    elif feature:
        column = "objects"
        item = {"category": kind, "bbox": datasets.List(datasets.Value("float32"), length=4)}
        if feature == "objects":
            features = {"objects": {"category": datasets.List(kind), "bbox": datasets.List(item["bbox"])}}
            values = [{"category": of_image, "bbox": [[0, 0, 1, 1]] * len(of_image)} for of_image in values]
        else:
            features = {"objects": datasets.List(item)}
            values = [[{"category": value, "bbox": [0, 0, 1, 1]} for value in of_image] for of_image in values]
    dataset(features=features, **{column: values}).save_to_disk(tmp_path)
    source = HuggingFaceSource(tmp_path)
    assert source.label_names == names
    assert source.read("train").target.tolist() == target


def test_one_column_a_label(tmp_path: Path) -> None:
    dataset(
        dog=[True, False, None], cat=[1, 0, -1], owl=[1.0, None, 0.0], width=[640, 480, 1], note=["x", "y", "z"]
    ).save_to_disk(tmp_path)
    source = HuggingFaceSource(tmp_path)
    assert set(source.label_names) == {"dog", "cat", "owl"}
    assert not source.names_every_label
    chosen = HuggingFaceSource(tmp_path, label_names=["dog", "cat", "owl"])
    assert chosen.read("train").target.tolist() == [[1, 1, 1], [0, 0, -1], [-1, -1, 0]]
    assert any("not taken for labels" in note and "width" in note and "note" in note for note in source.notes)
    with pytest.raises(DataError, match=r"split 'train', row 1, column 'width': expected 1, 0, .* got '640'"):
        HuggingFaceSource(tmp_path, label_names=["width"])
    with pytest.raises(DataError, match="no column for 1 of label_names: bird"):
        HuggingFaceSource(tmp_path, label_names=["bird"])


def write_parquet(path: Path, data: Any, *, plain: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(path)
    if plain:  # as other programs than `datasets` write it
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    return path


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("folder", ["data", "."])
def test_parquet_files_of_a_repository(tmp_path: Path, folder: str, plain: bool, cache: Path) -> None:
    (tmp_path / "README.md").write_text("---\n---\n")
    for name, first in [("train-00000-of-00002", 0), ("train-00001-of-00002", 2), ("validation-00000-of-00001", 4)]:
        labels = [["cat"], ["dog"]]
        write_parquet(tmp_path / folder / f"{name}.parquet", dataset(2, first=first, labels=labels), plain=plain)
    source = open_source(tmp_path)
    assert isinstance(source, HuggingFaceSource)
    assert source.splits == ("train", "val")
    train = source.read("train")
    assert train.target.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert [path.read_bytes() for path in train.paths if isinstance(path, DatasetImage)] == [jpeg(i) for i in range(4)]
    assert any(cache.rglob("*.arrow"))


def test_a_parquet_file_with_images(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "any.parquet", dataset(label=["cat", "dog", None]))
    source = open_source(file)
    assert isinstance(source, HuggingFaceSource)
    assert source.where("train", 0) == (file, 1)
    folders = tmp_path / "set" / "test" / "0000.parquet"
    write_parquet(folders, dataset(label=["cat", "dog", None]))
    assert open_source(tmp_path / "set").splits == ("test",)


def test_parquet_without_images_is_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg"], "labels": [["cat"]]}), tmp_path / "train.parquet")
    for path in (tmp_path, tmp_path / "train.parquet"):
        assert isinstance(open_source(path), TableSource)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train\.parquet: no whole Parquet file"):
        open_source(tmp_path)


def test_images_beside_the_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(7))
    images = [*({"path": path, "bytes": None} for path in (str(tmp_path / "a.jpg"), "a.jpg", None, "b.jpg")), None]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(images, kind), "label": ["cat"] * 5}), tmp_path / "set.parquet")
    paths = HuggingFaceSource(tmp_path / "set.parquet").read("train").paths
    assert [read_image(path).size for path in paths[:2]] == [(32, 24), (32, 24)]
    for row, message in [(2, r"no whole image \(row 3 holds no image\)"), (3, "no such file"), (4, "no whole image")]:
        with pytest.raises(UnreadableImageError, match=f"train/{row}: {message}"):
            read_image(paths[row])


@pytest.mark.parametrize("is_packed", [True, False])
def test_images_too_large_to_be_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(7))
    image = {"path": "a.jpg", "bytes": jpeg(7) if is_packed else None}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array([image], kind), "label": ["cat"]}), tmp_path / "set.parquet")
    (path,) = HuggingFaceSource(tmp_path / "set.parquet").read("train").paths
    assert read_image(path).size == (32, 24)
    for module in (packed, huggingface):
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", len(jpeg(7)) - 1)
    with pytest.raises(UnreadableImageError, match=r"train/0: more than 0 MB\. Give a smaller file"):
        read_image(path)


def test_columns_that_are_asked_for(tmp_path: Path) -> None:
    data = dataset(kind=["cat", "dog", "cat"], scene=["park", None, "7"], label=["x", "y", "z"])
    data.save_to_disk(tmp_path)
    source = HuggingFaceSource(tmp_path, label_column="kind", group_column="scene", path_column="image")
    assert source.label_names == ("cat", "dog")
    assert source.groups("train") == ("park", "", "7")
    assert HuggingFaceSource(tmp_path).groups("train") is None
    with pytest.raises(DataError, match="no column 'patient', only: image, "):
        HuggingFaceSource(tmp_path, group_column="patient")
    with pytest.raises(DataError, match="expected a column of images, got kind"):
        HuggingFaceSource(tmp_path, path_column="kind")


def test_problems_are_gathered(tmp_path: Path) -> None:
    data = datasets.DatasetDict(
        {"train": dataset(labels=[["cat"], ["dgo"], ["dog"]]), "extra": dataset(labels=[["x"]] * 3)}
    )
    data.save_to_disk(tmp_path)
    with pytest.raises(DataError, match="expected one split each of train, val and test, got 'extra'"):
        open_source(tmp_path)
    problems: list[Problem] = []
    source = open_source(tmp_path, problems=problems, label_names=["dog", "cat"])
    assert source.read("train").target.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert [(problem.kind, problem.line) for problem in problems] == [("unknown split", None), ("unknown label", 2)]


def test_splits_must_have_the_same_features(tmp_path: Path) -> None:
    # The same class number would mean another label.
    splits = {
        name: dataset(label=[0, 1, 1], features={"label": classes(*order)})
        for name, order in {"train": ("cat", "dog"), "test": ("dog", "cat")}.items()
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="split 'test' has other columns or class labels than 'train'"):
        open_source(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="is no Hugging Face data set: expected a folder of save_to_disk"):
        HuggingFaceSource(tmp_path)
    datasets.Dataset.from_dict({"path": ["a.jpg"], "labels": ["cat"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match=r"expected a column of images, got path, labels\. Cast it to datasets\.Image"):
        open_source(tmp_path / "text")
    dataset(note=["x", "y", "z"]).save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(DataError, match=r"expected a column of labels \(labels, .*\), or one column a label"):
        open_source(tmp_path / "unlabelled")
    dataset(labels=["cat"] * 3).save_to_disk(tmp_path / "broken")
    for file in (tmp_path / "broken").glob("*.arrow"):
        file.unlink()
    with pytest.raises(DataError, match=r"broken cannot be loaded \(.*\)\. Save or download it again"):
        open_source(tmp_path / "broken")


DAMAGES = {
    "a text that leads out of memory": ([0, 3, 6], [0, 3, 2**31 - 1], "cannot be loaded"),
    "a text before the first": ([0, 3, 6], [0, 3, -6], "cannot be loaded"),
    "a list that leads out of memory": ([0, 1, 2, 2], [0, 1, 2**30, 2**30], "cannot be loaded"),
    "no text": (b"catdog", b"cat\xff\xfe\xfd", "cannot be loaded .*UTF8"),
    "half a table": (b"catdog", b"", "cannot be loaded"),
}


@pytest.mark.fault("a saved data set whose table is damaged")
@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_tables(tmp_path: Path, lost: Any, what: str) -> None:
    """Offsets are followed wherever they lead: to the end of the process, or to what else lies in memory."""
    before, after, message = DAMAGES[what]
    before, after = (part if isinstance(part, bytes) else np.array(part, "<i4").tobytes() for part in (before, after))
    dataset(labels=[["cat"], ["dog"], []]).save_to_disk(tmp_path)
    (table,) = tmp_path.glob("*.arrow")
    whole = table.read_bytes()
    assert before in whole
    table.unlink()
    table.write_bytes(whole.replace(before, after) if after else whole[: whole.index(before)])
    with pytest.raises(DataError, match=f"{tmp_path.name} {message}"):
        open_source(tmp_path)
    assert huggingface.find_image(f"{tmp_path.parent}/none/train/0") is None
    with pytest.raises(DataError, match=f"{tmp_path.name} {message}"):
        huggingface.find_image(f"{tmp_path}/train/0")
    table.unlink()
    table.write_bytes(whole)
    images = open_source(tmp_path).read("train").paths
    lost([jpeg(0), jpeg(1), jpeg(2)], [path.read_bytes() for path in images], "images of the whole table")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array([{"bytes": 1, "path": "a"}])}, "Unsupported cast from int64 to binary"),
        ({"label": pa.array([[2**31 - 1]], pa.list_(pa.int32())).cast(pa.list_(pa.date32()))}, "must have magnitude"),
        ({"label": pa.StringArray.from_buffers(1, *pa.array([b"\xff"]).buffers()[1:])}, "utf-8"),
    ],
)
def test_columns_that_cannot_be_read(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    image = pa.array([{"bytes": jpeg(0), "path": "a"}])
    pq.write_table(pa.table({"image": image, "label": ["cat"], **columns}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet cannot be loaded \(.*{message}.*\)\. Save or download it again"):
        open_source(tmp_path / "a.parquet")


def test_a_path_beside_an_image_that_is_not_utf8(tmp_path: Path) -> None:
    """Parquet's texts are not looked through before they are used."""
    path = pa.StringArray.from_buffers(1, *pa.array([b"\xff"]).buffers()[1:])
    image = pa.StructArray.from_arrays([pa.array([jpeg(0)]), path], ["bytes", "path"])
    pq.write_table(pa.table({"image": image, "label": ["cat"]}), tmp_path / "a.parquet")
    (packed,) = open_source(tmp_path / "a.parquet").read("train").paths
    with pytest.raises(OSError, match=r"row 1 cannot be read .*utf-8"):
        packed.read_bytes()
    with pytest.raises(UnreadableImageError, match=r"train/0: no whole image \(row 1 cannot be read .*utf-8"):
        read_image(packed)


def test_odd_columns_that_are_read(tmp_path: Path) -> None:
    image = pa.array([{"bytes": jpeg(0), "path": "a"}, {"bytes": None, "path": "a\0b"}])
    names = {"_type": "ClassLabel", "names": [1, {}]}
    about = {
        "info": {
            "features": {"image": {"_type": "Image"}, "label": names, "day": {"_type": "Value", "dtype": "date32"}}
        }
    }
    day = pa.array([2**31 - 1, 0], pa.int32()).cast(pa.date32())
    table = pa.table({"image": image, "label": [1, 0], "day": day})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), tmp_path / "a.parquet")
    source = HuggingFaceSource(tmp_path / "a.parquet", group_column="day")
    assert source.label_names == ("1", "{}")
    assert source.groups("train") == ("<value out of range: 2147483647>", "1970-01-01")
    images = source.read("train")
    assert images.target.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(OSError, match=r"row 2 names .* no file can have that name"):
        images.paths[1].read_bytes()


def test_a_damaged_page_of_parquet_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"image": [{"bytes": jpeg(0), "path": "a"}] * 9, "label": ["cat"] * 9})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"\3\0\0\0cat", b"\xff\xff\xff\x7fcat"))
    with pytest.raises(DataError, match=r"a\.parquet cannot be loaded \((?!An error occurred while generating).*\)"):
        open_source(tmp_path / "a.parquet")
    assert capfd.readouterr().err == ""


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        assert name == "owner/name"
        return datasets.DatasetDict({"test": dataset(labels=[["cat"]] * 3)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_source("hf:owner/name")
    assert source.splits == ("test",)
    assert str(source.read("test").paths[2]) == "hf:owner/name/test/2"
    assert source.read("test").paths[2].is_file()
    with pytest.raises(
        DataError, match=r"is a Hugging Face data set, which has only the options .*, got keep_unannotated"
    ):
        open_source("hf:owner/name", keep_unannotated=True)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"hf:owner/name cannot be loaded from the Hugging Face hub .*save_to_disk\(folder\)"
    ):
        open_source("hf:owner/name")


def test_library_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(labels=["cat"] * 3).save_to_disk(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"which needs datasets: pip install 'msrn\[data\]'"):
        open_source(tmp_path)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_reads_the_same_as_from_files(tmp_path: Path, num_workers: int) -> None:
    saved = dataset(5, labels=["cat"] * 5)
    saved.set_format("numpy")  # saved with the data set, and not to be followed
    saved.save_to_disk(tmp_path / "set")
    packed = open_source(tmp_path / "set").read("train")
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    paths = tuple(tmp_path / f"{i}.jpg" for i in range(5))
    files = LabelledImages(paths, packed.target, packed.label_names, "train")
    transform = Preprocessing(size=(16, 16))
    of_packed, of_files = (
        [batch["images"] for batch in build_loader(images, transform, batch_size=2, num_workers=num_workers)]
        for images in (packed, files)
    )
    assert all(map(torch.equal, of_packed, of_files))


def test_images_travel_to_spawned_processes(tmp_path: Path) -> None:
    dataset(200, labels=["cat"] * 200).save_to_disk(tmp_path)
    paths = open_source(tmp_path).read("train").paths
    assert len(pickle.dumps(paths)) < 20_000  # the file's name, not its content
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(DatasetImage.read_bytes, paths[:2]) == [jpeg(0), jpeg(1)]


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_split_of_a_data_set_is_a_table_that_points_into_it(tmp_path, is_saved):
    """Rows go to other splits, and are read from where they lie."""
    labels = [["cat"] if number % 2 else ["dog", "cat"] for number in range(12)]
    saved = dataset(12, labels=labels)
    root = tmp_path / ("saved" if is_saved else "set.parquet")
    saved.save_to_disk(root) if is_saved else saved.to_parquet(root)
    source = open_source(root)
    images = source.read("train")
    parts = split_images(images, {"train": 0.5, "test": 0.5}, seed=0)
    write_split(tmp_path / "split.csv", list(parts.values()))
    again = open_source(tmp_path / "split.csv")
    for name, part in parts.items():
        read = again.read(name)
        assert read.target.tolist() == part.target.tolist()
        assert [os.fspath(path) for path in read.paths] == [os.fspath(path) for path in part.paths]
        assert [path.read_bytes() for path in read.paths] == [path.read_bytes() for path in part.paths]
        check_files(read)
    rows_of = (tmp_path / "split.csv").read_text().replace(f"{root.name}/train/0,", f"{root.name}/train/99,")
    (tmp_path / "split.csv").write_text(rows_of)
    with pytest.raises(DataError, match=r"1 image is missing: .*train/99"):
        check_files(*(open_source(tmp_path / "split.csv").read(name) for name in parts))
