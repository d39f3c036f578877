"""The generated data set: the same everywhere, made of the difficulties it promises, and whole or absent on disk."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from msrn.data import scenes
from msrn.data.scenes import FAMILIES, LABEL_NAMES, LABELS, SIZES_PX, Pen, draw_scene, write_scenes
from msrn.data.source import SPLITS
from msrn.errors import DataError

AMBIGUOUS = [{"sun", "ball", "orange"}, {"sail", "tent"}, {"lamp", "star"}, {"buoy", "cherry"}]


def small(out_dir: Path, **changes: object) -> Path:
    return write_scenes(out_dir, **{"num_train": 6, "num_val": 2, "num_test": 3, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(target: np.ndarray) -> set[str]:
    return {LABEL_NAMES[i] for i in target.nonzero()[0]}


def choose(index: int) -> set[str]:
    return {label.name for label in scenes._choose_labels(np.random.default_rng([5, index]))}


@pytest.fixture(scope="module")
def many_scenes() -> list[set[str]]:
    """Labels of 2,000 scenes, without their pictures."""
    return [choose(index) for index in range(2000)]


# --- What is in a scene ---


def test_a_scene_depends_on_seed_split_and_index_alone():
    image, target = draw_scene(3, "val", 7)
    draw_scene(3, "val", 8)
    again, target_again = draw_scene(3, "val", 7)
    assert image.tobytes() == again.tobytes()
    assert target.tolist() == target_again.tolist()
    for other in [(4, "val", 7), (3, "test", 7), (3, "val", 8)]:
        assert draw_scene(*other)[0].tobytes() != image.tobytes()


def test_size_scales_the_picture_and_keeps_the_labels():
    small_image, small_target = draw_scene(0, "train", 5, size=48)
    large_image, large_target = draw_scene(0, "train", 5, size=144)
    assert (small_image.size, large_image.size) == ((48, 48), (144, 144))
    assert small_target.tolist() == large_target.tolist()
    difference = np.subtract(large_image.resize((12, 12)), small_image.resize((12, 12)), dtype=np.float64)
    assert np.abs(difference).mean() < 12


def test_generator_is_frozen():
    """The labels of the data set may change only together with GENERATOR_VERSION."""
    rows = ["|".join(sorted(names(draw_scene(0, split, i, size=16)[1]))) for split in SPLITS for i in range(20)]
    assert scenes.GENERATOR_VERSION == 1
    assert hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16] == "07c039bc3dc20589"


def test_labels_of_one_glyph_draw_the_same_pixels():
    def pixels(name: str) -> bytes:
        (label,) = (label for label in LABELS if label.name == name)
        canvas = Image.new("RGB", (64, 64), (90, 120, 150))
        assert label.draw is not None
        label.draw(Pen(ImageDraw.Draw(canvas), (32, 32), 24, tilt=0.3, mirror=-1, gain=(1.0, 0.9, 1.1)))
        return canvas.tobytes()

    for group in AMBIGUOUS:
        assert len({pixels(name) for name in group}) == 1
        assert len({label.size_class for label in LABELS if label.name in group}) == 1
        assert len({label.families for label in LABELS if label.name in group}) == len(group)
    assert len({pixels(label.name) for label in LABELS if label.draw}) == len([la for la in LABELS if la.draw]) - 5


def test_ambiguous_glyphs_are_settled_by_what_they_occur_with(many_scenes):
    anchors = {
        family: {la.name for la in LABELS if la.families == (family,) and la.name not in set().union(*AMBIGUOUS)}
        - {la.name for la in LABELS if la.size_class == "tiny"}
        for family in FAMILIES
    }
    for present in many_scenes:
        shown = {family for family in FAMILIES if present & anchors[family]}
        assert 1 <= len(shown) <= 2
        allowed = set().union(*(FAMILIES[family] for family in shown)) | {"night", "fog"}
        assert present <= allowed
        for group in AMBIGUOUS:
            if present & group:
                assert len(group & allowed) == 1


def test_sun_never_shines_at_night_and_lamps_are_lit(many_scenes):
    assert not any({"sun", "night"} <= present for present in many_scenes)
    city = [present for present in many_scenes if present & {"tower", "car"}]
    by_night = np.mean(["lamp" in present for present in city if "night" in present])
    by_day = np.mean(["lamp" in present for present in city if "night" not in present])
    assert by_night > by_day + 0.15


def test_every_label_occurs_often_enough_and_families_mix(many_scenes):
    counts = {name: sum(name in present for present in many_scenes) for name in LABEL_NAMES}
    assert min(counts.values()) >= 60
    assert max(counts.values()) > 3 * min(counts.values())  # a tail
    assert 2.5 < np.mean([len(present) for present in many_scenes]) < 4
    assert any({"ship", "tower"} <= present for present in many_scenes)


def test_labels_come_in_three_sizes():
    for size_class in ("large", "medium", "tiny"):
        assert sum(label.size_class == size_class for label in LABELS) >= 5
    assert SIZES_PX["tiny"][1] * 2 <= SIZES_PX["medium"][0]
    assert SIZES_PX["medium"][1] < SIZES_PX["large"][0]


def test_label_names_fit_the_table():
    assert len(set(LABEL_NAMES)) == len(LABEL_NAMES)
    assert all(name == name.lower() and not set(name) & set(",|\"'") for name in LABEL_NAMES)


def test_night_is_darker_than_day():
    brightness: dict[bool, list[float]] = {True: [], False: []}
    for index in range(60):
        image, target = draw_scene(1, "train", index, size=32)
        brightness["night" in names(target)].append(float(np.asarray(image).mean()))
    assert np.mean(brightness[True]) < np.mean(brightness[False]) - 30


def test_unknown_split_is_named():
    with pytest.raises(DataError, match=r"train, val, test, not 'dev'"):
        draw_scene(0, "dev", 0)


# --- What is on disk ---


def test_table_lists_every_image_with_its_labels(tmp_path):
    folder = small(tmp_path / "new" / "scenes")
    header, *rows = (folder / "labels.csv").read_text().splitlines()
    assert header == "path,labels,split"
    assert len(rows) == 11
    for row in rows:
        path, labels, split = row.split(",")
        assert path.startswith(f"images/{split}/")
        assert set(labels.split("|")) == names(draw_scene(0, split, int(Path(path).stem))[1])
        with Image.open(folder / path) as image:
            assert (image.size, image.mode) == ((96, 96), "RGB")
    assert json.loads((folder / "scenes.json").read_text())["counts"] == {"train": 6, "val": 2, "test": 3}


def test_number_of_workers_does_not_matter(tmp_path):
    one, three = small(tmp_path / "one", num_workers=1), small(tmp_path / "three", num_workers=3)
    assert contents(one) == contents(three)
    assert contents(small(tmp_path / "seed", seed=1)) != contents(one)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path):
    few, more = contents(small(tmp_path / "few", num_train=2)), contents(small(tmp_path / "more"))
    images = [path for path in few if path.endswith(".jpg")]
    assert all(few[path] == more[path] for path in images)


def test_splits_share_no_image(tmp_path):
    images = [data for path, data in contents(small(tmp_path / "scenes")).items() if path.endswith(".jpg")]
    assert len(set(images)) == len(images) == 11


def test_progress_counts_images(tmp_path):
    seen: list[int] = []
    small(tmp_path / "scenes", progress=seen.append)
    assert seen == list(range(1, 12))


def test_same_parameters_return_at_once(tmp_path, monkeypatch):
    folder = small(tmp_path / "scenes")
    before = contents(folder)
    monkeypatch.setattr(scenes, "draw_scene", None)
    assert small(folder) == folder
    assert contents(folder) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "scenes").mkdir()
    assert (small(tmp_path / "scenes") / "labels.csv").is_file()


def test_other_parameters_are_refused(tmp_path):
    folder = small(tmp_path / "scenes")
    before = contents(folder)
    with pytest.raises(DataError, match=r"(?s)'seed': 1.*but.*'seed': 0.*Choose another folder"):
        small(folder, seed=1)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["photo.jpg", "scenes.json"])
def test_a_foreign_folder_is_refused_and_kept(tmp_path, name):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / name).write_text("[]")
    with pytest.raises(DataError, match="holds something else"):
        small(folder)
    assert contents(folder) == {name: b"[]"}


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "scenes").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        small(tmp_path / "scenes")
    assert (tmp_path / "scenes").read_text() == "mine"


def test_damaged_scenes_are_refused(tmp_path):
    folder = small(tmp_path / "scenes")
    image = folder / "images" / "val" / "00001.jpg"
    kept = image.read_bytes()
    image.unlink()
    with pytest.raises(DataError, match=r"images are missing \(1\)"):
        small(folder)
    image.write_bytes(kept)
    with (folder / "labels.csv").open("a") as table:
        table.write("images/val/00001.jpg,ship,val\n")
    with pytest.raises(DataError, match=r"labels\.csv was changed"):
        small(folder)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch, error):
    draw = scenes.draw_scene

    def fail_late(seed: int, split: str, index: int, *, size: int = 96) -> tuple[Image.Image, np.ndarray]:
        if (split, index) == ("test", 1):
            raise error("no more paint")
        return draw(seed, split, index, size=size)

    monkeypatch.setattr(scenes, "draw_scene", fail_late)
    with pytest.raises(error, match="no more paint"):
        small(tmp_path / "scenes")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"num_val": -1}, {"size": 8}, {"num_workers": 0}])
def test_impossible_parameters_are_refused(tmp_path, wrong):
    with pytest.raises(DataError, match="Change the parameter that is too small"):
        small(tmp_path / "scenes", **wrong)
    assert list(tmp_path.iterdir()) == []
