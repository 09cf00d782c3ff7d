"""The passes over x that channel attention, spatial attention and CBAM are made of: y = x * s * t, and back.

At the end of a residual block, y = relu(x * s * t + shortcut), the shortcut being of the size of x.

s (N, C) is one coefficient per channel, t (N, S) one per place. z = x * s is never written: who needs it multiplies
again, and finds the same bits. Maxima share their gradient evenly among ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tape
from .channel_norm import Norm, Slopes, add_slopes, applied, backward
from .common import (
    INFINITY,
    REAL,
    at,
    cdiv,
    empty_float32,
    is_channels_last,
    larger,
    launch,
    match_layout,
    nth,
    parts_and_steps,
    places,
    relu,
    sizes,
    tile_indices,
)
from .tiles import tile

# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def portion(C, PARTS, BC: tl.constexpr):
    """The sample, the channels and the part of space of this program, where each takes BC channels and one part."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    return i // PARTS // blocks, i // PARTS % blocks * BC + tl.arange(0, BC), i % PARTS


@triton.jit
def pool_portion(
    x, total, top, n, c, part, C, S, PARTS, STEPS,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Sum and, unless top is None, maximum of one portion, into (N, PARTS, C)."""
    sums = tl.zeros([BC, BS], REAL)
    tops = tl.full([BC, BS], -INFINITY, REAL)
    for step in range(part * STEPS, (part + 1) * STEPS):
        s = step * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (s < S)[None, :]
        v = tl.load(x + at(n, c[:, None], s[None, :], C, S, LAST), inside, 0.0, eviction_policy="evict_last")
        v = v.to(REAL)
        sums += v
        if top is not None:
            tops = larger(tops, tl.where(inside, v, -INFINITY))
    to = (n * PARTS + part) * C + c
    tl.store(total + to, tl.sum(sums, 1), c < C)
    if top is not None:
        tl.store(top + to, tl.reduce(tops, 1, larger), c < C)


@triton.jit
def pool_kernel(
    x, parts, N, C, S, PARTS, STEPS,
    TOP: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: sums, and maxima if TOP, of one portion: (1 + TOP, N, PARTS, C)."""
    n, c, part = portion(C, PARTS, BC)
    if TOP:
        pool_portion(x, parts, nth(parts, 1, N * PARTS, C), n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    else:
        pool_portion(x, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)


class Portions(NamedTuple):
    """How a pass over x divides it: programs, parts of space, steps of each, and the tile with x's layout."""

    programs: int
    parts: int
    steps: int
    options: dict[str, int]


def portions(name: str, x: Tensor) -> Portions:
    """Those of a pass of this name in tiles.py over x (N, C, *S)."""
    N, C, S = sizes(x)
    BC, BS, num_warps = tile(name, x)
    blocks = cdiv(C, BC)
    parts, steps = parts_and_steps(cdiv(S, BS), max(1, N * blocks))
    options = {"LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    return Portions(N * blocks * parts, parts, steps, options)


@triton.jit
def map_kernel(x, s, maps, C, S, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr):
    """One program: BS places of a sample over all channels."""
    n, p = places(tl.program_id(0), S, BS)
    sums = tl.zeros([BC, BS], REAL)
    tops = tl.full([BC, BS], -INFINITY, REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < S)[None, :]
        z = tl.load(x + at(n, c[:, None], p[None, :], C, S, LAST), inside, 0.0, eviction_policy="evict_last")
        z = z.to(REAL)
        if s is not None:
            z = z * tl.load(s + n * C + c, c < C, 0.0)[:, None]
        sums += z
        tops = larger(tops, tl.where(inside, z, -INFINITY))
    to = n.to(tl.int64) * 2 * S + p
    tl.store(maps + to, tl.sum(sums, 0) / C, p < S)
    tl.store(maps + to + S, tl.reduce(tops, 0, larger), p < S)


def pool_channels(x: Tensor, s: Tensor | None, maps: Tensor) -> None:
    """Average and maximum over channels of x * s, into maps (N, 2, S): (N, C, *S), (N, C) or None for 1."""
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("map", x)
    options = {"LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    launch(map_kernel, N * cdiv(S, BS), x, s, maps, C, S, **options)


@triton.jit
def scale_kernel(
    x, s, t, q, statistics, gain, offset, shortcut, y, C, S,
    RELU: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: one tile. What was read last, and may still be near, comes first.

    If there is q, the map before its norm, t is made of it, and written with the first channels.
    """
    i = tl.num_programs(0) - 1 - tl.program_id(0)
    n, c, p = tile_indices(i, C, S, BC, BS)
    inside = (c < C)[:, None] & (p < S)[None, :]
    to = at(n, c[:, None], p[None, :], C, S, LAST)
    z = tl.load(x + to, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if s is not None:
        z = z * tl.load(s + n * C + c, c < C, 0.0)[:, None]
    if t is not None:
        place = n.to(tl.int64) * S + p
        if q is not None:
            a = tl.sigmoid(applied(tl.load(q + place, p < S, 0.0), statistics, gain, offset))
            if i // tl.cdiv(S, BS) % tl.cdiv(C, BC) == 0:
                tl.store(t + place, a, p < S)
        else:
            a = tl.load(t + place, p < S, 0.0)
        z = z * a[None, :]
    if shortcut is not None:
        z += tl.load(shortcut + to, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if RELU:
        z = relu(z)
    tl.store(y + to, z.to(y.dtype.element_ty), inside, eviction_policy="evict_first")


def scale(
    x: Tensor,
    s: Tensor | None,
    t: Tensor | None,
    y: Tensor,
    shortcut: Tensor | None = None,
    relu: bool = False,
    norm: Norm | None = None,
) -> None:
    """Write x * s * t into y: (N, C, *S), (N, C) or None for 1, (N, S) or None for 1.

    norm: by the batch, of what t is the sigmoid of; then t is written. shortcut (N, C, *S) is added, and then there
    may be a relu.
    """
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("scale", x)
    options = {"RELU": relu, "LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    shortcut = None if shortcut is None else match_layout(shortcut, x)
    of_norm = (None,) * 4 if norm is None else (norm.q, norm.statistics, norm.scale, norm.shift)
    args = x, s, t, *of_norm, shortcut, y, C, S
    launch(scale_kernel, N * cdiv(C, BC) * cdiv(S, BS), *args, **options)


# ---- backward --------------------------------------------------------------------------------------------------------
#
# Before all, the gradient goes through the relu. A maximum's goes to its ties in equal shares, so whoever hands it on
# has counted them. `each` stands for such a share: (N, S) of the maxima over channels, (N, C) of those over space.


def backward_needs_y(*args: Any) -> bool:
    """Whether `grad_of_product` needs y: the last of the arguments says whether there is a relu."""
    return bool(args[-1])


def grad_of_product(dy: Tensor, x: Tensor, y: Tensor | None, gradients: list[Any]) -> Tensor:
    """The gradient of x * s * t, laid out as x is, from that of y; it is the shortcut's too, the second of `gradients`.

    y: as it came out, if there was a relu.
    """
    dy, room = match_layout(dy, x), gradients[1]
    if y is not None:
        into = tape.allocated(torch.empty_like, dy) if room is None or room.stride() != dy.stride() else room
        tape.call(_relu_backward, dy, y, into)   # 0 where y is, as in torch's own relu
        dy = into
    if room is not None and room is not dy:
        tape.call(Tensor.copy_, room, dy)
    return dy


def _relu_backward(dy: Tensor, y: Tensor, into: Tensor) -> None:
    torch.ops.aten.threshold_backward.grad_input(dy, y, 0, grad_input=into)


@triton.jit
def position_gradients_kernel(
    x, dy, s, t, maps, dq, ties, q, statistics, parts, counter, sums_of_norm, dscale, dshift, C, S,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BS places of a sample over all channels."""
    n, p = places(tl.program_id(0), S, BS)
    first = n.to(tl.int64) * S + p
    top = tl.load(maps + first + (n + 1).to(tl.int64) * S, p < S, 0.0)
    sums = tl.zeros([BC, BS], REAL)
    count = tl.zeros([BC, BS], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < S)[None, :]
        to = at(n, c[:, None], p[None, :], C, S, LAST)
        z = tl.load(x + to, inside, 0.0, eviction_policy="evict_last").to(REAL)
        d = tl.load(dy + to, inside, 0.0, eviction_policy="evict_last").to(REAL)
        if s is not None:
            z = z * tl.load(s + n * C + c, c < C, 0.0)[:, None]
        sums += d * z
        count += tl.where(inside & (z == top[None, :]), 1.0, 0.0)
    a = tl.load(t + first, p < S, 0.0)
    slope = tl.sum(sums, 0) * a * (1 - a)
    tl.store(dq + first, slope, p < S)
    tl.store(ties + first, tl.sum(count, 0), p < S)
    if q is not None:
        i, programs, before = tl.program_id(0), tl.num_programs(0), tl.load(q + first, p < S, 0.0)
        add_slopes(slope, before, p < S, i, programs, parts, counter, statistics, sums_of_norm, dscale, dshift)


def to_places(
    x: Tensor, dy: Tensor, s: Tensor | None, t: Tensor, maps: Tensor, norm: Norm | None, gradients: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """The gradient of the sigmoid's input, where t = sigmoid(norm(q)), then of q, and the ties of maxima: (N, S) each.

    Ties are how many channels share a maximum. gradients: room for those of the norm's scale and shift.
    """
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("positions", x)
    dq, ties = empty_float32(x, N, S), empty_float32(x, N, S)
    options = {"LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    programs = N * cdiv(S, BS)
    slopes = Slopes.of(norm, programs, gradients)
    launch(position_gradients_kernel, programs, x, dy, s, t, maps, dq, ties, *slopes, C, S, **options)
    backward(dq, norm, slopes)
    return dq, ties


@triton.jit
def to_product(n, d, z, t, maps, dmaps, p, S):
    """The gradient of z = x * s from that of y, a tile of it."""
    at_place = n.to(tl.int64) * S + p
    at_map = at_place + n.to(tl.int64) * S
    d = d * tl.load(t + at_place, p < S, 0.0)[None, :] + tl.load(dmaps + at_map, p < S, 0.0)[None, :]
    top = tl.load(maps + at_map + S, p < S, 0.0)
    each = tl.load(dmaps + at_map + S, p < S, 0.0)
    return tl.where(z == top[None, :], d + each[None, :], d)


@triton.jit
def channels_portion(
    x, dy, s, t, maps, dmaps, top, ds, ties, n, c, part, C, S, PARTS, STEPS,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """The gradient of s and, unless top is None, how many places share the maximum, of one portion: (N, PARTS, C)."""
    factor = tl.load(s + n * C + c, c < C, 0.0)
    sums = tl.zeros([BC, BS], REAL)
    count = tl.zeros([BC, BS], REAL)
    if top is not None:
        most = tl.load(top + n * C + c, c < C, 0.0)
    for step in range(part * STEPS, (part + 1) * STEPS):
        p = step * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (p < S)[None, :]
        to = at(n, c[:, None], p[None, :], C, S, LAST)
        v = tl.load(x + to, inside, 0.0, eviction_policy="evict_last").to(REAL)
        d = tl.load(dy + to, inside, 0.0, eviction_policy="evict_last").to(REAL)
        if t is not None:
            d = to_product(n, d, v * factor[:, None], t, maps, dmaps, p, S)
        sums += tl.where(inside, d * v, 0.0)
        if top is not None:
            count += tl.where(inside & (v == most[:, None]), 1.0, 0.0)
    to = (n * PARTS + part) * C + c
    tl.store(ds + to, tl.sum(sums, 1), c < C)
    if top is not None:
        tl.store(ties + to, tl.sum(count, 1), c < C)


@triton.jit
def channels_kernel(
    x, dy, saved, t, maps, dmaps, parts, N, C, S, PARTS, STEPS,
    TOP: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: the gradient of s, and the ties of maxima if TOP, of one portion: (1 + TOP, N, PARTS, C)."""
    n, c, part = portion(C, PARTS, BC)
    if TOP:
        top, ties = nth(saved, 2, N, C), nth(parts, 1, N * PARTS, C)
        channels_portion(x, dy, saved, t, maps, dmaps, top, parts, ties, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    else:
        channels_portion(x, dy, saved, t, maps, dmaps, None, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)


class Map(NamedTuple):
    """One coefficient per position, t (N, S), the maps that it was made from and their gradient, (N, 2, S) each."""

    t: Tensor
    maps: Tensor
    dmaps: Tensor


@triton.jit
def input_kernel(
    x, dy, saved, t, maps, dmaps, found, dx, N, C, S,
    TOP: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: one tile. What was read last, and may still be near, comes first."""
    n, c, p = tile_indices(tl.num_programs(0) - 1 - tl.program_id(0), C, S, BC, BS)
    inside = (c < C)[:, None] & (p < S)[None, :]
    to = at(n, c[:, None], p[None, :], C, S, LAST)
    d = tl.load(dy + to, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if saved is not None:
        factor = tl.load(saved + n * C + c, c < C, 0.0)[:, None]
    if (t is not None) or TOP:
        v = tl.load(x + to, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if t is not None:
        z = v
        if saved is not None:
            z = v * factor
        d = to_product(n, d, z, t, maps, dmaps, p, S)
    if saved is not None:
        d = d * factor + tl.load(found + n * C + c, c < C, 0.0)[:, None]
    if TOP:
        most = tl.load(nth(saved, 2, N, C) + n * C + c, c < C, 0.0)[:, None]
        d = tl.where(v == most, d + tl.load(nth(found, 1, N, C) + n * C + c, c < C, 0.0)[:, None], d)
    tl.store(dx + to, d.to(dx.dtype.element_ty), inside, eviction_policy="evict_first")


def to_input(
    x: Tensor,
    dy: Tensor,
    dx: Tensor,
    saved: Tensor | None,
    found: Tensor | None,
    top: bool = False,
    of_map: Map | None = None,
) -> None:
    """The gradient of x, into dx, from that of y.

    saved begins with s (N, C), and its third such array are maxima over space if `top`; found begins with the gradient
    of the average over space per position, and that of the maximum per tie: see perceptron.py.
    """
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("input" if of_map is None else "input of a map", x)
    options = {"TOP": top, "LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    t, maps, dmaps = of_map or (None, None, None)
    args = x, dy, saved, t, maps, dmaps, found, dx, N, C, S
    launch(input_kernel, N * cdiv(C, BC) * cdiv(S, BS), *args, **options)
