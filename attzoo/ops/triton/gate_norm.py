"""What batch norm in training adds to the additive attention gate: statistics of W x forward, sums of e W x back.

Both are sums over all places, of parts that are put together in float64 and in one order. W x is made again each time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import gate
from .common import REAL, cdiv, launch, sizes, small
from .gate import column, precision, projected
from .gate_backward import RESIDENT, Slopes, slopes
from .gate_tiles import STATISTICS, Tile, exact_tile


@triton.jit
def moments_kernel(
    x, w, parts, N, F, C, S, PARTS, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BF inner channels over a part of the places of all samples.

    Tiles are merged as Chan et al. merge samples.
    """
    part = tl.program_id(0) % PARTS
    f = tl.program_id(0) // PARTS * BF + tl.arange(0, BF)
    ones = tl.full([BF], 1.0, REAL)
    mean = tl.zeros([BF], REAL)
    spread = tl.zeros([BF], REAL)
    count = 0.0
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        t = projected(x, w, ones, n, f, s, F, C, S, tl.zeros([BF, BS], REAL), LAST, PRECISION, BC)
        here = tl.sum((s < S).to(REAL))
        new = tl.sum(t, 1) / here
        off = tl.where((s < S)[None, :], t - new[:, None], 0.0)
        apart = new - mean
        both = count + here
        mean += apart * (here / both)
        spread += tl.sum(off * off, 1) + apart * apart * (count * here / both)
        count = both
    to = parts + part * 3 * F
    tl.store(to + f, mean, f < F)
    tl.store(to + F + f, spread, f < F)
    tl.store(to + 2 * F + f, ones * count, f < F)


def moments(x: Tensor, w: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of W x over samples and places: (N, C, *S), (F, C, 1..) -> (F,) each."""
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    count = max(1, min(N * cdiv(S, BS), RESIDENT))
    parts = small(x, count, 3, F)
    options = {"LAST": last, "PRECISION": precision(x), "BF": BF, "BC": BC, "BS": BS}
    args = x, w, parts, N, F, C, S, count
    launch(moments_kernel, count * cdiv(F, BF), *args, **options, num_warps=num_warps, num_stages=2)
    means, spreads, counts = parts.double().unbind(1)
    mean = (counts * means).sum(0) / counts.sum(0)
    var = (spreads + counts * (means - mean) ** 2).sum(0) / counts.sum(0)
    return mean.to(parts.dtype), var.to(parts.dtype)


@triton.jit
def sums_kernel(
    x, w, mean, dz, bits, parts, N, F, C, S, PARTS, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, WORDS: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BF inner channels over a part of the places of all samples."""
    part = tl.program_id(0) % PARTS
    f = tl.program_id(0) // PARTS * BF + tl.arange(0, BF)
    ones = tl.full([BF], 1.0, REAL)
    of_e = tl.zeros([BF], REAL)
    of_t = tl.zeros([BF], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        t = tl.zeros([BF, BS], REAL) - column(mean, f, F)[:, None]
        t = projected(x, w, ones, n, f, s, F, C, S, t, LAST, PRECISION, BC)
        e = slopes(
            dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
            TD, TH, TW, CORNERS, WIDE, COARSE, WORDS, BF, BS,
        )   # fmt: skip
        of_e += tl.sum(e, 1)
        of_t += tl.sum(e * t, 1)
    to = parts + part * 2 * F
    tl.store(to + f, of_e, f < F)
    tl.store(to + F + f, of_t, f < F)


def sums(x: Tensor, w: Tensor, mean: Tensor, it: Slopes, last: bool) -> tuple[Tensor, Tensor]:
    """Sums of e and of e (W x - mean) over samples and places: (F,) each."""
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    count = max(1, min(N * cdiv(S, BS), RESIDENT))
    parts = small(x, count, 2, F)
    where, constants = it.arguments()
    options = {"LAST": last, "PRECISION": precision(x), "BF": BF, "BC": BC, "BS": BS}
    args = x, w, mean, it.dz, it.bits, parts, N, F, C, S, count, *where
    launch(sums_kernel, count * cdiv(F, BF), *args, **constants, **options, num_warps=num_warps, num_stages=2)
    of_e, of_t = parts.double().sum(0).to(parts.dtype)
    return of_e, of_t


def tile(x: Tensor, F: int, C: int) -> Tile:
    """For statistics, which keep sums beside what a forward pass does."""
    if precision(x) != "tf32":
        return exact_tile(STATISTICS, gate.together(x, F), C)
    BF, BC, _, _ = gate.tile(x, F, C)
    return Tile(BF, BC, 128, 4) if BF <= 32 and BC <= 64 else Tile(BF, min(BC, 32) if BF > 32 else BC, 32, 8)
