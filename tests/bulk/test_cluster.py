"""Ray Data against the engine on this machine, with a worker killed midway; and paths of other file systems."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import msrn
from msrn.bulk import find_images, tag_images
from msrn.bundle import save_bundle
from msrn.data import read_image
from msrn.errors import MSRNError, SourceNotFoundError
from msrn.predict import Predictor

# Ray warns of its own calls, and leaves its files to the end of the process.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def predictor(bundle_dir: Path) -> Predictor:
    return msrn.load(bundle_dir)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = rows_of(found), rows_of(expected)
    assert [row["path"] for row in ours] == [row["path"] for row in theirs]
    for own, other in zip(ours, theirs, strict=True):
        assert {label["name"]: label["probability"] for label in own["labels"]} == pytest.approx(
            {label["name"]: label["probability"] for label in other["labels"]}, abs=1e-4
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="needs msrn[ray]")
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    signal.signal(signal.SIGTERM, handler)  # which Ray takes for itself
    yield
    ray.shutdown()


def workers() -> set[int]:
    """Processes that run a network for Ray."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = status.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"MapWorker" in name:
            found.add(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.fault("a worker of a cluster that is killed while images are tagged")
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds Ray's workers in /proc, which is Linux's")
def test_a_killed_worker_loses_nothing(
    cluster: None, predictor: Predictor, photos: Path, tmp_path: Path, lost: Callable[[Any, Any, str], None]
) -> None:
    names = [path.read_bytes() for path in sorted(photos.glob("*.png"))]
    for number in range(300):
        (photos / f"more-{number:03d}.png").write_bytes(names[number % len(names)])
    tag_images(predictor, [photos], tmp_path / "local.jsonl", num_workers=0)
    killed: list[int] = []
    seen: list[int] = []

    def kill_one(done: int, _: int) -> None:
        seen.append(done)
        if done >= 20 and not killed:
            killed.append(min(workers()))
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.02)

    result = tag_images(
        predictor, [photos], tmp_path / "ray.jsonl", engine="ray", num_workers=2, batch_size=4, on_progress=kill_one
    )
    assert killed
    assert seen[-1] == 313
    assert (result.num_images, result.num_unreadable) == (312, 1)
    assert_same(tmp_path / "ray.jsonl", tmp_path / "local.jsonl")
    both = [[row["path"] for row in rows_of(tmp_path / f"{name}.jsonl")] for name in ("local", "ray")]
    lost(*both, "images")


class StoppedError(Exception):
    pass


@pytest.mark.slow
def test_a_job_goes_on_from_one_engine_to_the_other(
    cluster: None, predictor: Predictor, photos: Path, tmp_path: Path
) -> None:
    def stop(done: int, _: int) -> None:
        if done >= 6:
            raise StoppedError

    tag_images(predictor, [photos], tmp_path / "local.jsonl", num_workers=0)
    with pytest.raises(StoppedError):
        tag_images(
            predictor, [photos], tmp_path / "ray.jsonl", num_workers=0, batch_size=3, part_size=3, on_progress=stop
        )
    result = tag_images(predictor, [photos], tmp_path / "ray.jsonl", engine="ray", num_workers=1)
    assert result.num_resumed == 6
    assert_same(tmp_path / "ray.jsonl", tmp_path / "local.jsonl")


@pytest.mark.slow
def test_relative_paths(
    cluster: None, predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)  # not where the workers are
    result = tag_images(predictor, ["b"], tmp_path / "ray.jsonl", engine="ray", num_workers=1)
    assert (result.num_images, result.num_unreadable) == (4, 0)
    assert rows_of(tmp_path / "ray.jsonl")[0]["path"] == "b/00.png"


