"""Fused kernels of eSE: 3 passes over x forward, as in the plain form, and 4 instead of 10 backward.

See torch.py for the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import triton
import triton.language as tl
from torch import Tensor

from ...fast.cases import KernelCase
from ...fast.triton import channel_gate, passes, passes_backward
from ...fast.triton.channel_gate import Coefficients
from ...fast.triton.common import REAL, ROWS, cdiv, empty_float32, launch, multiply_add, nth, sizes
from ...fast.triton.perceptron import PRECISION, gate_of, total_of
from ...fast.triton.perceptron_backward import gate_gradient

CHANNELS_AT_ONCE = 32   # number of channels that a program processes at a time, as in perceptron.py


@triton.jit
def excite_kernel(
    parts, saved, weight, bias, N, C, PARTS, scale, HARD_SIGMOID: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr
):   # fmt: skip
    """Write the coefficients and averages into `saved` (2, N, C), from partial sums of x in `parts` (N, PARTS, C).

    One program: coefficients of BC channels of BN samples. The programs of the first channels also write the averages.
    weight (C, C) and bias (C,) or None are those of the block; scale is 1 / number of positions.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (program // blocks * BN + tl.arange(0, BN))[:, None]
    c = program % blocks * BC + tl.arange(0, BC)
    z = tl.zeros([BN, BC], REAL)
    for start in range(0, C, BC):
        c_in = start + tl.arange(0, BC)
        column = c_in[None, :] + tl.zeros([BN, BC], tl.int32)
        inside = (n < N) & (column < C)
        average = total_of(parts, n, column, inside, C, PARTS) * scale
        address = weight + c.to(tl.int64)[None, :] * C + c_in[:, None]
        w = tl.load(address, (c < C)[None, :] & (c_in < C)[:, None], 0.0).to(REAL)
        z = multiply_add(average, w, z, PRECISION)
        if program % blocks == 0:
            tl.store(nth(saved, 1, N, C) + n * C + column, average, inside)
    if bias is not None:
        z += tl.load(bias + c, c < C, 0.0).to(REAL)[None, :]
    tl.store(saved + n * C + c[None, :], gate_of(z, HARD_SIGMOID), (n < N) & (c < C)[None, :])


@triton.jit
def unexcite_kernel(
    parts, saved, grads, weight, N, C, PARTS, scale, HARD_SIGMOID: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr
):   # fmt: skip
    """Write gradients into `grads` (2, N, C): of the averages, divided by the number of positions; of the gate's input.

    One program: the first for BC channels of BN samples. The programs of the first channels also write the second.
    parts (N, PARTS, C): partial sums of the coefficients' gradient. saved, weight, scale: as in `excite_kernel`.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = (program // blocks * BN + tl.arange(0, BN))[:, None]
    c_in = program % blocks * BC + tl.arange(0, BC)
    sums = tl.zeros([BN, BC], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        column = c[None, :] + tl.zeros([BN, BC], tl.int32)
        inside = (n < N) & (column < C)
        dz = total_of(parts, n, column, inside, C, PARTS)
        dz = gate_gradient(dz, tl.load(saved + n * C + column, inside, 0.0), HARD_SIGMOID)
        address = weight + c.to(tl.int64)[:, None] * C + c_in[None, :]
        w = tl.load(address, (c < C)[:, None] & (c_in < C)[None, :], 0.0).to(REAL)
        sums = multiply_add(dz, w, sums, PRECISION)
        if program % blocks == 0:
            tl.store(nth(grads, 1, N, C) + n * C + column, dz, inside)
    tl.store(grads + n * C + c_in[None, :], sums * scale, (n < N) & (c_in < C)[None, :])


@triton.jit
def weights_kernel(saved, grads, dweight, dbias, N, C, BN: tl.constexpr, BC: tl.constexpr):
    """Write the gradients of weight and bias into dweight (C, C) and dbias (C,) or None.

    One program: BC x BC weights, summed over all samples. The programs of the first columns also write the bias's.
    saved, grads: as in `unexcite_kernel`.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    c = program // blocks * BC + tl.arange(0, BC)
    c_in = program % blocks * BC + tl.arange(0, BC)
    dw = tl.zeros([BC, BC], REAL)
    db = tl.zeros([BC], REAL)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN))[:, None]
        dz = tl.load(nth(grads, 1, N, C) + n * C + c[None, :], (n < N) & (c < C)[None, :], 0.0)
        average = tl.load(nth(saved, 1, N, C) + n * C + c_in[None, :], (n < N) & (c_in < C)[None, :], 0.0)
        dw = multiply_add(tl.trans(dz), average, dw, PRECISION)
        db += tl.sum(dz, 0)
    inside = (c < C)[:, None] & (c_in < C)[None, :]
    tl.store(dweight + c.to(tl.int64)[:, None] * C + c_in[None, :], dw.to(dweight.dtype.element_ty), inside)
    if dbias is not None and program % blocks == 0:
        tl.store(dbias + c, db.to(dbias.dtype.element_ty), c < C)


