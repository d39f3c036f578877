"""`msrn data split` as people and programs use it."""

import csv
import json
from pathlib import Path

import command_line
import numpy as np
import pytest

from msrn.data import open_source, split_hash
from msrn.recipes import load_recipe
from msrn.recipes.splits import read_splits

VOC = Path(__file__).parents[2].parent / "shared" / "voc2007" / "VOCdevkit"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `msrn data split ARGUMENTS`."""
    return command_line.run(capsys, "data", "split", *arguments)


def write_photos(folder: Path, *, num_images: int = 200, splits: tuple[str, ...] = ("train",)) -> Path:
    """A table of photos; scenes of four, every fifth photo in none; one label is in one photo only."""
    rng = np.random.default_rng(0)
    table = folder / "photos.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "split", "scene"])
        for i in range(num_images):
            labels = [name for name, chance in (("cat", 0.5), ("dog", 0.2), ("owl", 0.05)) if rng.random() < chance]
            labels += ["unicorn"] if i == 7 else []
            split = splits[i // 4 % len(splits)]
            writer.writerow(
                [f"photos/{i}.jpg", "|".join(labels) or "[]", split, "" if i % 5 == 0 else f"scene {i // 4}"]
            )
    return table


def test_a_table_that_a_recipe_reads(tmp_path, capsys):
    table, out = write_photos(tmp_path), tmp_path / "split.csv"
    code, printed, _ = run(capsys, table, "--out", out)
    assert code == 0
    source = open_source(out)
    assert {name: len(source.read(name)) for name in source.splits} == {"train": 160, "val": 20, "test": 20}
    assert "missing in val, with their positives: unicorn (1)" in printed
    said = json.loads((tmp_path / "split.split.json").read_text())
    assert said["sha256"] in printed
    assert said["label_names"] == ["cat", "dog", "owl", "unicorn"]
    assert said["fractions"] == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert said["deviations"]["all"]["largest_count"] <= 1 < said["random_deviations"]["all"]["largest_count"]
    for name in source.splits:
        assert said["splits"][name]["sha256"] == split_hash(source.read(name), root=tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(200):
        (tmp_path / "photos" / f"{i}.jpg").touch()
    splits = read_splits(load_recipe("photos", [f"data.root={out}"]))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (160, 20, 20)


def test_same_command_same_bytes(tmp_path, capsys):
    table = write_photos(tmp_path)
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(capsys, table, "--out", tmp_path / name / "split.csv", "--seed", seed)[0] == 0
        written.append([(tmp_path / name / file).read_bytes() for file in ("split.csv", "split.split.json")])
    assert written[0] == written[1]
    assert written[0][0] != written[2][0]


def test_groups_stay_together(tmp_path, capsys):
    table, out = write_photos(tmp_path), tmp_path / "split.csv"
    code, printed, _ = run(capsys, table, "--out", out, "--group-by", "scene", "--val", "0.2", "--json", "-")
    assert code == 0
    said = json.loads(printed)
    assert said["group_column"] == "scene"
    with table.open() as file:
        scene_of = {Path(row["path"]).name: row["scene"] for row in csv.DictReader(file)}
    source = open_source(out)
    scenes = {name: {scene_of[path.name] for path in source.read(name).paths} - {""} for name in source.splits}
    assert not scenes["train"] & scenes["val"]
    assert not scenes["train"] & scenes["test"]
    assert not scenes["val"] & scenes["test"]
    assert [part["images"] for part in said["splits"].values()] == [140, 40, 20]


def test_a_kept_split_stays(tmp_path, capsys):
    table, out = write_photos(tmp_path, splits=("train", "val", "test")), tmp_path / "split.parquet"
    before = open_source(table).read("test")
    code, printed, _ = run(capsys, table, "--out", out, "--keep", "test", "--val", "0.25")
    assert code == 0
    assert "kept" in printed
    source = open_source(out)
    assert source.read("test").paths == before.paths
    np.testing.assert_array_equal(source.read("test").target, before.target)
    others = len(open_source(table).read("train")) + len(open_source(table).read("val"))
    assert (len(source.read("train")), len(source.read("val"))) == (others - round(others / 4), round(others / 4))


def test_a_group_in_a_kept_split_is_named(tmp_path, capsys):
    table = tmp_path / "photos.csv"
    rows = [f"{i}.jpg,cat,{'test' if i < 3 else 'train'},room {i % 4}" for i in range(12)]
    table.write_text("\n".join(["path,labels,split,scene", *rows]) + "\n")
    code, _, error = run(capsys, table, "--out", tmp_path / "out.csv", "--keep", "test", "--group-by", "scene")
    assert code == 1
    assert "splits must not share groups" in error
    assert "room 0 (train and test)" in error or "room 0 (val and test)" in error
    assert not (tmp_path / "out.csv").exists()


def test_a_table_that_exists_stays_without_force(tmp_path, capsys):
    table, out = write_photos(tmp_path), tmp_path / "split.csv"
    assert run(capsys, table, "--out", out)[0] == 0
    before = out.read_bytes()
    code, _, error = run(capsys, table, "--out", out, "--seed", "1")
    assert code == 1
    assert "exists. Choose another name, or replace it by --force" in error
    assert out.read_bytes() == before
    assert run(capsys, table, "--out", out, "--seed", "1", "--force")[0] == 0
    assert out.read_bytes() != before
    code, _, error = run(capsys, table, "--out", out.with_suffix(".tsv"), "--seed", "5", "--force")
    assert code == 1
    assert "split.split.json tells of split.csv, which would be lost; it is left alone." in " ".join(error.split())
    assert run(capsys, out, "--check")[0] == 0


def test_checking_a_table(tmp_path, capsys):
    table, out = write_photos(tmp_path), tmp_path / "split.csv"
    run(capsys, table, "--out", out, "--test", "0")
    code, printed, _ = run(capsys, out, "--check")
    assert code == 0
    assert "is what split.split.json says: train 180, val 20" in " ".join(printed.split())
    out.write_text(out.read_text().replace("cat", "dog", 1))
    code, _, error = run(capsys, out, "--check")
    assert code == 1
    assert "was changed after it was split" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "photos.csv", "--force"], "--out photos.csv is the source itself"),
        (["--out", "split.txt"], "ends in .csv, .tsv, .parquet"),
        (["--out", "s.csv", "--val", "0.5", "--test", "0.5"], "leave nothing for train: they add up to 1"),
        (["--out", "s.csv", "--val", "0", "--test", "0"], "nothing to split"),
        (["--out", "s.csv", "--keep", "train"], "--keep takes val or test, got train"),
        (["--out", "s.csv", "--keep", "val", "--val", "0.2"], "val cannot both be kept and drawn anew"),
        (["--out", "s.csv", "--keep", "test"], "has the splits train, --keep names test"),
        (["--out", "s.csv", "--group-by", "patient"], "no group column 'patient'"),
    ],
)
def test_errors_say_what_to_do(tmp_path, capsys, monkeypatch, arguments, words):
    write_photos(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, "photos.csv", *arguments)
    assert code == 1
    assert words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos.csv"]


def test_without_a_name_the_table_is_called_after_the_source(tmp_path, capsys, monkeypatch):
    (tmp_path / "data").mkdir()
    write_photos(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "data/photos.csv")[0] == 0
    assert open_source("photos-split.csv").splits == ("train", "val", "test")
    assert run(capsys, "photos-split.csv", "--check")[0] == 0


@pytest.mark.skipif(not VOC.exists(), reason="needs VOC 2007 in shared/")
def test_unknown_labels_of_voc_survive(tmp_path, capsys):
    code, out, _ = run(capsys, VOC, "--out", tmp_path / "voc.csv")
    assert code == 0
    assert "images lie outside of the table's folder: read it with --allow-outside" in " ".join(out.split())
    before, after = open_source(VOC), open_source(tmp_path / "voc.csv", allow_outside=True)
    assert after.label_names == before.label_names

    def rows(source):
        parts = [source.read(split) for split in source.splits]
        return {path.name: row.tolist() for part in parts for path, row in zip(part.paths, part.target, strict=True)}

    assert rows(after) == rows(before)
    assert any(-1 in row for row in rows(after).values())
