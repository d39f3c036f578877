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

# Entries of a tile for every thread: in float32 1.2 MB, which stays within a core's second-level cache.
_TILE_PER_THREAD = 300_000
_TILE_CHANNELS = 64
# Scores up to here go into exp() as they are: sums of their exponentials neither overflow nor vanish.
_SAFE_SCORE = {torch.float32: 60.0, torch.float64: 600.0}


def attend(values: Float[Tensor, "B P D"], embeddings: Float[Tensor, "N D"]) -> Float[Tensor, "B N D"]:
    """`attend_reference`, a tile at a time.

    Args:
        values: Features in float32 or float64, best less their mean over positions: rounding errors grow with the scores.
        embeddings: Entries of the same type.
    """
    pooled = values.new_empty(len(values), *embeddings.shape)  # (B, N, D)
    buffers = _Buffers(1, values)
    shift = _Shift.where_needed(values, embeddings)
    for tile in _tiles(values, len(embeddings)):
        for rows in tile.rows:
            entries = embeddings[rows, None, tile.channels]  # (n, 1, d)
            (weights,) = buffers.of_shape(len(entries), *tile.values.shape)
            _exponentials(tile, entries, shift, out=weights)
            totals = weights.sum(dim=1)  # (n, d)
            torch.div(weights.mul_(tile.values).sum(dim=1), totals, out=pooled[tile.image, rows, tile.channels])
    return pooled


def differentiate(
    values: Float[Tensor, "B P D"],
    embeddings: Float[Tensor, "N D"],
    pooled: Float[Tensor, "B N D"],
    grad: Float[Tensor, "B N D"],
) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B N D"]]:
    """The gradient of the features, and do/de, the variance of the features under the attention weights.

    The gradient of the embeddings is `(grad * variance).sum(dim=0)`. All of one type.
    """
    grad_values = torch.empty_like(values)  # (B, P, D)
    variance = torch.empty_like(grad)  # (B, N, D)
    buffers = _Buffers(2, values)
    shift = _Shift.where_needed(values, embeddings)
    for tile in _tiles(values, len(embeddings)):
        weight_slope, value_slope = torch.zeros_like(tile.values), torch.zeros_like(tile.values)  # (P, d)
        for rows in tile.rows:
            entries = embeddings[rows, None, tile.channels]  # (n, 1, d)
            mean = pooled[tile.image, rows, None, tile.channels]  # (n, 1, d)
            weights, scratch = buffers.of_shape(len(entries), *tile.values.shape)
            _exponentials(tile, entries, shift, out=weights)
            totals = weights.sum(dim=1, keepdim=True)  # (n, 1, d)
            torch.sub(tile.values, mean, out=scratch).square_().mul_(weights)
            torch.div(scratch.sum(dim=1), totals[:, 0], out=variance[tile.image, rows, tile.channels])
            # sum over n of g a (1 + e (f - o)) = sum over n of w g (1 - e o) / total + f · sum over n of w g e / total
            slope = grad[tile.image, rows, None, tile.channels] / totals  # (n, 1, d)
            weight_slope += torch.mul(weights, slope * (1 - entries * mean), out=scratch).sum(dim=0)
            value_slope += weights.mul_(slope * entries).sum(dim=0)
        grad_values[tile.image, :, tile.channels] = weight_slope.addcmul_(tile.values, value_slope)
    return grad_values, variance


def average_weights(
    values: Float[Tensor, "B P D"], embeddings: Float[Tensor, "N D"], channel_weights: Float[Tensor, "B N D"]
) -> Float[Tensor, "B N P"]:
    """Attention weights summed over channels with the weights given; no more than a tile of them lives at a time."""
    averaged = values.new_zeros(len(values), len(embeddings), values.shape[1])  # (B, N, P)
    buffers = _Buffers(1, values)
    shift = _Shift.where_needed(values, embeddings)
    for tile in _tiles(values, len(embeddings)):
        for rows in tile.rows:
            entries = embeddings[rows, None, tile.channels]  # (n, 1, d)
            (weights,) = buffers.of_shape(len(entries), *tile.values.shape)
            _exponentials(tile, entries, shift, out=weights)
            factors = channel_weights[tile.image, rows, tile.channels] / weights.sum(dim=1)  # (n, d)
            averaged[tile.image, rows] += (weights @ factors[:, :, None])[:, :, 0]
    return averaged


class _Tile(NamedTuple):
    """Some channels of one image, and the rows of embeddings that are taken at a time."""

    image: int
    channels: slice
    values: Float[Tensor, "P d"]
    rows: list[slice]


def _tiles(values: Float[Tensor, "B P D"], num_rows: int) -> Iterator[_Tile]:
    num_images, num_positions, dim = values.shape
    size = _TILE_PER_THREAD * torch.get_num_threads()
    num_channels = min(dim, max(_TILE_CHANNELS, size // (num_positions * num_rows)))
    step = max(1, size // (num_positions * num_channels))
    rows = [slice(row, row + step) for row in range(0, num_rows, step)]
    for image in range(num_images):
        for channel in range(0, dim, num_channels):
            channels = slice(channel, channel + num_channels)
            yield _Tile(image, channels, values[image, :, channels].contiguous(), rows)


class _Shift(NamedTuple):
    """Extremes of every channel, from which the greatest score of a row follows without a pass over the scores."""

    least: Float[Tensor, "B D"]
    greatest: Float[Tensor, "B D"]

    @classmethod
    def where_needed(cls, values: Float[Tensor, "B P D"], embeddings: Float[Tensor, "N D"]) -> "_Shift | None":
        """None where all scores are safe: the shift would cancel."""
        shift = cls(values.amin(dim=1), values.amax(dim=1))
        largest = torch.maximum(shift.greatest, -shift.least) * embeddings.abs().amax(dim=0)  # (B, D)
        # Not "shift if greater": one NaN must not take the shift from the others.
        return None if float(largest.amax()) <= _SAFE_SCORE[values.dtype] else shift


def _exponentials(
    tile: _Tile, entries: Float[Tensor, "n 1 d"], shift: _Shift | None, *, out: Float[Tensor, "n P d"]
) -> None:
    """exp(e f - greatest e f of the row); the factor cancels."""
    torch.mul(tile.values, entries, out=out)
    if shift is not None:
        # Rounding is monotonic, so this is the greatest score of the row to the last bit.
        own = tile.image, tile.channels
        out.sub_(torch.maximum(shift.least[own] * entries, shift.greatest[own] * entries))
        # As good as zero beside the 1 of the greatest; exp() is slow where it underflows.
        out.clamp_(min=-_SAFE_SCORE[out.dtype])
    out.exp_()


class _Buffers:
    """Memory for tiles, taken once and used again: the allocator would return and fault in the same pages every time."""

    def __init__(self, count: int, like: Tensor) -> None:
        self._flat = [like.new_empty(0) for _ in range(count)]

    def of_shape(self, *shape: int) -> list[Tensor]:
        size = shape[0] * shape[1] * shape[2]
        if self._flat[0].numel() < size:
            self._flat = [flat.new_empty(size) for flat in self._flat]
        return [flat[:size].view(shape) for flat in self._flat]
