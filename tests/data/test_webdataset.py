import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from msrn.data import packed
from msrn.data.images import read_image
from msrn.data.loader import build_loader
from msrn.data.open import open_source
from msrn.data.packed import TarMember, walk_tar
from msrn.data.source import LabelledImages, Problem
from msrn.data.transforms import Preprocessing
from msrn.data.webdataset import WebDatasetSource
from msrn.errors import DataError, SourceNotFoundError, UnreadableImageError


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_shard(path: Path, files: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, value in files.items():
            content = (
                value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
            )
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_of_splits(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-000000.tar", {"0.jpg": b"", "0.json": {"labels": ["cat", "a|b"]}})
    write_shard(tmp_path / "train-000001.tar", {"a/1.jpg": b"", "a/1.txt": "dog, cat", "1.png": b""})
    write_shard(tmp_path / "validation_0.tar", {"2.WEBP": b"", "2.cls": "7\n"})
    write_shard(tmp_path / "test" / "0000.tar", {"3.jpeg": b"", "3.txt": "dog\nNew York, city\n"})
    write_shard(tmp_path / "._train.tar", {})
    source = open_source(tmp_path)
    assert isinstance(source, WebDatasetSource)
    assert source.splits == ("train", "val", "test")
    assert source.label_names == ("7", "New York, city", "a|b", "cat", "dog")
    train = source.read("train")
    assert [str(path.relative_to(tmp_path)) for path in map(Path, train.paths)] == [
        *("train-000000.tar/0.jpg", "train-000001.tar/a/1.jpg", "train-000001.tar/1.png")
    ]
    assert train.target.tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1], [-1] * 5]
    assert source.read("val").target.tolist() == [[1, 0, 0, 0, 0]]
    assert source.read("test").target.tolist() == [[0, 1, 0, 0, 1]]
    assert source.where("train", 1) == (tmp_path / "train-000001.tar", None)


@pytest.mark.parametrize("name", ["images.tar", "val-0.tar"])
def test_a_single_archive(tmp_path: Path, name: str) -> None:
    shard = write_shard(tmp_path / name, {"./0.jpg": b"", "./0.cls": "cat"})
    assert open_source(shard).splits == (("val",) if name.startswith("val") else ("train",))


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ({"labels": ["cat"]}, [1, 0]),
        ({"label": "cat|dog"}, [1, 1]),
        ({"tags": []}, [0, 0]),
        ({"labels": None}, [-1, -1]),
        (["dog"], [0, 1]),
        ("dog", [0, 1]),
        (None, [-1, -1]),
    ],
)
def test_lists_in_json(tmp_path: Path, value: Any, row: list[int]) -> None:
    files = {"0.jpg": b"", "0.txt": "cat|dog", "1.jpg": b"", "1.json": json.dumps(value)}
    assert WebDatasetSource(write_shard(tmp_path / "a.tar", files)).read("train").target.tolist() == [[1, 1], row]


def test_one_key_a_label(tmp_path: Path) -> None:
    files = {
        **{"0.jpg": b"", "0.json": {"dog": 1, "cat": 0, "owl": None}},
        **{"1.jpg": b"", "1.json": {"labels": {"cat": True, "fox": "no"}}},
        **{"2.jpg": b"", "2.json": {}, "3.jpg": b""},
    }
    source = WebDatasetSource(write_shard(tmp_path / "a.tar", files))
    assert source.label_names == ("dog", "cat", "owl", "fox")
    assert source.read("train").target.tolist() == [[1, 0, -1, -1], [-1, 1, -1, 0], [-1] * 4, [-1] * 4]
    files["4.jpg"], files["4.json"] = b"", {"labels": ["cat"]}
    with pytest.raises(DataError, match=r"3 \.json files have one key a label, others a list .* Use one form"):
        WebDatasetSource(write_shard(tmp_path / "a.tar", files))


def test_json_of_other_things_leaves_the_word_to_other_files(tmp_path: Path) -> None:
    files = {"0.jpg": b"", "0.json": {"url": "http://x/0.jpg", "width": 640}, "0.cls": "cat"}
    assert WebDatasetSource(write_shard(tmp_path / "a.tar", files)).label_names == ("cat",)
    del files["0.cls"]
    with pytest.raises(DataError, match=r"a.tar/0.json: expected the key 'labels', or one key a label .* 'url': http"):
        WebDatasetSource(write_shard(tmp_path / "a.tar", files))


def test_keys_end_at_the_first_dot(tmp_path: Path) -> None:
    files = {"v1.0/a.b.jpg": b"", "v1.0/a.jpg": b"", "v1.0/a.cls": "cat", ".hidden.jpg": b"", "no_dot": b""}
    assert len(WebDatasetSource(write_shard(tmp_path / "a.tar", files)).read("train")) == 1


