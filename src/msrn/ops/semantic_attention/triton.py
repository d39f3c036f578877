"""The exact form as fused GPU kernels; needs the triton package.

With t_p = f_p - f_ext, where f_ext is the feature of the greatest score (the greatest of its channel for e > 0, otherwise the
least), the weights w_p = exp(e t_p) are at most 1, and exactly 1 at f_ext. So no running maximum is needed, and

    o = sum_p w_p f_p / total        do/de = sum_p w_p (f_p - o)^2 / total        total = sum_p w_p
    sum_l g do/df_p = sum_l w_p (level + slope e t_p)        slope = g / total        level = slope (1 - e sum_p w_p t_p / total)

The exponentials are the bound: one for every (label, position, channel) forward, two backward; a GPU does 8 multiplications in the
time of each. Every entry of a result is written by one program, so results are the same from run to run.
"""

import math
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

# A tile of 16 x 64 entries for 4 warps: each thread has one channel of 8 rows, so what it reads serves 8 exponentials. Its 72 to
# 128 registers leave room for 7 to 4 such programs on a multiprocessor (A100, H100), which cover one another's waits for memory.
# Rows shorter than the 128 threads are read straight into registers; longer ones Triton would pass through shared memory.
_ROWS = (16, 8, 4)
_CHANNELS = 64
_LAUNCH: dict[str, Any] = {"CHANNELS": _CHANNELS, "num_warps": 4, "enable_fp_fusion": True}
# Sizes stay plain numbers to the compiler. Told that the width is a multiple of 16, it would give each thread 4 or 8 channels of
# few rows, for wider reads, and what is computed once a row would cost as much as the rest.
_SIZES = ("num_positions", "num_labels", "dim")
# Sums are taken in parts of this many terms: one long sum over thousands of positions would lose two digits.
_PART = tl.constexpr(32)
_LOG2_E = tl.constexpr(math.log2(math.e))


def attend(features: Float[Tensor, "B P D"], embeddings: Float[Tensor, "L D"]) -> Float[Tensor, "B L D"]:
    """`attend_reference` in one kernel; float32.

    Args:
        features: Features of float32, bfloat16 or float16 on a CUDA device; channels innermost in memory saves a copy.
        embeddings: Entries of any floating type.

    Raises:
        ValueError: The features are float64, or not on a CUDA device.
    """
    features, embeddings = _prepared(features, embeddings)
    (num_images, num_positions, dim), num_labels = features.shape, len(embeddings)
    pooled = features.new_empty(num_images, num_labels, dim, dtype=torch.float32)  # (B, L, D)
    sizes, rows = (num_positions, num_labels, dim), _block_rows(num_labels)
    with torch.cuda.device_of(features):
        _attend_kernel[_grid(num_images, num_labels, dim, rows)](
            features, embeddings, *features.aminmax(dim=1), pooled, *sizes, ROWS=rows, **_LAUNCH
        )
    return pooled


def differentiate(
    features: Float[Tensor, "B P D"],
    embeddings: Float[Tensor, "L D"],
    pooled: Float[Tensor, "B L D"],
    grad: Float[Tensor, "B L D"],
) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "B L D"]]:
    """The gradient of the features, and do/de, the variance of the features under the attention weights; float32.

    The gradient of the embeddings is `(grad * variance).sum(dim=0)`. `pooled` may come rounded, to bfloat16 say: it only tells
    where to centre the squares of the variance.
    """
    features, embeddings = _prepared(features, embeddings)
    pooled, grad = pooled.contiguous(), grad.contiguous()
    (num_images, num_positions, dim), num_labels = features.shape, len(embeddings)
    grad_features = torch.empty_like(features, dtype=torch.float32)  # (B, P, D)
    variance, slope, level = (torch.empty_like(grad, dtype=torch.float32) for _ in range(3))  # (B, L, D)
    inputs, sizes = (features, embeddings, *features.aminmax(dim=1)), (num_positions, num_labels, dim)
    with torch.cuda.device_of(features):
        rows = _block_rows(num_labels)
        _variance_kernel[_grid(num_images, num_labels, dim, rows)](
            *inputs, pooled, grad, variance, slope, level, *sizes, ROWS=rows, **_LAUNCH
        )
        rows = _block_rows(num_positions)
        _features_kernel[_grid(num_images, num_positions, dim, rows)](
            *inputs, slope, level, grad_features, *sizes, ROWS=rows, **_LAUNCH
        )
    return grad_features, variance


