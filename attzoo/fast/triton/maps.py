"""The convolution of spatial attention, from 2 maps to 1 with zero padding: (N, 2, S) -> (N, S), and its backward pass.

Positions and kernel sizes of 1 to 3 dimensions are (D, H, W), with leading sizes of 1. The maps have 2 / C and 1 / C of
the size of x, so the values that several taps read stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .channel_norm import Norm, add_moments
from .common import (
    REAL,
    cdiv,
    counters,
    empty_float32,
    is_last,
    launch,
    next_power_of_2,
    parts_and_steps,
    sample_and_positions,
)

POSITIONS_PER_PROGRAM = 128    # number of positions that a program processes
TAPS = 16       # number of taps of the kernel that a program of `weight_kernel` processes


@triton.jit
def tap(p, j, D, H, W, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BACK: tl.constexpr):
    """Return the position that tap j of the kernel reads for output position p, and whether it is inside the map.

    If BACK, return the output position that reads position p by tap j. D, H, W: size of the map. KD, KH, KW: size of
    the kernel.
    """
    d = j // (KH * KW) - KD // 2
    h = j // KW % KH - KH // 2
    w = j % KW - KW // 2
    if BACK:
        d, h, w = -d, -h, -w
    z = p // (H * W) + d
    y = p // W % H + h
    x = p % W + w
    return (z * H + y) * W + x, (z >= 0) & (z < D) & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def conv_kernel(
    maps, weight, q, t, scale, shift, mean, var, statistics, parts, counter, eps, N, D, H, W,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write t = sigmoid(norm(q)) and the convolution q of the maps; see `conv`. One program: BS positions of a sample.

    q is None without a norm. With `parts`, the norm uses statistics of the batch: these are written, and t is not.
    """
    S = D * H * W
    n, p = sample_and_positions(tl.program_id(0), S, BS)
    n = n.to(tl.int64)
    sums = tl.zeros([BS], REAL)
    for j in range(KD * KH * KW):   # not unrolled, because that would spill registers
        position, inside = tap(p, j, D, H, W, KD, KH, KW, False)
        inside = inside & (p < S)
        address = maps + n * 2 * S + position
        sums += tl.load(address, inside, 0.0) * tl.load(weight + j).to(REAL)
        sums += tl.load(address + S, inside, 0.0) * tl.load(weight + KD * KH * KW + j).to(REAL)
    if q is not None:
        tl.store(q + n * S + p, sums, p < S)
    if parts is not None:
        i, programs = tl.program_id(0), tl.num_programs(0)
        add_moments(sums, p < S, i, programs, tl.full([], N, tl.int64) * S, parts, counter, statistics, eps)
    else:
        if q is not None:
            tl.store(statistics, tl.load(mean).to(REAL))   # the same from every program
            tl.store(statistics + 1, 1 / tl.sqrt(tl.load(var).to(REAL) + eps))
            sums = (sums - tl.load(mean).to(REAL)) / tl.sqrt(tl.load(var).to(REAL) + eps)
            sums = sums * tl.load(scale).to(REAL) + tl.load(shift).to(REAL)
        tl.store(t + n * S + p, tl.sigmoid(sums), p < S)


def conv(maps: Tensor, weight: Tensor, size: Sequence[int], t: Tensor, norm: Norm | None) -> None:
    """Write t, the sigmoid of the convolution of the maps, or of the norm of that convolution.

    If the norm uses statistics of the batch, t is not written, because `passes.scale` applies the norm.

    Args:
        maps: (N, 2, S), average and maximum over channels.
        weight: (1, 2, *k).
        size: the spatial sizes, 1 to 3.
        t: tensor to write, (N, S).
        norm: norm after the convolution, or None; its `q` and `statistics` are written.

    Raises:
        ValueError: the shape of the weight is not (1, 2, *k).

    """
    if weight.shape[:2] != (1, 2):   # the kernel would read beyond the end of the weight
        expected = "expected a convolution weight from 2 maps to 1, of shape [1, 2, *k]"
        raise ValueError(f"{expected}, got shape {list(weight.shape)}")
    size_3d, kernel = _as_3d(size), _kernel_sizes(weight)
    N, S = t.shape
    BS = min(next_power_of_2(S), POSITIONS_PER_PROGRAM)
    programs = N * cdiv(S, BS)
    q, eps = (None, None) if norm is None else (norm.q, norm.eps)
    norm_tensors: Sequence[Tensor | None] = [None] * 5
    moments: Sequence[Tensor | None] = [None] * 2
    if norm is not None:
        norm_tensors = norm.scale, norm.shift, norm.mean, norm.var, norm.statistics
        if norm.by_batch:
            moments = empty_float32(t, 3, programs), counters(t, 1)
    args = maps, weight, q, t, *norm_tensors, *moments, eps, N, *size_3d
    launch(conv_kernel, programs, *args, BS=BS, num_warps=4, **kernel)


