"""What batch norm in training adds to the additive attention gate: statistics of W x forward, sums of e W x back.

Both are sums over all places, of parts that the last program puts together in one order. W x is made again each time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton.common import REAL, cdiv, counters, empty_float32, is_last, launch, sizes
from . import forward
from .backward import RESIDENT, Slopes, slopes
from .forward import column, precision, projected
from .tiles import STATISTICS, Tile, exact_tile

AT_ONCE = 32   # parts that the last program adds up at a time


@triton.jit
def moments_kernel(
    x, w, parts, counter, batch, N, F, C, S, PARTS, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """One program: BF inner channels over a part of the places of all samples.

    Tiles, and the parts by the last program of these channels, are merged as Chan et al. merge samples.
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
    if is_last(counter + tl.program_id(0) // PARTS, PARTS):
        values = tl.full([], N, tl.int64) * S
        whole = tl.zeros([BF, BP], tl.float64)
        for start in range(0, PARTS, BP):
            weighted = of_parts(parts, 0, f, start, F, PARTS, BP) * of_parts(parts, 2, f, start, F, PARTS, BP)
            whole += weighted
        centre = tl.sum(whole, 1) / values
        whole = tl.zeros([BF, BP], tl.float64)
        for start in range(0, PARTS, BP):
            apart = of_parts(parts, 0, f, start, F, PARTS, BP) - centre[:, None]
            whole += of_parts(parts, 2, f, start, F, PARTS, BP) * apart * apart
            whole += of_parts(parts, 1, f, start, F, PARTS, BP)
        total = tl.sum(whole, 1)
        tl.store(batch + f, centre.to(REAL), f < F)
        tl.store(batch + F + f, (total / values).to(REAL), f < F)
        tl.store(batch + 2 * F + f, (total / (values - 1)).to(REAL), f < F)


@triton.jit
def of_parts(parts, k: tl.constexpr, f, start, F, PARTS, BP: tl.constexpr):
    """Number k of the parts from `start` on, (BF, BP): put together in float64, for means may be far from zero."""
    part = start + tl.arange(0, BP)
    inside = (f < F)[:, None] & (part < PARTS)[None, :]
    return tl.load(parts + (part[None, :] * 3 + k) * F + f[:, None], inside, 0.0, cache_modifier=".cg").to(tl.float64)


def moments(x: Tensor, w: Tensor, last: bool, batch: Tensor) -> None:
    """Mean, variance and unbiased variance of W x over samples and places, into batch (3, F).

    x (N, C, *S), w (F, C, 1..).
    """
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    count = max(1, min(N * cdiv(S, BS), RESIDENT))
    parts = empty_float32(x, count, 3, F)
    options = {"LAST": last, "PRECISION": precision(x), "BF": BF, "BC": BC, "BS": BS, "BP": AT_ONCE}
    blocks = cdiv(F, BF)
    args = x, w, parts, counters(x, blocks), batch, N, F, C, S, count
    launch(moments_kernel, count * blocks, *args, **options, num_warps=num_warps, num_stages=2)


@triton.jit
def sums_kernel(
    x, w, batch, dz, bits, parts, counter, centre, eps, N, F, C, S, PARTS, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, LAST: tl.constexpr, PRECISION: tl.constexpr, WORDS: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr, BP: tl.constexpr,
):   # fmt: skip
    """One program: BF inner channels over a part of the places of all samples; the last of these channels adds up."""
    part = tl.program_id(0) % PARTS
    f = tl.program_id(0) // PARTS * BF + tl.arange(0, BF)
    ones = tl.full([BF], 1.0, REAL)
    of_e = tl.zeros([BF], REAL)
    of_t = tl.zeros([BF], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        t = tl.zeros([BF, BS], REAL) - column(batch, f, F)[:, None]
        t = projected(x, w, ones, n, f, s, F, C, S, t, LAST, PRECISION, BC)
        e = slopes(
            dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
            TD, TH, TW, CORNERS, WIDE, COARSE, WORDS, BF, BS,
        )   # fmt: skip
        of_e += tl.sum(e, 1)
        of_t += tl.sum(e * t, 1)
    to = parts + part * 3 * F
    tl.store(to + f, of_e, f < F)
    tl.store(to + F + f, of_t, f < F)
    if is_last(counter + tl.program_id(0) // PARTS, PARTS):
        values = tl.full([], N, tl.int64) * S
        sums_of_e = tl.zeros([BF, BP], tl.float64)
        sums_of_t = tl.zeros([BF, BP], tl.float64)
        for start in range(0, PARTS, BP):
            sums_of_e += of_parts(parts, 0, f, start, F, PARTS, BP)
            sums_of_t += of_parts(parts, 1, f, start, F, PARTS, BP)
        all_e = tl.sum(sums_of_e, 1)
        all_t = tl.sum(sums_of_t, 1)
        mean = column(batch, f, F)
        tl.store(centre + f, mean, f < F)
        tl.store(centre + F + f, (all_e / values).to(REAL), f < F)
        tl.store(centre + 2 * F + f, (all_t / (column(batch + F, f, F) + eps) / values).to(REAL), f < F)
        tl.store(centre + 3 * F + f, (all_t + mean * all_e).to(REAL), f < F)
        tl.store(centre + 4 * F + f, all_e.to(REAL), f < F)


def centre(x: Tensor, w: Tensor, batch: Tensor, eps: float, it: Slopes, last: bool) -> Tensor:
    """What batch norm takes from e, mean, away and slope, and the sums of e W x and of e: (5, F)."""
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    count = max(1, min(N * cdiv(S, BS), RESIDENT))
    parts, found, blocks = empty_float32(x, count, 3, F), empty_float32(x, 5, F), cdiv(F, BF)
    where, constants = it.arguments()
    options = {"LAST": last, "PRECISION": precision(x), "BF": BF, "BC": BC, "BS": BS, "BP": AT_ONCE}
    args = x, w, batch, it.dz, it.bits, parts, counters(x, blocks), found, eps, N, F, C, S, count, *where
    launch(sums_kernel, count * blocks, *args, **constants, **options, num_warps=num_warps, num_stages=2)
    return found


def tile(x: Tensor, F: int, C: int) -> Tile:
    """For statistics, which keep sums beside what a forward pass does."""
    if precision(x) != "tf32":
        return exact_tile(STATISTICS, forward.together(x, F), C)
    BF, BC, _, _ = forward.tile(x, F, C)
    return Tile(BF, BC, 128, 4) if BF <= 32 and BC <= 64 else Tile(BF, min(BC, 32) if BF > 32 else BC, 32, 8)