@pytest.mark.fault("a place at an address that fails as the result is put there")
def test_an_upload_that_failed_is_tried_again(
    predictor: Predictor,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: Callable[[Any, Any, str], None],
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fail(*_: object, **__: object) -> None:
        raise OSError("the line is down")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", fail)
        with pytest.raises(MSRNError, match=r"cannot be written \(the line is down\)\. The same command tries again"):
            tag_images(predictor, [photos], "memory://second/tags.csv", num_workers=0)
    result = tag_images(predictor, [photos], "memory://second/tags.csv", num_workers=0)
    assert (result.num_resumed, result.num_images) == (13, 12)
    lost(range(13), range(result.num_resumed), "images that were tagged")
    for _ in range(2):  # a folder is replaced, not nested
        tag_images(predictor, [photos], "memory://second/side", num_workers=0, overwrite=True)
        import fsspec

        found = fsspec.filesystem("memory").find("/second/side")
        assert len(found) == 12
        assert all("/side/side" not in name for name in found)


def test_other_file_systems(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/bucket/photos", recursive=True)
    found = [str(image) for image in find_images(["memory://bucket/photos"])]
    assert len(found) == 13
    assert found == sorted(found)
    assert len(list(find_images(["memory://bucket/photos/*.png"]))) == len(list(photos.glob("*.png")))
    (image,) = find_images(["memory://bucket/photos/02.png"])
    assert read_image(image).tobytes() == read_image(photos / "02.png").tobytes()

    result = tag_images(predictor, ["memory://bucket/photos"], "memory://bucket/tags.jsonl", num_workers=0)
    assert (str(result.out), result.num_images, result.num_unreadable) == ("memory://bucket/tags.jsonl", 12, 1)
    lines = memory.cat("/bucket/tags.jsonl").decode().splitlines()
    assert [json.loads(line)["path"] for line in lines] == [name for name in found if "damaged" not in name]
    assert "damaged.jpg" in memory.cat("/bucket/tags.jsonl.errors.jsonl").decode()
    assert not any((tmp_path / "cache" / "msrn" / "jobs").iterdir())
    with pytest.raises(MSRNError, match=r"memory://bucket/tags\.jsonl exists; it is left alone"):
        tag_images(predictor, ["memory://bucket/photos"], "memory://bucket/tags.jsonl", num_workers=0)
    with pytest.raises(SourceNotFoundError, match=r"memory://bucket/none\.png does not exist"):
        list(find_images(["memory://bucket/none.png"]))
    with pytest.raises(SourceNotFoundError, match="cannot be read"):
        list(find_images(["nosuch://bucket"]))


def test_what_lies_at_an_address_is_not_lost(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/kept/photos", recursive=True)
    memory.pipe_file("/kept/mixed/a.xmp", b"mine")
    memory.pipe_file("/kept/mixed/b/c.psd", b"mine")
    before = {name: memory.cat(name) for name in memory.find("/kept")}
    for out, format, words in (
        ("memory://kept/photos", None, "is one of the sources"),
        ("memory:///kept/photos/", None, "is one of the sources"),
        ("memory://kept", None, "holds other things than XMP sidecars; it is left alone"),
        ("memory://kept/mixed", None, "holds other things than XMP sidecars; it is left alone"),
        ("memory://kept/mixed/b/c.psd", "xmp", "holds other things than XMP sidecars; it is left alone"),
        ("memory://kept/mixed", "csv", "is a folder; it is left alone"),
    ):
        with pytest.raises(MSRNError, match=words):
            tag_images(predictor, ["memory://kept/photos"], out, format=format, num_workers=0, overwrite=True)
    assert {name: memory.cat(name) for name in memory.find("/kept")} == before
    with pytest.raises(MSRNError, match="is one of the sources"):
        tag_images(predictor, [photos], f"file://{photos}", format="xmp", overwrite=True)

    def put_a_photo_there(*_: int) -> None:
        memory.pipe_file("/kept/side/late.jpg", b"mine")

    with pytest.raises(MSRNError, match="holds other things than XMP sidecars"):  # also at the end of the job
        tag_images(
            predictor, [photos], "memory://kept/side", num_workers=0, overwrite=True, on_progress=put_a_photo_there
        )
    assert memory.cat("/kept/side/late.jpg") == b"mine"


def test_the_list_of_unreadable_images_at_an_address(
    predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone unless it may be replaced, and then it goes where there are none."""
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    listed = "/listed/tags.csv.errors.jsonl"
    memory.pipe_file(listed, b"mine")
    with pytest.raises(MSRNError, match=r"memory://listed/tags\.csv\.errors\.jsonl exists; it is left alone"):
        tag_images(predictor, [photos], "memory://listed/tags.csv", num_workers=0)
    assert memory.cat(listed) == b"mine"
    result = tag_images(predictor, [photos], "memory://listed/tags.csv", num_workers=0, overwrite=True)
    assert result.errors_file == f"memory:/{listed}"
    assert b"damaged.jpg" in memory.cat(listed)
    (photos / "damaged.jpg").unlink()
    result = tag_images(predictor, [photos], "memory://listed/tags.csv", num_workers=0, overwrite=True)
    assert result.errors_file is None
    assert memory.find("/listed") == ["/listed/tags.csv"]


def test_a_folder_at_an_address_is_sorted_by_whole_paths() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("a0.png", "a/x.png", "a.png", "a-b/y.png", "a-b/z/y.jpg", "notes.txt"):
        memory.pipe_file(f"/sorted/{name}", b"")
    found = [str(image).removeprefix("memory://") for image in find_images(["memory://sorted"])]
    assert found == [name for name in sorted(memory.find("/sorted")) if not name.endswith("txt")]


@pytest.mark.slow
def test_a_cluster_that_takes_no_more_is_named(
    cluster: None, predictor: Predictor, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise ray.exceptions.ObjectStoreFullError("no room")

    monkeypatch.setattr(ray, "put", refuse)
    with pytest.raises(MSRNError, match=r"the job failed on the cluster \(.*no room.* The same command goes on"):
        tag_images(predictor, [photos], tmp_path / "ray.jsonl", engine="ray", num_workers=1)


@pytest.mark.slow
def test_a_cluster_of_its_own_leaves_signals_alone(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    code = (
        "import signal, sys, msrn\n"
        "from msrn.bulk import tag_images\n"
        "tag_images(msrn.load(sys.argv[1]), [sys.argv[2]], sys.argv[3], engine='ray', num_workers=1)\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    )
    pytest.importorskip("ray", reason="needs msrn[ray]")
    bundle = save_bundle(predictor.bundle, tmp_path / "bundle")
    command = [sys.executable, "-c", code, bundle, photos, tmp_path / "tags.csv"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "tags.csv").read_text().splitlines()) == 13


def test_engines_are_known(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(MSRNError, match=r"there is no engine 'spark'\. Choose one of local, ray"):
        tag_images(predictor, [photos], tmp_path / "a.csv", engine="spark")
