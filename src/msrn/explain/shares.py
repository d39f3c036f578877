"""What each position adds to weighted sums of what attention pools, for many labels at a GEMM's cost.

The attention weight of a position is, as what attention pools (`msrn.ops.semantic_attention.nodes`), a smooth function of the entry
of its channel, so with the entries of a channel written as e = centre + half_width · t,

    sum over d of w[r, d] softmax_p(f[d, p] e[r, d]) f[d, p] ~ sum over d, m of (w[r, d] T_m(t[r, d])) · (c[d, m, p] f[d, p]),

a product of a matrix of rows (labels) with a matrix of positions. The interpolated weights of all positions sum to one still, as a
constant is interpolated exactly. Where few rows are asked for, and in channels that no number of nodes resolves, it is softmax.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from msrn.ops.semantic_attention import cpu, nodes
from msrn.ops.semantic_attention.common import centred

# Numbers of one block of rows.
BLOCK_SIZE = 2**22


class _Basis(NamedTuple):
    """Some channels' polynomials of every embedding, and what each position adds of each polynomial."""

    channels: nodes.Channels
    polynomials: Float[Tensor, "E d M"]
    shares: Float[Tensor, "B d M P"]


def own_shares(
    values: Float[Tensor, "B D P"], embeddings: Float[Tensor, "n D"], slopes: Float[Tensor, "_ n D"]
) -> Float[Tensor, "B n P"]:
    """What each position adds for each embedding with its own slopes (one row for all images, or one an image)."""
    shares = values.new_zeros(len(values), len(embeddings), values.shape[2])
    for found in _bases(values, embeddings):
        if isinstance(found, _Basis):
            for rows in _blocks(len(embeddings), found.polynomials[0].numel()):
                weights = slopes[:, rows, found.channels, None] * found.polynomials[rows]  # (_, n', d, M)
                shares[:, rows] += weights.flatten(2) @ found.shares.flatten(1, 2)
            continue
        features, entries = values[:, found], embeddings[:, found]
        for rows in _blocks(len(embeddings), features.numel()):
            attended = _attended(features.unsqueeze(1), entries[rows])  # (B, n', d, P)
            weights = slopes[:, rows, found].expand(len(values), -1, -1)
            shares[:, rows] += torch.einsum("bndp,bnd->bnp", attended, weights)
    return shares


def shares_of_sum(
    values: Float[Tensor, "B D P"],
    embeddings: Float[Tensor, "E D"],
    mix: Callable[[Float[Tensor, "E d M"], nodes.Channels], Float[Tensor, "_ n d M"]],
    slopes_of: Callable[[int], Float[Tensor, "_ n D"]],
    num_rows: int,
) -> Float[Tensor, "B n P"]:
    """What each position adds through all embeddings together, for rows with slopes of their own for each embedding.

    Args:
        values: Features.
        embeddings: Entries.
        mix: Sum over embeddings of slopes · polynomials, for some channels.
        slopes_of: The slopes of one embedding.
        num_rows: How many rows.
    """
    shares = values.new_zeros(len(values), num_rows, values.shape[2])
    for found in _bases(values, embeddings):
        if isinstance(found, _Basis):
            shares += mix(found.polynomials, found.channels).flatten(2) @ found.shares.flatten(1, 2)
            continue
        for index in range(len(embeddings)):
            shares += slopes_of(index)[..., found] @ _attended(values[:, found], embeddings[index, found])
    return shares


def shares_of_each(
    values: Float[Tensor, "B D P"],
    embeddings: Float[Tensor, "E D"],
    slopes_of: Callable[[int], Float[Tensor, "_ n D"]],
    num_rows: int,
) -> Float[Tensor, "B n E P"]:
    """As `shares_of_sum`, one embedding from the other."""
    shares = values.new_zeros(len(values), num_rows, len(embeddings), values.shape[2])
    for index, embedding in enumerate(embeddings):
        shares[:, :, index] = slopes_of(index) @ _attended(values, embedding)
    return shares


def _attended(values: Float[Tensor, "*B D P"], embeddings: Float[Tensor, "*n D"]) -> Float[Tensor, "*_ D P"]:
    """Each position's value by its attention weight; what is left of weights in memory is one tensor."""
    weights = (values * embeddings.unsqueeze(-1)).softmax(dim=-1)
    return weights.mul_(values)


def _bases(values: Float[Tensor, "B D P"], embeddings: Float[Tensor, "E D"]) -> Iterator[_Basis | nodes.Channels]:
    """Every channel once: with a basis, or bare where the exact form is to be taken."""
    rows, _ = centred(values.transpose(1, 2))  # (B, P, D)
    span = nodes.Range.of(embeddings)
    offsets = span.offsets(embeddings)  # (E, D)
    for fit in nodes.fit(rows, embeddings, cpu):
        if fit.nodes is None:
            yield fit.channels
            continue
        features = values[:, fit.channels]  # (B, d, P)
        weights = (features.unsqueeze(2) * fit.nodes.T.unsqueeze(2)).softmax(dim=-1)  # (B, d, M, P)
        transform = nodes.cosine_transform(fit.nodes.unsqueeze(0)).to(values.dtype)
        polynomials = torch.stack(list(nodes.chebyshev_polynomials(offsets[:, fit.channels], len(fit.nodes))), dim=-1)
        yield _Basis(fit.channels, polynomials, (transform @ weights).mul_(features.unsqueeze(2)))


def _blocks(num_rows: int, size: int) -> Iterator[slice]:
    """Rows of about `BLOCK_SIZE` numbers together, where each has `size`."""
    step = max(1, BLOCK_SIZE // max(1, size))
    return (slice(start, start + step) for start in range(0, num_rows, step))
