"""Backward passes over x and the gradient of y, for the forward passes of passes.py.

The gradient of y first passes through the relu. The gradient of a maximum is divided by its number of ties, which an
earlier pass counts. The quotient is (N, S) for maxima over channels, and (N, C) for maxima over space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tape
from .channel_norm import GradientSums, Norm, add_gradient_sums, backward
from .common import (
    REAL,
    at,
    cdiv,
    empty_float32,
    is_channels_last,
    launch,
    match_layout,
    nth,
    sample_and_positions,
    sizes,
    tile_indices,
)
from .passes import portion
from .tiles import tile as tile


def backward_needs_y(*args: Any) -> bool:
    """Whether the backward pass needs the output y, from the arguments of the operator: the last one, `relu`."""
    return bool(args[-1])


def grad_of_product(dy: Tensor, x: Tensor, y: Tensor | None, gradients: list[Any]) -> Tensor:
    """Return the gradient of x * s * t, in the memory layout of x.

    Args:
        dy: gradient of the output y = x * s * t + shortcut, with a relu or without.
        x: the input, (N, C, *S).
        y: the output if a relu follows the sum, else None.
        gradients: the gradient of the shortcut, which is the same, is written into item 1 unless that is None.

    """
    dy, dshortcut = match_layout(dy, x), gradients[1]
    if y is not None:
        can_share_memory = dshortcut is not None and dshortcut.stride() == dy.stride()
        result = dshortcut if can_share_memory else tape.allocated(torch.empty_like, dy)
        tape.call(_relu_backward, dy, y, result)   # 0 where y is 0, as in PyTorch
        dy = result
    if dshortcut is not None and dshortcut is not dy:
        tape.call(Tensor.copy_, dshortcut, dy)
    return dy


def _relu_backward(dy: Tensor, y: Tensor, result: Tensor) -> None:
    """Write dy where y > 0, else 0, into `result`."""
    torch.ops.aten.threshold_backward.grad_input(dy, y, 0, grad_input=result)


@triton.jit
def position_gradients_kernel(
    x, dy, s, t, maps, dconv, ties, norm_input, statistics, parts, counter, norm_sums, dscale, dshift, C, S,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write `dconv` and `ties`, (N, S) each, as `position_gradients` returns them.

    One program: BS positions of a sample. If `norm_input` is given, the input of a batch norm, sums for its backward
    pass are written too; see `add_gradient_sums`.
    """
    n, p = sample_and_positions(tl.program_id(0), S, BS)
    position_offset = n.to(tl.int64) * S + p
    maximum = tl.load(maps + position_offset + (n + 1).to(tl.int64) * S, p < S, 0.0)
    sums = tl.zeros([BC, BS], REAL)
    count = tl.zeros([BC, BS], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        inside = (c < C)[:, None] & (p < S)[None, :]
        offset = at(n, c[:, None], p[None, :], C, S, LAST)
        z = tl.load(x + offset, inside, 0.0, eviction_policy="evict_last").to(REAL)
        dy_tile = tl.load(dy + offset, inside, 0.0, eviction_policy="evict_last").to(REAL)
        if s is not None:
            z = z * tl.load(s + n * C + c, c < C, 0.0)[:, None]
        sums += dy_tile * z
        count += tl.where(inside & (z == maximum[None, :]), 1.0, 0.0)
    t_tile = tl.load(t + position_offset, p < S, 0.0)
    gradient = tl.sum(sums, 0) * t_tile * (1 - t_tile)
    tl.store(dconv + position_offset, gradient, p < S)
    tl.store(ties + position_offset, tl.sum(count, 0), p < S)
    if norm_input is not None:
        program, programs = tl.program_id(0), tl.num_programs(0)
        norm_input_tile = tl.load(norm_input + position_offset, p < S, 0.0)
        add_gradient_sums(
            gradient, norm_input_tile, p < S, program, programs, parts, counter, statistics, norm_sums, dscale, dshift
        )


def position_gradients(
    x: Tensor, dy: Tensor, s: Tensor | None, t: Tensor, maps: Tensor, norm: Norm | None, norm_gradients: Sequence[Any]
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the convolution before t, and the number of channels with the maximum: (N, S) each.

    t is the sigmoid of the convolution, or of the norm of the convolution.

    Args:
        x: (N, C, *S).
        dy: gradient of x * s * t.
        s: (N, C), or None for 1.
        t: (N, S).
        maps: average and maximum of x * s over channels, (N, 2, S).
        norm: the batch norm between the convolution and t, or None.
        norm_gradients: tensors to write, the gradients of the norm's scale and shift; None each without a norm.

    """
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("positions", x)
    dconv, ties = empty_float32(x, N, S), empty_float32(x, N, S)
    options = {"LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    programs = N * cdiv(S, BS)
    gradient_sums = GradientSums.allocate(norm, programs, *norm_gradients)
    launch(position_gradients_kernel, programs, x, dy, s, t, maps, dconv, ties, *gradient_sums, C, S, **options)
    backward(dconv, norm, gradient_sums)
    return dconv, ties


@triton.jit
def product_gradient(n, gradient, z, t, maps, dmaps, p, S):
    """Return a tile (BC, BS) of the gradient of z = x * s, from tiles of the gradient of y and of x * s.

    The tile is at sample n and positions p. t (N, S), maps and their gradient dmaps (N, 2, S) are those of `Map`.
    """
    position_offset = n.to(tl.int64) * S + p
    map_offset = position_offset + n.to(tl.int64) * S
    gradient = gradient * tl.load(t + position_offset, p < S, 0.0)[None, :]
    gradient = gradient + tl.load(dmaps + map_offset, p < S, 0.0)[None, :]
    maximum = tl.load(maps + map_offset + S, p < S, 0.0)
    share = tl.load(dmaps + map_offset + S, p < S, 0.0)
    return tl.where(z == maximum[None, :], gradient + share[None, :], gradient)


@triton.jit
def channels_portion(
    x, dy, s, t, maps, dmaps, maxima, ds, ties, n, c, part, C, S, PARTS, STEPS,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write the part of one portion in the gradient of s and, unless `maxima` is None, in the ties: (N, PARTS, C) each.

    They are written into `ds` and `ties`. Ties are the numbers of positions that equal the maximum over space, which is
    in `maxima`, (N, C). The portion has sample n, channels c and positions of `part`. t, maps and dmaps are those of
    `Map`; t is None for y = x * s.
    """
    s_tile = tl.load(s + n * C + c, c < C, 0.0)
    sums = tl.zeros([BC, BS], REAL)
    count = tl.zeros([BC, BS], REAL)
    if maxima is not None:
        maximum = tl.load(maxima + n * C + c, c < C, 0.0)
    for step in range(part * STEPS, (part + 1) * STEPS):
        p = step * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (p < S)[None, :]
        offset = at(n, c[:, None], p[None, :], C, S, LAST)
        x_tile = tl.load(x + offset, inside, 0.0, eviction_policy="evict_last").to(REAL)
        gradient = tl.load(dy + offset, inside, 0.0, eviction_policy="evict_last").to(REAL)
        if t is not None:
            gradient = product_gradient(n, gradient, x_tile * s_tile[:, None], t, maps, dmaps, p, S)
        sums += tl.where(inside, gradient * x_tile, 0.0)
        if maxima is not None:
            count += tl.where(inside & (x_tile == maximum[:, None]), 1.0, 0.0)
    offset = (n * PARTS + part) * C + c
    tl.store(ds + offset, tl.sum(sums, 1), c < C)
    if maxima is not None:
        tl.store(ties + offset, tl.sum(count, 1), c < C)


@triton.jit
def channels_kernel(
    x, dy, saved, t, maps, dmaps, parts, N, C, S, PARTS, STEPS,
    MAXIMA: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write parts of the gradient of s and, if MAXIMA, of the numbers of ties into `parts`, (1 + MAXIMA, N, PARTS, C).

    One program: one portion of x and dy.
    """
    n, c, part = portion(C, PARTS, BC)
    if MAXIMA:
        maxima, ties = nth(saved, 2, N, C), nth(parts, 1, N * PARTS, C)
        channels_portion(
            x, dy, saved, t, maps, dmaps, maxima, parts, ties, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS
        )
    else:
        channels_portion(x, dy, saved, t, maps, dmaps, None, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)


class Map(NamedTuple):
    """One coefficient per position, with the maps from which it was computed.

    Attributes:
        t: the coefficients, (N, S).
        maps: average and maximum over channels, (N, 2, S).
        dmaps: gradients of the averages, divided by C, and of the maxima, divided by their number of ties, (N, 2, S).

    """

    t: Tensor
    maps: Tensor
    dmaps: Tensor


@triton.jit
def input_kernel(
    x, dy, saved, t, maps, dmaps, pool_grads, dx, N, C, S,
    MAXIMA: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write the gradient of x into dx; see `to_input`. One program: one tile of x.

    Programs run from the end of x, which the pass before read last and may still be cached.
    """
    n, c, p = tile_indices(tl.num_programs(0) - 1 - tl.program_id(0), C, S, BC, BS)
    inside = (c < C)[:, None] & (p < S)[None, :]
    offset = at(n, c[:, None], p[None, :], C, S, LAST)
    gradient = tl.load(dy + offset, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if saved is not None:
        s_tile = tl.load(saved + n * C + c, c < C, 0.0)[:, None]
    if (t is not None) or MAXIMA:
        x_tile = tl.load(x + offset, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if t is not None:
        z = x_tile
        if saved is not None:
            z = x_tile * s_tile
        gradient = product_gradient(n, gradient, z, t, maps, dmaps, p, S)
    if saved is not None:
        gradient = gradient * s_tile + tl.load(pool_grads + n * C + c, c < C, 0.0)[:, None]
    if MAXIMA:
        maximum = tl.load(nth(saved, 2, N, C) + n * C + c, c < C, 0.0)[:, None]
        share = tl.load(nth(pool_grads, 1, N, C) + n * C + c, c < C, 0.0)[:, None]
        gradient = tl.where(x_tile == maximum, gradient + share, gradient)
    tl.store(dx + offset, gradient.to(dx.dtype.element_ty), inside, eviction_policy="evict_first")


def to_input(
    x: Tensor,
    dy: Tensor,
    dx: Tensor,
    saved: Tensor | None,
    pool_grads: Tensor | None,
    uses_maxima: bool = False,
    map_gradients: Map | None = None,
) -> None:
    """Write the gradient of x into dx.

    Args:
        x: (N, C, *S).
        dy: gradient of x * s * t, in the memory layout of x.
        dx: tensor to write.
        saved: the saved tensor of perceptron.py: s, the averages and, if `uses_maxima`, the maxima over space, (N, C)
            each; None without s.
        pool_grads: (N, C) each, gradients of the average over space, divided by S, and of the maximum, divided by the
            number of ties.
        uses_maxima: whether s depends on maxima.
        map_gradients: t, its maps and their gradient; None without t.

    """
    N, C, S = sizes(x)
    BC, BS, num_warps = tile("input" if map_gradients is None else "input of a map", x)
    options = {"MAXIMA": uses_maxima, "LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    t, maps, dmaps = map_gradients or (None, None, None)
    args = x, dy, saved, t, maps, dmaps, pool_grads, dx, N, C, S
    launch(input_kernel, N * cdiv(C, BC) * cdiv(S, BS), *args, **options)
