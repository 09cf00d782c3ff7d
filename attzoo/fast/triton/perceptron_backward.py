"""The backward pass of the perceptron in perceptron.py, whose docstring describes the layout of `saved` and `grads`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import passes, passes_backward
from .common import REAL, ROWS, cdiv, counters, empty_float32, is_last, launch, multiply_add, nth, sizes
from .passes import portion
from .passes_backward import Map
from .perceptron import CHANNELS_AT_ONCE, PRECISION, Layers, hidden_of, is_small, small_tile, total_of, units_at_a_time


@triton.jit
def gate_gradient(dy, y, HARD_SIGMOID: tl.constexpr):
    """Return the gradient of the gate's input, from the gradient dy of its output y."""
    if HARD_SIGMOID:
        dy = tl.where((y <= 0) | (y >= 1), 0.0, dy / 6)   # in this order, so that NaN propagates
    else:
        dy = dy * y * (1 - y)
    return dy


@triton.jit
def act_gradient(dh, u, ACT: tl.constexpr):
    """Return the gradient of hidden units u before the activation, from the gradient dh of their activations."""
    if ACT == "silu":
        sigmoid = tl.sigmoid(u)
        dh = dh * (sigmoid * (1 + u * (1 - sigmoid)))
    elif ACT == "hard_swish":
        dh = tl.where(u <= -3, 0.0, tl.where(u >= 3, dh, dh * (u / 3 + 0.5)))   # comparisons are false for NaN
    else:
        dh = tl.where(u <= 0, 0.0, dh)
    return dh


@triton.jit
def channels_unexcite_kernel(
    x, dy, t, maps, dmaps, parts, counter, saved, grads, w1, w2, N, C, S, R, PARTS, STEPS, scale,
    HARD_SIGMOID: tl.constexpr, ACT: tl.constexpr, MAXIMA: tl.constexpr, LAST: tl.constexpr,
    BC: tl.constexpr, BS: tl.constexpr,
    BR: tl.constexpr, CC: tl.constexpr,
):   # fmt: skip
    """Write `grads` from x and dy: the backward pass of the layers, up to the gradients of the pools. For small layers.

    One program: one portion of x and dy. The last program of a sample computes its gradients. `scale` is 1 / S.
    """
    n, c, part = portion(C, PARTS, BC)
    ties = nth(parts, 1, N * PARTS, C)
    maxima = nth(saved, 2, N, C)
    if MAXIMA:
        passes_backward.channels_portion(
            x, dy, saved, t, maps, dmaps, maxima, parts, ties, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS
        )
    else:
        passes_backward.channels_portion(
            x, dy, saved, t, maps, dmaps, None, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS
        )
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        r = tl.arange(0, BR)
        dh = tl.zeros([BR], REAL)
        for start in range(0, C, CC):
            channels = start + tl.arange(0, CC)
            dz = total_of(parts, n, channels, channels < C, C, PARTS)
            dz = gate_gradient(dz, tl.load(saved + n * C + channels, channels < C, 0.0), HARD_SIGMOID)
            tl.store(nth(grads, 1 + MAXIMA, N, C) + n * C + channels, dz, channels < C)
            in_layer = (channels < C)[:, None] & (r < R)[None, :]
            w = tl.load(w2 + channels[:, None] * R + r[None, :], in_layer, 0.0).to(REAL)
            dh += tl.sum(w * dz[:, None], 0)
        hidden = (2 + MAXIMA) * (tl.full([], N, tl.int64) * C) + n.to(tl.int64) * (1 + MAXIMA) * R + r
        davg = act_gradient(dh, tl.load(saved + hidden, r < R, 0.0), ACT)
        tl.store(grads + hidden, davg, r < R)
        dmax = davg
        if MAXIMA:
            dmax = act_gradient(dh, tl.load(saved + hidden + R, r < R, 0.0), ACT)
            tl.store(grads + hidden + R, dmax, r < R)
        for start in range(0, C, CC):
            channels = start + tl.arange(0, CC)
            in_layer = (r < R)[:, None] & (channels < C)[None, :]
            w = tl.load(w1 + r[:, None] * C + channels[None, :], in_layer, 0.0).to(REAL)
            tl.store(grads + n * C + channels, tl.sum(w * davg[:, None], 0) * scale, channels < C)
            if MAXIMA:
                count = tl.where(channels < C, total_of(ties, n, channels, channels < C, C, PARTS), 1.0)
                tl.store(nth(grads, 1, N, C) + n * C + channels, tl.sum(w * dmax[:, None], 0) / count, channels < C)