@triton.jit
def maps_kernel(
    dq, weight, ties, dmaps, D, H, W, channels,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write the gradients of averages and maxima, dmaps (N, 2, S), as `backward` returns them.

    One program: BS positions of a sample.
    """
    S = D * H * W
    n, p = sample_and_positions(tl.program_id(0), S, BS)
    n = n.to(tl.int64)
    mean = tl.zeros([BS], REAL)
    maximum = tl.zeros([BS], REAL)
    for j in range(KD * KH * KW):
        position, inside = tap(p, j, D, H, W, KD, KH, KW, True)
        d = tl.load(dq + n * S + position, inside & (p < S), 0.0)
        mean += d * tl.load(weight + j).to(REAL)
        maximum += d * tl.load(weight + KD * KH * KW + j).to(REAL)
    tl.store(dmaps + n * 2 * S + p, mean / channels, p < S)
    tl.store(dmaps + n * 2 * S + S + p, maximum / tl.load(ties + n * S + p, p < S, 1.0), p < S)


@triton.jit
def weight_kernel(
    dq, maps, parts, counter, dweight, N, D, H, W, PARTS, STEPS,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """Write the gradient of the weight into `dweight`, from dq (N, S), the gradient of the convolution, and the maps.

    One program: BT taps over one of PARTS parts of the positions of all samples. The last program of these taps adds up
    the parts.
    """
    i = tl.program_id(0)
    S = D * H * W
    TAPS = 2 * KD * KH * KW
    j = i // PARTS * BT + tl.arange(0, BT)
    part = i % PARTS
    sums = tl.zeros([BT, BS], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part * STEPS, (part + 1) * STEPS):
        n = (step // blocks).to(tl.int64)
        p = step % blocks * BS + tl.arange(0, BS)
        in_sample = p < S * (n < N).to(tl.int32)   # the last part may have steps beyond the last sample
        position, inside = tap(p[None, :], (j % (KD * KH * KW))[:, None], D, H, W, KD, KH, KW, False)
        inside = inside & in_sample[None, :] & (j < TAPS)[:, None]
        map_start = (j // (KD * KH * KW))[:, None] * S
        d = tl.load(dq + n * S + p, in_sample, 0.0)
        sums += d[None, :] * tl.load(maps + n * 2 * S + map_start + position, inside, 0.0)
    tl.store(parts + part * TAPS + j, tl.sum(sums, 1), j < TAPS)
    if is_last(counter + i // PARTS, PARTS):
        totals = tl.zeros([BT, BP], REAL)
        for start in range(0, PARTS, BP):
            q = start + tl.arange(0, BP)
            inside = (j < TAPS)[:, None] & (q < PARTS)[None, :]
            totals += tl.load(parts + q[None, :] * TAPS + j[:, None], inside, 0.0, cache_modifier=".cg")
        tl.store(dweight + j, tl.sum(totals, 1).to(dweight.dtype.element_ty), j < TAPS)


def backward(
    dq: Tensor, ties: Tensor, maps: Tensor, weight: Tensor, size: Sequence[int], channels: int, dweight: Tensor
) -> Tensor:
    """Return the gradients of averages, divided by `channels`, and of maxima, divided by `ties`: (N, 2, S).

    Args:
        dq: gradient of the convolution, (N, S).
        ties: number of channels that equal the maximum, (N, S).
        maps: (N, 2, S), average and maximum over channels.
        weight: (1, 2, *k).
        size: the spatial sizes, 1 to 3.
        channels: number of channels of x.
        dweight: tensor to write, the gradient of the weight.

    """
    size_3d, kernel = _as_3d(size), _kernel_sizes(weight)
    N, S = dq.shape
    BS = min(next_power_of_2(S), POSITIONS_PER_PROGRAM)
    dmaps = empty_float32(dq, N, 2, S)
    options = {"BS": BS, "num_warps": 4, **kernel}
    steps = N * cdiv(S, BS)
    launch(maps_kernel, steps, dq, weight, ties, dmaps, *size_3d, channels, **options)
    taps = cdiv(weight.numel(), TAPS)
    count, part_steps = parts_and_steps(max(1, steps), taps)
    parts = empty_float32(dq, count, weight.numel())
    args = dq, maps, parts, counters(dq, taps), dweight, N, *size_3d, count, part_steps
    launch(weight_kernel, taps * count, *args, BT=TAPS, BP=64, **options)
    return dmaps


def _as_3d(size: Sequence[int]) -> tuple[int, ...]:
    """Return spatial sizes, 1 to 3, as (D, H, W), with leading sizes of 1."""
    return (1,) * (3 - len(size)) + tuple(size)


def _kernel_sizes(weight: Tensor) -> dict[str, int]:
    """Return the kernel sizes of a weight (1, 2, *k) as arguments KD, KH and KW of the kernels."""
    return dict(zip(("KD", "KH", "KW"), _as_3d(weight.shape[2:]), strict=True))
