"""Linear cost: exact at a few nodes of each channel's range of embeddings, interpolated to every label.

The result o(e) of one image and channel is a smooth function of the single number e, so with the labels' entries of a channel
written as e = centre + half_width · t, t in [-1, 1],

    o(e) ~ sum_m k_m T_m(t),    k = discrete cosine transform of o at M Chebyshev nodes.

M comes from the data: exp(reach · t), reach = half_width · half the range of the features, has to be resolved to rounding. The last
coefficients then say whether o is resolved too; channels where they do not vanish get more nodes, and the exact form where more do
not pay. The backward pass sends the gradients to the nodes, differentiates there, and interpolates do/de, checked in the same way.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_NODES = (8, 12, 16, 24, 32, 48, 64)
# Greatest reach z at which M nodes are tried: 2 I_(M-2)(z) exp(-z) <= 2e-7 (float32) or 1e-13 (float64). M - 2, not M: o is a ratio
# of sums of exponentials, and a little rougher than each.
_REACH = {
    torch.float32: (0.438, 2.234, 5.451, 15.948, 31.786, 79.697, 149.806),
    torch.float64: (0.037, 0.443, 1.507, 5.752, 12.701, 34.281, 65.833),
}
# The last coefficients may be this large, relative to the greatest coefficient-wise result and to the greatest feature.
_TOLERANCE = {torch.float32: (1e-6, 4e-7), torch.float64: (1e-12, 1e-14)}
# How many are the last: at least 3, as an odd or even o has every other coefficient zero; an eighth, as the coefficients of a step
# near the end of the range swell and fade slowly.
_LEAST_LAST, _LAST_SHARE = 3, 8
# Channels that change their number of nodes do so by so many: shorter rows are slow to add up.
_CHANNEL_STEP = 32
# Gathering channels into several groups costs about as much as this many nodes.
_SPLIT_COST = 3
# Measured on a CPU (docs/attention.md): a node costs this many rows of the exact form, with ranges, checks, gathered channels and
# the backward pass, which evaluates the nodes anew; one row interpolated from one node costs as much as this many positions.
_NODE_COST = 2.0
_INTERPOLATION_COST = 0.8
# Entries of a block of interpolated rows, which stays in the cache.
_BLOCK = 400_000

Channels = Int[Tensor, "_"] | slice


class Fit(NamedTuple):
    """Channels that share a number of nodes; no nodes means that they take the exact form."""

    channels: Channels
    nodes: Float[Tensor, "M d"] | None = None
    pooled: Float[Tensor, "B M d"] | None = None
    coefficients: Float[Tensor, "B M d"] | None = None


class Range(NamedTuple):
    """What the entries of each channel cover.

    Attributes:
        centre: Middle of the entries.
        half_width: Half the distance from the least to the greatest.
    """

    centre: Float[Tensor, "D"]
    half_width: Float[Tensor, "D"]

    @classmethod
    def of(cls, embeddings: Float[Tensor, "L D"]) -> "Range":
        """The range of the rows given."""
        least, greatest = embeddings.amin(dim=0), embeddings.amax(dim=0)
        return cls((greatest + least) / 2, (greatest - least) / 2)

    def nodes(self, count: int) -> Float[Tensor, "M D"]:
        """Chebyshev nodes of the range, in the order of rising angle."""
        angles = torch.tensor(chebyshev_angles(count), dtype=self.centre.dtype, device=self.centre.device)
        return self.centre + self.half_width * angles.cos()[:, None]

    def offsets(self, embeddings: Float[Tensor, "L D"]) -> Float[Tensor, "L D"]:
        """Where the entries lie in the range, t in [-1, 1]; 0 in a channel of equal entries."""
        width = self.half_width.clamp(min=torch.finfo(embeddings.dtype).tiny)
        return ((embeddings - self.centre) / width).clamp(-1, 1)


def attend(
    values: Float[Tensor, "B P D"], embeddings: Float[Tensor, "L D"], *, exact: ModuleType, force: bool = False
) -> Float[Tensor, "B L D"]:
    """`attend_reference` to rounding, at a cost of positions + labels.

    Args:
        values: Features in float32 or float64, less their mean over positions.
        embeddings: Entries of the same type.
        exact: The exact form (`cpu` or `triton`) that computes the nodes, and the channels that have to be exact.
        force: Use nodes also where the exact form is expected to be faster; the checks stay.
    """
    offsets = Range.of(embeddings).offsets(embeddings)  # (L, D)
    pooled = values.new_empty(len(values), *embeddings.shape)  # (B, L, D)
    for own in fit(values, embeddings, exact, force=force):
        if own.coefficients is not None:
            _interpolate(own.coefficients, offsets[:, own.channels], out=pooled, channels=own.channels)
        elif isinstance(own.channels, slice):
            return exact.attend(values, embeddings)  # type: ignore[no-any-return]
        else:
            pooled[..., own.channels] = exact.attend(values[..., own.channels], embeddings[:, own.channels])
    return pooled


def differentiate(
    values: Float[Tensor, "B P D"],
    embeddings: Float[Tensor, "L D"],
    pooled: Float[Tensor, "B L D"],
    grad: Float[Tensor, "B L D"],
    *,
    exact: ModuleType,
    force: bool = False,
) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B L D"]]:
    """As the exact forms' `differentiate`: the gradient of the features, and do/de; the choice of nodes is that of `attend`."""
    offsets = Range.of(embeddings).offsets(embeddings)  # (L, D)
    grad_values, variance = torch.empty_like(values), torch.empty_like(grad)  # (B, P, D), (B, L, D)

    def be_exact(channels: Channels) -> None:
        given = (values[..., channels], embeddings[:, channels], pooled[..., channels], grad[..., channels])
        grad_values[..., channels], variance[..., channels] = exact.differentiate(*given)

    for own in fit(values, embeddings, exact, force=force):
        channels = own.channels
        if own.nodes is None or own.pooled is None:
            be_exact(channels)
            continue
        # Transposed interpolation, then transposed cosine transform: what the nodes' results receive.
        moments = _moments(grad[..., channels], offsets[:, channels], len(own.nodes))  # (B, M, d)
        node_grad = (cosine_transform(moments).T @ moments.double()).to(moments.dtype)  # (B, M, d)
        given = (values[..., channels], own.nodes, own.pooled, node_grad)
        grad_values[..., channels], node_variance = exact.differentiate(*given)
        coefficients = to_coefficients(node_variance)  # (B, M, d)
        _interpolate(coefficients, offsets[:, channels], out=variance, channels=channels)
        greatest = node_variance.amax(dim=1)  # (B, d)
        rounding = values[..., channels].abs().amax(dim=1) * greatest.sqrt()  # (B, d)
        rest = _select(channels, ~are_resolved(coefficients, greatest, rounding).all(dim=0))
        if rest is not None:
            be_exact(rest)
    return grad_values, variance