@triton.jit
def unexcite_kernel(
    parts, saved, grads, w2, N, C, R, PARTS,
    HARD_SIGMOID: tl.constexpr, ACT: tl.constexpr, MAXIMA: tl.constexpr,
    BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """Write the gradients of the hidden units before the activation into `grads`, from `parts` of the gradient of s.

    For large layers. One program: BR hidden units of BN samples. The programs of the first units also write the
    gradient of the gate's input.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    n = (program // blocks * BN + tl.arange(0, BN))[:, None]
    r = program % blocks * BR + tl.arange(0, BR)
    dh = tl.zeros([BN, BR], REAL)
    for start in range(0, C, BC):
        c = (start + tl.arange(0, BC))[None, :] + tl.zeros([BN, BC], tl.int32)
        channels = start + tl.arange(0, BC)
        inside = (n < N) & (c < C)
        dz = total_of(parts, n, c, inside, C, PARTS)
        dz = gate_gradient(dz, tl.load(saved + n * C + c, inside, 0.0), HARD_SIGMOID)
        w = tl.load(w2 + channels[:, None] * R + r[None, :], (channels < C)[:, None] & (r < R)[None, :], 0.0).to(REAL)
        dh = multiply_add(dz, w, dh, PRECISION)
        if program % blocks == 0:
            tl.store(nth(grads, 1 + MAXIMA, N, C) + n * C + c, dz, inside)
    inside = (n < N) & (r < R)[None, :]
    for branch in tl.static_range(1 + MAXIMA):
        first_unit = (2 + MAXIMA) * (tl.full([], N, tl.int64) * C) + (n.to(tl.int64) * (1 + MAXIMA) + branch) * R
        hidden = first_unit + r[None, :]
        tl.store(grads + hidden, act_gradient(dh, tl.load(saved + hidden, inside, 0.0), ACT), inside)


@triton.jit
def unsqueeze_kernel(
    parts, grads, w1, N, C, R, PARTS, scale,
    MAXIMA: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """Write the gradients of the pools into `grads`, from those of the hidden units in it. For large layers.

    One program: BC channels of BN samples. `scale` is 1 / S.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (program // blocks * BN + tl.arange(0, BN))[:, None]
    channels = program % blocks * BC + tl.arange(0, BC)
    c = channels[None, :] + tl.zeros([BN, BC], tl.int32)
    inside = (n < N) & (c < C)
    davg = tl.zeros([BN, BC], REAL)
    dmax = tl.zeros([BN, BC], REAL)
    for start in range(0, R, BR):
        r = start + tl.arange(0, BR)
        in_layer = (n < N) & (r < R)[None, :]
        w = tl.load(w1 + r[:, None] * C + channels[None, :], (r < R)[:, None] & (channels < C)[None, :], 0.0).to(REAL)
        dhidden = nth(grads, 2 + MAXIMA, N, C) + n.to(tl.int64) * (1 + MAXIMA) * R + r[None, :]
        davg = multiply_add(tl.load(dhidden, in_layer, 0.0), w, davg, PRECISION)
        if MAXIMA:
            dmax = multiply_add(tl.load(dhidden + R, in_layer, 0.0), w, dmax, PRECISION)
    tl.store(grads + n * C + c, davg * scale, inside)
    if MAXIMA:
        count = total_of(nth(parts, 1, N * PARTS, C), n, c, inside, C, PARTS)
        tl.store(nth(grads, 1, N, C) + n * C + c, dmax / tl.where(inside, count, 1.0), inside)


@triton.jit
def weights_kernel(
    saved, grads, dw1, db1, dw2, db2, N, C, R,
    ACT: tl.constexpr, MAXIMA: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr,
):   # fmt: skip
    """Write the gradients of both layers, dw1, db1, dw2 and db2, from `saved` and `grads`.

    One program: BC channels by BR hidden units, over all samples.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(R, BR)
    c = program // blocks * BC + tl.arange(0, BC)
    r = program % blocks * BR + tl.arange(0, BR)
    dw1_sum = tl.zeros([BC, BR], REAL)    # transposed
    dw2_sum = tl.zeros([BC, BR], REAL)
    db1_sum = tl.zeros([BR], REAL)
    db2_sum = tl.zeros([BC], REAL)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN))[:, None]
        in_channels = (n < N) & (c < C)[None, :]
        in_units = (n < N) & (r < R)[None, :]
        gradient = tl.load(nth(grads, 1 + MAXIMA, N, C) + n * C + c[None, :], in_channels, 0.0)
        h = hidden_of(saved, n, r, N, C, R, ACT, MAXIMA)
        dw2_sum = multiply_add(tl.trans(gradient), h, dw2_sum, PRECISION)
        db2_sum += tl.sum(gradient, 0)
        for branch in tl.static_range(1 + MAXIMA):
            dhidden = nth(grads, 2 + MAXIMA, N, C) + (n.to(tl.int64) * (1 + MAXIMA) + branch) * R + r[None, :]
            gradient = tl.load(dhidden, in_units, 0.0)
            pool = tl.load(nth(saved, 1 + branch, N, C) + n * C + c[None, :], in_channels, 0.0)
            dw1_sum = multiply_add(tl.trans(pool), gradient, dw1_sum, PRECISION)
            db1_sum += tl.sum(gradient, 0)
    inside = (c < C)[:, None] & (r < R)[None, :]
    tl.store(dw1 + r[None, :] * C + c[:, None], dw1_sum.to(dw1.dtype.element_ty), inside)
    tl.store(dw2 + c[:, None] * R + r[None, :], dw2_sum.to(dw2.dtype.element_ty), inside)
    if db1 is not None and program // blocks == 0:
        tl.store(db1 + r, db1_sum.to(db1.dtype.element_ty), r < R)
    if db2 is not None and program % blocks == 0:
        tl.store(db2 + c, ((1 + MAXIMA) * db2_sum).to(db2.dtype.element_ty), c < C)


def backward(
    x: Tensor,
    dy: Tensor,
    layers: Layers,
    uses_maxima: bool,
    saved: Tensor,
    map_gradients: Map | None,
    gradients: Layers,
) -> Tensor:
    """Return `grads`: gradients of averages, divided by S, of maxima, divided by their ties, and of the hidden layer.

    Args:
        x: (N, C, *S).
        dy: gradient of the product y, in the memory layout of x.
        layers: the layers.
        uses_maxima: whether maxima are used; if False, `saved` and the result do not contain them.
        saved: written by `forward`.
        map_gradients: t, its maps and their gradient if y = x * s * t; None if y = x * s.
        gradients: tensors to write, the gradients of the layers.

    Returns:
        A float32 vector with the layout in the module's docstring.

    """
    (N, C, S), R = sizes(x), len(layers.w1)
    tiling = passes.portions("channels" if map_gradients is None else "channels of a map", x)
    t, maps, dmaps = map_gradients or (None, None, None)
    parts, grads = empty_float32(x, 1 + uses_maxima, N, tiling.parts, C), empty_float32(x, len(saved))
    hard = layers.gate == "hard_sigmoid"
    BR = units_at_a_time(R)
    options = {"MAXIMA": uses_maxima, "BN": ROWS, "BC": CHANNELS_AT_ONCE, "BR": BR, "num_warps": 4}
    if is_small(C, R):
        tensors = x, dy, t, maps, dmaps, parts, counters(x, N), saved, grads, layers.w1, layers.w2
        args = *tensors, N, C, S, R, tiling.parts, tiling.steps, 1 / S
        small_options = {"HARD_SIGMOID": hard, "ACT": layers.act, "MAXIMA": uses_maxima}
        small_options |= {**tiling.options, **small_tile(R)}
        launch(channels_unexcite_kernel, tiling.programs, *args, **small_options)
    else:
        portion_args = x, dy, saved, t, maps, dmaps, parts, N, C, S, tiling.parts, tiling.steps
        launch(passes_backward.channels_kernel, tiling.programs, *portion_args, MAXIMA=uses_maxima, **tiling.options)
        rows = cdiv(N, ROWS)
        layer_args = parts, saved, grads, layers.w2, N, C, R, tiling.parts
        launch(unexcite_kernel, rows * cdiv(R, BR), *layer_args, HARD_SIGMOID=hard, ACT=layers.act, **options)
        unsqueeze_args = parts, grads, layers.w1, N, C, R, tiling.parts, 1 / S
        launch(unsqueeze_kernel, rows * cdiv(C, CHANNELS_AT_ONCE), *unsqueeze_args, **options)
    weight_grads = gradients.w1, gradients.b1, gradients.w2, gradients.b2
    programs = cdiv(C, CHANNELS_AT_ONCE) * cdiv(R, BR)
    launch(weights_kernel, programs, saved, grads, *weight_grads, N, C, R, ACT=layers.act, **options)
    return grads
