"""Nodes fixed from calibration images, against the reference."""

import pytest
import torch
from torch import Tensor

from msrn.ops import FixedNodes, semantic_guided_attention


def draw(num_images: int = 4, num_labels: int = 50, dim: int = 70, *, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Channels of unlike spread, so that several numbers of nodes are needed."""
    generator = torch.Generator().manual_seed(0)
    width = torch.linspace(0.1, 2, dim)[:, None, None]
    features = (
        width * torch.randn(num_images, dim, 9, 7, generator=generator) + torch.linspace(-3, 3, dim)[:, None, None]
    )
    return features, spread * torch.randn(num_labels, dim, generator=generator).tanh()


def largest_difference(received: Tensor, expected: Tensor) -> float:
    return float((received.double() - expected.double()).abs().max() / expected.abs().max())


@pytest.mark.parametrize("use_standard_operators", [False, True])
def test_equals_the_reference_on_other_images(use_standard_operators: bool) -> None:
    features, embeddings = draw(8)
    attention = FixedNodes(features[:4], embeddings, use_standard_operators=use_standard_operators)
    expected = semantic_guided_attention(features[4:].double(), embeddings.double(), backend="reference")
    assert largest_difference(attention(features[4:]), expected) < 1e-5


def test_says_which_images_it_does_not_resolve() -> None:
    features, embeddings = draw()
    attention = FixedNodes(features, embeddings)
    strange = torch.cat([features[:1], 6 * features[1:2], features[2:]])
    _, is_resolved = attention.coefficients(strange)
    assert is_resolved.tolist() == [True, False, True, True]


def test_scores_too_wide_for_nodes_are_refused() -> None:
    features, embeddings = draw(spread=1000.0)
    with pytest.raises(
        ValueError, match=r"channels are not resolved by 64 nodes: scores spread too wide\. Use an exact form"
    ):
        FixedNodes(features, embeddings)


def test_folding_a_linear_map_changes_nothing() -> None:
    features, embeddings = draw(2, num_labels=12)
    generator = torch.Generator().manual_seed(1)
    weight, group_weight = (torch.randn(9, 70, generator=generator) for _ in range(2))
    mix = torch.rand(9, 3, generator=generator).softmax(dim=1)
    attention = FixedNodes(features, embeddings)
    folded = attention.fold(weight, slice(0, 9)) + attention.fold(group_weight, slice(9, None), mix)
    coefficients, _ = attention.coefficients(features)
    received = torch.cat([own.flatten(1) for own in coefficients], dim=1) @ folded.T
    pooled = semantic_guided_attention(features, embeddings, backend="reference")
    expected = (weight * pooled[:, :9]).sum(dim=-1) + (group_weight * (mix @ pooled[:, 9:])).sum(dim=-1)
    assert folded.shape == (9, attention.num_coefficients)
    torch.testing.assert_close(received, expected, rtol=1e-4, atol=1e-4)


def test_nodes_move_with_the_module() -> None:
    features, embeddings = draw()
    attention = FixedNodes(features, embeddings)
    restored = FixedNodes(features, embeddings.flip(0))
    assert not torch.equal(restored(features), attention(features))
    restored.load_state_dict(attention.state_dict())
    assert torch.equal(restored(features), attention(features))
    assert attention.to("meta")(features.to("meta")).shape == (4, 50, 70)
