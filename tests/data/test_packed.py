import io
import pickle
import posixpath
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from msrn.data import packed
from msrn.data.images import read_image
from msrn.data.packed import TarMember, walk_tar
from msrn.errors import DataError, UnreadableImageError


def jpeg(colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (16, 12)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_member_reads_as_the_file_does(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    archive = write_tar(tmp_path / "a.tar", {"x/a.jpg": jpeg()})
    (entry,) = walk_tar(archive)
    for member in (TarMember(archive, "x/a.jpg"), TarMember(archive, *entry)):
        member = pickle.loads(pickle.dumps(member))
        assert read_image(member).tobytes() == read_image(tmp_path / "a.jpg").tobytes()
        assert (str(member), member.name, member.is_file()) == (f"{archive}/x/a.jpg", "a.jpg", True)
        assert member == TarMember(archive, "x/a.jpg")


@settings(max_examples=20, deadline=None)
@given(
    files=st.dictionaries(
        st.text("abcä日 /.", min_size=1, max_size=130).filter(
            lambda name: name.strip("/. ") and not posixpath.normpath(name).startswith(("/", "../"))
        ),
        st.binary(max_size=1500),
    )
)
def test_every_place_is_found(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    archive = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", files)
    content = archive.read_bytes()
    entries = list(walk_tar(archive))
    assert [content[entry.offset : entry.offset + entry.size] for entry in entries] == list(files.values())


def test_names_are_normal(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"./0001.jpg": jpeg()})
    assert TarMember(archive, "0001.jpg").read_bytes() == jpeg()


def test_missing_member_and_archive(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg()})
    for member in (TarMember(archive, "b.jpg"), TarMember(tmp_path / "none.tar", "a.jpg")):
        assert not member.is_file()
        with pytest.raises(UnreadableImageError, match=r"\.tar/[ab]\.jpg: "):
            read_image(member)


def test_archive_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.jpg": b"1"})
    assert TarMember(archive, "a.jpg").read_bytes() == b"1"
    archive.unlink()
    write_tar(archive, {"b.jpg": b"22", "a.jpg": b"333"})
    assert TarMember(archive, "a.jpg").read_bytes() == b"333"


def test_the_places_that_are_remembered_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_MOST_PLACES", 5)
    names = ["a.jpg", "b.jpg"]
    archives = [
        write_tar(tmp_path / f"{number}.tar", {name: f"{number} {name}".encode() for name in names})
        for number in range(4)
    ]
    for name in names * 2:
        for number, archive in enumerate(archives):
            assert TarMember(archive, name).read_bytes() == f"{number} {name}".encode()
            assert sum(map(len, packed._known_places.values())) <= 5


def test_archive_that_became_shorter(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg()})
    (entry,) = walk_tar(archive)
    archive.write_bytes(archive.read_bytes()[: entry.offset + 100])
    with pytest.raises(UnreadableImageError, match=r"a\.tar ends within it"):
        read_image(TarMember(archive, *entry))


def test_links_and_devices_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "/etc/hostname"
            tar.addfile(info)
    assert list(walk_tar(tmp_path / "a.tar")) == []


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archives_are_refused(tmp_path: Path, mode: str) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg()}, mode=mode)
    with pytest.raises(DataError, match=r"a\.tar: a compressed tar archive, .* Unpack it to a \.tar file"):
        list(walk_tar(archive))


@pytest.mark.parametrize("num_bytes", [0, 100, 700, 1024, 2000, 2048, 2560])
def test_truncated_archives_are_named(tmp_path: Path, num_bytes: int) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.jpg": bytes(range(1, 201)), "b.jpg": bytes(range(1, 201))})
    archive.write_bytes(archive.read_bytes()[:num_bytes])
    whole = num_bytes == 2560  # two headers, two blocks of content, and a first one of the end
    if whole:
        assert len(list(walk_tar(archive))) == 2
    else:
        with pytest.raises(
            DataError, match=r"a\.tar: a damaged or truncated tar archive \(.+\)\. Copy or pack it again"
        ):
            list(walk_tar(archive))


def test_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    content = bytearray(archive.read_bytes())
    content[1024 + 148 : 1024 + 156] = b"badsum!!"
    archive.write_bytes(content)
    with pytest.raises(DataError, match="no end after byte 1024"):
        list(walk_tar(archive))


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/outside.jpg", "a/../../outside.jpg"])
def test_a_member_that_would_lie_outside_of_its_archive_is_refused(tmp_path, name):
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(
        DataError, match=r"evil\.tar: a tar archive with a file '.*outside\.jpg', which would lie outside"
    ):
        list(walk_tar(archive))


@pytest.mark.parametrize("size", [-512, -1536])
def test_a_file_of_less_than_no_bytes_is_damage(tmp_path: Path, size: int) -> None:
    """Python's tarfile goes back by its size, to read the same for ever."""
    archive = tmp_path / "shard.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("first.png"))
        odd = tarfile.TarInfo("odd.png")
        odd.size = size
        tar.fileobj.write(odd.tobuf(tarfile.GNU_FORMAT))
        tar.fileobj.write(bytes(1024))
    with pytest.raises(DataError, match=r"damaged|truncated"):
        list(walk_tar(archive))


def test_a_name_that_no_file_can_have_is_none(tmp_path: Path) -> None:
    assert not TarMember(tmp_path / "a\0.tar", "x.jpg").is_file()
