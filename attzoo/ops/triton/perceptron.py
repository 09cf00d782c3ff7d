"""The two-layer perceptron over channels of SE, channel attention and CBAM: from pools over space to s, and back.

Averages and, if there are, maxima go through the same layers, and their outputs are added. Programs take 16 samples at
a time. Pools come in parts, (N, PARTS, C), which are put together where they are first read, always in one order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .common import INFINITY, REAL, ROWS, cdiv, larger, launch, multiply_add, power, relu, small

WIDE = 32    # channels that a program takes at once: with 64, products of exact float32 numbers spill
PRECISION = tl.constexpr("ieee")   # these sums are small: no rounding to TF32


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


class Kept(NamedTuple):
    """What the way back needs: averages (N, C), hidden (N, branches, R) after relu, s and, of two branches, maxima."""

    avg: Tensor
    hidden: Tensor
    s: Tensor
    top: Tensor | None = None


# ---- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def squeeze_kernel(
    total, tops, w1, b1, avg, top, hidden, N, C, R, PARTS, scale,
    BRANCHES: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BR hidden units of BN samples; the first units' write the pools."""
    i = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    r = i % blocks * BR + tl.arange(0, BR)
    of_avg = tl.zeros([BN, BR], REAL)
    of_top = tl.zeros([BN, BR], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        inside = (n < N) & (c < C)[None, :]
        w = tl.load(w1 + r[None, :] * C + c[:, None], (r < R)[None, :] & (c < C)[:, None], 0.0).to(REAL)
        a = tl.zeros([BN, BC], REAL)
        for part in range(0, PARTS):
            a += tl.load(total + (n * PARTS + part) * C + c[None, :], inside, 0.0)
        a = a * scale
        of_avg = multiply_add(a, w, of_avg, PRECISION)
        if i % blocks == 0:
            tl.store(avg + n * C + c[None, :], a, inside)
        if BRANCHES == 2:
            m = tl.full([BN, BC], -INFINITY, REAL)
            for part in range(0, PARTS):
                m = larger(m, tl.load(tops + (n * PARTS + part) * C + c[None, :], inside, 0.0))
            of_top = multiply_add(m, w, of_top, PRECISION)
            if i % blocks == 0:
                tl.store(top + n * C + c[None, :], m, inside)
    inside = (n < N) & (r < R)[None, :]
    bias = tl.zeros([BR], REAL)
    if b1 is not None:
        bias = tl.load(b1 + r, r < R, 0.0).to(REAL)
    tl.store(hidden + n * BRANCHES * R + r[None, :], relu(of_avg + bias[None, :]), inside)
    if BRANCHES == 2:
        tl.store(hidden + (n * BRANCHES + 1) * R + r[None, :], relu(of_top + bias[None, :]), inside)


@triton.jit
def excite_kernel(
    hidden, w2, b2, s, N, C, R,
    HARD: tl.constexpr, BRANCHES: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BC channels of BN samples. The layer is linear, so hidden units are added before it."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    c = i % blocks * BC + tl.arange(0, BC)
    z = tl.zeros([BN, BC], REAL)
    for start in range(0, R, BR):
        r = start + tl.arange(0, BR)
        h = both(hidden, n, r, N, R, BRANCHES)
        w = tl.load(w2 + c[None, :] * R + r[:, None], (c < C)[None, :] & (r < R)[:, None], 0.0).to(REAL)
        z = multiply_add(h, w, z, PRECISION)
    if b2 is not None:
        z += BRANCHES * tl.load(b2 + c, c < C, 0.0).to(REAL)[None, :]
    if HARD:
        y = tl.clamp(z + 3, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6
    else:
        y = tl.sigmoid(z)
    tl.store(s + n * C + c[None, :], y, (n < N) & (c < C)[None, :])


@triton.jit
def both(hidden, n, r, N, R, BRANCHES: tl.constexpr):
    """Hidden units of all branches, added."""
    inside = (n < N) & (r < R)[None, :]
    h = tl.load(hidden + n * BRANCHES * R + r[None, :], inside, 0.0)
    if BRANCHES == 2:
        h += tl.load(hidden + (n * BRANCHES + 1) * R + r[None, :], inside, 0.0)
    return h


def kept(x: Tensor, R: int, top: bool) -> Kept:
    """Room for what is kept of x (N, C, *S)."""
    N, C = x.shape[:2]
    return Kept(small(x, N, C), small(x, N, 1 + top, R), small(x, N, C), small(x, N, C) if top else None)


def forward(total: Tensor, tops: Tensor | None, places: int, it: Layers, to: Kept) -> None:
    """Pools over space in parts, (N, PARTS, C), of so many places -> everything that is kept."""
    (N, PARTS, C), R = total.shape, len(it.w1)
    if it.w1.shape != (R, C) or it.w2.shape != (C, R):   # a kernel would read past their ends
        raise ValueError(f"expected weights for {C} channels, got {list(it.w1.shape)} and {list(it.w2.shape)}")
    branches = 1 if tops is None else 2
    rows, BR = cdiv(N, ROWS), _units(R)
    options = {"BRANCHES": branches, "BN": ROWS, "BC": WIDE, "BR": BR, "num_warps": 4}
    args = total, tops, it.w1, it.b1, to.avg, to.top, to.hidden, N, C, R, PARTS, 1 / places
    launch(squeeze_kernel, rows * cdiv(R, BR), *args, **options)
    hard = it.gate == "hard_sigmoid"
    launch(excite_kernel, rows * cdiv(C, WIDE), to.hidden, it.w2, it.b2, to.s, N, C, R, HARD=hard, **options)


# ---- backward --------------------------------------------------------------------------------------------------------


@triton.jit
def unexcite_kernel(
    ds, s, w2, hidden, dz, dhidden, N, C, R, PARTS,
    HARD: tl.constexpr, BRANCHES: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BR hidden units of BN samples; the first units' write the gradient of the gate's input."""
    i = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    r = i % blocks * BR + tl.arange(0, BR)
    dh = tl.zeros([BN, BR], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        inside = (n < N) & (c < C)[None, :]
        d = tl.zeros([BN, BC], REAL)
        for part in range(0, PARTS):
            d += tl.load(ds + (n * PARTS + part) * C + c[None, :], inside, 0.0)
        a = tl.load(s + n * C + c[None, :], inside, 0.0)
        if HARD:
            d = tl.where((a <= 0) | (a >= 1), 0.0, d / 6)   # in this order: NaN passes
        else:
            d = d * a * (1 - a)
        w = tl.load(w2 + c[:, None] * R + r[None, :], (c < C)[:, None] & (r < R)[None, :], 0.0).to(REAL)
        dh = multiply_add(d, w, dh, PRECISION)
        if i % blocks == 0:
            tl.store(dz + n * C + c[None, :], d, inside)
    inside = (n < N) & (r < R)[None, :]
    for branch in tl.static_range(BRANCHES):
        to = (n * BRANCHES + branch) * R + r[None, :]
        off = tl.load(hidden + to, inside, 0.0) <= 0   # NaN is not
        tl.store(dhidden + to, tl.where(off, 0.0, dh), inside)


@triton.jit
def unsqueeze_kernel(
    dhidden, w1, ties, mean, each, N, C, R, PARTS, scale,
    BRANCHES: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """One program: BC channels of BN samples."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (i // blocks * BN + tl.arange(0, BN))[:, None]
    c = i % blocks * BC + tl.arange(0, BC)
    inside = (n < N) & (c < C)[None, :]
    of_avg = tl.zeros([BN, BC], REAL)
    of_top = tl.zeros([BN, BC], REAL)
    for start in range(0, R, BR):
        r = start + tl.arange(0, BR)
        known = (n < N) & (r < R)[None, :]
        w = tl.load(w1 + r[:, None] * C + c[None, :], (r < R)[:, None] & (c < C)[None, :], 0.0).to(REAL)
        d = tl.load(dhidden + n * BRANCHES * R + r[None, :], known, 0.0)
        of_avg = multiply_add(d, w, of_avg, PRECISION)
        if BRANCHES == 2:
            d = tl.load(dhidden + (n * BRANCHES + 1) * R + r[None, :], known, 0.0)
            of_top = multiply_add(d, w, of_top, PRECISION)
    tl.store(mean + n * C + c[None, :], of_avg * scale, inside)
    if BRANCHES == 2:
        count = tl.zeros([BN, BC], REAL)
        for part in range(0, PARTS):
            count += tl.load(ties + (n * PARTS + part) * C + c[None, :], inside, 0.0)
        tl.store(each + n * C + c[None, :], of_top / tl.where(inside, count, 1.0), inside)


@triton.jit
def weights_kernel(
    dz, dhidden, hidden, avg, top, dw1, db1, dw2, db2, N, C, R,
    BRANCHES: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
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
        d = tl.load(dz + n * C + c[None, :], of_c, 0.0)
        h = both(hidden, n, r, N, R, BRANCHES)
        second = multiply_add(tl.trans(d), h, second, PRECISION)
        to_gate += tl.sum(d, 0)
        d = tl.load(dhidden + n * BRANCHES * R + r[None, :], of_r, 0.0)
        a = tl.load(avg + n * C + c[None, :], of_c, 0.0)
        first = multiply_add(tl.trans(a), d, first, PRECISION)
        to_hidden += tl.sum(d, 0)
        if BRANCHES == 2:
            d = tl.load(dhidden + (n * BRANCHES + 1) * R + r[None, :], of_r, 0.0)
            a = tl.load(top + n * C + c[None, :], of_c, 0.0)
            first = multiply_add(tl.trans(a), d, first, PRECISION)
            to_hidden += tl.sum(d, 0)
    inside = (c < C)[:, None] & (r < R)[None, :]
    tl.store(dw1 + r[None, :] * C + c[:, None], first.to(dw1.dtype.element_ty), inside)
    tl.store(dw2 + c[:, None] * R + r[None, :], second.to(dw2.dtype.element_ty), inside)
    if db1 is not None and i // blocks == 0:
        tl.store(db1 + r, to_hidden.to(db1.dtype.element_ty), r < R)
    if db2 is not None and i % blocks == 0:
        tl.store(db2 + c, (BRANCHES * to_gate).to(db2.dtype.element_ty), c < C)


def backward(
    ds: Tensor, ties: Tensor | None, places: int, it: Layers, kept: Kept, gradients: Layers
) -> tuple[Tensor, Tensor | None]:
    """The gradient of s in parts, (N, PARTS, C) -> gradients of the average per place and of the maximum per tie.

    Both are (N, C); those of the weights are written into `gradients`.
    """
    (N, PARTS, C), R = ds.shape, len(it.w1)
    branches = kept.hidden.shape[1]
    rows, BR = cdiv(N, ROWS), _units(R)
    options = {"BRANCHES": branches, "BN": ROWS, "BC": WIDE, "BR": BR, "num_warps": 4}
    dz, dhidden, mean = small(ds, N, C), small(ds, N, branches, R), small(ds, N, C)
    each = None if ties is None else small(ds, N, C)
    ahead = ds, kept.s, it.w2, kept.hidden, dz, dhidden, N, C, R, PARTS
    launch(unexcite_kernel, rows * cdiv(R, BR), *ahead, HARD=it.gate == "hard_sigmoid", **options)
    to_pools = dhidden, it.w1, ties, mean, each, N, C, R, PARTS, 1 / places
    launch(unsqueeze_kernel, rows * cdiv(C, WIDE), *to_pools, **options)
    to_layers = dz, dhidden, kept.hidden, kept.avg, kept.top, *gradients[:4], N, C, R
    launch(weights_kernel, cdiv(C, WIDE) * cdiv(R, BR), *to_layers, **options)
    return mean, each


def _units(R: int) -> int:
    """Hidden units that a program takes at once."""
    return max(16, min(power(R), 64))
