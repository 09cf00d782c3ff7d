"""Kernels for batch norm in training in the additive attention gate: statistics of W x, and sums of e W x.

Both are sums over all positions. Programs sum parts, and the last program adds the parts up in a fixed order. W x is
computed again each time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton.channel_norm import input_gradient
from ....fast.triton.common import REAL, cdiv, counters, empty_float32, is_last, launch, sizes
from ....fast.triton.running_stats import RunningStats, count_batch, update_channels
from . import forward
from .backward import RESIDENT, PsiNormGradient, ReluGradient, relu_gradient
from .forward import add_projection, precision, relu_mask
from .projections import Projection, load_vector
from .tiles import STATISTICS, Tile, exact_tile

PARTS_AT_ONCE = 32   # number of parts that the last program adds up at a time


@triton.jit
def moments_kernel(
    x, w, parts, counter, batch, bias, running_mean, running_var, batches, momentum, N, F, C, S, PARTS,
    LAST: tl.constexpr, PRECISION: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """Write mean, variance and unbiased variance of W x into `batch` (3, F); see `moments`.

    One program: BF inner channels over a part of the positions of all samples. Tiles are merged as Chan et al. merge
    samples; the last program of these channels merges the parts likewise, and updates the running statistics of W x +
    bias, if there are any. The last program of all counts the batch.
    """
    part = tl.program_id(0) % PARTS
    f = tl.program_id(0) // PARTS * BF + tl.arange(0, BF)
    ones = tl.full([BF], 1.0, REAL)
    mean = tl.zeros([BF], REAL)
    squares = tl.zeros([BF], REAL)
    count = 0.0
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        projected = add_projection(x, w, ones, n, f, s, F, C, S, tl.zeros([BF, BS], REAL), LAST, PRECISION, BC)
        tile_count = tl.sum((s < S).to(REAL))
        tile_mean = tl.sum(projected, 1) / tile_count
        centred = tl.where((s < S)[None, :], projected - tile_mean[:, None], 0.0)
        difference = tile_mean - mean
        total_count = count + tile_count
        mean += difference * (tile_count / total_count)
        squares += tl.sum(centred * centred, 1) + difference * difference * (count * tile_count / total_count)
        count = total_count
    row = parts + part * 3 * F
    tl.store(row + f, mean, f < F)
    tl.store(row + F + f, squares, f < F)
    tl.store(row + 2 * F + f, ones * count, f < F)
    if is_last(counter + tl.program_id(0) // PARTS, PARTS):
        values = tl.full([], N, tl.int64) * S
        sums = tl.zeros([BF, BP], tl.float64)
        for start in range(0, PARTS, BP):
            weighted = load_parts(parts, 0, f, start, F, PARTS, BP) * load_parts(parts, 2, f, start, F, PARTS, BP)
            sums += weighted
        total_mean = tl.sum(sums, 1) / values
        sums = tl.zeros([BF, BP], tl.float64)
        for start in range(0, PARTS, BP):
            difference = load_parts(parts, 0, f, start, F, PARTS, BP) - total_mean[:, None]
            sums += load_parts(parts, 2, f, start, F, PARTS, BP) * difference * difference
            sums += load_parts(parts, 1, f, start, F, PARTS, BP)
        total = tl.sum(sums, 1)
        tl.store(batch + f, total_mean.to(REAL), f < F)
        tl.store(batch + F + f, (total / values).to(REAL), f < F)
        tl.store(batch + 2 * F + f, (total / (values - 1)).to(REAL), f < F)
        if running_mean is not None:
            batch_mean = total_mean.to(REAL)
            if bias is not None:
                batch_mean += load_vector(bias, f, F)
            batch_var = (total / (values - 1)).to(REAL)
            update_channels(running_mean, running_var, batches, momentum, batch_mean, batch_var, f, F)
            channel_blocks = tl.num_programs(0) // PARTS
            if is_last(counter + channel_blocks, channel_blocks):
                count_batch(batches)


@triton.jit
def load_parts(parts, row: tl.constexpr, f, start, F, PARTS, BP: tl.constexpr):
    """Load this row of each of BP parts, from part `start` on, at inner channels f: (BF, BP). parts: (PARTS, 3, F).

    The result is float64, since means may be far from zero; it is 0 beyond the last part.
    """
    part = start + tl.arange(0, BP)
    inside = (f < F)[:, None] & (part < PARTS)[None, :]
    return tl.load(parts + (part[None, :] * 3 + row) * F + f[:, None], inside, 0.0, cache_modifier=".cg").to(tl.float64)


def moments(x: Tensor, projection: Projection, running: RunningStats, channels_last: bool, batch: Tensor) -> None:
    """Write mean, variance and unbiased variance of W x over samples and positions into `batch`, (3, F).

    x: (N, C, *S). projection: the projection W of x. running: running statistics of W x + bias to update.
    channels_last: whether x is channels last.
    """
    w = projection.weight
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    count = max(1, min(N * cdiv(S, BS), RESIDENT))
    parts = empty_float32(x, count, 3, F)
    options = {"LAST": channels_last, "PRECISION": precision(x), "BF": BF, "BC": BC, "BS": BS, "BP": PARTS_AT_ONCE}
    blocks = cdiv(F, BF)
    args = x, w, parts, counters(x, blocks + 1), batch, projection.bias, *running, N, F, C, S, count
    launch(moments_kernel, count * blocks, *args, **options, num_warps=num_warps, num_stages=2)


@triton.jit
def sums_kernel(
    x, w, statistics, dpsi_norm, psi_norm_input, psi_statistics, psi_norm_sums, psi_scale, dz, bits,
    parts, counter, batch, eps, N, F, C, S, PARTS, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, WORDS: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """Write the terms of batch norm's backward pass into `batch` (5, F), as `batch_terms` returns them.

    One program: BF inner channels over a part of the positions of all samples. The last one adds up the parts. If
    `dpsi_norm` is given, the gradient of the output of psi's norm, dz is computed from it and written; only for x.
    """
    part = tl.program_id(0) % PARTS
    f = tl.program_id(0) // PARTS * BF + tl.arange(0, BF)
    ones = tl.full([BF], 1.0, REAL)
    e_sum = tl.zeros([BF], REAL)
    product_sum = tl.zeros([BF], REAL)
    values = tl.full([], N, tl.int64) * S
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        centred = tl.zeros([BF, BS], REAL) - load_vector(statistics, f, F)[:, None]
        centred = add_projection(x, w, ones, n, f, s, F, C, S, centred, LAST, PRECISION, BC)
        if dpsi_norm is None:
            e = relu_gradient(
                dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
                TD, TH, TW, CORNERS, WIDE, COARSE, WORDS, BF, BS,
            )   # fmt: skip
        else:
            offset = n.to(tl.int64) * S + s
            dz_tile = input_gradient(
                dpsi_norm, psi_norm_input, psi_statistics, psi_norm_sums, psi_scale, offset, s < S, values, True
            )
            tl.store(dz + offset, dz_tile, s < S)   # the same from the programs of all channels
            e = tl.where(relu_mask(bits, n, f, s, s < S, S, WORDS), dz_tile[None, :], 0.0)
        e_sum += tl.sum(e, 1)
        product_sum += tl.sum(e * centred, 1)
    row = parts + part * 3 * F
    tl.store(row + f, e_sum, f < F)
    tl.store(row + F + f, product_sum, f < F)
    if is_last(counter + tl.program_id(0) // PARTS, PARTS):
        e_sums = tl.zeros([BF, BP], tl.float64)
        product_sums = tl.zeros([BF, BP], tl.float64)
        for start in range(0, PARTS, BP):
            e_sums += load_parts(parts, 0, f, start, F, PARTS, BP)
            product_sums += load_parts(parts, 1, f, start, F, PARTS, BP)
        e_total = tl.sum(e_sums, 1)
        product_total = tl.sum(product_sums, 1)
        mean = load_vector(statistics, f, F)
        variance = load_vector(statistics + F, f, F)
        tl.store(batch + f, mean, f < F)
        tl.store(batch + F + f, (e_total / values).to(REAL), f < F)
        tl.store(batch + 2 * F + f, (product_total / (variance + eps) / values).to(REAL), f < F)
        tl.store(batch + 3 * F + f, (product_total + mean * e_total).to(REAL), f < F)
        tl.store(batch + 4 * F + f, e_total.to(REAL), f < F)


def batch_terms(
    x: Tensor,
    projection: Projection,
    gradient: ReluGradient,
    psi_norm: PsiNormGradient | None,
    channels_last: bool,
) -> Tensor | None:
    """Return the terms of the backward pass of batch norm in training; None if the norm is not `by_batch`.

    Args:
        x: (N, C, *S), the input of the projection.
        projection: the projection, as `Projection.with_batch_statistics` returns it.
        gradient: the tensors from which e is computed, on the grid of x.
        psi_norm: if not None, `gradient.dz` is computed from it and written.
        channels_last: whether x is channels last.

    Returns:
        (5, F): mean(W x), mean(e), slope, and the sums of e W x and of e over samples and positions. The norm's
        backward pass replaces e by e - mean(e) - slope * (W x - mean(W x)).

    """
    statistics, w = projection.mean, projection.weight
    if not projection.by_batch or statistics is None:
        return None
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    count = max(1, min(N * cdiv(S, BS), RESIDENT))
    parts, batch, blocks = empty_float32(x, count, 3, F), empty_float32(x, 5, F), cdiv(F, BF)
    grid_sizes, constants = gradient.arguments()
    options = {"LAST": channels_last, "PRECISION": precision(x), "BF": BF, "BC": BC, "BS": BS, "BP": PARTS_AT_ONCE}
    tensors = *(psi_norm or (None,) * 5), gradient.dz, gradient.bits, parts, counters(x, blocks), batch
    args = x, w, statistics, *tensors, projection.eps, N, F, C, S, count, *grid_sizes
    launch(sums_kernel, count * blocks, *args, **constants, **options, num_warps=num_warps, num_stages=2)
    return batch


def tile(x: Tensor, F: int, C: int) -> Tile:
    """Return the tile for statistics of W x, with C channels of x and F inner channels.

    It differs from that of the forward pass, because registers also hold sums.
    """
    if precision(x) != "tf32":
        return exact_tile(STATISTICS, forward.channels_at_once(x, F), C)
    BF, BC, _, _ = forward.tile(x, F, C)
    return Tile(BF, BC, 128, 4) if BF <= 32 and BC <= 64 else Tile(BF, min(BC, 32) if BF > 32 else BC, 32, 8)
