from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from msrn.ops import attention_maps


def make_case(dtype: torch.dtype = torch.float32, *, score: float = 10.0) -> tuple[Tensor, Tensor, Tensor]:
    """Feature map (2, 5, 3, 4), embeddings (6, 5) and channel weights (2, 6, 5); no |feature · entry| exceeds the score."""
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    embeddings *= score / (feature_map.abs().amax() * embeddings.abs().amax())
    channel_weights = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    return feature_map.to(dtype), embeddings.to(dtype), channel_weights.to(dtype)


def maps_by_loop(feature_map: Tensor, embeddings: Tensor, channel_weights: Tensor) -> Tensor:
    feature_map, embeddings, channel_weights = feature_map.double(), embeddings.double(), channel_weights.double()
    maps = torch.zeros(len(feature_map), len(embeddings), *feature_map.shape[2:], dtype=torch.float64)
    for image in range(len(feature_map)):
        for label in range(len(embeddings)):
            sizes = channel_weights[image, label].abs()
            for channel, entry in enumerate(embeddings[label]):
                weights = (feature_map[image, channel] * entry).flatten().softmax(dim=0)
                maps[image, label] += sizes[channel] / sizes.sum() * weights.view(feature_map.shape[2:])
    return maps


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
    ids=str,
)
@pytest.mark.parametrize("score", [0.1, 10.0])
class TestEqualsALoopOverChannels:
    def test_with_channel_weights(self, score: float, dtype: torch.dtype, tolerance: float) -> None:
        case = make_case(dtype, score=score)
        maps, expected = attention_maps(*case), maps_by_loop(*case)
        assert maps.dtype == dtype
        assert float((maps.double() - expected).abs().max() / expected.abs().max()) <= tolerance

    def test_without(self, score: float, dtype: torch.dtype, tolerance: float) -> None:
        feature_map, embeddings, _ = make_case(dtype, score=score)
        expected = maps_by_loop(feature_map, embeddings, torch.ones(2, 6, 5))
        received = attention_maps(feature_map, embeddings).double()
        assert float((received - expected).abs().max() / expected.abs().max()) <= tolerance


def test_many_labels_channels_and_positions_equal_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)  # more than one tile of each
    case = [torch.randn(size, generator=generator) for size in [(1, 200, 28, 28), (40, 200), (1, 40, 200)]]
    expected = maps_by_loop(*case)
    assert float((attention_maps(*case).double() - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("score", [1_000.0, 10_000.0])
def test_large_scores_do_not_overflow(score: float) -> None:
    case = make_case(score=score)
    # Half of a score's spacing in float32 moves a weight by as much, twice with the sum that divides it.
    torch.testing.assert_close(attention_maps(*case).double(), maps_by_loop(*case), rtol=0, atol=1.2e-7 * score)


@pytest.mark.parametrize("score", [1.0, 1_000.0])
def test_every_map_sums_to_one(score: float) -> None:
    maps = attention_maps(*make_case(score=score))
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 6))
    assert (maps >= 0).all()


def test_only_the_size_of_channel_weights_counts() -> None:
    feature_map, embeddings, channel_weights = make_case()
    maps = attention_maps(feature_map, embeddings, channel_weights)
    torch.testing.assert_close(attention_maps(feature_map, embeddings, -3 * channel_weights.abs()), maps)


def test_weights_of_zero_weigh_all_channels_alike() -> None:
    feature_map, embeddings, channel_weights = make_case()
    channel_weights[1, 2] = 0
    maps = attention_maps(feature_map, embeddings, channel_weights)
    torch.testing.assert_close(maps[1, 2], attention_maps(feature_map, embeddings)[1, 2])
    torch.testing.assert_close(maps[0], attention_maps(feature_map, embeddings, channel_weights.clamp(min=-9))[0])


def test_one_weight_picks_the_softmax_of_its_channel() -> None:
    feature_map, embeddings, _ = make_case()
    one_hot = torch.zeros(2, 6, 5)
    one_hot[..., 3] = -0.2
    scores = feature_map[:, 3].flatten(1)[:, None] * embeddings[:, 3, None]  # (2, 6, 12)
    torch.testing.assert_close(attention_maps(feature_map, embeddings, one_hot).flatten(2), scores.softmax(dim=2))


def test_zero_embedding_looks_everywhere_alike() -> None:
    feature_map, _, _ = make_case()
    torch.testing.assert_close(attention_maps(feature_map, torch.zeros(1, 5)), torch.full((2, 1, 3, 4), 1 / 12))


def test_memory_layout_does_not_matter() -> None:
    feature_map, embeddings, channel_weights = make_case()
    expected = attention_maps(feature_map, embeddings, channel_weights)
    channels_last = feature_map.contiguous(memory_format=torch.channels_last)
    expanded = channel_weights[:1].expand(2, 6, 5)
    assert not channels_last.is_contiguous()
    torch.testing.assert_close(attention_maps(channels_last, embeddings, channel_weights), expected)
    torch.testing.assert_close(attention_maps(feature_map, embeddings.T.contiguous().T, channel_weights), expected)
    torch.testing.assert_close(attention_maps(feature_map, embeddings, expanded)[:1], expected[:1])


@pytest.mark.usefixtures("poisoned_memory")
def test_every_entry_is_written() -> None:
    case = make_case()
    torch.testing.assert_close(attention_maps(*case).double(), maps_by_loop(*case), rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_back() -> None:
    feature_map, embeddings, channel_weights = make_case()
    maps = attention_maps(feature_map.requires_grad_(), embeddings.requires_grad_(), channel_weights)
    assert not maps.requires_grad


def test_types_may_be_mixed() -> None:
    feature_map, embeddings, channel_weights = make_case(torch.float64)
    expected = attention_maps(feature_map, embeddings, channel_weights)
    mixed = attention_maps(feature_map.bfloat16(), embeddings.float(), channel_weights)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), expected, rtol=0.05, atol=0.01)


def test_autocast_changes_nothing() -> None:
    case = make_case()
    with torch.autocast("cpu", torch.bfloat16):
        maps = attention_maps(*case)
    torch.testing.assert_close(maps, attention_maps(*case))


def test_large_weights_in_half_precision_do_not_overflow() -> None:
    feature_map, embeddings, _ = make_case(torch.float16)
    maps = attention_maps(feature_map, embeddings, torch.full((2, 6, 5), 60_000.0, dtype=torch.float16))
    torch.testing.assert_close(maps, attention_maps(feature_map, embeddings))


@pytest.mark.parametrize(("num_images", "num_labels"), [(0, 6), (2, 0)])
def test_nothing_chosen_gives_no_maps(num_images: int, num_labels: int) -> None:
    feature_map, embeddings, _ = make_case()
    assert attention_maps(feature_map[:num_images], embeddings[:num_labels]).shape == (num_images, num_labels, 3, 4)


class LargestAllocation(TorchDispatchMode):
    """Notes the entries of the largest tensor that operators make in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("num_labels", [1, 40])
def test_memory_does_not_grow_with_labels_by_channels_by_positions(num_labels: int) -> None:
    feature_map, embeddings = torch.randn(1, 256, 56, 56), torch.randn(num_labels, 256)
    attention_maps(feature_map, embeddings)  # whatever is made once
    with LargestAllocation() as largest:
        attention_maps(feature_map, embeddings)
    assert largest.entries <= feature_map.numel()
    if num_labels > 1:
        assert largest.entries * 30 <= num_labels * feature_map.numel()
