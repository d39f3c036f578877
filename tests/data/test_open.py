import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from msrn.data.open import _READERS, open_source
from msrn.data.table import TableSource
from msrn.data.voc import VOC_LABELS, VOCSource
from msrn.errors import DataError, SourceNotFoundError


def test_voc(tmp_path: Path) -> None:
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for label in VOC_LABELS:
        (lists / f"{label}_train.txt").write_text("000001 -1\n")
    assert isinstance(open_source(tmp_path), VOCSource)
    with pytest.raises(DataError, match="is PASCAL VOC, which has no options, got label_separator"):
        open_source(tmp_path, label_separator=" ")


@pytest.mark.parametrize("name", ["labels.csv", "train.csv", "any.tsv", ""])
def test_table(tmp_path: Path, name: str) -> None:
    (tmp_path / (name or "labels.csv")).write_text(
        "path,labels\na.jpg,red car\n".replace(",", "\t" if "tsv" in name else ",")
    )
    for path in (tmp_path, tmp_path / name):
        source = open_source(str(path), label_separator=" ")
        assert isinstance(source, TableSource)
        assert source.label_names == ("car", "red")


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"nowhere does not exist\. Check the path"):
        open_source(tmp_path / "nowhere")


def test_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,labels\n")
    with pytest.raises(
        SourceNotFoundError, match=r"looked for PASCAL VOC .*labels\.csv.* Pass the table itself"
    ) as caught:
        open_source(tmp_path)
    for layout in (
        "MS-COCO (annotations/instances_",
        "NUS-WIDE (Groundtruth",
        "Apparel (only",
        "a folder tree (images",
    ):
        assert layout in str(caught.value)
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(SourceNotFoundError, match="has no layout that msrn knows"):
        open_source(text)


def test_every_reader_says_what_it_is_recognised_by() -> None:
    for module, name in _READERS:
        reader = getattr(import_module(module), name)
        assert reader.layout, name
        assert reader.recognised_by, name


def test_readers_do_not_import_torch() -> None:
    code = (
        "import sys, msrn.data.images, msrn.data.open, msrn.data.split; "
        "assert not {'torch', 'torchvision', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
