"""The convolution of spatial attention, from 2 maps to 1 with zero padding: (N, 2, S) -> (N, S), and its backward pass.

Positions and kernel sizes of 1 to 3 dimensions are (D, H, W), with leading sizes of 1. The maps have 2 / C and 1 / C of
the size of x, so the values that several taps read stay in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
TAPS_PER_PROGRAM = 16          # number of taps of the kernel that a program of `weight_kernel` processes


@triton.jit
def tap(position, tap_index, D, H, W, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BACK: tl.constexpr):
    """Return the position that a tap of the kernel reads for an output position, and whether it is inside the map.

    If BACK, return the output position that reads `position` by this tap. D, H, W: size of the map. KD, KH, KW: size of
    the kernel.
    """
    offset_d = tap_index // (KH * KW) - KD // 2
    offset_h = tap_index // KW % KH - KH // 2
    offset_w = tap_index % KW - KW // 2
    if BACK:
        offset_d, offset_h, offset_w = -offset_d, -offset_h, -offset_w
    d = position // (H * W) + offset_d
    h = position // W % H + offset_h
    w = position % W + offset_w
    return (d * H + h) * W + w, (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)


@triton.jit
def conv_kernel(
    maps, weight, conv_output, coefficients, scale, shift, mean, var, batches, momentum, statistics, parts, counter,
    eps, N, D, H, W,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write the convolution of the maps, and coefficients = sigmoid(norm(convolution)); see `conv`.

    One program: BS positions of a sample. `conv_output` is None without a norm. With `parts`, the norm uses statistics
    of the batch: these are written, and the coefficients are not.
    """
    S = D * H * W
    n, p = sample_and_positions(tl.program_id(0), S, BS)
    n = n.to(tl.int64)
    sums = tl.zeros([BS], REAL)
    for tap_index in range(KD * KH * KW):   # not unrolled, because that would spill registers
        position, inside = tap(p, tap_index, D, H, W, KD, KH, KW, False)
        inside = inside & (p < S)
        address = maps + n * 2 * S + position
        sums += tl.load(address, inside, 0.0) * tl.load(weight + tap_index).to(REAL)
        sums += tl.load(address + S, inside, 0.0) * tl.load(weight + KD * KH * KW + tap_index).to(REAL)
    if conv_output is not None:
        tl.store(conv_output + n * S + p, sums, p < S)
    if parts is not None:
        program, programs = tl.program_id(0), tl.num_programs(0)
        count = tl.full([], N, tl.int64) * S
        add_moments(
            sums, p < S, program, programs, count, parts, counter, statistics, eps, mean, var, batches, momentum
        )
    else:
        if conv_output is not None:
            tl.store(statistics, tl.load(mean).to(REAL))   # the same from every program
            tl.store(statistics + 1, 1 / tl.sqrt(tl.load(var).to(REAL) + eps))
            sums = (sums - tl.load(mean).to(REAL)) / tl.sqrt(tl.load(var).to(REAL) + eps)
            sums = sums * tl.load(scale).to(REAL) + tl.load(shift).to(REAL)
        tl.store(coefficients + n * S + p, tl.sigmoid(sums), p < S)


def conv(maps: Tensor, weight: Tensor, size: Sequence[int], coefficients: Tensor, norm: Norm | None) -> None:
    """Write coefficients, the sigmoid of the convolution of the maps, or of the norm of that convolution.

    If the norm uses statistics of the batch, they are not written, because `passes.scale` applies the norm.

    Args:
        maps: (N, 2, S), average and maximum over channels.
        weight: (1, 2, *k).
        size: the spatial sizes, 1 to 3.
        coefficients: tensor to write, (N, S).
        norm: norm after the convolution, or None; its `input` and `statistics` are written.

    Raises:
        ValueError: the shape of the weight is not (1, 2, *k).

    """
    if weight.shape[:2] != (1, 2):   # the kernel would read beyond the end of the weight
        expected = "expected a convolution weight from 2 maps to 1, of shape [1, 2, *k]"
        raise ValueError(f"{expected}, got shape {list(weight.shape)}")
    size_3d, kernel = _as_3d(size), _kernel_sizes(weight)
    N, S = coefficients.shape
    BS = min(next_power_of_2(S), POSITIONS_PER_PROGRAM)
    programs = N * cdiv(S, BS)
    conv_output, eps = (None, None) if norm is None else (norm.input, norm.eps)
    norm_args: Sequence[Any] = [None] * 7
    moments: Sequence[Tensor | None] = [None] * 2
    if norm is not None:
        norm_args = norm.scale, norm.shift, *norm.running, norm.statistics
        if norm.by_batch:
            moments = empty_float32(coefficients, 3, programs), counters(coefficients, 1)
    args = maps, weight, conv_output, coefficients, *norm_args, *moments, eps, N, *size_3d
    launch(conv_kernel, programs, *args, BS=BS, num_warps=4, **kernel)


