"""The two-layer perceptron over channels of SE, channel attention and CBAM: from x to s, and its backward pass.

Averages over space and, if there are, maxima go through the same layers, and their outputs are added. Pools come in
parts, (N, PARTS, C), which are added up where they are first read, always in one order.

Where a sample's weights are few, the last program that pools a sample computes its coefficients, and nothing more is
started. Where they are many, one program would read them for too long: there, programs of kernels of their own share
the layers, 16 samples at a time.

What is saved for the backward pass is one tensor: s, averages and, of two branches, maxima, (N, C) each, then hidden
units after relu, (N, branches, R). What the backward pass computes is laid out alike: the gradients of the average per
position and of the maximum per tie, and that of the gate's input, then those of hidden units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from . import passes
from .common import (
    INFINITY,
    REAL,
    ROWS,
    cdiv,
    counters,
    empty_float32,
    is_last,
    larger,
    launch,
    multiply_add,
    next_power_of_2,
    nth,
    relu,
    sizes,
)
from .passes import Map, portion

WIDE = 32    # channels that a program takes at once: with 64, products of exact float32 numbers spill
PRECISION = tl.constexpr("ieee")   # these sums are small: no rounding to TF32
FEW = 65536  # weights of a layer that the last program of a sample reads: 256 KiB of float32
UNITS = 128  # hidden units that it holds


class Layers(NamedTuple):
    """squeeze (R, C), (R,) or None and excite (C, R), (C,) or None; gate: "sigmoid" or "hard_sigmoid"."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    gate: str


def layers_of(block: Any) -> Layers:
    """Those of an SE or a channel attention."""
    squeeze, excite = block.squeeze, block.excite
    return Layers(squeeze.weight, squeeze.bias, excite.weight, excite.bias, block.spec.gate)


def saved(x: Tensor, R: int, top: bool) -> Tensor:
    """Room for what is saved of x (N, C, *S), or computed in the backward pass."""
    N, C = x.shape[:2]
    return empty_float32(x, N * (3 * C + 2 * R) if top else N * (2 * C + R))


# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def total_of(parts, n, c, inside, C, PARTS):
    """The sum of parts (N, PARTS, C), for samples and channels."""
    total = tl.zeros_like(c).to(REAL)
    for part in range(PARTS):
        total += tl.load(parts + (n * PARTS + part) * C + c, inside, 0.0, cache_modifier=".cg")
    return total


@triton.jit
def largest_of(parts, n, c, inside, C, PARTS):
    """The maximum of parts (N, PARTS, C), for samples and channels; 0 outside."""
    most = tl.full(c.shape, -INFINITY, REAL)
    for part in range(PARTS):
        most = larger(most, tl.load(parts + (n * PARTS + part) * C + c, inside, 0.0, cache_modifier=".cg"))
    return most


