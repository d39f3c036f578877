"""Files appear whole or not at all."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import msrn.files
from msrn.errors import MSRNError
from msrn.files import (
    JSONLinesWriter,
    check_can_write,
    read_bounded,
    remove_leftovers,
    replace_file,
    replace_folder,
    write_json,
    write_text,
)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "note.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names_in(path.parent) == {"note.txt"}


def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(MSRNError, match=r"note\.txt cannot be written: No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == {"note.txt"}


def test_json_goes_to_a_file_or_to_standard_output(tmp_path, capsys):
    write_json(tmp_path / "value.json", {"é": [1, None]})
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    write_json("-", {"a": 1})
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_a_file_written_in_pieces_appears_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "table.csv"
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), replace_file(path) as temporary:
        temporary.write_text(str(1 / 0))
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]
    with pytest.raises(MSRNError, match="cannot be written"), replace_file(path / "below.csv"):
        pass


def test_a_folder_is_replaced_whole(tmp_path):
    for text in ("one", "two"):
        with replace_folder(tmp_path / "out") as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "out" / "file").read_text() == "two"
    assert names_in(tmp_path) == {"out"}


def test_a_failure_inside_keeps_the_old_folder(tmp_path):
    with replace_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(MSRNError), replace_folder(tmp_path / "out") as folder:
        folder.write_text("new")
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert names_in(tmp_path) == {"out"}


def test_json_lines_appear_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    with JSONLinesWriter(path) as writer:
        writer.write({"row": 1})
        writer.write({"row": 2})
        assert not path.exists()
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [1, 2]
    with pytest.raises(TypeError), JSONLinesWriter(path) as writer:
        writer.write({"row": object()})
    assert path.read_text().count("\n") == 2
    assert names_in(tmp_path) == {"rows.jsonl"}


def test_no_json_file_writes_nothing(tmp_path, capsys):
    with JSONLinesWriter(None) as writer:
        writer.write({"row": 1})
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: write_text(path, ""), lambda path: JSONLinesWriter(path).__enter__()):
        with pytest.raises(MSRNError, match=r"inner cannot be written"):
            write(tmp_path / "file" / "inner")
    with pytest.raises(MSRNError, match="cannot be written"), replace_folder(tmp_path / "file" / "inner"):
        pass


def test_names_of_files_in_another_encoding_can_be_written(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    write_text(tmp_path / "names.txt", f"{name}\n")
    assert (tmp_path / "names.txt").read_bytes() == b"caf\xe9.jpg\n"
    write_json(tmp_path / "names.json", {"path": name})
    assert json.loads((tmp_path / "names.json").read_text()) == {"path": name}


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """What a power cut leaves: a rename may reach the disk before the content, unless that was asked for first."""
    steps = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(handle):
        steps.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        real_sync(handle)

    def replace(self, target):
        steps.append(("replace", str(target)))
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    write_text(tmp_path / "note.txt", "new")
    kinds = [kind for kind, _ in steps]
    assert kinds == ["sync", "replace", "sync"]
    assert steps[0][1].startswith(str(tmp_path / ".note.txt."))
    assert steps[2][1] == str(tmp_path)
    steps.clear()
    with replace_folder(tmp_path / "bundle") as folder:
        (folder / "weights").write_text("numbers")
        (folder / "deep").mkdir()
        (folder / "deep" / "more").write_text("numbers")
    names = [Path(name).name for kind, name in steps]
    assert names[0] == "weights"
    assert {"deep", "more"} < set(names[:-2])
    assert [kind for kind, _ in steps][-2:] == ["replace", "sync"]


def test_a_file_that_could_not_be_written_is_refused_before_the_work(tmp_path):
    check_can_write("--json", None)
    check_can_write("--json", Path("-"))
    check_can_write("--json", tmp_path / "new" / "result.json")
    assert not (tmp_path / "new" / "result.json").exists()
    with pytest.raises(MSRNError, match=r"--json .* is a folder"):
        check_can_write("--json", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MSRNError, match="cannot be written"):
        check_can_write("--json", tmp_path / "file" / "result.json")


def write_lines(path):
    with JSONLinesWriter(path) as writer:
        writer.write({"a": 1})


WRITERS = [lambda path: write_text(path, '{"a": 1}\n'), write_lines]


@pytest.mark.fault("a pipe or a device where a file shall be written")
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_is_written_and_stays_one(tmp_path, kind, write, lost):
    path = tmp_path / "special"
    try:
        if kind == "pipe":
            os.mkfifo(path)
        else:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # null
            path.write_text("")
    except (AttributeError, OSError):
        pytest.skip(f"this user may not make a {kind}")
    before = stat.S_IFMT(path.stat().st_mode)
    check_can_write("--json", path)
    read = []
    if kind == "pipe":
        reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
        reader.start()
    write(path)
    if kind == "pipe":
        reader.join(10)
        assert [json.loads(text) for text in read] == [{"a": 1}]
    assert stat.S_IFMT(path.stat().st_mode) == before
    lost({"special"}, names_in(tmp_path), "names")


@pytest.mark.fault("a link where a file shall be written")
@pytest.mark.parametrize("write", WRITERS)
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, write, lost):
    (tmp_path / "there").mkdir()
    links = {"old": tmp_path / "there" / "old.json", "new": tmp_path / "there" / "new.json"}
    links["old"].write_text("old")
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
        check_can_write("--json", tmp_path / name)
        write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert json.loads(target.read_text()) == {"a": 1}
    lost({"old.json", "new.json"}, names_in(tmp_path / "there"), "names")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    with pytest.raises(MSRNError, match="cannot be written"):
        write(tmp_path / "round")


REPLACE = """
import os, sys
import msrn.files
from pathlib import Path
msrn.files._swap = msrn.files._swap if sys.argv[1] == "swap" else lambda one, other: False
real, count = Path.replace, 0
def replace(self, target):
    global count
    count += 1
    if count == 2:
        os._exit(9)
    return real(self, target)
