"""The way back of the additive attention gate: each input is read once more, and its gradient written once.

dz (N, S) is the gradient of the sigmoid's input, and e = dz where the relu let pass, else 0, (N, F, S), is never
written. With v = scale * psi, the gradient of x is dy * alpha + W' (v e), that of W is v (e x'), and that of psi is
e . (W x + U g + shift), which sums of e x' give as well: neither W x nor U g is made again. Programs add up e x' in
parts, which are put together in one order.

Batch norm in training takes from e what all places share: e - away - slope * (W x - mean), four numbers a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton import channel_norm
from ....fast.triton.channel_norm import add_slopes
from ....fast.triton.common import (
    PROGRAMS,
    REAL,
    at,
    cdiv,
    counters,
    empty_float32,
    is_last,
    launch,
    next_power_of_2,
    places,
    sizes,
)
from .forward import column, matrix, passed, precision, product, projected, together, values
from .resize import Grids, first, found, reaches
from .tiles import BACKWARD, CENTRED, Tile, exact_tile

AT_ONCE = 64                # parts that are put together at a time
RESIDENT = PROGRAMS // 2    # programs with many registers that fill a GPU


class Slopes(NamedTuple):
    """What e is made of: dz (N, S), the relu's bits, and the grids of an input and of these."""

    dz: Tensor
    bits: Tensor
    grids: Grids

    def arguments(self) -> tuple[tuple[int | None, ...], dict[str, Any]]:
        """Sizes and constants for a kernel."""
        coarse = self.grids.sizes[0] is not None
        around = reaches(self.grids) if coarse else (None,) * 3
        return (*self.grids.sizes, *around), {**self.grids.options, "COARSE": coarse, "WORDS": self.bits.shape[1]}


class Parts(NamedTuple):
    """Sums over parts of all places: of e x', (PARTS, F, C), and of e and dz, (PARTS, F + 1)."""

    x: Tensor
    e: Tensor


# ---- e ---------------------------------------------------------------------------------------------------------------


@triton.jit
def passing(dz, bits, n, f, s, known, S, WORDS: tl.constexpr):
    """e at places s, if known: (BF, BS)."""
    d = tl.load(dz + n.to(tl.int64) * S + s, known, 0.0)
    return tl.where(passed(bits, n, f, s, known, S, WORDS), d[None, :], 0.0)


