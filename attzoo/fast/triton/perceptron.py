"""The two-layer perceptron over channels of SE, channel attention and CBAM: from x to s, and its backward pass.

The averages over space and, optionally, the maxima (two branches) pass through the same layers, whose outputs are
added. Pools are computed in parts, (N, PARTS, C), which are added up in a fixed order when they are first read.

If the layers are small, the last program that pools a sample computes its coefficients, so that no other kernel is
launched. One program would take too long to read large layers: separate kernels compute these, 16 samples at a time.

One tensor is saved for the backward pass: s, averages and, with two branches, maxima, (N, C) each, then the hidden
units before the activation, (N, branches, R). The gradients of the backward pass, `grads`, have the same layout: of the
average per position, of the maximum per tie, and of the gate's input, then of the hidden units.
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
from .passes import portion

CHANNELS_AT_ONCE = 32    # number of channels of a program: with 64, float32 products would spill registers
PRECISION = tl.constexpr("ieee")   # no TF32, since these products take little time
MAX_WEIGHTS = 65536   # number of weights of a layer that the last program of a sample may read: 256 KiB of float32
MAX_UNITS = 128       # number of hidden units that the last program of a sample may hold


class Layers(NamedTuple):
    """Weight and bias of squeeze, (R, C) and (R,) or None, and of excite, (C, R) and (C,) or None.

    gate: "sigmoid" or "hard_sigmoid". act: activation of the hidden units, "relu", "silu" or "hard_swish".
    """

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    gate: str
    act: str = "relu"


def layers_of(block: Any) -> Layers:
    """Return the layers of an SE or a channel attention block."""
    squeeze, excite = block.squeeze, block.excite
    act = getattr(block.spec, "act", "relu")   # channel attention has no choice
    return Layers(squeeze.weight, squeeze.bias, excite.weight, excite.bias, block.spec.gate, act)


def saved(x: Tensor, R: int, uses_maxima: bool) -> Tensor:
    """Allocate the float32 vector that is saved for the backward pass, with the layout in the module's docstring.

    x is (N, C, *S), R the number of hidden units. uses_maxima: whether maxima are used.
    """
    N, C = x.shape[:2]
    return empty_float32(x, N * (3 * C + 2 * R) if uses_maxima else N * (2 * C + R))


def is_small(C: int, R: int) -> bool:
    """Whether layers of C channels and R hidden units are so small that the last program of a sample computes both."""
    return C * R <= MAX_WEIGHTS and R <= MAX_UNITS


def small_tile(R: int) -> dict[str, int]:
    """Return BR and CC, the numbers of hidden units and channels that a program of small layers processes at a time."""
    BR = next_power_of_2(R)
    return {"BR": BR, "CC": max(16, 4096 // BR)}


def units_at_a_time(R: int) -> int:
    """Return how many of the R hidden units a program of large layers processes at a time."""
    return max(16, min(next_power_of_2(R), 64))


@triton.jit
def total_of(parts, n, c, inside, C, PARTS):
    """Return the sum over axis 1 of `parts`, (N, PARTS, C), at samples n and channels c; 0 unless `inside`."""
    total = tl.zeros_like(c).to(REAL)
    for part in range(PARTS):
        total += tl.load(parts + (n * PARTS + part) * C + c, inside, 0.0, cache_modifier=".cg")
    return total


@triton.jit
def largest_of(parts, n, c, inside, C, PARTS):
    """Return the maximum over axis 1 of `parts`, (N, PARTS, C), at samples n and channels c; 0 unless `inside`."""
    maximum = tl.full(c.shape, -INFINITY, REAL)
    for part in range(PARTS):
        maximum = larger(maximum, tl.load(parts + (n * PARTS + part) * C + c, inside, 0.0, cache_modifier=".cg"))
    return maximum


@triton.jit
def gate_of(z, HARD_SIGMOID: tl.constexpr):
    """Return sigmoid(z) or, if HARD_SIGMOID, hard_sigmoid(z)."""
    if HARD_SIGMOID:
        y = tl.clamp(z + 3, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6
    else:
        y = tl.sigmoid(z)
    return y


@triton.jit
def act_of(u, ACT: tl.constexpr):
    """Return the activation ACT, "relu", "silu" or "hard_swish", of hidden units u; NaN where u is NaN."""
    if ACT == "silu":
        h = u * tl.sigmoid(u)
    elif ACT == "hard_swish":
        h = u * gate_of(u, True)
    else:
        h = relu(u)
    return h


@triton.jit
def pool_excite_kernel(
    x, parts, counter, saved, w1, b1, w2, b2, N, C, S, R, PARTS, STEPS, scale,
    HARD_SIGMOID: tl.constexpr, ACT: tl.constexpr, MAXIMA: tl.constexpr, LAST: tl.constexpr,
    BC: tl.constexpr, BS: tl.constexpr,
    BR: tl.constexpr, CC: tl.constexpr,
):   # fmt: skip
    """Pool x over space, and write `saved`: the coefficients, the pools and the hidden units. For small layers.

    One program: one portion of x. The last program of a sample computes its coefficients, CC channels at a time.
    `scale` is 1 / S, which turns sums into averages.
    """
    n, c, part = portion(C, PARTS, BC)
    maxima_parts = nth(parts, 1, N * PARTS, C)
    if MAXIMA:
        passes.pool_portion(x, parts, maxima_parts, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    else:
        passes.pool_portion(x, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        r = tl.arange(0, BR)
        avg_units = tl.zeros([BR], REAL)
        max_units = tl.zeros([BR], REAL)
        for start in range(0, C, CC):
            channels = start + tl.arange(0, CC)
            in_layer = (r < R)[:, None] & (channels < C)[None, :]
            w = tl.load(w1 + r[:, None] * C + channels[None, :], in_layer, 0.0).to(REAL)
            avg = total_of(parts, n, channels, channels < C, C, PARTS) * scale
            tl.store(nth(saved, 1, N, C) + n * C + channels, avg, channels < C)
            avg_units += tl.sum(w * avg[None, :], 1)
            if MAXIMA:
                maximum = largest_of(maxima_parts, n, channels, channels < C, C, PARTS)
                tl.store(nth(saved, 2, N, C) + n * C + channels, maximum, channels < C)
                max_units += tl.sum(w * maximum[None, :], 1)
        if b1 is not None:
            bias = tl.load(b1 + r, r < R, 0.0).to(REAL)
            avg_units += bias
            max_units += bias
        hidden = nth(saved, 2 + MAXIMA, N, C) + n.to(tl.int64) * (1 + MAXIMA) * R + r
        tl.store(hidden, avg_units, r < R)
        h = tl.where(r < R, act_of(avg_units, ACT), 0.0)   # beyond R there may be 0 * infinity
        if MAXIMA:
            tl.store(hidden + R, max_units, r < R)
            h += tl.where(r < R, act_of(max_units, ACT), 0.0)
        for start in range(0, C, CC):
            channels = start + tl.arange(0, CC)
            in_layer = (channels < C)[:, None] & (r < R)[None, :]
            w = tl.load(w2 + channels[:, None] * R + r[None, :], in_layer, 0.0).to(REAL)
            z = tl.sum(w * h[None, :], 1)
            if b2 is not None:
                z += (1 + MAXIMA) * tl.load(b2 + channels, channels < C, 0.0).to(REAL)
            tl.store(saved + n * C + channels, gate_of(z, HARD_SIGMOID), channels < C)


@triton.jit
def squeeze_kernel(
    parts, saved, w1, b1, N, C, R, PARTS, scale,
    MAXIMA: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """Write pools and hidden units before the activation into `saved`, from parts of the pools. For large layers.

    One program: BR hidden units of BN samples. The programs of the first units also write the pools. `scale` is 1 / S.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    n = (program // blocks * BN + tl.arange(0, BN))[:, None]
    r = program % blocks * BR + tl.arange(0, BR)
    avg_units = tl.zeros([BN, BR], REAL)
    max_units = tl.zeros([BN, BR], REAL)
    for start in range(0, C, BC):
        c = (start + tl.arange(0, BC))[None, :] + tl.zeros([BN, BC], tl.int32)
        inside = (n < N) & (c < C)
        channels = start + tl.arange(0, BC)
        w = tl.load(w1 + r[None, :] * C + channels[:, None], (r < R)[None, :] & (channels < C)[:, None], 0.0).to(REAL)
        avg = total_of(parts, n, c, inside, C, PARTS) * scale
        avg_units = multiply_add(avg, w, avg_units, PRECISION)
        if program % blocks == 0:
            tl.store(nth(saved, 1, N, C) + n * C + c, avg, inside)
        if MAXIMA:
            maximum = largest_of(nth(parts, 1, N * PARTS, C), n, c, inside, C, PARTS)
            max_units = multiply_add(maximum, w, max_units, PRECISION)
            if program % blocks == 0:
                tl.store(nth(saved, 2, N, C) + n * C + c, maximum, inside)
    inside = (n < N) & (r < R)[None, :]
    bias = tl.zeros([BR], REAL)
    if b1 is not None:
        bias = tl.load(b1 + r, r < R, 0.0).to(REAL)
    hidden = nth(saved, 2 + MAXIMA, N, C) + n.to(tl.int64) * (1 + MAXIMA) * R + r[None, :]
    tl.store(hidden, avg_units + bias[None, :], inside)
    if MAXIMA:
        tl.store(hidden + R, max_units + bias[None, :], inside)


@triton.jit
def excite_kernel(
    saved, w2, b2, N, C, R,
    HARD_SIGMOID: tl.constexpr, ACT: tl.constexpr, MAXIMA: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """Write the coefficients into `saved`, from the hidden units in it. For large layers.

    One program: BC channels of BN samples. Hidden units of the branches are added first, as the layer is linear.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (program // blocks * BN + tl.arange(0, BN))[:, None]
    c = program % blocks * BC + tl.arange(0, BC)
    z = tl.zeros([BN, BC], REAL)
    for start in range(0, R, BR):
        r = start + tl.arange(0, BR)
        h = hidden_of(saved, n, r, N, C, R, ACT, MAXIMA)
        w = tl.load(w2 + c[None, :] * R + r[:, None], (c < C)[None, :] & (r < R)[:, None], 0.0).to(REAL)
        z = multiply_add(h, w, z, PRECISION)
    if b2 is not None:
        z += (1 + MAXIMA) * tl.load(b2 + c, c < C, 0.0).to(REAL)[None, :]
    tl.store(saved + n * C + c[None, :], gate_of(z, HARD_SIGMOID), (n < N) & (c < C)[None, :])


@triton.jit
def hidden_of(saved, n, r, N, C, R, ACT: tl.constexpr, MAXIMA: tl.constexpr):
    """Return hidden units r of samples n after the activation, from `saved`, summed over the branches: (BN, BR)."""
    inside = (n < N) & (r < R)[None, :]
    address = nth(saved, 2 + MAXIMA, N, C) + n.to(tl.int64) * (1 + MAXIMA) * R + r[None, :]
    h = act_of(tl.load(address, inside, 0.0), ACT)
    if MAXIMA:
        h += act_of(tl.load(address + R, inside, 0.0), ACT)
    return h


def forward(x: Tensor, layers: Layers, uses_maxima: bool, saved: Tensor) -> None:
    """Compute s, one coefficient per channel, from x, and write it into `saved` with the pools and the hidden units.

    Args:
        x: (N, C, *S).
        layers: the layers.
        uses_maxima: whether s depends on the maxima over space besides the averages.
        saved: tensor to write, allocated by the function `saved`.

    Raises:
        ValueError: the layers do not have C channels, or have different numbers of hidden units.

    """
    (N, C, S), R = sizes(x), len(layers.w1)
    biases = [len(b) for b in (layers.b1, layers.b2) if b is not None]
    if layers.w1.shape != (R, C) or layers.w2.shape != (C, R) or biases not in ([], [R], [C], [R, C]):
        weights = layers.w1, layers.b1, layers.w2, layers.b2   # a kernel would read beyond their ends
        shapes = ", ".join(str(list(tensor.shape)) for tensor in weights if tensor is not None)
        raise ValueError(f"expected weights and biases for {C} channels and {R} hidden units, got {shapes}")
    tiling = passes.portions("pool", x)
    parts = empty_float32(x, 1 + uses_maxima, N, tiling.parts, C)
    hard = layers.gate == "hard_sigmoid"
    if is_small(C, R):
        tensors = x, parts, counters(x, N), saved, layers.w1, layers.b1, layers.w2, layers.b2
        args = *tensors, N, C, S, R, tiling.parts, tiling.steps, 1 / S
        options = {"HARD_SIGMOID": hard, "ACT": layers.act, "MAXIMA": uses_maxima, **tiling.options, **small_tile(R)}
        launch(pool_excite_kernel, tiling.programs, *args, **options)
        return
    pool_args = x, parts, N, C, S, tiling.parts, tiling.steps
    launch(passes.pool_kernel, tiling.programs, *pool_args, MAXIMA=uses_maxima, **tiling.options)
    rows, BR = cdiv(N, ROWS), units_at_a_time(R)
    options = {"MAXIMA": uses_maxima, "BN": ROWS, "BC": CHANNELS_AT_ONCE, "BR": BR, "num_warps": 4}
    squeeze_args = parts, saved, layers.w1, layers.b1, N, C, R, tiling.parts, 1 / S
    launch(squeeze_kernel, rows * cdiv(R, BR), *squeeze_args, **options)
    excite_args = saved, layers.w2, layers.b2, N, C, R
    launch(excite_kernel, rows * cdiv(C, CHANNELS_AT_ONCE), *excite_args, HARD_SIGMOID=hard, ACT=layers.act, **options)