def saved_tensor(x: Tensor, *_: Any) -> Tensor:
    """Return an uninitialized tensor (2, N, C) for the coefficients and averages of x (N, C, *S)."""
    return empty_float32(x, 2, *x.shape[:2])


def forward(x: Tensor, args: Sequence[Any], saved: Tensor) -> None:
    """Compute the coefficients and averages of x (N, C, *S), and write them into `saved` (2, N, C).

    args: the results of `arguments`.
    """
    weight, bias, gate = args
    (N, C, S), tiling = sizes(x), passes.portions("pool", x)
    parts = empty_float32(x, N, tiling.parts, C)
    pool_args = x, parts, N, C, S, tiling.parts, tiling.steps
    launch(passes.pool_kernel, tiling.programs, *pool_args, MAXIMA=False, **tiling.options)
    excite_args = parts, saved, weight, bias, N, C, tiling.parts, 1 / S
    programs = cdiv(N, ROWS) * cdiv(C, CHANNELS_AT_ONCE)
    launch(excite_kernel, programs, *excite_args, HARD_SIGMOID=gate == "hard_sigmoid", **_tile())


def backward(x: Tensor, dy: Tensor, args: Sequence[Any], saved: Tensor, gradients: Sequence[Any]) -> Tensor:
    """Return the gradients of the averages, divided by the number of positions, and of the gate's input: (2, N, C).

    Args:
        x: the input.
        dy: gradient of the product x * a, in the memory layout of x.
        args: the results of `arguments`.
        saved: as written by `forward`.
        gradients: the tensors for the gradients of the weight and the bias, or None; they are written.
    """
    weight, _, gate = args
    (N, C, S), tiling = sizes(x), passes.portions("channels", x)
    parts, grads = empty_float32(x, N, tiling.parts, C), empty_float32(x, 2, N, C)
    portion_args = x, dy, saved, None, None, None, parts, N, C, S, tiling.parts, tiling.steps
    launch(passes_backward.channels_kernel, tiling.programs, *portion_args, MAXIMA=False, **tiling.options)
    args = parts, saved, grads, weight, N, C, tiling.parts, 1 / S
    programs = cdiv(N, ROWS) * cdiv(C, CHANNELS_AT_ONCE)
    launch(unexcite_kernel, programs, *args, HARD_SIGMOID=gate == "hard_sigmoid", **_tile())
    launch(weights_kernel, cdiv(C, CHANNELS_AT_ONCE) ** 2, saved, grads, *gradients, N, C, **_tile())
    return grads


def _tile() -> dict[str, int]:
    """Return the numbers of samples and channels that a program processes at a time, and its number of warps."""
    return {"BN": ROWS, "BC": CHANNELS_AT_ONCE, "num_warps": 4}


def arguments(block: Any) -> tuple[Any, ...]:
    """Return the weight (C, C), the bias (C,) or None, and the gate of a block."""
    return block.excite.weight, block.excite.bias, block.spec.gate


KERNELS = channel_gate.kernels(
    "ese", Coefficients("Tensor weight, Tensor? bias, str gate", saved_tensor, forward, backward)
)
fused = partial(channel_gate.call, KERNELS, arguments)
CASES: Final = (KernelCase(launches=(3, 3, 4)), KernelCase({"gate": "sigmoid", "bias": False}, act="relu"))
