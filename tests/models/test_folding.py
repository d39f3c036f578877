"""Batch norms merged into convolutions: the same numbers, gradients and states as apart."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from msrn.models import Backbone, fold_batch_norms
from msrn.models.folding import FoldedConv2d, FoldedNorm

RESNET = {"channels": [8, 16, 24, 32], "stem_width": 8}


def randomise(model: nn.Module) -> nn.Module:
    """Norms that do something, in every channel something else."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FoldedNorm):
            nn.init.normal_(module.running_mean, 0, 0.3, generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator)
            nn.init.uniform_(module.weight, -1.5, 1.5, generator)
            nn.init.normal_(module.bias, 0, 0.3, generator)
    return model


def make_pair(name: str = "resnet10t", **options: object) -> tuple[nn.Module, nn.Module]:
    """A timm model in evaluation mode in float64, apart and merged."""
    torch.manual_seed(0)
    apart = randomise(Backbone(name, num_stages=2, **options).model).double().eval()
    merged = copy.deepcopy(apart)
    assert fold_batch_norms(merged)
    return apart, merged


def make_images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", RESNET),
        ("mobilenetv2_035", {}),  # timm's norm with an activation
        ("mobilenetv3_small_050", {}),  # squeeze and excitation
        ("repvit_m0_9", {}),  # a convolution with a bias, whose output is added to others ahead of the norm
        ("densenet121", {"block_config": (1, 1, 1, 1)}),  # norms ahead of convolutions
        ("regnetx_002", {}),
    ],
)
def test_outputs_and_gradients_are_those_of_both_apart(name: str, options: dict) -> None:
    apart, merged = make_pair(name, **options)
    for received, expected in zip(merged(make_images()), apart(make_images()), strict=True):
        torch.testing.assert_close(received, expected)
        received.square().mean().backward(retain_graph=True)
        expected.square().mean().backward(retain_graph=True)
    gradients = dict(merged.named_parameters())
    for parameter_name, parameter in apart.named_parameters():
        torch.testing.assert_close(gradients[parameter_name].grad, parameter.grad, rtol=1e-6, atol=1e-9)


def test_norms_use_their_stored_statistics_in_training() -> None:
    apart, merged = make_pair(**RESNET)
    before = copy.deepcopy(merged.state_dict())
    torch.testing.assert_close(merged.train()(make_images())[-1], apart(make_images())[-1])
    assert all(torch.equal(value, before[name]) for name, value in merged.state_dict().items())


def test_state_is_that_of_both_apart() -> None:
    apart, merged = make_pair(**RESNET)
    assert list(merged.state_dict()) == list(apart.state_dict())
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in apart.named_parameters()]
    other = Backbone("resnet10t", num_stages=2, **RESNET).model.double().eval()
    assert not torch.allclose(merged(make_images())[-1], other(make_images())[-1])
    merged.load_state_dict(other.state_dict())
    torch.testing.assert_close(merged(make_images())[-1], other(make_images())[-1])


def test_copies_are_independent() -> None:
    _, merged = make_pair(**RESNET)
    before = merged(make_images())[-1]
    other = copy.deepcopy(merged)
    for module in other.modules():
        if isinstance(module, FoldedNorm):
            nn.init.zeros_(module.weight)
    assert torch.equal(merged(make_images())[-1], before)
    assert not torch.allclose(other(make_images())[-1], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_type_and_layout_follow(dtype: torch.dtype) -> None:
    apart, merged = make_pair(**RESNET)
    expected = apart(make_images())[-1].detach().float()
    merged = merged.to(dtype=dtype, memory_format=torch.channels_last)
    received = merged(make_images(dtype))[-1]
    assert received.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(received.float(), expected, rtol=tolerance, atol=tolerance * float(expected.std()))


def test_autocast_keeps_the_weights() -> None:
    apart, merged = make_pair(**RESNET)
    expected, merged = apart(make_images())[-1].detach().float(), merged.float()
    with torch.autocast("cpu", torch.bfloat16):
        received = merged(make_images(torch.float32))[-1]
    torch.testing.assert_close(received.float(), expected, rtol=0.1, atol=0.1 * float(expected.std()))
    assert {value.dtype for value in merged.parameters()} == {torch.float32}


def test_exported_graph_returns_the_same() -> None:
    _, merged = make_pair(**RESNET)
    merged = merged.float()
    images = make_images(torch.float32)
    program = torch.export.export(merged, (images,))
    torch.testing.assert_close(program.module()(images)[-1], merged(images)[-1])


def test_only_a_norm_right_behind_its_convolution_is_merged() -> None:
    class OtherConv(nn.Conv2d):
        """May do anything with its weights."""

    conv = nn.Conv2d(4, 4, 1, bias=False)
    for model in (
        nn.Sequential(conv, nn.GELU(), nn.BatchNorm2d(4)),
        nn.Sequential(conv, nn.Sequential(nn.BatchNorm2d(4))),
        nn.Sequential(nn.Sequential(conv, nn.GELU()), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Sequential(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(4), conv),
        nn.Sequential(conv, nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(conv, nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(conv, nn.BatchNorm2d(8)),
        nn.Sequential(conv, nn.SyncBatchNorm(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        nn.Sequential(OtherConv(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
    ):
        assert fold_batch_norms(model) == []
    assert fold_batch_norms(nn.ModuleDict({"a": nn.Sequential(conv, BatchNormAct2d(4))})) == ["a.1"]


def test_merged_norms_are_not_synchronised() -> None:
    """Their statistics are stored; a second norm behind the merged one would be wrong."""
    _, merged = make_pair(**RESNET)
    expected = merged(make_images())[-1]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(merged)
    assert torch.equal(converted(make_images())[-1], expected)


# In a backbone


def kinds(backbone: Backbone) -> dict[str, set[type]]:
    """Classes of norms by the first part of their names."""
    found: dict[str, set[type]] = {}
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.BatchNorm2d | FoldedNorm):
            found.setdefault(name.split(".")[0], set()).add(type(module))
    return found


def test_frozen_stages_are_merged_and_the_rest_is_not() -> None:
    found = kinds(Backbone("resnet10t", frozen_stages=3, **RESNET))
    merged = {name for name, classes in found.items() if classes == {FoldedNorm}}
    assert merged == {"conv1", "bn1", "layer1", "layer2"}
    assert found["layer3"] == found["layer4"] == {nn.BatchNorm2d}


def test_all_are_merged_where_batch_norms_are_frozen() -> None:
    assert set.union(*kinds(Backbone("mobilenetv2_035", freeze_batch_norm=True, frozen_stages=1)).values()) == {
        FoldedNorm
    }
    assert set.union(*kinds(Backbone("mobilenetv2_035")).values()) == {BatchNormAct2d}
    assert isinstance(Backbone("mobilenetv2_035", freeze_batch_norm=True).model.conv_stem, FoldedConv2d)
