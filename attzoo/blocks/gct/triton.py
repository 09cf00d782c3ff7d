"""Fused kernels of GCT: 3 passes over x forward, and 5 backward.

See torch.py for the definition. L1 is true for mode="l1". s = 1 + tanh(z) is computed as 2 sigmoid(2 z).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from ...fast.cases import KernelCase
from ...fast.triton import channel_gate, passes
from ...fast.triton.channel_gate import Coefficients
from ...fast.triton.common import (
    REAL,
    at,
    cdiv,
    counters,
    empty_float32,
    is_channels_last,
    is_last,
    launch,
    nth,
    sizes,
    tile_indices,
)
from ...fast.triton.passes import portion
from ...fast.triton.passes_backward import channels_portion
from ...fast.triton.perceptron import total_of

CHANNELS_AT_ONCE = 256   # number of channels that a program processes at a time


@triton.jit
def norm_of(total, epsilon, L1: tl.constexpr):
    """Return the norm from a sum of squares or magnitudes."""
    if L1:
        norm = total
    else:
        norm = tl.sqrt(total + epsilon)
    return norm


@triton.jit
def magnitude_of(e, L1: tl.constexpr):
    """Return |e| or e^2, whose mean over channels normalises e."""
    if L1:
        magnitude = tl.abs(e)
    else:
        magnitude = e * e
    return magnitude


@triton.jit
def root_of(mean, epsilon, L1: tl.constexpr):
    """Return the number that divides e, from the mean of `magnitude_of` over channels."""
    if L1:
        root = mean + epsilon
    else:
        root = tl.sqrt(mean + epsilon)
    return root


@triton.jit
def store_coefficients(
    parts, saved, embedding_weight, gating_weight, gating_bias, n, N, C, PARTS, epsilon,
    L1: tl.constexpr, CC: tl.constexpr,
):   # fmt: skip
    """Write the coefficients and norms of sample n into `saved`, from `parts` (N, PARTS, C), CC channels at a time."""
    magnitudes = tl.zeros([CC], REAL)
    for start in range(0, C, CC):
        c = start + tl.arange(0, CC)
        norm = norm_of(total_of(parts, n, c, c < C, C, PARTS), epsilon, L1)
        tl.store(nth(saved, 1, N, C) + n * C + c, norm, c < C)
        e = tl.load(embedding_weight + c, c < C, 0.0).to(REAL) * norm
        magnitudes += magnitude_of(e, L1)
    root = root_of(tl.sum(magnitudes, 0) / C, epsilon, L1)
    for start in range(0, C, CC):
        c = start + tl.arange(0, CC)
        norm = norm_of(total_of(parts, n, c, c < C, C, PARTS), epsilon, L1)
        e = tl.load(embedding_weight + c, c < C, 0.0).to(REAL) * norm
        z = tl.load(gating_weight + c, c < C, 0.0).to(REAL) * (e / root) + tl.load(gating_bias + c, c < C, 0.0).to(REAL)
        tl.store(saved + n * C + c, 2 * tl.sigmoid(2 * z), c < C)


@triton.jit
def pool_kernel(
    x, parts, counter, saved, embedding_weight, gating_weight, gating_bias, N, C, S, PARTS, STEPS, epsilon,
    L1: tl.constexpr, CC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write sums of squares, or of magnitudes, into `parts` (N, PARTS, C), and coefficients and norms into `saved`.

    One program: one portion of x. The last program of a sample computes its coefficients and norms.
    """
    n, c, part = portion(C, PARTS, BC)
    sums = tl.zeros([BC, BS], REAL)
    for step in range(part * STEPS, (part + 1) * STEPS):
        p = step * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (p < S)[None, :]
        x_tile = tl.load(x + at(n, c[:, None], p[None, :], C, S, LAST), inside, 0.0, eviction_policy="evict_last")
        x_tile = x_tile.to(REAL)
        if L1:
            sums += tl.abs(x_tile)
        else:
            sums += x_tile * x_tile
    tl.store(parts + (n * PARTS + part) * C + c, tl.sum(sums, 1), c < C)
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        store_coefficients(
            parts, saved, embedding_weight, gating_weight, gating_bias, n, N, C, PARTS, epsilon, L1, CC
        )