@triton.jit
def maps_kernel(
    dconv, weight, ties, dmaps, D, H, W, channels,
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
    for tap_index in range(KD * KH * KW):
        position, inside = tap(p, tap_index, D, H, W, KD, KH, KW, True)
        gradient = tl.load(dconv + n * S + position, inside & (p < S), 0.0)
        mean += gradient * tl.load(weight + tap_index).to(REAL)
        maximum += gradient * tl.load(weight + KD * KH * KW + tap_index).to(REAL)
    tl.store(dmaps + n * 2 * S + p, mean / channels, p < S)
    tl.store(dmaps + n * 2 * S + S + p, maximum / tl.load(ties + n * S + p, p < S, 1.0), p < S)


@triton.jit
def weight_kernel(
    dconv, maps, parts, counter, dweight, N, D, H, W, PARTS, STEPS,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """Write the gradient of the weight into `dweight`, from `dconv`, (N, S), and the maps.

    One program: BT taps over one of PARTS parts of the positions of all samples. The last program of these taps adds up
    the parts.
    """
    program = tl.program_id(0)
    S = D * H * W
    TAPS = 2 * KD * KH * KW
    taps = program // PARTS * BT + tl.arange(0, BT)
    part = program % PARTS
    sums = tl.zeros([BT, BS], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part * STEPS, (part + 1) * STEPS):
        n = (step // blocks).to(tl.int64)
        p = step % blocks * BS + tl.arange(0, BS)
        in_sample = p < S * (n < N).to(tl.int32)   # the last part may have steps beyond the last sample
        position, inside = tap(p[None, :], (taps % (KD * KH * KW))[:, None], D, H, W, KD, KH, KW, False)
        inside = inside & in_sample[None, :] & (taps < TAPS)[:, None]
        map_start = (taps // (KD * KH * KW))[:, None] * S
        gradient = tl.load(dconv + n * S + p, in_sample, 0.0)
        sums += gradient[None, :] * tl.load(maps + n * 2 * S + map_start + position, inside, 0.0)
    tl.store(parts + part * TAPS + taps, tl.sum(sums, 1), taps < TAPS)
    if is_last(counter + program // PARTS, PARTS):
        totals = tl.zeros([BT, BP], REAL)
        for start in range(0, PARTS, BP):
            summed_part = start + tl.arange(0, BP)
            inside = (taps < TAPS)[:, None] & (summed_part < PARTS)[None, :]
            totals += tl.load(parts + summed_part[None, :] * TAPS + taps[:, None], inside, 0.0, cache_modifier=".cg")
        tl.store(dweight + taps, tl.sum(totals, 1).to(dweight.dtype.element_ty), taps < TAPS)


def backward(
    dconv: Tensor, ties: Tensor, maps: Tensor, weight: Tensor, size: Sequence[int], channels: int, dweight: Tensor
) -> Tensor:
    """Return the gradients of averages, divided by `channels`, and of maxima, divided by `ties`: (N, 2, S).

    Args:
        dconv: gradient of the convolution's output, (N, S).
        ties: number of channels that equal the maximum, (N, S).
        maps: (N, 2, S), average and maximum over channels.
        weight: (1, 2, *k).
        size: the spatial sizes, 1 to 3.
        channels: number of channels of x.
        dweight: tensor to write, the gradient of the weight.

    """
    size_3d, kernel = _as_3d(size), _kernel_sizes(weight)
    N, S = dconv.shape
    BS = min(next_power_of_2(S), POSITIONS_PER_PROGRAM)
    dmaps = empty_float32(dconv, N, 2, S)
    options = {"BS": BS, "num_warps": 4, **kernel}
    steps = N * cdiv(S, BS)
    launch(maps_kernel, steps, dconv, weight, ties, dmaps, *size_3d, channels, **options)
    taps = cdiv(weight.numel(), TAPS_PER_PROGRAM)
    count, part_steps = parts_and_steps(max(1, steps), taps)
    parts = empty_float32(dconv, count, weight.numel())
    args = dconv, maps, parts, counters(dconv, taps), dweight, N, *size_3d, count, part_steps
    launch(weight_kernel, taps * count, *args, BT=TAPS_PER_PROGRAM, BP=64, **options)
    return dmaps


def _as_3d(size: Sequence[int]) -> tuple[int, ...]:
    """Return spatial sizes, 1 to 3, as (D, H, W), with leading sizes of 1."""
    return (1,) * (3 - len(size)) + tuple(size)


def _kernel_sizes(weight: Tensor) -> dict[str, int]:
    """Return the kernel sizes of a weight (1, 2, *k) as arguments KD, KH and KW of the kernels."""
    return dict(zip(("KD", "KH", "KW"), _as_3d(weight.shape[2:]), strict=True))