def pays(num_nodes: int, num_images: int, num_positions: int, num_rows: int) -> bool:
    """Whether that many nodes are expected to cost less than the exact form."""
    node = _NODE_COST * num_images * num_positions + _INTERPOLATION_COST * (num_images + 2) / 2 * num_rows
    return num_nodes * node < num_images * num_positions * num_rows


def fit(
    values: Float[Tensor, "B P D"],
    embeddings: Float[Tensor, "L D"],
    exact: ModuleType,
    *,
    force: bool = False,
    margin: float = 1.0,
) -> Iterator[Fit]:
    """Channels in groups, with their node results or for the exact form; every channel comes once.

    Args:
        values: Features less their mean over positions.
        embeddings: Entries, of the type of the values.
        exact: The exact form.
        force: Use nodes also where the exact form is expected to be faster.
        margin: Factor on the reach, for nodes that other features will use too.
    """
    num_images, num_positions, _ = values.shape
    num_rows = len(embeddings)
    if not (force or pays(NUM_NODES[0], num_images, num_positions, num_rows)):
        yield Fit(slice(None))
        return
    span = Range.of(embeddings)
    least, greatest = values.amin(dim=1), values.amax(dim=1)  # (B, D)
    largest = torch.maximum(greatest, -least)  # (B, D)
    reach = margin * span.half_width * ((greatest - least) / 2).amax(dim=0)  # (D,)
    groups = _group(reach, num_rows)
    exact_parts: list[Channels] = []
    for level, count in enumerate(NUM_NODES):
        channels = groups.pop(level, None)
        if channels is None:
            continue
        if not (force or pays(count, num_images, num_positions, num_rows)):
            exact_parts.append(channels)
            continue
        nodes = span.nodes(count)[:, channels]  # (M, d)
        pooled = exact.attend(values[..., channels], nodes)  # (B, M, d)
        coefficients = to_coefficients(pooled)  # (B, M, d)
        is_right = are_resolved(coefficients, pooled.abs().amax(dim=1), largest[:, channels]).all(dim=0)  # (d,)
        rest = _select(channels, ~is_right)
        if rest is None:
            yield Fit(channels, nodes, pooled, coefficients)
            continue
        kept = _select(slice(None), is_right)
        if kept is not None:
            done = kept if isinstance(channels, slice) else channels[kept]
            yield Fit(done, nodes[:, kept], pooled[..., kept], coefficients[..., kept])
        waiting = groups.get(level + 1)  # the rest joins the channels that start there
        groups[level + 1] = torch.cat([waiting, rest]) if isinstance(waiting, Tensor) else rest
    exact_parts += groups.values()
    if any(isinstance(part, slice) for part in exact_parts):
        yield Fit(slice(None))
    elif exact_parts:
        yield Fit(torch.cat([part for part in exact_parts if isinstance(part, Tensor)]))