@triton.jit
def store_gradients(
    parts, saved, grads, embedding_weight, gating_weight, n, N, C, PARTS, epsilon, L1: tl.constexpr, CC: tl.constexpr
):   # fmt: skip
    """Write the gradients of sample n into `grads`, from the parts of the gradient of s, CC channels at a time.

    grads, (N, C) each: the factor of x, or of its sign, in the gradient of x; then the shares of the sample in the
    gradients of embedding_weight, gating_weight and gating_bias.
    """
    magnitudes = tl.zeros([CC], REAL)
    products = tl.zeros([CC], REAL)
    for start in range(0, C, CC):
        c = start + tl.arange(0, CC)
        norm = tl.load(nth(saved, 1, N, C) + n * C + c, c < C, 0.0)
        e = tl.load(embedding_weight + c, c < C, 0.0).to(REAL) * norm
        s = tl.load(saved + n * C + c, c < C, 0.0)
        dz = total_of(parts, n, c, c < C, C, PARTS) * s * (2 - s)
        magnitudes += magnitude_of(e, L1)
        products += dz * tl.load(gating_weight + c, c < C, 0.0).to(REAL) * e
    root = root_of(tl.sum(magnitudes, 0) / C, epsilon, L1)
    droot = -tl.sum(products, 0) / (root * root)
    for start in range(0, C, CC):
        c = start + tl.arange(0, CC)
        norm = tl.load(nth(saved, 1, N, C) + n * C + c, c < C, 1.0)
        weight = tl.load(embedding_weight + c, c < C, 0.0).to(REAL)
        e = weight * norm
        s = tl.load(saved + n * C + c, c < C, 0.0)
        dz = total_of(parts, n, c, c < C, C, PARTS) * s * (2 - s)
        de = dz * tl.load(gating_weight + c, c < C, 0.0).to(REAL) / root
        if L1:
            de += droot / C * sign_of(e)
            dx = de * weight
        else:
            de += droot / C * (e / root)
            dx = de * weight / norm
        tl.store(grads + n * C + c, dx, c < C)
        tl.store(nth(grads, 1, N, C) + n * C + c, de * norm, c < C)
        tl.store(nth(grads, 2, N, C) + n * C + c, dz * (e / root), c < C)
        tl.store(nth(grads, 3, N, C) + n * C + c, dz, c < C)