def _prepared(
    features: Float[Tensor, "B P D"], embeddings: Float[Tensor, "L D"]
) -> tuple[Float[Tensor, "B P D"], Float[Tensor, "L D"]]:
    """Both as the kernels read them: channels innermost, embeddings in float32."""
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(
            f"backend='triton' computes in float32 and takes float32, bfloat16 or float16 features, got {features.dtype}. "
            "Use backend='cpu' (which runs on any device) or backend='reference'."
        )
    # With TRITON_INTERPRET=1 the kernels are plain Python functions, which run anywhere.
    if isinstance(_attend_kernel, triton.JITFunction) and not features.is_cuda:
        raise ValueError(
            f"backend='triton' runs on CUDA devices, the features are on '{features.device}'. Move the model and its input "
            "to a GPU, or use backend='auto'."
        )
    return features.contiguous(), embeddings.to(torch.float32).contiguous()


def _block_rows(num_rows: int) -> int:
    """Rows of a tile; those beyond the last row cost as much as any other."""
    # What a step of the loop does once a tile (read, count, branch) costs about as much as two of its rows.
    return min(_ROWS, key=lambda rows: triton.cdiv(num_rows, rows) * (rows + 2))


def _grid(num_images: int, num_rows: int, dim: int, rows: int) -> tuple[int, int]:
    # The first axis may have 2**31 - 1 programs, the second 65,535.
    return num_images * triton.cdiv(num_rows, rows), triton.cdiv(dim, _CHANNELS)


