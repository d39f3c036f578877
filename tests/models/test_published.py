"""Reading the authors' checkpoints; that their numbers come out is in tests/parity."""

import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from msrn.errors import PublishedFileError
from msrn.models.published import published_architecture, published_sizes, read_published_checkpoint

STATE = OrderedDict({"fc1.weight": torch.arange(6.0).reshape(2, 3), "fc1.bias": torch.ones(2)})
NUM_LABELS, NUM_GROUPS, HIDDEN, VECTOR_WIDTH = 3, 1, 2, 5


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def heads() -> dict[str, torch.Tensor]:
    """The authors' names with the least shapes that `published_architecture` accepts; no network fits them."""
    graph = (
        "label_embed.layers.0",
        "label_embed.layers.1",
        "group_embed.layers.0.embed",
        "group_embed.layers.0.assign_mat",
    )
    state = {f"{layer}.{leaf}": torch.zeros(512, NUM_GROUPS) for layer in graph for leaf in ("W", "a")}
    for name in ("resnet_101.conv_buffer1", "resnet_101.conv_buffer2", "ProjectM.0", "ProjectM.1", "ProjectM.2"):
        state |= {f"{name}.weight": torch.zeros(1), f"{name}.bias": torch.zeros(1)}
    return {
        **state,
        "fc_label.weight": torch.zeros(256, VECTOR_WIDTH),
        "fc_label.bias": torch.zeros(256),
        "fc1.weight": torch.zeros(HIDDEN, (NUM_LABELS + NUM_GROUPS) * 1536),
        "fc1.bias": torch.zeros(HIDDEN),
        "fc2.weight": torch.zeros(NUM_LABELS, HIDDEN),
        "fc2.bias": torch.zeros(NUM_LABELS),
    }


def check_state(path: Path) -> None:
    state = read_published_checkpoint(path)
    assert list(state) == list(STATE)
    assert all(torch.equal(state[name], value) for name, value in STATE.items())


def refusal(path: Path) -> str:
    with pytest.raises(PublishedFileError) as caught:
        read_published_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"best_score": 96.0},
        {"best_score": np.float64(96.0)},
        {"best_score": np.float32(96.0)},
        {"best_score": torch.tensor(96.0)},
    ],
    ids=["bare", "float", "float64", "float32", "tensor"],
)
def test_authors_formats(tmp_path, new_format, beside):
    content = {"epoch": 30, "arch": None, "state_dict": STATE, **beside} if beside else STATE
    path = tmp_path / "model_best.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    check_state(path)
    check_state(Path(str(path)))


@pytest.mark.parametrize("new_format", [True, False])
def test_numpy_scalars_of_numpy_1(tmp_path, new_format):
    path = tmp_path / "old.pth"
    torch.save({"state_dict": STATE, "best_score": np.float64(0.5)}, path, _use_new_zipfile_serialization=new_format)
    if new_format:
        rewrite_zip(path, lambda data: data.replace(b"numpy._core.", b"numpy.core."))
    else:
        path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in (zip_pickle(path) if new_format else path.read_bytes())
    check_state(path)


def zip_pickle(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def rewrite_zip(path: Path, change) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("function", [os.system, exec, eval, os.mkdir])
def test_nothing_is_run(tmp_path, new_format, function):
    marker = tmp_path / "marker"
    argument = {os.system: f"touch {marker}", os.mkdir: str(marker)}.get(
        function, f"open({str(marker)!r}, 'w').close()"
    )
    path = tmp_path / "bad.pth.tar"
    content = {"state_dict": STATE, "best_score": Calls(function, argument)}
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    message = refusal(path)
    assert function.__name__ in message
    assert "nothing in this file was run" in message
    assert not marker.exists()
    # The numpy names that are let through call nothing either.
    torch.save({"state_dict": STATE, "best_score": np.array([Calls(function, argument)], dtype=object)}, path)
    refusal(path)
    path.write_bytes(pickle.dumps(Calls(function, argument)))
    refusal(path)
    assert not marker.exists()


def test_the_payload_is_real(tmp_path):
    path, marker = tmp_path / "bad.pth.tar", tmp_path / "marker"
    torch.save({"best_score": Calls(os.mkdir, str(marker))}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not a state_dict"),
        ([1, 2], "holds a list"),
        ({}, "an empty dict"),
        ({"state_dict": {}}, "an empty dict"),
        ({"state_dict": 3}, "holds a int"),
        ({"epoch": 3}, "1 entries that are not named tensors (first: 'epoch')"),
        ({1: torch.zeros(2)}, "not named tensors (first: '1')"),
        ({"fc1.weight": torch.zeros(1).expand(1000, 1000)}, "(first: 'fc1.weight')"),
        ({"fc1.weight": torch.zeros(3, 3).to_sparse()}, "(it asks for torch.serialization._get_layout"),
        ({"fc1.weight": torch.empty(3, device="meta")}, "(it asks for torch._utils._rebuild_meta_tensor_no_storage"),
    ],
)
def test_what_is_no_state_dict_is_named(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    assert message in refusal(tmp_path / "x.pth")


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.pth.tar"
    assert "does not exist" in refusal(path)
    assert "is not a file" in refusal(tmp_path)
    for new_format in (True, False):
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=new_format)
        whole = path.read_bytes()
        for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert "download it again" in refusal(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "download it again" in refusal(path)
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")
    refusal(path)


def test_architecture_follows_from_the_shapes():
    state = {f"module.{name}": value for name, value in heads().items()}
    architecture = published_architecture(state)
    assert published_sizes(state) == (NUM_LABELS, VECTOR_WIDTH)
    assert (architecture["name"], architecture["backbone"], architecture["classifier"]) == (
        "msrn",
        "resnet101",
        "joint",
    )
    assert architecture["classifier_dim"] == HIDDEN
    assert int(architecture["group_ratio"] * NUM_LABELS) == NUM_GROUPS


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"fc2.bias": torch.zeros(4)},
            "4 labels and 1 groups: fc1.weight is (2, 6144), not (2, 7680); fc2.weight is (3, 2)",
        ),
        ({"fc2.bias": torch.zeros(())}, "fc2.bias is (), not (1,)"),
        ({"fc1.bias": torch.zeros(1).expand(10**9)}, "not (1000000000, 6144)"),
        ({"group_embed.layers.0.assign_mat.W": torch.zeros(())}, "3 labels and 0 groups"),
        ({"group_embed.layers.0.assign_mat.W": torch.zeros(512, 4)}, "3 labels and 4 groups"),
        ({"fc_label.weight": torch.zeros(3)}, "fc_label.weight is (3,), not (256, 3)"),
    ],
)
def test_shapes_of_no_network_are_named(changed, message):
    with pytest.raises(PublishedFileError) as caught:
        published_architecture({**heads(), **changed})
    assert message in str(caught.value)


def test_other_networks_are_named():
    with pytest.raises(PublishedFileError, match=r"24 names are missing \(first: resnet_101.conv_buffer1.weight\)"):
        published_architecture({"conv1.weight": torch.zeros(1)})