@triton.jit
def gate_of(z, HARD: tl.constexpr):
    """sigmoid(z) or hard_sigmoid(z)."""
    if HARD:
        y = tl.clamp(z + 3, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6
    else:
        y = tl.sigmoid(z)
    return y


@triton.jit
def pool_excite_kernel(
    x, parts, counter, saved, w1, b1, w2, b2, N, C, S, R, PARTS, STEPS, scale,
    HARD: tl.constexpr, TOP: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    BR: tl.constexpr, CC: tl.constexpr,
):   # fmt: skip
    """One program: one portion of x. The last of a sample computes its coefficients, CC channels at a time."""
    n, c, part = portion(C, PARTS, BC)
    tops = nth(parts, 1, N * PARTS, C)
    if TOP:
        passes.pool_portion(x, parts, tops, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    else:
        passes.pool_portion(x, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        r = tl.arange(0, BR)
        of_avg = tl.zeros([BR], REAL)
        of_top = tl.zeros([BR], REAL)
        for start in range(0, C, CC):
            k = start + tl.arange(0, CC)
            w = tl.load(w1 + r[:, None] * C + k[None, :], (r < R)[:, None] & (k < C)[None, :], 0.0).to(REAL)
            a = total_of(parts, n, k, k < C, C, PARTS) * scale
            tl.store(nth(saved, 1, N, C) + n * C + k, a, k < C)
            of_avg += tl.sum(w * a[None, :], 1)
            if TOP:
                m = largest_of(tops, n, k, k < C, C, PARTS)
                tl.store(nth(saved, 2, N, C) + n * C + k, m, k < C)
                of_top += tl.sum(w * m[None, :], 1)
        if b1 is not None:
            bias = tl.load(b1 + r, r < R, 0.0).to(REAL)
            of_avg += bias
            of_top += bias
        hidden = nth(saved, 2 + TOP, N, C) + n.to(tl.int64) * (1 + TOP) * R + r
        h = tl.where(r < R, relu(of_avg), 0.0)   # 0 times infinity is what there may be outside
        tl.store(hidden, h, r < R)
        if TOP:
            more = tl.where(r < R, relu(of_top), 0.0)
            tl.store(hidden + R, more, r < R)
            h += more
        for start in range(0, C, CC):
            k = start + tl.arange(0, CC)
            w = tl.load(w2 + k[:, None] * R + r[None, :], (k < C)[:, None] & (r < R)[None, :], 0.0).to(REAL)
            z = tl.sum(w * h[None, :], 1)
            if b2 is not None:
                z += (1 + TOP) * tl.load(b2 + k, k < C, 0.0).to(REAL)
            tl.store(saved + n * C + k, gate_of(z, HARD), k < C)


@triton.jit
def squeeze_kernel(
    parts, saved, w1, b1, N, C, R, PARTS, scale,
    TOP: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BR hidden units of BN samples; the first units' write the pools."""
    i = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    r = i % blocks * BR + tl.arange(0, BR)
    of_avg = tl.zeros([BN, BR], REAL)
    of_top = tl.zeros([BN, BR], REAL)
    for start in range(0, C, BC):
        c = (start + tl.arange(0, BC))[None, :] + tl.zeros([BN, BC], tl.int32)
        inside = (n < N) & (c < C)
        k = start + tl.arange(0, BC)
        w = tl.load(w1 + r[None, :] * C + k[:, None], (r < R)[None, :] & (k < C)[:, None], 0.0).to(REAL)
        a = total_of(parts, n, c, inside, C, PARTS) * scale
        of_avg = multiply_add(a, w, of_avg, PRECISION)
        if i % blocks == 0:
            tl.store(nth(saved, 1, N, C) + n * C + c, a, inside)
        if TOP:
            m = largest_of(nth(parts, 1, N * PARTS, C), n, c, inside, C, PARTS)
            of_top = multiply_add(m, w, of_top, PRECISION)
            if i % blocks == 0:
                tl.store(nth(saved, 2, N, C) + n * C + c, m, inside)
    inside = (n < N) & (r < R)[None, :]
    bias = tl.zeros([BR], REAL)
    if b1 is not None:
        bias = tl.load(b1 + r, r < R, 0.0).to(REAL)
    hidden = nth(saved, 2 + TOP, N, C) + n.to(tl.int64) * (1 + TOP) * R + r[None, :]
    tl.store(hidden, relu(of_avg + bias[None, :]), inside)
    if TOP:
        tl.store(hidden + R, relu(of_top + bias[None, :]), inside)


@triton.jit
def excite_kernel(
    saved, w2, b2, N, C, R,
    HARD: tl.constexpr, TOP: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BC channels of BN samples. The layer is linear, so hidden units are added before it."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    c = i % blocks * BC + tl.arange(0, BC)
    z = tl.zeros([BN, BC], REAL)
    for start in range(0, R, BR):
        r = start + tl.arange(0, BR)
        h = hidden_of(saved, n, r, N, C, R, TOP)
        w = tl.load(w2 + c[None, :] * R + r[:, None], (c < C)[None, :] & (r < R)[:, None], 0.0).to(REAL)
        z = multiply_add(h, w, z, PRECISION)
    if b2 is not None:
        z += (1 + TOP) * tl.load(b2 + c, c < C, 0.0).to(REAL)[None, :]
    tl.store(saved + n * C + c[None, :], gate_of(z, HARD), (n < N) & (c < C)[None, :])


@triton.jit
def hidden_of(saved, n, r, N, C, R, TOP: tl.constexpr):
    """Hidden units of all branches, added."""
    inside = (n < N) & (r < R)[None, :]
    at = nth(saved, 2 + TOP, N, C) + n.to(tl.int64) * (1 + TOP) * R + r[None, :]
    h = tl.load(at, inside, 0.0)
    if TOP:
        h += tl.load(at + R, inside, 0.0)
    return h


def forward(x: Tensor, layers: Layers, top: bool, saved: Tensor) -> None:
    """Pool x (N, C, *S) over space and compute everything that is saved."""
    (N, C, S), R = sizes(x), len(layers.w1)
    biases = [len(b) for b in (layers.b1, layers.b2) if b is not None]
    if layers.w1.shape != (R, C) or layers.w2.shape != (C, R) or biases not in ([], [R], [C], [R, C]):
        shapes = ", ".join(str(list(t.shape)) for t in layers[:4] if t is not None)   # a kernel would read past them
        raise ValueError(f"expected weights and biases for {C} channels and {R} hidden units, got {shapes}")
    it = passes.portions("pool", x)
    parts = empty_float32(x, 1 + top, N, it.parts, C)
    hard = layers.gate == "hard_sigmoid"
    if few(C, R):
        args = x, parts, counters(x, N), saved, *layers[:4], N, C, S, R, it.parts, it.steps, 1 / S
        launch(pool_excite_kernel, it.programs, *args, HARD=hard, TOP=top, **it.options, **_sample(R))
        return
    launch(passes.pool_kernel, it.programs, x, parts, N, C, S, it.parts, it.steps, TOP=top, **it.options)
    rows, BR = cdiv(N, ROWS), _units(R)
    options = {"TOP": top, "BN": ROWS, "BC": WIDE, "BR": BR, "num_warps": 4}
    launch(squeeze_kernel, rows * cdiv(R, BR), parts, saved, *layers[:2], N, C, R, it.parts, 1 / S, **options)
    launch(excite_kernel, rows * cdiv(C, WIDE), saved, *layers[2:4], N, C, R, HARD=hard, **options)


# ---- backward --------------------------------------------------------------------------------------------------------


@triton.jit
def slope_of(d, y, HARD: tl.constexpr):
    """The gradient of the gate's input from that of its output y."""
    if HARD:
        d = tl.where((y <= 0) | (y >= 1), 0.0, d / 6)   # in this order: NaN passes
    else:
        d = d * y * (1 - y)
    return d


@triton.jit
def channels_unexcite_kernel(
    x, dy, t, maps, dmaps, parts, counter, saved, found, w1, w2, N, C, S, R, PARTS, STEPS, scale,
    HARD: tl.constexpr, TOP: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    BR: tl.constexpr, CC: tl.constexpr,
):   # fmt: skip
    """One program: one portion of x and dy. The last of a sample goes back through its layers."""
    n, c, part = portion(C, PARTS, BC)
    ties = nth(parts, 1, N * PARTS, C)
    top = nth(saved, 2, N, C)
    if TOP:
        passes.channels_portion(
            x, dy, saved, t, maps, dmaps, top, parts, ties, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS
        )
    else:
        passes.channels_portion(
            x, dy, saved, t, maps, dmaps, None, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS
        )
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        r = tl.arange(0, BR)
        dh = tl.zeros([BR], REAL)
        for start in range(0, C, CC):
            k = start + tl.arange(0, CC)
            d = total_of(parts, n, k, k < C, C, PARTS)
            d = slope_of(d, tl.load(saved + n * C + k, k < C, 0.0), HARD)
            tl.store(nth(found, 1 + TOP, N, C) + n * C + k, d, k < C)
            w = tl.load(w2 + k[:, None] * R + r[None, :], (k < C)[:, None] & (r < R)[None, :], 0.0).to(REAL)
            dh += tl.sum(w * d[:, None], 0)
        first = (2 + TOP) * (tl.full([], N, tl.int64) * C) + n.to(tl.int64) * (1 + TOP) * R + r
        of_avg = tl.where(tl.load(saved + first, r < R, 0.0) <= 0, 0.0, dh)   # NaN is not
        tl.store(found + first, of_avg, r < R)
        of_top = of_avg
        if TOP:
            of_top = tl.where(tl.load(saved + first + R, r < R, 0.0) <= 0, 0.0, dh)
            tl.store(found + first + R, of_top, r < R)
        for start in range(0, C, CC):
            k = start + tl.arange(0, CC)
            w = tl.load(w1 + r[:, None] * C + k[None, :], (r < R)[:, None] & (k < C)[None, :], 0.0).to(REAL)
            tl.store(found + n * C + k, tl.sum(w * of_avg[:, None], 0) * scale, k < C)
            if TOP:
                count = tl.where(k < C, total_of(ties, n, k, k < C, C, PARTS), 1.0)
                tl.store(nth(found, 1, N, C) + n * C + k, tl.sum(w * of_top[:, None], 0) / count, k < C)


@triton.jit
def unexcite_kernel(
    parts, saved, found, w2, N, C, R, PARTS,
    HARD: tl.constexpr, TOP: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BR hidden units of BN samples; the first units' write the gradient of the gate's input."""
    i = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    r = i % blocks * BR + tl.arange(0, BR)
    dh = tl.zeros([BN, BR], REAL)
    for start in range(0, C, BC):
        c = (start + tl.arange(0, BC))[None, :] + tl.zeros([BN, BC], tl.int32)
        k = start + tl.arange(0, BC)
        inside = (n < N) & (c < C)
        d = total_of(parts, n, c, inside, C, PARTS)
        d = slope_of(d, tl.load(saved + n * C + c, inside, 0.0), HARD)
        w = tl.load(w2 + k[:, None] * R + r[None, :], (k < C)[:, None] & (r < R)[None, :], 0.0).to(REAL)
        dh = multiply_add(d, w, dh, PRECISION)
        if i % blocks == 0:
            tl.store(nth(found, 1 + TOP, N, C) + n * C + c, d, inside)
    inside = (n < N) & (r < R)[None, :]
    for branch in tl.static_range(1 + TOP):
        first = (2 + TOP) * (tl.full([], N, tl.int64) * C) + (n.to(tl.int64) * (1 + TOP) + branch) * R + r[None, :]
        off = tl.load(saved + first, inside, 0.0) <= 0   # NaN is not
        tl.store(found + first, tl.where(off, 0.0, dh), inside)


@triton.jit
def unsqueeze_kernel(
    parts, found, w1, N, C, R, PARTS, scale,
    TOP: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BC channels of BN samples."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    k = i % blocks * BC + tl.arange(0, BC)
    c = k[None, :] + tl.zeros([BN, BC], tl.int32)
    inside = (n < N) & (c < C)
    of_avg = tl.zeros([BN, BC], REAL)
    of_top = tl.zeros([BN, BC], REAL)
    for start in range(0, R, BR):
        r = start + tl.arange(0, BR)
        known = (n < N) & (r < R)[None, :]
        w = tl.load(w1 + r[:, None] * C + k[None, :], (r < R)[:, None] & (k < C)[None, :], 0.0).to(REAL)
        dhidden = nth(found, 2 + TOP, N, C) + n.to(tl.int64) * (1 + TOP) * R + r[None, :]
        of_avg = multiply_add(tl.load(dhidden, known, 0.0), w, of_avg, PRECISION)
        if TOP:
            of_top = multiply_add(tl.load(dhidden + R, known, 0.0), w, of_top, PRECISION)
    tl.store(found + n * C + c, of_avg * scale, inside)
    if TOP:
        count = total_of(nth(parts, 1, N * PARTS, C), n, c, inside, C, PARTS)
        tl.store(nth(found, 1, N, C) + n * C + c, of_top / tl.where(inside, count, 1.0), inside)


@triton.jit
def weights_kernel(
    saved, found, dw1, db1, dw2, db2, N, C, R,
    TOP: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BC channels by BR hidden units, over all samples."""
    i = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    c = i // blocks * BC + tl.arange(0, BC)
    r = i % blocks * BR + tl.arange(0, BR)
    first = tl.zeros([BC, BR], REAL)     # of w1, transposed
    second = tl.zeros([BC, BR], REAL)    # of w2
    to_hidden = tl.zeros([BR], REAL)
    to_gate = tl.zeros([BC], REAL)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN))[:, None]
        of_c = (n < N) & (c < C)[None, :]
        of_r = (n < N) & (r < R)[None, :]
        d = tl.load(nth(found, 1 + TOP, N, C) + n * C + c[None, :], of_c, 0.0)
        h = hidden_of(saved, n, r, N, C, R, TOP)
        second = multiply_add(tl.trans(d), h, second, PRECISION)
        to_gate += tl.sum(d, 0)
        for branch in tl.static_range(1 + TOP):
            d = tl.load(nth(found, 2 + TOP, N, C) + (n.to(tl.int64) * (1 + TOP) + branch) * R + r[None, :], of_r, 0.0)
            a = tl.load(nth(saved, 1 + branch, N, C) + n * C + c[None, :], of_c, 0.0)
            first = multiply_add(tl.trans(a), d, first, PRECISION)
            to_hidden += tl.sum(d, 0)
    inside = (c < C)[:, None] & (r < R)[None, :]
    tl.store(dw1 + r[None, :] * C + c[:, None], first.to(dw1.dtype.element_ty), inside)
    tl.store(dw2 + c[:, None] * R + r[None, :], second.to(dw2.dtype.element_ty), inside)
    if db1 is not None and i // blocks == 0:
        tl.store(db1 + r, to_hidden.to(db1.dtype.element_ty), r < R)
    if db2 is not None and i % blocks == 0:
        tl.store(db2 + c, ((1 + TOP) * to_gate).to(db2.dtype.element_ty), c < C)


def backward(
    x: Tensor, dy: Tensor, layers: Layers, top: bool, saved: Tensor, of_map: Map | None, gradients: Layers
) -> Tensor:
    """The gradients of the average per position and, if `top`, of the maximum per tie: (N, C) each, first in a tensor.

    of_map: where y = x * s * t. The gradients of the weights are written into `gradients`.
    """
    (N, C, S), R = sizes(x), len(layers.w1)
    it = passes.portions("channels" if of_map is None else "channels of a map", x)
    t, maps, dmaps = of_map or (None, None, None)
    parts, found = empty_float32(x, 1 + top, N, it.parts, C), empty_float32(x, len(saved))
    hard = layers.gate == "hard_sigmoid"
    BR = _units(R)
    options = {"TOP": top, "BN": ROWS, "BC": WIDE, "BR": BR, "num_warps": 4}
    if few(C, R):
        tensors = x, dy, t, maps, dmaps, parts, counters(x, N), saved, found, layers.w1, layers.w2
        args = *tensors, N, C, S, R, it.parts, it.steps, 1 / S
        launch(channels_unexcite_kernel, it.programs, *args, HARD=hard, TOP=top, **it.options, **_sample(R))
    else:
        portions = x, dy, saved, t, maps, dmaps, parts, N, C, S, it.parts, it.steps
        launch(passes.channels_kernel, it.programs, *portions, TOP=top, **it.options)
        rows = cdiv(N, ROWS)
        matrices = parts, saved, found, layers.w2, N, C, R, it.parts
        launch(unexcite_kernel, rows * cdiv(R, BR), *matrices, HARD=hard, **options)
        launch(unsqueeze_kernel, rows * cdiv(C, WIDE), parts, found, layers.w1, N, C, R, it.parts, 1 / S, **options)
    launch(weights_kernel, cdiv(C, WIDE) * cdiv(R, BR), saved, found, *gradients[:4], N, C, R, **options)
    return found


def few(C: int, R: int) -> bool:
    """Whether the last program of a sample computes its coefficients."""
    return C * R <= FEW and R <= UNITS


def _sample(R: int) -> dict[str, int]:
    """Hidden units and channels that it takes at once: as many numbers as it has threads, so that each has its own."""
    BR = next_power_of_2(R)
    return {"BR": BR, "CC": max(16, 4096 // BR)}


def _units(R: int) -> int:
    """Hidden units that a program takes at once, of many."""
    return max(16, min(next_power_of_2(R), 64))
