"""What is found in folders, globs, tables, archives, lists and at addresses, and in which order."""

import http.server
import os
import shutil
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from deep_folders import nested
from hypothesis import given, settings
from hypothesis import strategies as st

from msrn.bulk import find_images
from msrn.bulk.sources import _matches, check_sources
from msrn.data import list_images, read_image
from msrn.errors import DataError, EmptySplitError, SourceNotFoundError, UnreadableImageError


def names(*sources: str | Path, **options: object) -> list[str]:
    return [str(image) for image in find_images(sources, **options)]  # type: ignore[arg-type]


def test_folders_globs_and_files(photos: Path) -> None:
    found = names(photos)
    assert sorted(found) == sorted(str(path) for path in list_images(photos))
    assert len(found) == 13
    assert found == names(photos)  # always the same order
    assert names(f"{photos}/**/*.png") == sorted(path for path in found if path.endswith(".png"))
    assert names(photos / "notes.txt") == [str(photos / "notes.txt")]  # named itself, it is tried
    assert names(photos / "b", photos / "02.png") == [*names(photos / "b"), str(photos / "02.png")]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from(["a", "b", "a.jpg", "c.png", ".hidden", "d.txt"]), min_size=1, max_size=4)))
def test_a_tree_gives_what_list_images_gives(tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]]) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for parts in paths:
        path = folder.joinpath("sub", *parts[:-1], f"image-{parts[-1]}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    try:
        expected = sorted(map(str, list_images(folder)))
    except EmptySplitError:
        with pytest.raises(EmptySplitError):
            names(folder)
    else:
        assert sorted(names(folder)) == expected


def test_a_file_of_several_sources_comes_once(photos: Path) -> None:
    everything = names(photos)
    assert names(photos, photos / "02.png", f"{photos}/*.png", photos / "b") == everything
    assert sorted(names(photos / "02.png", photos)) == sorted(everything)
    (photos / "loop").symlink_to(photos, target_is_directory=True)
    assert names(photos) == everything
    assert names(f"{photos}/**/*.png") == sorted(path for path in everything if path.endswith(".png"))


def test_what_a_folder_passes_over_comes_when_it_is_named(photos: Path, tmp_path: Path) -> None:
    everything = names(photos)
    for folder in (photos / ".private", tmp_path / "elsewhere"):
        folder.mkdir()
        shutil.copy(photos / "02.png", folder / "x.png")
    (photos / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    shutil.copy(photos / "02.png", photos / "y.avif")
    assert names(photos) == everything
    for source, path in (
        (f"{photos}/*.avif", "y.avif"),
        (f"{photos}/[x-z].avif", "y.avif"),
        (photos / "y.avif", "y.avif"),
        (photos / "notes.txt", "notes.txt"),
        (photos / ".private", ".private/x.png"),
        (f"{photos}/.private/*", ".private/x.png"),
        (photos / ".private" / "x.png", ".private/x.png"),
        (photos / "link", "link/x.png"),
        (photos / "link" / "x.png", "link/x.png"),
    ):
        assert names(photos, source) == [*everything, str(photos / path)]
        assert names(photos, source, source, photos / path) == [*everything, str(photos / path)]


def test_tables_and_archives_of_several_sources_come_once(photos: Path) -> None:
    with tarfile.open(photos / "a.tar", "w") as tar:
        tar.add(photos / "02.png", "02.png")
    (photos / "list.csv").write_text("path\n02.png\n02.png\n")
    for pattern, name, images in (("*.tar", "a.tar", ["a.tar/02.png"]), ("*.csv", "list.csv", ["02.png"] * 2)):
        for sources in ((f"{photos}/{pattern}", photos / name), (photos / name, f"{photos}/{pattern}")):
            assert names(*sources) == [str(photos / image) for image in images]


def test_names_that_look_like_something_else(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    Path("~foo.png").write_bytes(Path("02.png").read_bytes())
    Path("[1].png").write_bytes(Path("02.png").read_bytes())
    assert names("~foo.png", "[1].png") == ["~foo.png", "[1].png"]
    assert names("-", lines=["~foo.png\n"]) == ["~foo.png"]


def test_a_folder_that_cannot_be_listed_is_an_unreadable_image(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {str(image): image for image in find_images([photos])}
    assert len(found) == 13 - 4 + 1
    with pytest.raises(UnreadableImageError, match=r"b: the folder cannot be listed \(Permission denied\)"):
        read_image(found[str(photos / "b")])


@pytest.fixture
def too_deep(photos: Path) -> Iterator[Path]:
    """A folder that not even root can list: its path is longer than the system takes."""
    with nested(photos, depth=20, name="d" * 250):
        yield photos / ("d" * 250)


@pytest.mark.skipif(sys.platform != "linux", reason="how long a path may be")
def test_a_folder_that_a_glob_or_an_address_cannot_look_into_is_an_unreadable_image(
    photos: Path, too_deep: Path
) -> None:
    for sources, count in (
        ([photos], 13),
        ([f"{photos}/**/*.*g"], 13),
        ([f"{photos}/**/**/*.*g"], 13),
        ([photos, f"{photos}/**/*.*g"], 13),
        ([f"{photos}/**/d*/*.*g"], 4),  # of the folder "deeper"
        ([f"file://{photos}"], 13),
    ):
        found = list(find_images(sources))
        (closed,) = [image for image in found if str(too_deep) in str(image)]
        with pytest.raises(
            UnreadableImageError, match=r"the folder cannot be listed \(.*too long.* images are missing"
        ):
            read_image(closed)
        assert len(set(found) - {closed}) == len(found) - 1 == count


@pytest.mark.skipif(sys.platform != "linux", reason="how long a path may be")
def test_folders_that_lie_a_thousand_deep(tmp_path: Path) -> None:
    """More than Python's calls within calls; a path of 2,400 signs is none that is too long."""
    (tmp_path / "z.png").touch()
    with nested(tmp_path, depth=1200, file=("0.png", b"")) as deep:
        for sources in ([tmp_path], [tmp_path, deep], [f"file://{tmp_path}"]):
            found = names(*sources)
            assert sorted(path.removeprefix("file://") for path in found) == sorted(
                [str(deep), str(tmp_path / "z.png")]
            )
        for pattern in ("**/*.png", "**/**/*.png", f"{'*/' * 1200}*.png"):
            found = names(f"{tmp_path}/{pattern}")
            assert found == ([str(deep)] if pattern.startswith("*/") else [str(tmp_path / "z.png"), str(deep)])
        assert list_images(tmp_path) == [deep, tmp_path / "z.png"]
    with nested(tmp_path, depth=2500, file=("0.png", b"")):
        top, closed = find_images([tmp_path])
        assert top == tmp_path / "z.png"
        with pytest.raises(UnreadableImageError, match=r"the folder cannot be listed \(File name too long\)"):
            read_image(closed)


def test_a_link_that_leads_to_itself_hides_no_folder(photos: Path) -> None:
    before = names(f"{photos}/*.png")
    (photos / "self.png").symlink_to(photos / "self.png")
    assert names(f"{photos}/*.png") == before


def test_tables(photos: Path) -> None:
    table = photos / "list.csv"
    table.write_text("name;File\nx;02.png\ny;b/00.png\n")
    assert names(table) == [str(photos / "02.png"), str(photos / "b" / "00.png")]
    (photos / "list.jsonl").write_text('{"where": "02.png", "path": "05.png"}\n')
    assert names(photos / "list.jsonl", path_column="where") == [str(photos / "02.png")]
    with pytest.raises(DataError, match="no column 'there', only: where, path"):
        names(photos / "list.jsonl", path_column="there")
    (photos / "no.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"expected a column of paths .*got: a, b\. Name one by --path-column"):
        names(photos / "no.csv")
    (photos / "gap.csv").write_text("path,b\n02.png,2\n,3\n")
    with pytest.raises(DataError, match=r"gap.csv:3: no path in the column 'path'"):
        names(photos / "gap.csv")


def test_archives_and_their_images_in_lists(photos: Path, tmp_path: Path) -> None:
    shard = tmp_path / "shard-0.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("02.png", "notes.txt", "05.png"):
            tar.add(photos / name, name)
    images = list(find_images([shard]))
    assert [str(image) for image in images] == [f"{shard}/02.png", f"{shard}/05.png"]
    assert read_image(images[0]).tobytes() == read_image(photos / "02.png").tobytes()
    listed = list(find_images(["-"], lines=[f"{shard}/05.png\n", "\n", f"{photos}/02.png\r\n"]))
    assert read_image(listed[0]).tobytes() == read_image(photos / "05.png").tobytes()
    assert listed[1] == photos / "02.png"
    assert names(f"{tmp_path}/*.tar") == [f"{shard}/02.png", f"{shard}/05.png"]


@pytest.fixture
def address(photos: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(photos))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_web_addresses(photos: Path, address: str) -> None:
    image, missing = find_images([f"{address}/02.png", f"{address}/none.png"])
    assert str(image) == f"{address}/02.png"
    assert read_image(image).tobytes() == read_image(photos / "02.png").tobytes()
    with pytest.raises(UnreadableImageError, match=r"none\.png: the server answers 404 File not found\. Check"):
        read_image(missing)
    with pytest.raises(UnreadableImageError, match="cannot be fetched"):
        read_image(next(find_images(["http://127.0.0.1:1/a.png"])))


def test_blanks_and_letters_in_addresses(photos: Path, address: str) -> None:
    shutil.copy(photos / "02.png", photos / "zwei ö.png")
    for name in ("zwei ö.png", "zwei%20%C3%B6.png", "zwei ö.png?a b=ö#top"):
        (image,) = find_images([f"{address}/{name}"])
        assert read_image(image).tobytes() == read_image(photos / "02.png").tobytes()


@contextmanager
def answering(*parts: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """The address of a server that says these bytes, whatever it is asked, and goes on with the last of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    for part in chain(parts[:-1], repeat(parts[-1]) if pause_s else parts[-1:]):
                        connection.sendall(part)
                        time.sleep(pause_s)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
    thread.join()


@pytest.mark.fault("an address whose server sends a byte now and then")
def test_a_server_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch, photos: Path, lost: Any) -> None:
    monkeypatch.setattr("msrn.bulk.sources._MOST_S", 0.2)
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b".", pause_s=0.02) as address:
        slow, image = find_images([address, str(photos / "02.png")])
        with pytest.raises(UnreadableImageError, match=r"cannot be fetched \(it took more than 0 seconds\)\. Check"):
            read_image(slow)
    lost([read_image(photos / "02.png").tobytes()], [read_image(image).tobytes()], "images behind it")


NO_ANSWERS = {
    "another protocol": b"nonsense\r\n\r\n",
    "no number": b"HTTP/1.1 abc\r\n\r\n",
    "nothing": b"",
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n.",
}


@pytest.mark.parametrize("answer", NO_ANSWERS)
def test_what_is_no_answer(answer: str) -> None:
    words = "not an image that msrn reads" if answer == "cut off" else "cannot be fetched"
    with answering(NO_ANSWERS[answer]) as address, pytest.raises(UnreadableImageError, match=words):
        read_image(next(find_images([address])))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="nowhere does not exist"):
        check_sources([tmp_path / "nowhere"])
    with pytest.raises(SourceNotFoundError, match=r"\*\.jpg matches no file"):
        check_sources([f"{tmp_path}/*.jpg"])
    with pytest.raises(EmptySplitError, match="expected at least one"):
        check_sources([])
    with pytest.raises(EmptySplitError, match="holds no images"):
        names(tmp_path)
    with pytest.raises(EmptySplitError, match="standard input holds no images"):
        names("-", lines=[])
    with pytest.raises(EmptySplitError, match="holds no images"):
        check_sources([os.fspath(tmp_path)])
    check_sources(["-", "https://example.org/a.jpg?from=list.csv"])


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("https://example.org/list.csv", "a table"),
        ("http://example.org/list.JSONL?token=a.jpg", "a table"),
        ("s3://bucket/shard.tar", "an archive"),
        ("s3://bucket/*.tar", "an archive"),
    ],
)
def test_a_table_or_archive_elsewhere_is_refused(address: str, what: str) -> None:
    for look in (check_sources, names):
        with pytest.raises(DataError, match=rf"{what} is read from this machine only\. Download it, and name the file"):
            look(*([[address]] if look is check_sources else [address]))


@pytest.mark.parametrize(
    "cell",
    [
        *("../secret.jpg", "/etc/hosts", "file:///etc/hosts", "memory://a.jpg", "../a.tar/0.jpg"),
        *("https://example.org/a.jpg", "http://127.0.0.1/a.jpg"),
    ],
)
def test_a_table_names_no_file_outside_of_its_folder(tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    (tmp_path / "in").mkdir()
    table = tmp_path / "in" / "t.csv"
    table.write_text(f"path\n{cell}\nhttps://example.org/b.jpg\nx/../b.jpg\n")
    with pytest.raises(DataError, match=r"t\.csv:2: .* lies outside of .*--allow-outside"):
        list(find_images([table]))
    assert len(list(find_images([table], allow_outside=True))) == 3


NAMES = st.sampled_from(["a", "b.jpg", "ab.jpg", ".h", "c.png", "[x].jpg"])


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=8),
    pattern=st.lists(st.sampled_from(["*", "**", "a", "*.jpg", "?", "[ab]*"]), min_size=1, max_size=3),
)
def test_a_glob_finds_what_pythons_finds(
    tmp_path_factory: pytest.TempPathFactory, paths: list[list[str]], pattern: list[str]
) -> None:
    import glob

    folder = tmp_path_factory.mktemp("glob")
    for parts in paths:
        path = folder.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:  # a file where a folder would be
            continue
    text = str(folder.joinpath(*pattern))
    expected = {path for path in glob.glob(text, recursive=True) if os.path.isfile(path)}  # noqa: PTH113, PTH207
    found = list(map(str, _matches(text))) if glob.has_magic("/".join(pattern)) else sorted(expected)
    assert set(found) == expected
    assert len(found) == len(set(found))
