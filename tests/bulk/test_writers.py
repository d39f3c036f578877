"""What is written is what is read back."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msrn.bulk.writers import About, _check_csv, write_csv, write_sidecars
from msrn.data import open_source
from msrn.errors import MSRNError

ODD = (
    *(
        "[]",
        "a;b",
        "a,b",
        "[x]",
        "[x",
        "y]",
        '"q"',
        "=1",
        "-1",
        "?",
        "nan",
        " cat",
        "dog ",
        "",
        "'",
        "two\nlines",
        "a|b",
    ),
    *("\\", "007"),
)
names = st.one_of(st.sampled_from(ODD), st.text(min_size=1, max_size=6))


def read_back(labels: list[list[str]], folder: Path) -> list[set[str]]:
    """The labels of each row, by way of a CSV."""
    rows = [
        {"path": f"{number}.jpg", "labels": [{"name": name, "probability": 0.5} for name in of_row]}
        for number, of_row in enumerate(labels)
    ]
    write_csv(rows, folder / "t.csv", About((), "m"))
    images = open_source(folder / "t.csv").read("train")
    assert (images.target != -1).all()
    return [{name for name, value in zip(images.label_names, row, strict=True) if value == 1} for row in images.target]


def refused(label_names: list[str], folder: Path) -> str:
    """Why a CSV of these labels is refused; empty where it is not."""
    try:
        _check_csv(About(tuple(label_names), "m"), folder / "t.csv", [])
    except MSRNError as error:
        return str(error)
    return ""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), known=st.lists(names, min_size=1, max_size=4, unique=True))
def test_tags_are_read_back_as_they_were(tmp_path: Path, data: st.DataObject, known: list[str]) -> None:
    """Whatever the labels: they come back, or are refused before anything is written."""
    if refusal := refused(known, tmp_path):
        assert any(words in refusal for words in ("has a '|' in it", "nothing is known", "read back as another"))
        known = [name for name in known if not refused([name], tmp_path)] or ["cat"]
    rows = data.draw(st.lists(st.lists(st.sampled_from(known), unique=True), min_size=1, max_size=4))
    rows.append(known)  # a table that names no label is none
    assert read_back(rows, tmp_path) == [set(row) for row in rows]


@pytest.mark.parametrize("label", ["[]", "a;b", "a,b", "[x]", "=1", "a|b", '"q"', "1" * 5000])
def test_a_label_alone(tmp_path: Path, label: str) -> None:
    assert read_back([[label], ["cat", label], []], tmp_path) == [{label}, {"cat", label}, set()]


@pytest.mark.parametrize("label", [" cat", "cat\n", "a\rb", "\ud800", ""])
def test_labels_that_no_csv_holds(tmp_path: Path, label: str) -> None:
    with pytest.raises(MSRNError, match=r"read back as another|nothing is known"):
        _check_csv(About(("dog", label), "m"), tmp_path / "t.csv", [])


def test_a_sidecar_whose_path_no_file_can_have(tmp_path: Path) -> None:
    path = "/".join(["f" * 200] * 20) + "/a.png"
    with pytest.raises(
        MSRNError, match=r"a longer path than a file can have\. Give a shorter --out, or --format jsonl"
    ):
        write_sidecars([{"path": path, "labels": [], "probs": {}}], tmp_path / "side", About((path,), "m"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "paths",
    [
        ("../a.png", "_/a.png"),
        ("/a/x.png", "a/x.png"),
        ("http://a/x.png", "http/a/x.png"),
        ("a", "a.xmp/b.png"),
        ("a.xmp/b.png", "a"),
    ],
)
def test_no_sidecar_takes_the_place_of_another(tmp_path: Path, paths: tuple[str, str]) -> None:
    rows = [{"path": path, "labels": [{"name": path, "probability": 0.5}]} for path in paths]
    (tmp_path / "side").mkdir()
    (tmp_path / "side" / "old.xmp").write_text("before")
    with pytest.raises(
        MSRNError, match=r"the sidecar of another image has its place already, .*\.xmp\. .*--format jsonl"
    ):
        write_sidecars(rows, tmp_path / "side", About(paths, "m"))
    assert [path.name for path in tmp_path.rglob("*")] == ["side", "old.xmp"]  # nothing was lost
    write_sidecars([rows[0], rows[0]], tmp_path / "side", About(paths, "m"))  # an image that is listed twice
    assert len([path for path in tmp_path.rglob("*.xmp") if path.is_file()]) == 1


def test_no_sidecar_lies_hundreds_of_folders_deep(tmp_path: Path) -> None:
    """Making and removing so many takes more calls within calls than Python has."""
    rows = [{"path": f"{'d/' * depth}a.png", "labels": []} for depth in (200, 1200)]
    write_sidecars(rows[:1], tmp_path / "side", About((), "m"))
    with pytest.raises(MSRNError, match=r"a\.png: it lies more than 200 folders deep, .* --format jsonl writes"):
        write_sidecars(rows, tmp_path / "side", About((), "m"))
    assert [path.name for path in tmp_path.iterdir()] == ["side"]
    assert len([path for path in tmp_path.rglob("*.xmp") if path.is_file()]) == 1  # the earlier ones stay