def _group(reach: Float[Tensor, "D"], num_rows: int) -> dict[int, Channels]:
    """Channels by the index of their first number of nodes; the index behind the last means exact."""
    dim = len(reach)
    levels = reach.new_tensor(_REACH[reach.dtype])
    # Comparisons with NaN are false: such channels pass the last level and are exact.
    level = (~(reach[:, None] <= levels)).sum(dim=1)  # (D,)
    counts = torch.bincount(level, minlength=len(NUM_NODES) + 1).tolist()
    last = max(index for index, count in enumerate(counts) if count)
    for index in range(last):  # a remainder moves up, where it has more nodes than it needs
        counts[index + 1] += counts[index] % _CHANNEL_STEP
        counts[index] -= counts[index] % _CHANNEL_STEP
    costs = (*NUM_NODES, num_rows)
    apart = sum(min(cost, num_rows) * count for cost, count in zip(costs, counts, strict=True)) + _SPLIT_COST * dim
    if counts[last] == dim or min(costs[last], num_rows) * dim <= apart:
        return {last: slice(None)}
    parts = level.argsort(stable=True).split(counts)
    return {index: own for index, own in enumerate(parts) if len(own)}


def _select(channels: Channels, keep: Tensor) -> Int[Tensor, "_"] | None:
    """The channels marked, or None where there are none."""
    if not bool(keep.any()):
        return None
    chosen = keep.nonzero()[:, 0]
    return chosen if isinstance(channels, slice) else channels[chosen]


def are_resolved(
    coefficients: Float[Tensor, "B M d"], largest_result: Float[Tensor, "B d"], largest_feature: Float[Tensor, "B d"]
) -> Bool[Tensor, "B d"]:
    """Where the last coefficients vanish."""
    relative, rounding = _TOLERANCE[coefficients.dtype]
    count = max(_LEAST_LAST, coefficients.shape[1] // _LAST_SHARE)
    last = coefficients[:, -count:].abs().sum(dim=1)  # (B, d)
    return last <= relative * largest_result + rounding * largest_feature


def _interpolate(
    coefficients: Float[Tensor, "B M d"],
    offsets: Float[Tensor, "L d"],
    *,
    out: Float[Tensor, "B L D"],
    channels: Channels,
) -> None:
    """out[..., channels] = sum over m of coefficients[:, m] T_m(offsets), some labels at a time."""
    for rows in _row_blocks(coefficients, offsets):
        total = coefficients.new_zeros(len(coefficients), *offsets[rows].shape)  # (B, l, d)
        for m, polynomial in enumerate(chebyshev_polynomials(offsets[rows], coefficients.shape[1])):
            total.addcmul_(coefficients[:, m, None], polynomial)
        out[:, rows, channels] = total


def _moments(grad: Float[Tensor, "B L d"], offsets: Float[Tensor, "L d"], count: int) -> Float[Tensor, "B M d"]:
    """Sum over labels of grad · T_m(offsets), some labels at a time."""
    moments = grad.new_zeros(len(grad), count, grad.shape[2])  # (B, M, d)
    for rows in _row_blocks(moments, offsets):
        for m, polynomial in enumerate(chebyshev_polynomials(offsets[rows], count)):
            moments[:, m] += (grad[:, rows] * polynomial).sum(dim=1)
    return moments


def _row_blocks(coefficients: Tensor, offsets: Tensor) -> Iterator[slice]:
    rows = max(1, _BLOCK // ((len(coefficients) + 3) * offsets.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(offsets), rows))


def chebyshev_polynomials(offsets: Float[Tensor, "L D"], count: int) -> Iterator[Float[Tensor, "L D"]]:
    """T_0, T_1 ... of t in [-1, 1], by recurrence."""
    before, current, twice = torch.ones_like(offsets), offsets, 2 * offsets
    for _ in range(count):
        yield before
        before, current = current, (twice * current).sub_(before)


def chebyshev_angles(count: int) -> tuple[float, ...]:
    """Angles of the Chebyshev nodes of the first kind.

    Example:
        >>> [round(math.cos(angle), 3) for angle in chebyshev_angles(3)]
        [0.866, 0.0, -0.866]
    """
    return tuple(math.pi * (n + 0.5) / count for n in range(count))


def to_coefficients(pooled: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
    """Chebyshev coefficients of node results."""
    return (cosine_transform(pooled) @ pooled.double()).to(pooled.dtype)


def cosine_transform(like: Float[Tensor, "B M D"]) -> Float[Tensor, "M M"]:
    """The float64 matrix that takes M node results to M Chebyshev coefficients.

    Float64, as TF32 and other shortcuts of float32 matrix products would hide whether the coefficients vanish.
    """
    return _cosine_transform(like.shape[1], like.device)


@lru_cache(maxsize=64)
def _cosine_transform(count: int, device: torch.device) -> Tensor:
    orders = torch.arange(count, dtype=torch.float64)
    angles = torch.tensor(chebyshev_angles(count), dtype=torch.float64)
    transform = torch.cos(orders[:, None] * angles) * (2 / count)  # (M, M)
    transform[0] /= 2
    return transform.to(device)
