"""Batch norm of a map with a single channel, q (N, S), in the kernels around it, forward and backward.

The kernel that writes the map adds up its statistics, and the kernel that applies the coefficients normalises it as it
reads it. In the backward pass the kernel that writes the gradient of the norm's output adds up what the norm takes from
it. PyTorch's own batch norm gives a channel to one block of threads: for (8, 65536) it took 375 microseconds forward
and 605 backward on an H200, where a sum over as much takes 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .common import REAL, cdiv, counters, empty_float32, is_last, launch

AT_ONCE = tl.constexpr(1024)   # parts that the last program adds up at a time
POSITIONS = 1024               # of the map, that a program of `backward` takes


class Norm(NamedTuple):
    """A batch norm's scale and shift, 1 number each, running mean and variance or, where it goes by the batch, None.

    statistics: mean and 1 / deviation by which it normalises, and of a batch its unbiased variance: 3 numbers, written
    with the map q (N, S).
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor | None
    var: Tensor | None
    eps: float
    q: Tensor
    statistics: Tensor

    @property
    def by_batch(self) -> bool:
        """Whether it goes by the batch's statistics."""
        return self.mean is None


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def add_moments(q, inside, i, programs, count, parts, counter, statistics, eps):
    """Note mean and sum of squares of this program's part of the map; the last of all writes the batch's statistics.

    Parts are merged as Chan et al. merge samples. parts: (3, programs), of counts, means and sums of squares.
    """
    here = tl.sum(inside.to(REAL))
    mean = tl.sum(tl.where(inside, q, 0.0)) / here
    off = tl.where(inside, q - mean, 0.0)
    tl.store(parts + i, here)
    tl.store(parts + programs + i, mean)
    tl.store(parts + 2 * programs + i, tl.sum(off * off))
    if is_last(counter, programs):
        sums = tl.zeros([AT_ONCE], REAL)
        for start in range(0, programs, AT_ONCE):
            part = start + tl.arange(0, AT_ONCE)
            n = tl.load(parts + part, part < programs, 0.0, cache_modifier=".cg")
            sums += n * tl.load(parts + programs + part, part < programs, 0.0, cache_modifier=".cg")
        mean = tl.sum(sums) / count
        sums = tl.zeros([AT_ONCE], REAL)
        for start in range(0, programs, AT_ONCE):
            part = start + tl.arange(0, AT_ONCE)
            n = tl.load(parts + part, part < programs, 0.0, cache_modifier=".cg")
            apart = tl.load(parts + programs + part, part < programs, 0.0, cache_modifier=".cg") - mean
            sums += tl.load(parts + 2 * programs + part, part < programs, 0.0, cache_modifier=".cg")
            sums += tl.where(part < programs, n * apart * apart, 0.0)
        total = tl.sum(sums)
        tl.store(statistics, mean)
        tl.store(statistics + 1, 1 / tl.sqrt(total / count + eps))
        tl.store(statistics + 2, total / (count - 1))


@triton.jit
def normalised(q, statistics):
    """(q - mean) / deviation."""
    return (q - tl.load(statistics)) * tl.load(statistics + 1)


@triton.jit
def applied(q, statistics, scale, shift):
    """The norm of q."""
    return normalised(q, statistics) * tl.load(scale).to(REAL) + tl.load(shift).to(REAL)


@triton.jit
def add_slopes(d, q, inside, i, programs, parts, counter, statistics, sums, dscale, dshift):
    """Note sums of this program's part of d, the gradient of the norm's output; the last of all writes their totals.

    These are the gradients of shift and scale, also written into `sums`, 2 numbers. parts: (2, programs).
    """
    tl.store(parts + i, tl.sum(tl.where(inside, d, 0.0)))
    tl.store(parts + programs + i, tl.sum(tl.where(inside, d * normalised(q, statistics), 0.0)))
    if is_last(counter, programs):
        of_shift = tl.zeros([AT_ONCE], REAL)
        of_scale = tl.zeros([AT_ONCE], REAL)
        for start in range(0, programs, AT_ONCE):
            part = start + tl.arange(0, AT_ONCE)
            of_shift += tl.load(parts + part, part < programs, 0.0, cache_modifier=".cg")
            of_scale += tl.load(parts + programs + part, part < programs, 0.0, cache_modifier=".cg")
        tl.store(sums, tl.sum(of_shift))
        tl.store(sums + 1, tl.sum(of_scale))
        tl.store(dshift, tl.sum(of_shift).to(dshift.dtype.element_ty))
        tl.store(dscale, tl.sum(of_scale).to(dscale.dtype.element_ty))


@triton.jit
def backward_kernel(d, q, statistics, sums, scale, dq, count, BY_BATCH: tl.constexpr, BS: tl.constexpr):
    """One program: BS positions of all samples."""
    s = tl.program_id(0).to(tl.int64) * BS + tl.arange(0, BS)
    slope = tl.load(d + s, s < count, 0.0)
    if BY_BATCH:
        normal = normalised(tl.load(q + s, s < count, 0.0), statistics)
        slope -= (tl.load(sums) + normal * tl.load(sums + 1)) / count
    tl.store(dq + s, slope * (tl.load(statistics + 1) * tl.load(scale).to(REAL)), s < count)


# ---- around them -----------------------------------------------------------------------------------------------------


class Slopes(NamedTuple):
    """What `add_slopes` takes besides, in its order; None without a norm."""

    q: Tensor | None
    statistics: Tensor | None
    parts: Tensor | None
    counter: Tensor | None
    sums: Tensor | None
    dscale: Tensor | None
    dshift: Tensor | None

    @classmethod
    def of(cls, norm: Norm | None, programs: int, gradients: Sequence[Any]) -> Slopes:
        """For so many programs; gradients: room for those of scale and shift."""
        if norm is None:
            return cls(*[None] * 7)
        q = norm.q
        return cls(q, norm.statistics, empty_float32(q, 2, programs), counters(q, 1), empty_float32(q, 2), *gradients)


def backward(d: Tensor, norm: Norm | None, slopes: Slopes) -> None:
    """Turn d (N, S), the gradient of the norm's output, into that of q, in place; slopes: with its sums."""
    if norm is None:
        return
    count = d.numel()
    options = {"BY_BATCH": norm.by_batch, "BS": POSITIONS, "num_warps": 4}
    launch(backward_kernel, cdiv(count, POSITIONS), d, *slopes[:2], slopes.sums, norm.scale, d, count, **options)
