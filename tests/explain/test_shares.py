"""Shares of positions by nodes, against softmax."""

import pytest
import torch

from msrn.explain.shares import _bases, own_shares, shares_of_each, shares_of_sum


def attended(values: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """By the formula: images, embeddings, channels, positions."""
    values = values.double().unsqueeze(1)
    return (values * embeddings.double().unsqueeze(-1)).softmax(dim=-1) * values


@pytest.mark.parametrize(
    ("num_embeddings", "spread", "kind"), [(3, 1.0, "exact"), (200, 1.0, "nodes"), (200, 100.0, "both")]
)
def test_shares_are_those_of_softmax(
    num_embeddings: int, spread: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msrn.explain.shares.BLOCK_SIZE", 2**14)  # several blocks
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 64, 50, generator=generator) + 3
    embeddings = 0.3 * torch.randn(num_embeddings, 64, generator=generator)
    embeddings[:, :32] *= spread
    embeddings[:, 1] = 0.5  # a channel of equal entries
    used = {"exact" if isinstance(found, torch.Tensor | slice) else "nodes" for found in _bases(values, embeddings)}
    assert used == ({"exact", "nodes"} if kind == "both" else {kind})
    expected = attended(values, embeddings)
    own_slopes = torch.randn(2, num_embeddings, 64, generator=generator)
    own = own_shares(values, embeddings, own_slopes)
    exact = torch.einsum("bedp,bed->bep", expected, own_slopes.double())
    tolerance = 1e-5 * float(exact.abs().max())
    torch.testing.assert_close(own.double(), exact, rtol=0, atol=tolerance)
    slopes = torch.randn(1, 4, num_embeddings, 64, generator=generator)
    each = shares_of_each(values, embeddings, lambda index: slopes[:, :, index], 4)
    exact = torch.einsum("bedp,xned->bnep", expected, slopes.double())
    torch.testing.assert_close(each.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    total = shares_of_sum(
        values,
        embeddings,
        lambda polynomials, channels: torch.einsum("bned,edm->bndm", slopes[..., channels], polynomials),
        lambda index: slopes[:, :, index],
        4,
    )
    exact = exact.sum(dim=2)
    torch.testing.assert_close(total.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