@triton.jit
def gathered(
    dz, bits, n, f, q, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    WORDS: tl.constexpr, BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """e on the old grid, at places q: what new places took of them, they give back; (BF, BS)."""
    qd, qh, qw = q // (OH * OW), q // OW % OH, q % OW
    d0 = first(qd, OD, D, TD, CORNERS, WIDE)
    h0 = first(qh, OH, H, TH, CORNERS, WIDE)
    w0 = first(qw, OW, W, TW, CORNERS, WIDE)
    sums = tl.zeros([BF, BS], REAL)
    for j in range(RD * RH * RW):
        d = d0 + j // (RH * RW)
        h = h0 + j // RW % RH
        w = w0 + j % RW
        taken = found(d, qd, OD, D, TD, CORNERS, WIDE) * found(h, qh, OH, H, TH, CORNERS, WIDE)
        taken *= found(w, qw, OW, W, TW, CORNERS, WIDE)
        known = (q < OD * OH * OW) & (taken > 0)
        sums += passing(dz, bits, n, f, (d * H + h) * W + w, known, D * H * W, WORDS) * taken[None, :]
    return sums


@triton.jit
def slopes(
    dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, WORDS: tl.constexpr, BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """e at places s of an input, coarse or not: (BF, BS)."""
    if COARSE:
        e = gathered(
            dz, bits, n, f, s, D, H, W, OD, OH, OW, RD, RH, RW, TD, TH, TW, CORNERS, WIDE, WORDS, BF, BS
        )
    else:
        e = passing(dz, bits, n, f, s, s < S, S, WORDS)
    return e


# ---- passes ----------------------------------------------------------------------------------------------------------


@triton.jit
def product_kernel(
    x, dy, alpha, dz, q, statistics, parts, counter, sums_of_norm, dscale, dshift, C, S,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BS places of a sample over all channels."""
    n, s = places(tl.program_id(0), S, BS)
    sums = tl.zeros([BC, BS], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        sums += values(x, n, c, s, C, S, LAST).to(REAL) * values(dy, n, c, s, C, S, LAST).to(REAL)
    to = n.to(tl.int64) * S + s
    a = tl.load(alpha + to, s < S, 0.0)
    slope = tl.sum(sums, 0) * a * (1 - a)
    tl.store(dz + to, slope, s < S)
    if q is not None:
        i, programs, before = tl.program_id(0), tl.num_programs(0), tl.load(q + to, s < S, 0.0)
        add_slopes(slope, before, s < S, i, programs, parts, counter, statistics, sums_of_norm, dscale, dshift)


@triton.jit
def input_kernel(
    x, dy, w, folded, alpha, dz, bits, centre, dx, sums_of_x, sums_of_e, N, F, C, S, PARTS,
    D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, OF: tl.constexpr, OWN: tl.constexpr, BEGIN: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, WORDS: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BC channels over a part of the places of all samples; of x if there is dy, else of g.

    OWN: dz is not there yet, and BC are all channels. BEGIN: its first inner channel; dx holds what those before make.
    """
    i = tl.program_id(0)
    part = i % PARTS
    c = i // PARTS * BC + tl.arange(0, BC)
    f = BEGIN + tl.arange(0, BF)
    v = column(folded + OF * F, f, F) * column(folded + 3 * F, f, F)
    back = tl.trans(matrix(w, f, c, F, C) * v[:, None]).to(x.dtype.element_ty)
    of_x = tl.zeros([BF, BC], REAL)
    of_e = tl.zeros([BF], REAL)
    of_z = tl.zeros([BS], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (s < S)[None, :]
        tile = at(n, c[:, None], s[None, :], C, S, LAST)
        v_x = tl.load(x + tile, inside, 0.0)
        if dy is None:
            e = slopes(
                dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
                TD, TH, TW, CORNERS, WIDE, COARSE, WORDS, BF, BS,
            )   # fmt: skip
        else:
            to = n.to(tl.int64) * S + s
            d = tl.load(dy + tile, inside, 0.0).to(REAL)
            a = tl.load(alpha + to, s < S, 0.0)
            if OWN:
                slope = tl.sum(d * v_x.to(REAL), 0) * a * (1 - a)
                tl.store(dz + to, slope, s < S)
            else:
                slope = tl.load(dz + to, s < S, 0.0)
            e = tl.where(passed(bits, n, f, s, s < S, S, WORDS), slope[None, :], 0.0)
            of_z += slope
        if centre is not None:
            t = tl.zeros([BF, BS], REAL) - column(centre, f, F)[:, None]
            t = projected(x, w, tl.full([BF], 1.0, REAL), n, f, s, F, C, S, t, LAST, PRECISION, BC)
            e = e - column(centre + F, f, F)[:, None] - column(centre + 2 * F, f, F)[:, None] * t
            e = tl.where((s < S)[None, :], e, 0.0)
        of_e += tl.sum(e, 1)
        e = e.to(v_x.dtype)
        dv = product(back, e, tl.zeros([BC, BS], REAL), PRECISION)
        if BEGIN:
            dv += tl.load(dx + tile, inside, 0.0).to(REAL)
        elif dy is not None:
            dv += d * a[None, :]
        tl.store(dx + tile, dv.to(dx.dtype.element_ty), inside, eviction_policy="evict_first")
        of_x = product(e, tl.trans(v_x), of_x, PRECISION)
    to = (part * F + f)[:, None] * C + c[None, :]
    tl.store(sums_of_x + to, of_x, (f < F)[:, None] & (c < C)[None, :])
    if i < PARTS:
        tl.store(sums_of_e + part * (F + 1) + f, of_e, f < F)
        tl.store(sums_of_e + part * (F + 1) + F, tl.sum(of_z))


@triton.jit
def row(parts, w, dw, v, f, F, C, PARTS, BP: tl.constexpr, BC: tl.constexpr):
    """Row f of v * (sum of parts), into dw; and the sum times row f of w."""
    times = tl.zeros([BC], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        sums = tl.zeros([BP, BC], REAL)
        for beginning in range(0, PARTS, BP):
            part = beginning + tl.arange(0, BP)
            to = (part[:, None] * F + f) * C + c[None, :]
            sums += tl.load(parts + to, (part < PARTS)[:, None] & (c < C)[None, :], 0.0)
        whole = tl.sum(sums, 0)
        tl.store(dw + f * C + c, (v * whole).to(dw.dtype.element_ty), c < C)
        times += whole * tl.load(w + f * C + c, c < C, 0.0).to(REAL)
    return tl.sum(times)


@triton.jit
def total(parts, f, F, PARTS, BP: tl.constexpr):
    """The sum of e over parts, of channel f; of dz, where f is F."""
    sums = tl.zeros([BP], REAL)
    for beginning in range(0, PARTS, BP):
        part = beginning + tl.arange(0, BP)
        sums += tl.load(parts + part * (F + 1) + f, part < PARTS, 0.0)
    return tl.sum(sums)


@triton.jit
def weights_kernel(
    of_x, of_e, of_g, of_ge, w, u, folded, centre, gating_centre, dw, db, du, dub, dpsi, dpsi_bias,
    scale_bias, mean, var, dscale, dshift, eps,
    gating_bias, gating_mean, gating_var, dgating_scale, dgating_shift, gating_eps,
    psi, psi_bias, psi_mean, psi_var, dpsi_scale, dpsi_shift, psi_eps,
    totals, counter, F, C, G, PARTS, MORE,
    PSI_BY_BATCH: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):   # fmt: skip
    """One program: channel f. The last one finds the gradients of psi's norm.

    Where a norm goes by the batch there is a centre, whose sums need not be found here, and a bias before it has no
    effect: its gradient is 0.
    """
    f = tl.program_id(0)
    scale = tl.load(folded + f)
    of_gating = tl.load(folded + F + f)
    v = tl.load(folded + 3 * F + f)
    of_psi = tl.load(folded + 4 * F + 1)
    e_t = row(of_x, w, dw, scale * v, f, F, C, PARTS, BP, BC)
    e_p = row(of_g, u, du, of_gating * v, f, F, G, MORE, BP, BC)
    if centre is not None:
        e_t = tl.load(centre + 3 * F + f)
        e_1 = tl.load(centre + 4 * F + f)
        slope = e_1 * 0
    else:
        e_1 = total(of_e, f, F, PARTS, BP)
        slope = scale * v * e_1
    if db is not None:
        tl.store(db + f, slope.to(db.dtype.element_ty))
    if gating_centre is not None:
        e_p = tl.load(gating_centre + 3 * F + f)
        slope = e_p * 0
    else:
        slope = of_gating * v * total(of_ge, f, F, MORE, BP)
    if dub is not None:
        tl.store(dub + f, slope.to(dub.dtype.element_ty))
    if dscale is not None:
        to_norm(dscale, dshift, mean, var, scale_bias, eps, v * e_t, v * e_1, f, F)
    if dgating_scale is not None:
        to_norm(dgating_scale, dgating_shift, gating_mean, gating_var, gating_bias, gating_eps, v * e_p, v * e_1, f, F)
    e_q = scale * e_t + of_gating * e_p + tl.load(folded + 2 * F + f) * e_1
    tl.store(dpsi + f, (of_psi * e_q).to(dpsi.dtype.element_ty))
    tl.store(totals + f, e_q)
    if f == 0:
        z = total(of_e, F, F, PARTS, BP)
        tl.store(totals + F, z)
        if PSI_BY_BATCH:
            z = z * 0
        tl.store(dpsi_bias, (of_psi * z).to(dpsi_bias.dtype.element_ty))
    if dpsi_scale is not None and not PSI_BY_BATCH:
        done = is_last(counter, F)
        if done:
            k = tl.arange(0, BF)
            before = tl.sum(column(psi, k, F) * tl.load(totals + k, k < F, 0.0, cache_modifier=".cg"))
            z = tl.load(totals + F, cache_modifier=".cg")
            to_norm(dpsi_scale, dpsi_shift, psi_mean, psi_var, psi_bias, psi_eps, before, z, 0, 1)


@triton.jit
def to_norm(dscale, dshift, mean, var, bias, eps, by_input, by_one, f, F):
    """Gradients of a norm's scale and shift, from the sums of its output's times its input without bias, and times 1.

    Without var it lies after the mean, of a batch without the bias.
    """
    offset = 0 - tl.load(mean + f).to(REAL)
    if var is None:
        square = tl.load(mean + F + f)
    else:
        square = tl.load(var + f).to(REAL)
        if bias is not None:
            offset += tl.load(bias + f).to(REAL)
    tl.store(dscale + f, ((by_input + offset * by_one) / tl.sqrt(square + eps)).to(dscale.dtype.element_ty))
    tl.store(dshift + f, by_one.to(dshift.dtype.element_ty))


# ---- around them -----------------------------------------------------------------------------------------------------


def to_sigmoid(
    x: Tensor, dy: Tensor, alpha: Tensor, last: bool, psi: channel_norm.Norm | None, gradients: Sequence[Any]
) -> Tensor:
    """The gradient of the sigmoid's input, (N, S), or, where psi's norm goes by the batch, of what comes before it.

    gradients: room for those of this norm's scale and shift.
    """
    N, C, S = sizes(x)
    BC, BS = (64, 64) if last else (16, 256)
    dz = empty_float32(x, N, S)
    programs = N * cdiv(S, BS)
    slopes = channel_norm.Slopes.of(psi, programs, gradients)
    launch(product_kernel, programs, x, dy, alpha, dz, *slopes, C, S, LAST=last, BC=BC, BS=BS, num_warps=8)
    channel_norm.backward(dz, psi, slopes)
    return dz


def tile(x: Tensor, F: int, C: int, centred: bool) -> Tile:
    """For the way back, which holds sums of (BF, BC) too: as large as spills nowhere.

    centred: whether W x is made again, which takes as many registers more.
    """
    BF = together(x, F)
    if precision(x) != "tf32":
        return exact_tile(CENTRED if centred else BACKWARD, BF, C)
    room = 4096 if centred and x.dtype == torch.float32 else 8192
    BC = max(16, min(together(x, C), 64 if centred else 128, room // BF))
    return Tile(BF, BC, 64, 4) if BF <= 32 and BC <= 64 else Tile(BF, BC, 32, 8)


def whole(x: Tensor, F: int) -> bool:
    """Whether one program takes all channels of x, so that `to_input` finds dz itself."""
    return x.shape[1] <= tile(x, F, x.shape[1], False).BC


def to_input(
    x: Tensor,
    dy: Tensor | None,
    alpha: Tensor | None,
    w: Tensor,
    folded: Tensor,
    of: int,
    it: Slopes,
    own: bool,
    centre: Tensor | None,
    dx: Tensor,
    last: bool,
) -> Parts:
    """The gradient of x or, where dy is None, of g, into dx, and that of its weight in parts.

    folded: the scales of w, of u and of psi, and more; of: which of the first two is w's. own: whether dz is to be
    found, and written, first. centre: mean, away and slope of every channel, (3, F), and more. Inner
    channels that do not fit together take turns, and each reads x and what dx is so far, which is in float32.
    """
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C, centre is not None)
    coarse = dy is None and it.grids.sizes[0] is not None
    if coarse and BS == 64 and x.element_size() < 4:   # by the sweep that tiles.py speaks of
        BS = 128
    blocks = cdiv(C, BC)
    steps = N * cdiv(S, BS)
    enough = N * S // (8 * max(BF, F))   # with more, writing them would take as long
    parts = max(1, min(steps, RESIDENT // blocks, enough))
    sums = Parts(empty_float32(x, parts, F, C), empty_float32(x, parts, F + 1))
    where, constants = it.arguments()
    sizes_of_tile = {"BF": BF, "BC": BC, "BS": BS, "num_warps": num_warps}
    sizes_of_tile["num_stages"] = 3 if BS == 64 and not coarse else 2   # by the same sweep
    into = dx if F <= BF or dx.element_size() > 2 else torch.empty_like(dx, dtype=torch.float32)
    args = x, dy, w, folded, alpha, it.dz, it.bits, centre, into, *sums, N, F, C, S, parts, *where
    for begin in range(0, F, BF):
        options = {"OF": of, "OWN": own and not begin, "BEGIN": begin, "LAST": last, "PRECISION": precision(x)}
        launch(input_kernel, blocks * parts, *args, **constants, **options, **sizes_of_tile)
    if into is not dx:
        dx.copy_(into)
    return sums


def to_weights(
    x: Parts,
    g: Parts,
    w: Tensor,
    u: Tensor,
    folded: Tensor,
    centres: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    norms: Sequence[Any],
    psi_by_batch: bool,
) -> None:
    """Parts -> gradients of w, its bias, u, its bias, psi and its bias, written into `gradients`.

    centres: of norms by the batch, see gate_norm.centre. norms: of each, and then of psi's, its bias, mean and
    variance, room for gradients of scale and shift, and eps, as weights_kernel has them.
    """
    F, C = w.shape[:2]
    room = empty_float32(w, F + 1), counters(w, 1)
    args = *x, *g, w, u, folded, *centres, *gradients, *norms, *room, F, C, u.shape[1], len(x.e), len(g.e)
    options = {"PSI_BY_BATCH": psi_by_batch, "BP": AT_ONCE, "BC": 64, "BF": next_power_of_2(F), "num_warps": 4}
    launch(weights_kernel, F, *args, **options)
