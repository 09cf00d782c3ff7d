"""Forward passes over x that channel attention, spatial attention and CBAM share: y = x * s * t.

s (N, C) is one coefficient per channel, t (N, S) one per position. At the end of a residual block,
y = relu(x * s * t + shortcut), with a shortcut of the shape of x.

The product z = x * s is never stored; each pass multiplies again, which gives the same bits. The gradient of a maximum
is divided evenly among the tied elements.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .channel_norm import Norm, apply_norm
from .common import (
    INFINITY,
    REAL,
    at,
    cdiv,
    is_channels_last,
    larger,
    launch,
    match_layout,
    nth,
    parts_and_steps,
    relu,
    sample_and_positions,
    sizes,
    tile_indices,
)
from .tiles import tile as tile


@triton.jit
def portion(C, PARTS, BC: tl.constexpr):
    """Return the portion of x of this program: a sample, BC channels, and the index of one of PARTS parts of space."""
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    return program // PARTS // blocks, program // PARTS % blocks * BC + tl.arange(0, BC), program % PARTS


@triton.jit
def pool_portion(
    x, sum_parts, max_parts, n, c, part, C, S, PARTS, STEPS,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write sums over positions of one portion of x into `sum_parts` and, unless None, maxima into `max_parts`.

    Both are (N, PARTS, C). The portion has sample n, channels c and positions of `part`, which consists of STEPS tiles
    of BS positions.
    """
    sums = tl.zeros([BC, BS], REAL)
    maxima = tl.full([BC, BS], -INFINITY, REAL)
    for step in range(part * STEPS, (part + 1) * STEPS):
        p = step * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (p < S)[None, :]
        x_tile = tl.load(x + at(n, c[:, None], p[None, :], C, S, LAST), inside, 0.0, eviction_policy="evict_last")
        x_tile = x_tile.to(REAL)
        sums += x_tile
        if max_parts is not None:
            maxima = larger(maxima, tl.where(inside, x_tile, -INFINITY))
    offset = (n * PARTS + part) * C + c
    tl.store(sum_parts + offset, tl.sum(sums, 1), c < C)
    if max_parts is not None:
        tl.store(max_parts + offset, tl.reduce(maxima, 1, larger), c < C)


@triton.jit
def pool_kernel(
    x, parts, N, C, S, PARTS, STEPS,
    MAXIMA: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write sums and, if MAXIMA, maxima over each part of the positions into `parts`, (1 + MAXIMA, N, PARTS, C).

    One program: one portion of x.
    """
    n, c, part = portion(C, PARTS, BC)
    if MAXIMA:
        pool_portion(x, parts, nth(parts, 1, N * PARTS, C), n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    else:
        pool_portion(x, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)


class Portions(NamedTuple):
    """How a pass divides x into portions: one sample, some channels, and one part of the positions, for each program.

    Attributes:
        programs: number of programs.
        parts: number of parts of the positions.
        steps: number of tiles in a part.
        options: keyword arguments of the kernel: its tile, the number of warps, and whether x is channels last.

    """

    programs: int
    parts: int
    steps: int
    options: dict[str, int]


def portions(name: str, x: Tensor) -> Portions:
    """Return how a pass divides x (N, C, *S). `name` is the name of the pass in tiles.py, such as "pool"."""
    N, C, S = sizes(x)
    BC, BS, num_warps = tile(name, x)
    blocks = cdiv(C, BC)
    parts, steps = parts_and_steps(cdiv(S, BS), max(1, N * blocks))
    options = {"LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    return Portions(N * blocks * parts, parts, steps, options)


@triton.jit
def map_kernel(x, s, maps, C, S, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr):
    """Write average and maximum over channels of x * s into maps (N, 2, S); s is (N, C), or None for 1.

    One program: BS positions of a sample.
    """
    n, p = sample_and_positions(tl.program_id(0), S, BS)
    sums = tl.zeros([BC, BS], REAL)
    maxima = tl.full([BC, BS], -INFINITY, REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < S)[None, :]
        z = tl.load(x + at(n, c[:, None], p[None, :], C, S, LAST), inside, 0.0, eviction_policy="evict_last")
        z = z.to(REAL)
        if s is not None:
            z = z * tl.load(s + n * C + c, c < C, 0.0)[:, None]
        sums += z
        maxima = larger(maxima, tl.where(inside, z, -INFINITY))
    offset = n.to(tl.int64) * 2 * S + p
    tl.store(maps + offset, tl.sum(sums, 0) / C, p < S)
    tl.store(maps + offset + S, tl.reduce(maxima, 0, larger), p < S)


def pool_channels(x: Tensor, s: Tensor | None, maps: Tensor) -> None:
    """Write the average and maximum of x * s over channels into maps (N, 2, S), for x (N, C, *S), s (N, C) or None."""
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("map", x)
    options = {"LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    launch(map_kernel, N * cdiv(S, BS), x, s, maps, C, S, **options)


@triton.jit
def scale_kernel(
    x, s, t, norm_input, statistics, norm_scale, norm_shift, shortcut, y, C, S,
    RELU: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write y = x * s * t + shortcut, with a relu if RELU; see `scale`. One program: one tile of y.

    If `norm_input` is given, a map before its norm, t is computed from it, and written by the programs of the first
    channels. Programs run from the end of x, which the pass before read last and may still be cached.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    n, c, p = tile_indices(program, C, S, BC, BS)
    inside = (c < C)[:, None] & (p < S)[None, :]
    offset = at(n, c[:, None], p[None, :], C, S, LAST)
    z = tl.load(x + offset, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if s is not None:
        z = z * tl.load(s + n * C + c, c < C, 0.0)[:, None]
    if t is not None:
        position_offset = n.to(tl.int64) * S + p
        if norm_input is not None:
            norm_input_tile = tl.load(norm_input + position_offset, p < S, 0.0)
            t_tile = tl.sigmoid(apply_norm(norm_input_tile, statistics, norm_scale, norm_shift))
            if program // tl.cdiv(S, BS) % tl.cdiv(C, BC) == 0:
                tl.store(t + position_offset, t_tile, p < S)
        else:
            t_tile = tl.load(t + position_offset, p < S, 0.0)
        z = z * t_tile[None, :]
    if shortcut is not None:
        z += tl.load(shortcut + offset, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if RELU:
        z = relu(z)
    tl.store(y + offset, z.to(y.dtype.element_ty), inside, eviction_policy="evict_first")


def scale(
    x: Tensor,
    s: Tensor | None,
    t: Tensor | None,
    y: Tensor,
    shortcut: Tensor | None = None,
    relu: bool = False,
    norm: Norm | None = None,
) -> None:
    """Write x * s * t into y, or relu(x * s * t + shortcut).

    Args:
        x: (N, C, *S).
        s: (N, C), or None for 1.
        t: (N, S), or None for 1.
        y: tensor to write, (N, C, *S).
        shortcut: tensor to add, (N, C, *S), or None.
        relu: whether a relu follows the sum.
        norm: norm by statistics of the batch, whose output's sigmoid is t; then t is written too.

    """
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("scale", x)
    options = {"RELU": relu, "LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    shortcut = None if shortcut is None else match_layout(shortcut, x)
    norm_tensors = (None,) * 4 if norm is None else (norm.input, norm.statistics, norm.scale, norm.shift)
    args = x, s, t, *norm_tensors, shortcut, y, C, S
    launch(scale_kernel, N * cdiv(C, BC) * cdiv(S, BS), *args, **options)
