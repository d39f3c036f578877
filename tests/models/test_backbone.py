import argparse
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from msrn.errors import ModelError
from msrn.models import Backbone

WEIGHTS = Path(__file__).parents[2].parent / "shared" / "weights" / "mobilenetv2_100.safetensors"
SMALL = {"channels": [8, 16, 24, 32], "stem_width": 8}


@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("resnet18", {}, (128, 256, 512)),
        ("resnet18", {"keep_last_layers": True}, (128, 256, 512)),
        ("mobilenetv2_100", {}, (32, 96, 320)),
        ("mobilenetv2_100", {"keep_last_layers": True}, (32, 96, 1280)),
        ("convnext_atto", {}, (80, 160, 320)),
        # Channels last inside timm:
        ("mambaout_femto", {}, (96, 192, 288)),
        ("mambaout_femto", {"keep_last_layers": True}, (96, 192, 288)),
    ],
)
def test_returns_what_it_announces(name: str, options: dict, channels: tuple[int, ...]) -> None:
    backbone = Backbone(name, **options).eval()
    assert backbone.channels == channels
    assert backbone.strides == (8, 16, 32)
    with torch.no_grad():
        feature_maps = backbone(torch.rand(1, 3, 64, 96))
    expected = [(1, width, 64 // stride, 96 // stride) for width, stride in zip(channels, (8, 16, 32), strict=True)]
    assert [tuple(feature_map.shape) for feature_map in feature_maps] == expected


@pytest.mark.parametrize("num_stages", [1, 2, 4, 5])
def test_stages_are_counted_from_the_last(num_stages: int) -> None:
    backbone = Backbone("resnet18", num_stages=num_stages)
    assert backbone.strides == (2, 4, 8, 16, 32)[-num_stages:]
    assert len(backbone(torch.rand(2, 3, 64, 64))) == num_stages


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_too_many_stages(name: str) -> None:
    with pytest.raises(ModelError, match=rf"'{name}' returns features at fewer than 13 stages\. Lower num_stages"):
        Backbone(name, num_stages=13)


def test_too_many_stages_with_last_layers() -> None:
    with pytest.raises(ModelError, match="'resnet18' returns features at fewer than 6 stages"):
        Backbone("resnet18", num_stages=6, keep_last_layers=True)


def test_no_stage() -> None:
    with pytest.raises(ModelError, match="num_stages is at least 1, got 0"):
        Backbone("resnet18", num_stages=0)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("resnet81", "resnet18"), ("mobilnetv2_100", "mobilenetv2_100"), ("ConvNext_atto", "convnext")]
)
def test_wrong_name_gets_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(ModelError, match=rf"timm knows no model '{wrong}'\. Did you mean .*{meant}.*timm\.list_models"):
        Backbone(wrong)


def test_nonsense_gets_no_suggestion() -> None:
    with pytest.raises(ModelError, match=r"timm knows no model 'qqq'\. See timm\.list_models\(\)"):
        Backbone("qqq")


@pytest.mark.parametrize("name", ["hf-hub:someone/else", "local-dir:/tmp", "timm:resnet18", "x:y"])
def test_names_that_lead_elsewhere(name: str) -> None:
    with pytest.raises(ModelError, match=rf"'{name}' is no model that comes with timm\. Name one that does"):
        Backbone(name)


def test_unknown_tag_and_unknown_option() -> None:
    with pytest.raises(ModelError, match=r"cannot build 'resnet18.nope' .*Invalid pretrained tag"):
        Backbone("resnet18.nope")
    with pytest.raises(ModelError, match=r"cannot build 'resnet18' with nonsense=3: .*Remove the option"):
        Backbone("resnet18", nonsense=3)


@pytest.mark.parametrize("option", ["out_indices", "checkpoint_path", "pretrained_cfg_overlay"])
def test_options_that_are_not_for_callers(option: str) -> None:
    with pytest.raises(ModelError, match=f"a backbone has no option {option}. Use num_stages, pretrained and weights"):
        Backbone("resnet18", **{option: "x"})


def test_options_reach_timm() -> None:
    assert Backbone("resnet10t", **SMALL).channels == (16, 24, 32)


def test_images_of_a_size_the_model_does_not_take() -> None:
    backbone = Backbone("vit_tiny_patch16_224", num_stages=1, depth=1)
    with pytest.raises(ModelError, match=r"does not take images of 64 x 96: .* img_size \(.*img_size: \[64, 96\]"):
        backbone(torch.rand(1, 3, 64, 96))
    resized = Backbone("vit_tiny_patch16_224", num_stages=1, depth=1, img_size=[64, 96])
    assert resized(torch.rand(1, 3, 64, 96))[0].shape == (1, 192, 4, 6)


