"""The convolution of spatial attention, 2 maps to 1 with zeros around: (N, 2, S) -> (N, S), and back.

In 1-D to 3-D, in one form: places are (D, H, W), and a line or an image has 1 of what it lacks, its kernel too. These
maps are 2 / C and 1 / C of the size of x, so taps are read again and again from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .channel_norm import Norm, add_moments
from .common import REAL, cdiv, counters, empty_float32, is_last, launch, next_power_of_2, parts_and_steps, places

PLACES = 128    # that a program takes
TAPS = 16       # of the kernel, that a program takes on the way back


@triton.jit
def tap(p, j, D, H, W, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BACK: tl.constexpr):
    """The place that tap j of a kernel over place p reads or, going back, that reads p with it; and if there is one."""
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
    """One program: BS places of a sample. Without a norm, or with one by running statistics, it writes t too."""
    S = D * H * W
    n, p = places(tl.program_id(0), S, BS)
    n = n.to(tl.int64)
    sums = tl.zeros([BS], REAL)
    for j in range(KD * KH * KW):   # not unrolled, for then it would spill
        other, known = tap(p, j, D, H, W, KD, KH, KW, False)
        known = known & (p < S)
        to = maps + n * 2 * S + other
        sums += tl.load(to, known, 0.0) * tl.load(weight + j).to(REAL)
        sums += tl.load(to + S, known, 0.0) * tl.load(weight + KD * KH * KW + j).to(REAL)
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
    """maps (N, 2, S), weight (1, 2, *k) -> the sigmoid of their convolution and its norm, if there is one, (N, S).

    With a norm it writes the convolution and the norm's statistics. With one by the batch, it does not write t.
    """
    if weight.shape[:2] != (1, 2):   # the kernel would read past its end
        raise ValueError(f"expected a kernel from 2 maps to 1, got {list(weight.shape)}")
    whole, kernel = _whole(size), _kernel(weight)
    N, S = t.shape
    BS = min(next_power_of_2(S), PLACES)
    programs = N * cdiv(S, BS)
    arrays: list[Any] = [None] * 7 if norm is None else [*norm[:4], norm.statistics, None, None]
    if norm is not None and norm.by_batch:
        arrays[5:] = empty_float32(t, 3, programs), counters(t, 1)
    args = maps, weight, norm and norm.q, t, *arrays, norm and norm.eps, N, *whole
    launch(conv_kernel, programs, *args, BS=BS, num_warps=4, **kernel)


@triton.jit
def maps_kernel(
    dq, weight, ties, dmaps, D, H, W, channels,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BS places of a sample."""
    S = D * H * W
    n, p = places(tl.program_id(0), S, BS)
    n = n.to(tl.int64)
    mean = tl.zeros([BS], REAL)
    most = tl.zeros([BS], REAL)
    for j in range(KD * KH * KW):
        other, known = tap(p, j, D, H, W, KD, KH, KW, True)
        d = tl.load(dq + n * S + other, known & (p < S), 0.0)
        mean += d * tl.load(weight + j).to(REAL)
        most += d * tl.load(weight + KD * KH * KW + j).to(REAL)
    tl.store(dmaps + n * 2 * S + p, mean / channels, p < S)
    tl.store(dmaps + n * 2 * S + S + p, most / tl.load(ties + n * S + p, p < S, 1.0), p < S)


@triton.jit
def weight_kernel(
    dq, maps, parts, counter, dweight, N, D, H, W, PARTS, STEPS,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """One program: BT taps over a part of the places of all samples. The last of these taps adds up their parts."""
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
        here = p < S * (n < N).to(tl.int32)   # the last part may have steps past the end
        other, known = tap(p[None, :], (j % (KD * KH * KW))[:, None], D, H, W, KD, KH, KW, False)
        known = known & here[None, :] & (j < TAPS)[:, None]
        of_map = (j // (KD * KH * KW))[:, None] * S
        d = tl.load(dq + n * S + p, here, 0.0)
        sums += d[None, :] * tl.load(maps + n * 2 * S + of_map + other, known, 0.0)
    tl.store(parts + part * TAPS + j, tl.sum(sums, 1), j < TAPS)
    if is_last(counter + i // PARTS, PARTS):
        totals = tl.zeros([BT, BP], REAL)
        for first in range(0, PARTS, BP):
            q = first + tl.arange(0, BP)
            inside = (j < TAPS)[:, None] & (q < PARTS)[None, :]
            totals += tl.load(parts + q[None, :] * TAPS + j[:, None], inside, 0.0, cache_modifier=".cg")
        tl.store(dweight + j, tl.sum(totals, 1).to(dweight.dtype.element_ty), j < TAPS)


def backward(
    dq: Tensor, ties: Tensor, maps: Tensor, weight: Tensor, size: Sequence[int], channels: int, dweight: Tensor
) -> Tensor:
    """The gradient of the maps from that of q (N, S): of each channel by the mean, and of each tie; (N, 2, S).

    That of the weight is written into dweight.
    """
    whole, kernel = _whole(size), _kernel(weight)
    N, S = dq.shape
    BS = min(next_power_of_2(S), PLACES)
    dmaps = empty_float32(dq, N, 2, S)
    options = {"BS": BS, "num_warps": 4, **kernel}
    steps = N * cdiv(S, BS)
    launch(maps_kernel, steps, dq, weight, ties, dmaps, *whole, channels, **options)
    taps = cdiv(weight.numel(), TAPS)
    count, each = parts_and_steps(max(1, steps), taps)
    parts = empty_float32(dq, count, weight.numel())
    args = dq, maps, parts, counters(dq, taps), dweight, N, *whole, count, each
    launch(weight_kernel, taps * count, *args, BT=TAPS, BP=64, **options)
    return dmaps


def _whole(size: Sequence[int]) -> tuple[int, ...]:
    """(D, H, W), 1 for what there is not."""
    return (1,) * (3 - len(size)) + tuple(size)


def _kernel(weight: Tensor) -> dict[str, int]:
    """The same of a kernel (1, 2, *k)."""
    return dict(zip(("KD", "KH", "KW"), _whole(weight.shape[2:]), strict=True))
