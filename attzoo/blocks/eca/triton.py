"""Fused kernels of ECA: 3 passes over x forward, as in the plain form, and 4 instead of 10 backward.

See torch.py for the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...fast.autograd import Fused, as_dense
from ...fast.cases import KernelCase
from ...fast.triton import passes, passes_backward
from ...fast.triton.common import REAL, counters, empty_float32, is_last, launch, next_power_of_2, nth, sizes
from ...fast.triton.passes import pool_portion, portion, portions
from ...fast.triton.passes_backward import channels_portion
from ...fast.triton.perceptron import total_of

CHANNELS_AT_ONCE = 256      # number of channels that the last program of a sample processes at a time
SAMPLES = 64    # number of samples that the last program of all processes at a time


@triton.jit
def neighbour(c, C, step, CIRCULAR: tl.constexpr):
    """Return channels c + step of C channels, and whether they exist. If CIRCULAR, channel 0 follows the last one."""
    neighbour_c = c + step
    if CIRCULAR:
        neighbour_c = (neighbour_c + C) % C
    return neighbour_c, (c < C) & (neighbour_c >= 0) & (neighbour_c < C)


@triton.jit
def pool_excite_kernel(
    x, parts, counter, saved, w, N, C, S, PARTS, STEPS, scale,
    K: tl.constexpr, CIRCULAR: tl.constexpr, CC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Pool x over space, and write the coefficients and the averages into `saved`.

    One program: one portion of x. The last program of a sample computes its coefficients, CC channels at a time. K is
    the kernel size of w, and `scale` is 1 / S, which turns sums into averages.
    """
    n, c, part = portion(C, PARTS, BC)
    pool_portion(x, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        for start in range(0, C, CC):
            channels = start + tl.arange(0, CC)
            q = tl.zeros([CC], REAL)
            for j in range(0, K):
                neighbour_c, in_bounds = neighbour(channels, C, j - K // 2, CIRCULAR)
                q += tl.load(w + j).to(REAL) * (total_of(parts, n, neighbour_c, in_bounds, C, PARTS) * scale)
            mean = total_of(parts, n, channels, channels < C, C, PARTS) * scale
            tl.store(nth(saved, 1, N, C) + n * C + channels, mean, channels < C)
            tl.store(saved + n * C + channels, tl.sigmoid(q), channels < C)


@triton.jit
def channels_unexcite_kernel(
    x, dy, parts, counter, saved, grads, w, dw, N, C, S, PARTS, STEPS, scale,
    K: tl.constexpr, CIRCULAR: tl.constexpr, CC: tl.constexpr, LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
    BN: tl.constexpr,
):   # fmt: skip
    """Write the gradients of the averages into `grads`, and the gradient of the weight into `dw`.

    One program: one portion of x and dy. The last program of a sample computes its gradients of averages and its part
    of dw, (N, K), stored in `grads` after them. The last program of all adds up the parts of dw.
    """
    n, c, part = portion(C, PARTS, BC)
    channels_portion(x, dy, saved, None, None, None, None, parts, None, n, c, part, C, S, PARTS, STEPS, LAST, BC, BS)
    sample_gradients = nth(grads, 1, N, C)
    if is_last(counter + n, tl.cdiv(C, BC) * PARTS):
        for j in range(0, K):
            total = tl.zeros([CC], REAL)
            for start in range(0, C, CC):
                channels = start + tl.arange(0, CC)
                dq = slope(parts, saved, n, channels, channels < C, C, PARTS)
                neighbour_c, in_bounds = neighbour(channels, C, j - K // 2, CIRCULAR)
                total += dq * tl.load(nth(saved, 1, N, C) + n * C + neighbour_c, in_bounds, 0.0)
            tl.store(sample_gradients + n * K + j, tl.sum(total, 0))
        for start in range(0, C, CC):
            channels = start + tl.arange(0, CC)
            davg = tl.zeros([CC], REAL)
            for j in range(0, K):
                neighbour_c, in_bounds = neighbour(channels, C, K // 2 - j, CIRCULAR)
                davg += tl.load(w + j).to(REAL) * slope(parts, saved, n, neighbour_c, in_bounds, C, PARTS)
            tl.store(grads + n * C + channels, davg * scale, channels < C)
        if is_last(counter + N, N):
            for j in range(0, K):
                total = tl.zeros([BN], REAL)
                for start in range(0, N, BN):
                    samples = start + tl.arange(0, BN)
                    total += tl.load(sample_gradients + samples * K + j, samples < N, 0.0, cache_modifier=".cg")
                tl.store(dw + j, tl.sum(total, 0).to(dw.dtype.element_ty))


@triton.jit
def slope(parts, saved, n, c, inside, C, PARTS):
    """Return the gradient of the sigmoid's input at sample n and channels c; 0 unless `inside`.

    parts: (N, PARTS, C), the gradient of the coefficients, in parts that are added up. saved: begins with the
    coefficients.
    """
    s = tl.load(saved + n * C + c, inside, 0.0)
    return total_of(parts, n, c, inside, C, PARTS) * s * (1 - s)


def outputs(x: Tensor, *_: Any) -> Sequence[Any]:
    """Allocate y, of x's shape, and the saved coefficients and averages, (2, N, C)."""
    return torch.empty_like(x), empty_float32(x, 2, *x.shape[:2])


def forward(args: Sequence[Any], results: Sequence[Tensor]) -> None:
    """Pool x, compute the coefficients, and write the tensors in `results`: y and the saved tensor.

    args: the operator's arguments, see `ARGUMENTS`.
    """
    x, shortcut, w, circular, relu = args
    y, saved = results
    (N, C, S), tiling = sizes(x), portions("pool", x)
    args = x, empty_float32(x, N, tiling.parts, C), counters(x, N), saved, w, N, C, S, tiling.parts, tiling.steps, 1 / S
    launch(pool_excite_kernel, tiling.programs, *args, **_options(w, circular, C), **tiling.options)
    passes.scale(x, saved, None, y, shortcut, relu)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, saved_tensors: Sequence[Tensor], gradients: list[Any]
) -> None:
    """Write the gradients of x and of the weight into the tensors in `gradients`.

    The gradient of the coefficients s is the sum of dy * x. That of x is dy * s plus the gradients of the averages.

    Args:
        dy: gradient of y.
        args: the operator's arguments, see `ARGUMENTS`.
        y: the output, None if no relu follows.
        saved_tensors: the tensor that `forward` wrote after y.
        gradients: one tensor to write for each input and parameter, or None.

    """
    x, _, w, circular, _ = args
    dx, _, dw = gradients
    dy, (saved,) = passes_backward.grad_of_product(dy, x, y, gradients), saved_tensors
    (N, C, S), tiling = sizes(x), portions("channels", x)
    if not N:
        dw.zero_()
    parts, grads = empty_float32(x, N, tiling.parts, C), empty_float32(x, N * (C + w.numel()))
    args = x, dy, parts, counters(x, N + 1), saved, grads, w, dw, N, C, S, tiling.parts, tiling.steps, 1 / S
    launch(channels_unexcite_kernel, tiling.programs, *args, **_options(w, circular, C), **tiling.options, BN=SAMPLES)
    passes_backward.to_input(x, dy, dx, saved, grads)


def _options(w: Tensor, circular: bool, C: int) -> dict[str, Any]:
    """Return the constants K, CIRCULAR and CC of both kernels, for a weight (k,) and C channels."""
    return {"K": w.numel(), "CIRCULAR": circular, "CC": min(next_power_of_2(C), CHANNELS_AT_ONCE)}


ARGUMENTS = "Tensor x, Tensor? shortcut, Tensor w, bool circular, bool relu"
KERNELS = Fused("eca", ARGUMENTS, 1, outputs, forward, backward, backward_needs_y=passes_backward.backward_needs_y)
CASES: Final = (KernelCase(launches=(2, 2, 2)), KernelCase({"padding": "circular"}, rare=True))



def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """Return act(block(x) + shortcut) for x (N, C, *S), computed by the kernels."""
    options = block.spec.padding == "circular", act == "relu"
    return KERNELS(block, as_dense(x), shortcut, block.conv.weight, *options, act=act)[0]