@triton.jit
def channels_kernel(
    x, dy, parts, counter, saved, grads, embedding_weight, gating_weight, N, C, S, PARTS, STEPS, epsilon,
    L1: tl.constexpr, CC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write parts of the gradient of s into `parts`, (N, PARTS, C), and the gradients of each sample into `grads`.

    One program: one portion of x and dy. The last program of a sample computes its gradients, see `store_gradients`.
    """
    n, c, part = portion(C, PARTS, BC)
    channels_portion(x, dy, saved, None, None, None, None, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        store_gradients(parts, saved, grads, embedding_weight, gating_weight, n, N, C, PARTS, epsilon, L1, CC)


@triton.jit
def sign_of(v):
    """Return -1, 0 or 1."""
    return tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, 0.0))


@triton.jit
def weights_kernel(grads, dembedding, dgating, dbias, N, C, BC: tl.constexpr):
    """One program: the gradients of the weights of BC channels, over all samples."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    da = tl.zeros([BC], REAL)
    dg = tl.zeros([BC], REAL)
    db = tl.zeros([BC], REAL)
    for n in range(N):
        da += tl.load(nth(grads, 1, N, C) + n * C + c, c < C, 0.0)
        dg += tl.load(nth(grads, 2, N, C) + n * C + c, c < C, 0.0)
        db += tl.load(nth(grads, 3, N, C) + n * C + c, c < C, 0.0)
    tl.store(dembedding + c, da.to(dembedding.dtype.element_ty), c < C)
    tl.store(dgating + c, dg.to(dgating.dtype.element_ty), c < C)
    tl.store(dbias + c, db.to(dbias.dtype.element_ty), c < C)


@triton.jit
def input_kernel(
    x, dy, saved, grads, dx, C, S, L1: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr
):   # fmt: skip
    """One program: one tile. Tiles run from the end of x, which the pass before read last and may still be cached."""
    n, c, p = tile_indices(tl.num_programs(0) - 1 - tl.program_id(0), C, S, BC, BS)
    inside = (c < C)[:, None] & (p < S)[None, :]
    offset = at(n, c[:, None], p[None, :], C, S, LAST)
    x_tile = tl.load(x + offset, inside, 0.0, eviction_policy="evict_first").to(REAL)
    gradient = tl.load(dy + offset, inside, 0.0, eviction_policy="evict_first").to(REAL)
    if L1:
        x_tile = sign_of(x_tile)
    factor = tl.load(grads + n * C + c, c < C, 0.0)[:, None]
    gradient = gradient * tl.load(saved + n * C + c, c < C, 0.0)[:, None] + x_tile * factor
    tl.store(dx + offset, gradient.to(dx.dtype.element_ty), inside, eviction_policy="evict_first")


def saved_tensor(x: Tensor, *_: Any) -> Tensor:
    """Allocate the coefficients and the norms, (N, C) each, for x (N, C, *S)."""
    return empty_float32(x, 2, *x.shape[:2])


def forward(x: Tensor, args: Sequence[Any], saved: Tensor) -> None:
    """Pool x (N, C, *S) and write `saved`."""
    *weights, l1, epsilon = args
    (N, C, S), tiling = sizes(x), passes.portions("pool", x)
    parts = empty_float32(x, N, tiling.parts, C)
    pool_args = x, parts, counters(x, N), saved, *weights, N, C, S, tiling.parts, tiling.steps, epsilon
    launch(pool_kernel, tiling.programs, *pool_args, L1=l1, CC=CHANNELS_AT_ONCE, **tiling.options)


def backward(x: Tensor, dy: Tensor, args: Sequence[Any], saved: Tensor, gradients: Sequence[Any]) -> Tensor:
    """Write the gradients of the weights; return `grads` of `store_gradients`.

    dy: gradient of the product, in the memory layout of x.
    """
    embedding_weight, gating_weight, _, l1, epsilon = args
    (N, C, S), tiling = sizes(x), passes.portions("channels", x)
    parts, grads = empty_float32(x, N, tiling.parts, C), empty_float32(x, 4, N, C)
    tensors = x, dy, parts, counters(x, N), saved, grads, embedding_weight, gating_weight
    args = *tensors, N, C, S, tiling.parts, tiling.steps, epsilon
    launch(channels_kernel, tiling.programs, *args, L1=l1, CC=CHANNELS_AT_ONCE, **tiling.options)
    launch(weights_kernel, cdiv(C, CHANNELS_AT_ONCE), grads, *gradients, N, C, BC=CHANNELS_AT_ONCE)
    return grads


def to_input(x: Tensor, dy: Tensor, dx: Tensor, saved: Tensor, grads: Tensor, args: Sequence[Any]) -> None:
    """Write the gradient of x, dy * s + x * grads[0], or dy * s + sign(x) * grads[0], into dx."""
    *_, l1, _ = args
    N, C, S = sizes(x)
    BC, BS, num_warps = passes.tile("input", x)
    options = {"L1": l1, "LAST": is_channels_last(x), "BC": BC, "BS": BS, "num_warps": num_warps}
    launch(input_kernel, N * cdiv(C, BC) * cdiv(S, BS), x, dy, saved, grads, dx, C, S, **options)


def arguments(block: Any) -> tuple[Any, ...]:
    """Return the weights, (C,) each, whether the norms are of order 1, and epsilon."""
    return block.embedding_weight, block.gating_weight, block.gating_bias, block.spec.order == 1, block.spec.epsilon


SCHEMA: Final = "Tensor embedding_weight, Tensor gating_weight, Tensor gating_bias, bool l1, float epsilon"
KERNELS = channel_gate.kernels("gct", Coefficients(SCHEMA, saved_tensor, forward, backward, to_input))
fused = partial(channel_gate.call, KERNELS, arguments)
CASES: Final = (KernelCase(launches=(2, 2, 3)), KernelCase({"mode": "l1"}, act="relu"))
