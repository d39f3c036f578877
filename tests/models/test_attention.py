import pytest
import torch

from msrn.models import LabelGroups, SemanticGuidedAttention, StageProjection
from msrn.ops import semantic_guided_attention


def embeddings(dim: int = 6) -> LabelGroups:
    torch.manual_seed(1)
    return LabelGroups(torch.randn(4, dim), torch.randn(2, dim), torch.full((4, 2), 0.5))


def test_stages_are_joined_along_channels_in_order() -> None:
    torch.manual_seed(0)
    attention, label_groups = SemanticGuidedAttention((3, 5), 6), embeddings()
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    labels, groups = attention(maps, label_groups)
    assert (labels.shape, groups.shape) == ((2, 4, 12), (2, 2, 12))
    for number, (stage, feature_map) in enumerate(zip(attention.stages, maps, strict=True)):
        columns = slice(6 * number, 6 * number + 6)
        projected = stage(feature_map)
        torch.testing.assert_close(
            labels[..., columns], semantic_guided_attention(projected, label_groups.label_embeddings)
        )
        torch.testing.assert_close(
            groups[..., columns], semantic_guided_attention(projected, label_groups.group_embeddings)
        )


@pytest.mark.parametrize(("pooling", "expected"), [("max", 4.0), ("avg", 2.5), ("none", None)])
def test_pooling_takes_blocks_of_two_by_two(pooling, expected) -> None:
    stage = StageProjection(1, 1, pooling=pooling)
    block = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    pooled = stage.pool(block)
    assert torch.equal(pooled, block) if expected is None else pooled.flatten().tolist() == [expected]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
def test_map_of_one_row_or_column_is_not_pooled(size: tuple[int, int]) -> None:
    assert StageProjection(3, 4)(torch.rand(2, 3, *size)).shape == (2, 4, *size)


def test_settings_a_stage() -> None:
    attention = SemanticGuidedAttention((3, 5), 6, pooling=("max", "none"), has_buffers=(True, False))
    assert [stage.pooling for stage in attention.stages] == ["max", "none"]
    assert [isinstance(stage.buffer, torch.nn.Conv2d) for stage in attention.stages] == [True, False]


def test_settings_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pooling has 3 entries for 2 stages\. Give one, or one a stage\."):
        SemanticGuidedAttention((3, 5), 6, pooling=("max", "max", "avg"))
    with pytest.raises(ValueError, match="has_buffers has 1 entries for 2 stages"):
        SemanticGuidedAttention((3, 5), 6, has_buffers=(True,))


def test_normalised_channels_have_mean_zero_and_variance_one_in_training() -> None:
    torch.manual_seed(0)
    stage = StageProjection(3, 4, normalize=True)
    projected = stage(100 + 50 * torch.randn(8, 3, 12, 12))
    torch.testing.assert_close(projected.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(projected.var(dim=(0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_normalised_images_do_not_depend_on_their_batch_in_evaluation() -> None:
    torch.manual_seed(0)
    stage = StageProjection(3, 4, normalize=True).eval()
    images = torch.randn(4, 3, 6, 6)
    torch.testing.assert_close(stage(images)[:1], stage(images[:1]))
