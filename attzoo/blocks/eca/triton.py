"""ECA in Triton: three passes over x forward, as plainly, and four back, of ten; torch.py says what."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...ops.fused import Fused, densely
from ...ops.triton import passes
from ...ops.triton.common import REAL, cdiv, launch, power, small

WIDE = 256   # channels that a program takes


@triton.jit
def neighbour(c, C, step, CIRCULAR: tl.constexpr):
    """The channel that is `step` further, and whether there is one."""
    other = c + step
    if CIRCULAR:
        other = (other + C) % C
    return other, (c < C) & (other >= 0) & (other < C)


@triton.jit
def added(parts, n, c, known, C, PARTS):
    """What came in parts, (N, PARTS, C), put together."""
    whole = tl.zeros_like(c).to(REAL)
    for part in range(0, PARTS):
        whole += tl.load(parts + (n * PARTS + part) * C + c, known, 0.0)
    return whole


@triton.jit
def excite_kernel(total, w, avg, s, C, PARTS, scale, K: tl.constexpr, CIRCULAR: tl.constexpr, BC: tl.constexpr):
    """One program: BC channels of a sample."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = i // blocks
    c = i % blocks * BC + tl.arange(0, BC)
    q = tl.zeros([BC], REAL)
    for j in range(0, K):
        other, known = neighbour(c, C, j - K // 2, CIRCULAR)
        q += tl.load(w + j).to(REAL) * (added(total, n, other, known, C, PARTS) * scale)
    tl.store(avg + n * C + c, added(total, n, c, c < C, C, PARTS) * scale, c < C)
    tl.store(s + n * C + c, tl.sigmoid(q), c < C)


@triton.jit
def unexcite_kernel(
    ds, s, w, avg, mean, dw, C, PARTS, scale,
    K: tl.constexpr, CIRCULAR: tl.constexpr, BC: tl.constexpr,
):   # fmt: skip
    """One program: BC channels of a sample, and their part of the gradient of w, (programs, K)."""
    i = tl.program_id(0)
    blocks = tl.cdiv(C, BC)
    n = i // blocks
    c = i % blocks * BC + tl.arange(0, BC)
    a = tl.load(s + n * C + c, c < C, 0.0)
    here = added(ds, n, c, c < C, C, PARTS) * a * (1 - a)
    davg = tl.zeros([BC], REAL)
    for j in range(0, K):
        other, known = neighbour(c, C, K // 2 - j, CIRCULAR)
        a = tl.load(s + n * C + other, known, 0.0)
        davg += tl.load(w + j).to(REAL) * (added(ds, n, other, known, C, PARTS) * a * (1 - a))
        other, known = neighbour(c, C, j - K // 2, CIRCULAR)
        tl.store(dw + i * K + j, tl.sum(here * tl.load(avg + n * C + other, known, 0.0), 0))
    tl.store(mean + n * C + c, davg * scale, c < C)


def outputs(x: Tensor, *_: Any) -> Sequence[Any]:
    """y and what is kept."""
    N, C = x.shape[:2]
    return torch.empty_like(x), small(x, N, C), small(x, N, C)


def forward(args: Sequence[Any], to: Sequence[Tensor]) -> None:
    """Squeeze, excite, scale."""
    x, shortcut, w, circular, relu = args
    y, avg, s = to
    total, _ = passes.pool(x, top=False)
    programs, BC = _programs(x)
    options = {"K": w.numel(), "CIRCULAR": circular, "BC": BC}
    launch(excite_kernel, programs, total, w, avg, s, x.shape[1], total.shape[1], 1 / prod(x.shape[2:]), **options)
    passes.scale(x, s, None, y, shortcut, relu)


def backward(
    dy: Tensor, args: Sequence[Any], y: Tensor | None, kept: Sequence[Tensor], gradients: list[Any]
) -> None:
    """dy * x, added up, is the gradient of s; what that makes of the average is added to dy * s."""
    x, _, w, circular, _ = args
    avg, s = kept
    dx, _, dw = gradients
    dy = passes.to_scaled(dy, x, y, gradients)
    ds, _ = passes.to_channels(x, dy, s, None)
    programs, BC = _programs(x)
    mean, parts = torch.empty_like(s), small(x, programs, w.numel())
    options = {"K": w.numel(), "CIRCULAR": circular, "BC": BC}
    args = ds, s, w, avg, mean, parts, x.shape[1], ds.shape[1], 1 / prod(x.shape[2:])
    launch(unexcite_kernel, programs, *args, **options)
    dw.copy_(parts.sum(0).view_as(dw))
    passes.to_input(x, dy, dx, s, mean)


def _programs(x: Tensor) -> tuple[int, int]:
    """How many, and how many channels each takes."""
    N, C = x.shape[:2]
    BC = min(power(C), WIDE)
    return N * cdiv(C, BC), BC


ARGUMENTS = "Tensor x, Tensor? shortcut, Tensor w, bool circular, bool relu"
KERNELS = Fused("eca", ARGUMENTS, 2, outputs, forward, backward, rereads=passes.rereads)


def fused(block: Any, x: Tensor, shortcut: Tensor | None, act: str | None) -> Tensor:
    """(N, C, *S) -> (N, C, *S)."""
    options = block.spec.padding == "circular", act == "relu"
    return KERNELS(block, densely(x), shortcut, block.conv.weight, *options, act=act)[0]