def test_last_layers_that_return_tokens() -> None:
    backbone = Backbone("vit_tiny_patch16_224", num_stages=1, depth=1, keep_last_layers=True)
    with pytest.raises(
        ModelError, match=r"the last layers of 'vit_tiny_patch16_224' return tokens, .*keep_last_layers=f"
    ):
        backbone(torch.rand(1, 3, 224, 224))


# Weights


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored = timm.create_model("resnet10t", **SMALL).state_dict()
    save_file(stored, tmp_path / "weights.safetensors")
    for keep_last_layers in (False, True):
        backbone = Backbone(
            "resnet10t", weights=tmp_path / "weights.safetensors", keep_last_layers=keep_last_layers, **SMALL
        )
        for name, value in backbone.model.state_dict().items():
            assert torch.equal(value, stored[name]), name


@pytest.mark.parametrize("is_new", [True, False])
def test_weights_of_pytorch(tmp_path: Path, is_new: bool) -> None:
    torch.manual_seed(0)
    stored = timm.create_model("resnet10t", **SMALL).state_dict()
    torch.save(
        {"state_dict": stored, "args": argparse.Namespace(lr=1)},
        tmp_path / "weights.pth",
        _use_new_zipfile_serialization=is_new,
    )
    for name, value in Backbone("resnet10t", weights=tmp_path / "weights.pth", **SMALL).model.state_dict().items():
        assert torch.equal(value, stored[name]), name


def test_missing_weights_file(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"no weights file .*nowhere\.pth\. Give an existing file of resnet18's weights"
    ):
        Backbone("resnet18", weights=tmp_path / "nowhere.pth")


def test_weights_of_another_backbone(tmp_path: Path) -> None:
    path = tmp_path / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", **SMALL).state_dict(), path)
    with pytest.raises(
        ModelError, match=rf"{path} does not hold weights of 'resnet18' .* size mismatch .*name the back"
    ):
        Backbone("resnet18", weights=path)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_100"])
@pytest.mark.filterwarnings("ignore")
def test_file_of_which_nothing_arrives(tmp_path: Path, name: str) -> None:
    # timm leaves out what it does not know by name, and would start from chance without a word.
    path = tmp_path / "other.safetensors"
    save_file({"conv1.kernel": torch.zeros(8, 3, 3, 3)}, path)
    with pytest.raises(ModelError, match=rf"{path} does not hold weights of '{name}' in timm's names: no tensor fits"):
        Backbone(name, weights=path)


def test_file_that_holds_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"this is no safetensors file")
    with pytest.raises(ModelError, match=rf"{path} does not hold weights of 'resnet18'"):
        Backbone("resnet18", weights=path)


def test_download_that_fails_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ModelError, match=r"'resnet18' could not be downloaded\. .*model\.weights=FILE.*model\.pretrained"
    ):
        Backbone("resnet18", pretrained=True)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"the pre-trained MobileNetV2 is not at {WEIGHTS}")
def test_real_weights_arrive_with_the_last_layers() -> None:
    stored = load_file(WEIGHTS)
    backbone = Backbone("mobilenetv2_100", weights=WEIGHTS, keep_last_layers=True)
    state = backbone.model.state_dict()
    assert {"conv_head.weight", "bn2.weight", "bn2.running_var"} <= set(state)
    assert set(state) == set(stored) - {"classifier.weight", "classifier.bias"}
    for name, value in state.items():
        assert torch.equal(value, stored[name]), name


# Batch norm


def batch_norm_statistics(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items() if "running_" in name}


@pytest.mark.parametrize("calls_train", [True, False])  # Lightning does not call train()
@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_batch_norm_keeps_its_statistics(freeze: bool, calls_train: bool) -> None:
    backbone = Backbone("resnet10t", freeze_batch_norm=freeze, **SMALL)
    if calls_train:
        backbone.eval()
        backbone.train()
    before = batch_norm_statistics(backbone)
    feature_maps = backbone(3 + torch.rand(2, 3, 64, 64))
    after = batch_norm_statistics(backbone)
    assert before
    assert all(torch.equal(before[name], after[name]) == freeze for name in before)
    assert backbone.training
    feature_maps[-1].sum().backward()
    assert backbone.model.conv1[0].weight.grad is not None


def test_frozen_batch_norm_of_timms_own_kind() -> None:
    backbone = Backbone("mobilenetv2_100", num_stages=1, freeze_batch_norm=True).train()
    before = batch_norm_statistics(backbone)
    backbone(torch.rand(2, 3, 64, 64))
    after = batch_norm_statistics(backbone)
    assert all(torch.equal(before[name], after[name]) for name in before)


