"""The exact form in plain tensor operations: tiles that stay in the cache, and a backward pass that recomputes the weights.

With a = softmax_p(e f_p) and o = sum_p a_p f_p for one image, label and channel,

    do/de = sum_p a_p (f_p - o)^2        do/df_p = a_p (1 + e (f_p - o)),

so nothing of size labels x channels x positions is stored: one tile of it lives at a time. Runs on any device; made for the CPU.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from msrn.ops.semantic_attention.common import accumulation_dtype, centred

# Entries of a tile for every thread: in float32 0.8 MB, which stays within a core's second-level cache.
_TILE_PER_THREAD = 200_000
_TILE_CHANNELS = 64
# Scores up to here go into exp() as they are: sums of their exponentials neither overflow nor vanish.
_SAFE_SCORE = {torch.float32: 60.0, torch.float64: 600.0}


def attend(features: Float[Tensor, "B P D"], embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "B N D"]:
    """`attend_reference`, a tile at a time; float32 (float64 for float64 features)."""
    dtype = accumulation_dtype(features)
    pooled = features.new_empty(len(features), *embeddings.shape, dtype=dtype)  # (B, N, D)
    buffers = _Buffers(1, dtype, features.device)
    for tile in _tiles(features, len(embeddings)):
        for rows in tile.rows:
            entries = embeddings[rows, None, tile.channels].to(dtype)  # (n, 1, d)
            (weights,) = buffers.of_shape(len(entries), *tile.values.shape)
            _exponentials(tile, entries, out=weights)
            totals = weights.sum(dim=1)  # (n, d)
            mean = weights.mul_(tile.values).sum(dim=1).div_(totals)  # (n, d)
            torch.add(mean, tile.mean, out=pooled[tile.image, rows, tile.channels])
    return pooled


def differentiate(
    features: Float[Tensor, "B P D"],
    embeddings: Float[Tensor, "N D"],
    pooled: Float[Tensor, "B N D"],
    grad: Float[Tensor, "B N D"],
) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B N D"]]:
    """The gradient of the features, and do/de, the variance of the features under the attention weights.

    The gradient of the embeddings is `(grad * variance).sum(dim=0)`.
    """
    dtype = accumulation_dtype(features)
    grad_features = torch.empty_like(features, dtype=dtype)  # (B, P, D)
    variance = torch.empty_like(grad, dtype=dtype)  # (B, N, D)
    buffers = _Buffers(2, dtype, features.device)
    for tile in _tiles(features, len(embeddings)):
        image, channels, values = tile.image, tile.channels, tile.values
        weight_slope, value_slope = torch.zeros_like(values), torch.zeros_like(values)  # (P, d)
        for rows in tile.rows:
            entries = embeddings[rows, None, channels].to(dtype)  # (n, 1, d)
            mean = pooled[image, rows, None, channels].to(dtype) - tile.mean  # (n, 1, d)
            weights, scratch = buffers.of_shape(len(entries), *values.shape)
            _exponentials(tile, entries, out=weights)
            totals = weights.sum(dim=1, keepdim=True)  # (n, 1, d)
            torch.sub(values, mean, out=scratch).square_().mul_(weights)
            torch.div(scratch.sum(dim=1), totals[:, 0], out=variance[image, rows, channels])
            # sum over n of g a (1 + e (f - o)) = sum over n of w g (1 - e o) / total + f · sum over n of w g e / total
            slope = grad[image, rows, None, channels].to(dtype) / totals  # (n, 1, d)
            weight_slope += torch.mul(weights, slope * (1 - entries * mean), out=scratch).sum(dim=0)
            value_slope += weights.mul_(slope * entries).sum(dim=0)
        grad_features[image, :, channels] = weight_slope.addcmul_(values, value_slope)
    return grad_features, variance


def average_weights(
    features: Float[Tensor, "B P D"], embeddings: Float[Tensor, "N D"], channel_weights: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N P"]:
    """Attention weights summed over channels with the weights given; no more than a tile of them lives at a time."""
    dtype = accumulation_dtype(features)
    averaged = features.new_zeros(len(features), len(embeddings), features.shape[1], dtype=dtype)  # (B, N, P)
    buffers = _Buffers(1, dtype, features.device)
    for tile in _tiles(features, len(embeddings)):
        for rows in tile.rows:
            entries = embeddings[rows, None, tile.channels].to(dtype)  # (n, 1, d)
            (weights,) = buffers.of_shape(len(entries), *tile.values.shape)
            _exponentials(tile, entries, out=weights)
            factors = channel_weights[tile.image, rows, tile.channels].to(dtype) / weights.sum(dim=1)  # (n, d)
            averaged[tile.image, rows] += (weights @ factors[:, :, None])[:, :, 0]
    return averaged


class _Tile(NamedTuple):
    """Some channels of one image, and the rows of embeddings that are taken at a time.

    Attributes:
        image: Which image.
        channels: Which channels.
        values: Their features less the mean, which changes no weight and keeps scores small.
        mean: That mean.
        least: Least value of a channel.
        greatest: Greatest value of a channel.
        rows: Blocks of embeddings.
    """

    image: int
    channels: slice
    values: Float[Tensor, "P d"]
    mean: Float[Tensor, "d"]
    least: Float[Tensor, "d"]
    greatest: Float[Tensor, "d"]
    rows: list[slice]


def _tiles(features: Float[Tensor, "B P D"], num_rows: int) -> Iterator[_Tile]:
    num_images, num_positions, dim = features.shape
    size = _TILE_PER_THREAD * torch.get_num_threads()
    num_channels = min(dim, max(_TILE_CHANNELS, size // (num_positions * num_rows)))
    step = max(1, size // (num_positions * num_channels))
    rows = [slice(row, row + step) for row in range(0, num_rows, step)]
    for image in range(num_images):
        for channel in range(0, dim, num_channels):
            channels = slice(channel, channel + num_channels)
            values, mean = centred(features[image, :, channels])
            yield _Tile(image, channels, values, mean, *values.aminmax(dim=0), rows)


def _exponentials(tile: _Tile, entries: Float[Tensor, "n 1 d"], *, out: Float[Tensor, "n P d"]) -> None:
    """exp(e f - greatest e f of the row), or exp(e f) where that is safe: the factor cancels."""
    torch.mul(tile.values, entries, out=out)
    # From the extremes, not by a pass over the scores; rounding is monotonic, so this is their greatest to the last bit.
    at_least, at_greatest = tile.least * entries, tile.greatest * entries  # (n, 1, d)
    safe = _SAFE_SCORE[out.dtype]
    if float(torch.maximum(at_least.abs(), at_greatest.abs()).amax()) > safe:
        out.sub_(torch.maximum(at_least, at_greatest))
        out.clamp_(min=-safe)  # as good as zero beside the greatest; exp() is slow where it underflows
    out.exp_()


class _Buffers:
    """Memory for tiles, taken once and used again: the allocator would return and fault in the same pages every time."""

    def __init__(self, count: int, dtype: torch.dtype, device: torch.device) -> None:
        self._flat = [torch.empty(0, dtype=dtype, device=device) for _ in range(count)]

    def of_shape(self, *shape: int) -> list[Tensor]:
        size = shape[0] * shape[1] * shape[2]
        if self._flat[0].numel() < size:
            self._flat = [flat.new_empty(size) for flat in self._flat]
        return [flat[:size].view(shape) for flat in self._flat]