# The kernels. Pointers lead to contiguous tensors: features and grad_features (B, P, D), embeddings (L, D), least and greatest
# (B, D), all others (B, L, D). A program has ROWS labels (_features_kernel: positions) and CHANNELS channels of one image. Offsets
# of an image take 64 bits, those inside it 32. `no_type_check` keeps our tests' annotation checks out of code that Triton compiles.


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _attend_kernel(
    features,
    embeddings,
    least,
    greatest,
    pooled,
    num_positions,
    num_labels,
    dim,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    num_blocks = (num_labels + ROWS - 1) // ROWS
    image = (tl.program_id(0) // num_blocks).to(tl.int64)
    rows = tl.program_id(0) % num_blocks * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_width = channels < dim
    inside = (rows < num_labels)[:, None] & in_width[None, :]
    tile = rows[:, None] * dim + channels[None, :]
    entries = tl.load(embeddings + tile, mask=inside, other=0.0)  # (ROWS, CHANNELS)
    low = tl.load(least + image * dim + channels, mask=in_width, other=0.0).to(tl.float32)
    high = tl.load(greatest + image * dim + channels, mask=in_width, other=0.0).to(tl.float32)
    extreme = tl.where(entries > 0, high[None, :], low[None, :])  # (ROWS, CHANNELS)
    rate = entries * _LOG2_E

    total = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    moment = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    position = features + image * num_positions * dim + channels
    for first in range(0, num_positions, _PART):
        part_total = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
        part_moment = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
        for _ in tl.range(first, tl.minimum(first + _PART, num_positions), loop_unroll_factor=4):
            values = tl.load(position, mask=in_width, other=0.0).to(tl.float32)  # (CHANNELS,)
            position += dim
            weights = tl.exp2(rate * (values[None, :] - extreme))  # (ROWS, CHANNELS)
            part_total += weights
            part_moment += weights * values[None, :]
        total += part_total
        moment += part_moment
    tl.store(pooled + image * num_labels * dim + tile, moment / total, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _variance_kernel(
    features,
    embeddings,
    least,
    greatest,
    pooled,
    grad,
    variance,
    slope,
    level,
    num_positions,
    num_labels,
    dim,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    num_blocks = (num_labels + ROWS - 1) // ROWS
    image = (tl.program_id(0) // num_blocks).to(tl.int64)
    rows = tl.program_id(0) % num_blocks * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_width = channels < dim
    inside = (rows < num_labels)[:, None] & in_width[None, :]
    tile = rows[:, None] * dim + channels[None, :]
    entries = tl.load(embeddings + tile, mask=inside, other=0.0)  # (ROWS, CHANNELS)
    low = tl.load(least + image * dim + channels, mask=in_width, other=0.0).to(tl.float32)
    high = tl.load(greatest + image * dim + channels, mask=in_width, other=0.0).to(tl.float32)
    extreme = tl.where(entries > 0, high[None, :], low[None, :])  # (ROWS, CHANNELS)
    rate = entries * _LOG2_E
    start = image * num_labels * dim
    # Squares about the mean: about a point far from it, they would cancel.
    centre = tl.load(pooled + start + tile, mask=inside, other=0.0).to(tl.float32) - extreme

    total = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    moment = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    square = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    position = features + image * num_positions * dim + channels
    for first in range(0, num_positions, _PART):
        part_total = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
        part_moment = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
        part_square = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
        for _ in tl.range(first, tl.minimum(first + _PART, num_positions), loop_unroll_factor=4):
            values = tl.load(position, mask=in_width, other=0.0).to(tl.float32)  # (CHANNELS,)
            position += dim
            distance = values[None, :] - extreme  # (ROWS, CHANNELS)
            weights = tl.exp2(rate * distance)
            deviation = distance - centre
            part_total += weights
            part_moment += weights * distance
            part_square += weights * deviation * deviation
        total += part_total
        moment += part_moment
        square += part_square
    # The mean anew, from the extreme: at large e, e (o - f_ext) would lose its digits in a rounded o.
    mean = moment / total
    error = mean - centre
    tl.store(variance + start + tile, square / total - error * error, mask=inside)
    share = tl.load(grad + start + tile, mask=inside, other=0.0).to(tl.float32) / total
    tl.store(slope + start + tile, share, mask=inside)
    tl.store(level + start + tile, share * (1 - entries * mean), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
@no_type_check
def _features_kernel(
    features,
    embeddings,
    least,
    greatest,
    slope,
    level,
    grad_features,
    num_positions,
    num_labels,
    dim,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    num_blocks = (num_positions + ROWS - 1) // ROWS
    image = (tl.program_id(0) // num_blocks).to(tl.int64)
    rows = tl.program_id(0) % num_blocks * ROWS + tl.arange(0, ROWS)
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    in_width = channels < dim
    inside = (rows < num_positions)[:, None] & in_width[None, :]
    start = image * num_positions * dim
    # Rows beyond the last repeat it: any other value might lie above `high`, and overflow.
    tile = tl.minimum(rows, num_positions - 1)[:, None] * dim + channels[None, :]
    values = tl.load(features + start + tile, mask=in_width[None, :], other=0.0).to(tl.float32)  # (ROWS, CHANNELS)
    low = tl.load(least + image * dim + channels, mask=in_width, other=0.0).to(tl.float32)
    high = tl.load(greatest + image * dim + channels, mask=in_width, other=0.0).to(tl.float32)

    gradient = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
    embedding = embeddings + channels
    label = image * num_labels * dim + channels
    for first in range(0, num_labels, _PART):
        part = tl.full((ROWS, CHANNELS), 0.0, tl.float32)
        for _ in tl.range(first, tl.minimum(first + _PART, num_labels), loop_unroll_factor=4):
            entries = tl.load(embedding, mask=in_width, other=0.0)  # (CHANNELS,)
            slopes = tl.load(slope + label, mask=in_width, other=0.0)
            levels = tl.load(level + label, mask=in_width, other=0.0)
            embedding += dim
            label += dim
            distance = values - tl.where(entries > 0, high, low)[None, :]  # (ROWS, CHANNELS)
            weights = tl.exp2((entries * _LOG2_E)[None, :] * distance)
            # |e mean| is at most log P, so the two terms do not cancel where weights count.
            part += weights * (levels[None, :] + (slopes * entries)[None, :] * distance)
        gradient += part
    tl.store(grad_features + start + tile, gradient, mask=inside)