Path.replace = replace
if sys.argv[1] == "swap":  # right behind the one step
    swap = msrn.files._swap
    msrn.files._swap = lambda one, other: swap(one, other) and os._exit(9)
with msrn.files.replace_folder(sys.argv[2]) as folder:
    (folder / "file").write_text("new")
"""


@pytest.mark.fault("a kill while a folder takes the place of another")
@pytest.mark.parametrize("way", ["swap", "two renames"])
def test_a_kill_between_the_names_loses_no_folder(tmp_path, way, lost):
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    if way == "swap" and not msrn.files._swap(out, out):
        pytest.skip("this system cannot swap two names")
    done = subprocess.run([sys.executable, "-c", REPLACE, way, out], check=False)
    assert done.returncode == 9
    assert out.exists() == (way == "swap")
    remove_leftovers(out)
    assert (out / "file").read_text() == ("new" if way == "swap" else "old")
    lost({"out"}, names_in(tmp_path), "folders")


@pytest.mark.fault("Ctrl-C while a folder takes the place of another")
@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_between_the_names_loses_no_folder(tmp_path, monkeypatch, at, lost):
    monkeypatch.setattr(msrn.files, "_swap", lambda one, other: False)
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, target)

    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt), replace_folder(out) as folder:
        (folder / "file").write_text("new")
    assert (out / "file").read_text() == "old"
    lost({"out"}, names_in(tmp_path), "folders")


def test_the_next_write_puts_back_what_a_kill_moved_away(tmp_path):
    moved = tmp_path / ".out.abcdefgh.old.msrn" / "old"
    moved.mkdir(parents=True)
    (moved / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "out") as folder:
        (folder / "file").write_text(str(1 / 0))
    assert (tmp_path / "out" / "file").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from msrn.files import JSONLinesWriter, replace_file, replace_folder
way, path = sys.argv[1:]
with {"file": replace_file, "folder": replace_folder, "lines": JSONLinesWriter}[way](path) as begun:
    if way == "folder":
        (begun / "file").write_text("half")
    print("begun", flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.fault("a kill while a file or folder is written that no job or run goes on with")
@pytest.mark.parametrize("way", ["file", "folder", "lines"])
def test_what_a_kill_leaves_goes_with_the_next_start_and_not_while_it_is_written(tmp_path, way, lost):
    path = tmp_path / "photos"
    users = {".photos.database", ".photos.old.database", ".photos.12345678.msrn~"}
    for name in users:
        (tmp_path / name).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, way, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        (begun,) = names_in(tmp_path) - users
        check_can_write("--out", path)
        assert names_in(tmp_path) == {*users, begun}
        process.communicate("k")
    assert process.returncode == -signal.SIGKILL
    assert names_in(tmp_path) == {*users, begun}
    if way == "folder":
        with replace_folder(path):
            pass
        path.rmdir()
    else:
        check_can_write("--out", path)
    assert begun not in names_in(tmp_path)
    lost(users, names_in(tmp_path), "hidden files of the user")


def test_two_that_write_to_one_name_are_in_nobodys_way(tmp_path, lost):
    path = tmp_path / "out"
    with replace_folder(path) as first:
        (first / "file").write_text("first")
        with replace_folder(path) as second:
            (second / "file").write_text("second")
        assert (path / "file").read_text() == "second"
    lost(["first"], [(path / "file").read_text()], "folders")
    assert names_in(tmp_path) == {"out"}


def test_where_names_cannot_be_swapped_two_renames_do(tmp_path, monkeypatch):
    monkeypatch.setattr(msrn.files, "_swap", lambda one, other: False)
    test_a_folder_is_replaced_whole(tmp_path)


def test_what_is_read_whole_is_a_small_file(tmp_path):
    (tmp_path / "small").write_bytes(b"1234")
    assert read_bounded(tmp_path / "small", 4) == b"1234"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_bounded(tmp_path / "small", 3)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            read_bounded(path, 4)