# Frozen stages

SWIN = {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 24}
VIT = {"img_size": 64, "depth": 4, "drop_path_rate": 0.5}


@pytest.mark.parametrize("keep_last_layers", [False, True])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv2_035", {}),
        ("resnet10t", SMALL),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}),  # stages.0 becomes stages_0 where features are asked for
        ("swin_tiny_patch4_window7_224", SWIN),
        ("vit_tiny_patch16_224", VIT),  # a class token and position embeddings of its own
    ],
)
def test_frozen_are_the_parameters_that_the_stages_depend_on(name: str, options: dict, keep_last_layers: bool) -> None:
    if keep_last_layers and name.startswith("vit"):
        pytest.skip("its last layers return no feature map")
    num_listed = len(Backbone(name, num_stages=1, **options).model.feature_info.info)
    options = {**options, "num_stages": num_listed, "keep_last_layers": keep_last_layers}
    trained = Backbone(name, **options)
    for frozen_stages in range(1, num_listed):
        feature_maps = trained(torch.rand(2, 3, 64, 64))
        parameters = dict(trained.named_parameters())
        slopes = torch.autograd.grad(
            feature_maps[frozen_stages - 1].sum(), list(parameters.values()), allow_unused=True
        )
        reached = {name for name, slope in zip(parameters, slopes, strict=True) if slope is not None}
        backbone = Backbone(name, frozen_stages=frozen_stages, **options)
        frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
        assert frozen == reached


def test_frozen_stages_of_mobilenet() -> None:
    backbone = Backbone("mobilenetv2_035", frozen_stages=3, keep_last_layers=True)
    assert backbone._frozen_modules == ["conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"]
    assert Backbone("mobilenetv2_035", frozen_stages=5).model.blocks[6][0].conv_pw.weight.requires_grad is False


@pytest.mark.parametrize("calls_train", [True, False])
def test_frozen_stages_stay_as_they_are_and_the_rest_learns(calls_train: bool) -> None:
    backbone = Backbone("resnet10t", frozen_stages=3, **SMALL)
    if calls_train:
        backbone.eval()
        backbone.train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1, weight_decay=0.1)
    sum(feature_map.square().mean() for feature_map in backbone(3 + torch.rand(2, 3, 64, 64))).backward()
    optimizer.step()
    after = backbone.state_dict()
    changed = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"layer3", "layer4"}
    assert all(
        not torch.equal(value, before[name]) for name, value in after.items() if "layer4" in name and "running" in name
    )


def test_frozen_stages_keep_nothing_for_the_backward_pass() -> None:
    feature_maps = Backbone("resnet10t", frozen_stages=3, **SMALL).train()(torch.rand(2, 3, 64, 64))
    assert [feature_map.requires_grad for feature_map in feature_maps] == [False, True, True]


def test_frozen_stages_neither_drop_nor_normalise_by_the_batch() -> None:
    """In training they return what they return in evaluation: no drop path, no statistics of the batch."""
    torch.manual_seed(0)
    for name, options in (("vit_tiny_patch16_224", VIT), ("mobilenetv2_035", {"drop_path_rate": 0.5})):
        backbone = Backbone(name, num_stages=3, frozen_stages=3, **options)
        images = torch.rand(4, 3, 64, 64)
        index = 1 if name.startswith("vit") else 0  # the third stage of four and of five
        trained = backbone.train()(images)
        expected = backbone.eval()(images)
        assert torch.equal(trained[index], expected[index])
        assert not torch.allclose(trained[-1], expected[-1])


def test_frozen_stages_change_no_output_in_evaluation() -> None:
    torch.manual_seed(0)
    plain = Backbone("mobilenetv2_035", keep_last_layers=True).double().eval()
    frozen = Backbone("mobilenetv2_035", keep_last_layers=True, frozen_stages=4).double().eval()
    frozen.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64).double()
    with torch.no_grad():
        for received, expected in zip(frozen(images), plain(images), strict=True):
            torch.testing.assert_close(received, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet10t",
            {"frozen_stages": 6},
            r"'resnet10t' has 5 stages, 6 cannot be frozen\. Lower frozen_stages to at",
        ),
        ("resnet10t", {"frozen_stages": -1}, "frozen_stages is at least 0, got -1"),
        ("hrnet_w18_small", {"frozen_stages": 2}, "timm does not tell where stage 2 of 'hrnet_w18_small' ends"),
    ],
)
def test_stages_that_cannot_be_frozen(name: str, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Backbone(name, **options)