def test_labels_without_an_image_are_noted(tmp_path: Path) -> None:
    source = WebDatasetSource(write_shard(tmp_path / "a.tar", {"0.jpg": b"", "0.cls": "a", "1.cls": "b"}))
    assert source.notes == ("1 label files without an image were passed over.",)


def test_problems_are_gathered(tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "a.tar",
        {
            **{"0.jpg": b"", "0.png": b"", "0.cls": "cat", "1.jpg": b"", "1.json": "{", "2.jpg": b""},
            **{"2.json": {"labels": [{"x": 1}]}, "3.jpg": bytes(4000)},
        },
    )
    *_, last = walk_tar(shard)
    shard.write_bytes(shard.read_bytes()[: last.offset + 1000])
    problems: list[Problem] = []
    source = open_source(shard, problems=problems)
    assert source.read("train").target.tolist() == [[1], [-1], [-1], [-1]]
    assert [problem.kind for problem in problems] == ["repeated path", "damaged archive", "bad value", "bad value"]
    assert {problem.file for problem in problems} == {shard}
    assert "a.tar/1.json: no JSON" in problems[2].message
    assert "a.tar/2.json: expected a list of labels, got [{'x': 1}]" in problems[3].message
    with pytest.raises(DataError, match=r"0\.jpg and 0\.png are of one sample"):
        open_source(shard)


@pytest.mark.parametrize("depth", [300, 600, 900, 1200])
@pytest.mark.parametrize(
    ("text", "other"),
    [('{"labels": DEEP}', '["cat"]'), ('{"cat": DEEP}', '{"cat": 1}'), ("DEEP", '["cat"]')],
)
def test_labels_too_deep_within_each_other(tmp_path: Path, text: str, other: str, depth: int) -> None:
    deep = "[" * depth + "1" + "]" * depth
    files = {"0.jpg": b"", "0.json": text.replace("DEEP", deep), "1.jpg": b"", "1.json": other}
    shard = write_shard(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"a\.tar/0\.json: (expected|no JSON)"):
        open_source(shard)
    problems: list[Problem] = []
    assert open_source(shard, problems=problems).label_names == ("cat",)
    assert [problem.kind for problem in problems] == ["bad value"]


@pytest.mark.parametrize("is_placed", [True, False])
def test_images_too_large_to_be_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_placed: bool) -> None:
    shard = write_shard(tmp_path / "a.tar", {"0.jpg": jpeg(0)})
    (entry,) = walk_tar(shard)
    image = TarMember(shard, "0.jpg", entry.offset, entry.size) if is_placed else TarMember(shard, "0.jpg")
    assert image.read_bytes() == jpeg(0)
    monkeypatch.setattr(packed, "MAX_IMAGE_BYTES", entry.size - 1)
    with pytest.raises(UnreadableImageError, match=r"a\.tar/0\.jpg: more than 0 MB\. Give a smaller file"):
        read_image(image)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"holds no WebDataset: expected a \.tar file"):
        WebDatasetSource(tmp_path)
    shard = write_shard(tmp_path / "a.tar", {"0.jpg": b""})
    with pytest.raises(DataError, match=r"a\.tar names no label: expected a \.json, \.cls or \.txt file"):
        WebDatasetSource(shard)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"b\.tar\.gz: a compressed tar archive"):
        open_source(tmp_path / "b.tar.gz")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_reads_the_same_as_from_files(tmp_path: Path, num_workers: int) -> None:
    contents = {f"{i}.jpg": jpeg(i) for i in range(5)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    shard = write_shard(tmp_path / "a.tar", {**contents, "0.cls": "cat"})
    packed = WebDatasetSource(shard).read("train")
    files = LabelledImages(tuple(tmp_path / name for name in contents), packed.target, packed.label_names, "train")
    unplaced = LabelledImages(
        tuple(TarMember(shard, name) for name in contents), packed.target, packed.label_names, "train"
    )
    transform = Preprocessing(size=(16, 16))
    batches = [
        [batch["images"] for batch in build_loader(images, transform, batch_size=2, num_workers=num_workers)]
        for images in (packed, unplaced, files)
    ]
    for of_packed, of_unplaced, of_files in zip(*batches, strict=True):
        assert torch.equal(of_packed, of_files)
        assert torch.equal(of_unplaced, of_files)


def test_images_travel(tmp_path: Path) -> None:
    images = WebDatasetSource(write_shard(tmp_path / "a.tar", {"0.jpg": jpeg(0), "0.cls": "cat"})).read("train")
    (image,) = pickle.loads(pickle.dumps(images.paths))
    assert image.read_bytes() == jpeg(0)
