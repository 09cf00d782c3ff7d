"""Forward passes of the additive attention gate: alpha = sigmoid(psi . relu(W x + U g)), y = x * alpha.

x (N, C, S) and g (N, G, S) are read once, and what they are added in, (N, F, S), is never written. Where g is coarser,
U g is made on its own grid, (N, Q, F), and resampled as it is read. What the way back needs of the relu is which
numbers passed, 32 to a word: (N, F / 32, S).

Norms are folded: W x becomes scale_x * W x, and so on. `folded` holds scale_x, scale_g, shift and psi, F each, then
psi's bias and psi's own scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....fast.choice import INTERPRETED, capability
from ....fast.triton import channel_norm
from ....fast.triton.channel_norm import add_moments
from ....fast.triton.common import (
    REAL,
    at,
    cdiv,
    counters,
    empty_float32,
    is_channels_last,
    launch,
    multiply_add,
    next_power_of_2,
    places,
    relu,
    sizes,
)
from .resize import Grids, resized
from .tiles import FORWARD, Tile, exact_tile

UPCAST = tl.constexpr(INTERPRETED)   # the interpreter would take bfloat16's bits for numbers
WORD = 32   # numbers whose signs share one
ROOMY = (9, 10)   # compute capabilities, of which tensor cores read shared memory: 9.0, 10.0, 10.3


class Norm(NamedTuple):
    """The batch norm after a projection, or none: scale None; mean and var: by which it normalises; eps.

    Of a batch, mean and variance lie one after the other in `mean`, and var is None.
    """

    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def product(a, b, sums, PRECISION: tl.constexpr):
    """sums + a b, of matrices; a is rounded to what b is."""
    a = a.to(b.dtype)
    if UPCAST:
        a = a.to(REAL)
        b = b.to(REAL)
    return multiply_add(a, b, sums, PRECISION)


@triton.jit
def column(start, f, F):
    """F numbers."""
    return tl.load(start + f, f < F, 0.0).to(REAL)


@triton.jit
def matrix(w, f, c, F, C):
    """A tile of a weight (F, C): (BF, BC)."""
    return tl.load(w + f[:, None] * C + c[None, :], (f < F)[:, None] & (c < C)[None, :], 0.0).to(REAL)


@triton.jit
def values(x, n, c, s, C, S, LAST: tl.constexpr):
    """A tile of x: (BC, BS)."""
    inside = (c < C)[:, None] & (s < S)[None, :]
    return tl.load(x + at(n, c[:, None], s[None, :], C, S, LAST), inside, 0.0)


@triton.jit
def projected(
    x, w, scale, n, f, s, F, C, S, sums, LAST: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr
):   # fmt: skip
    """sums + scale * W x at places s: (BF, BS)."""
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        v = values(x, n, c, s, C, S, LAST)
        sums = product(matrix(w, f, c, F, C) * scale[:, None], v, sums, PRECISION)
    return sums


@triton.jit
def passed(bits, n, f, s, known, S, WORDS: tl.constexpr):
    """Which channels the relu let pass at places s, if known: (BF, BS)."""
    start = bits + n.to(tl.int64) * WORDS * S
    if WORDS == 1:
        word = tl.load(start + s, known, 0)[None, :]
    else:
        word = tl.load(start + (f // 32)[:, None] * S + s[None, :], known[None, :] & (f // 32 < WORDS)[:, None], 0)
    return (word >> (f % 32)[:, None]) & 1 == 1


# ---- folding ---------------------------------------------------------------------------------------------------------


@triton.jit
def normal(scale, shift, mean, var, bias, f, F, eps):
    """The factor and the summand that bias and norm amount to; without var it lies after the mean."""
    offset = tl.zeros(f.shape, REAL)
    factor = offset + 1
    if bias is not None:
        offset = column(bias, f, F)
    if scale is not None:
        if var is None:
            square = column(mean + F, f, F)
        else:
            square = column(var, f, F)
        factor = column(scale, f, F) / tl.sqrt(square + eps)
        offset = (offset - column(mean, f, F)) * factor + column(shift, f, F)
    return factor, offset


@triton.jit
def fold_kernel(
    psi, bias, gating_bias, psi_bias, scale, shift, mean, var, gating_scale, gating_shift, gating_mean, gating_var,
    psi_scale, psi_shift, psi_mean, psi_var, folded, F, eps, gating_eps, psi_eps, BF: tl.constexpr,
):   # fmt: skip
    """One program."""
    f = tl.arange(0, BF)
    factor, offset = normal(scale, shift, mean, var, bias, f, F, eps)
    of_gating, more = normal(gating_scale, gating_shift, gating_mean, gating_var, gating_bias, f, F, gating_eps)
    of_psi, last = normal(psi_scale, psi_shift, psi_mean, psi_var, psi_bias, tl.arange(0, 1), 1, psi_eps)
    tl.store(folded + f, factor, f < F)
    tl.store(folded + F + f, of_gating, f < F)
    tl.store(folded + 2 * F + f, offset + more, f < F)
    tl.store(folded + 3 * F + f, column(psi, f, F) * tl.sum(of_psi), f < F)
    tl.store(folded + 4 * F + tl.arange(0, 1), last)
    tl.store(folded + 4 * F + 1 + tl.arange(0, 1), of_psi)


def fold(psi: Tensor, biases: Sequence[Tensor | None], norms: Sequence[Norm], to: Tensor) -> None:
    """psi, biases and norms of the three projections -> `to`, 4 F + 2; a bias of None is none, or not in the mean."""
    numbers = [number for norm in norms for number in norm[:4]]
    F = psi.numel()
    args = psi, *biases, *numbers, to, F, *(norm.eps for norm in norms)
    launch(fold_kernel, 1, *args, BF=next_power_of_2(F), num_warps=4)


# ---- passes ----------------------------------------------------------------------------------------------------------


@triton.jit
def project_kernel(
    g, u, folded, p, F, G, Q, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BF inner channels at BS places of a sample."""
    blocks = tl.cdiv(F, BF)
    n, s = places(tl.program_id(0) // blocks, Q, BS)
    f = tl.program_id(0) % blocks * BF + tl.arange(0, BF)
    sums = tl.zeros([BF, BS], REAL)
    sums = projected(g, u, column(folded + F, f, F), n, f, s, F, G, Q, sums, LAST, PRECISION, BC)
    tl.store(p + at(n, f[:, None], s[None, :], F, Q, True), sums, (f < F)[:, None] & (s < Q)[None, :])


@triton.jit
def gate_kernel(
    x, g, w, u, folded, y, alpha, bits, logits, statistics, parts, counter, eps, N, F, C, G, S, D, H, W, OD, OH, OW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    LAST: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr, WORDS: tl.constexpr, BLOCKS: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BG: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BS places of a sample. Where psi's norm goes by the batch it stops before it, at `logits`."""
    n, s = places(tl.program_id(0), S, BS)
    to = n.to(tl.int64) * S + s
    if WHOLE:
        c = tl.arange(0, BC)
        v = values(x, n, c, s, C, S, LAST)
    z = tl.zeros([BS], REAL) + tl.load(folded + 4 * F)
    for block in tl.static_range(BLOCKS):
        f = block * BF + tl.arange(0, BF)
        if u is None:
            sums = resized(g, n, f, s, F, D, H, W, OD, OH, OW, TD, TH, TW, CORNERS, WIDE, BF, BS)
        else:
            sums = tl.zeros([BF, BS], REAL)
            sums = projected(g, u, column(folded + F, f, F), n, f, s, F, G, S, sums, LAST, PRECISION, BG)
        scale = column(folded, f, F)
        if WHOLE:
            sums = product(matrix(w, f, c, F, C) * scale[:, None], v, sums, PRECISION)
        else:
            sums = projected(x, w, scale, n, f, s, F, C, S, sums, LAST, PRECISION, BC)
        sums += column(folded + 2 * F, f, F)[:, None]
        z += tl.sum(relu(sums) * column(folded + 3 * F, f, F)[:, None], 0)
        if bits is not None:
            bit = tl.where((sums <= 0) | (f >= F)[:, None], 0, (tl.full([BF], 1, tl.int32) << (f % 32))[:, None])
            for word in tl.static_range(WORDS):
                if word * 32 // BF == block:   # BF is less than a word only where there is one block
                    words = tl.sum(tl.where((f // 32 == word)[:, None], bit, 0), 0)
                    tl.store(bits + n.to(tl.int64) * (WORDS - 1) * S + word * S + to, words, s < S)
    if logits is not None:
        tl.store(logits + to, z, s < S)
        count = tl.full([], N, tl.int64) * S
        add_moments(z, s < S, tl.program_id(0), tl.num_programs(0), count, parts, counter, statistics, eps)
    else:
        a = tl.sigmoid(z)
        if alpha is not None:
            tl.store(alpha + to, a, s < S)
        if WHOLE:
            multiplied(v, a, y, n, c, s, C, S, LAST)
        else:
            for start in range(0, C, BC):
                c = start + tl.arange(0, BC)
                multiplied(values(x, n, c, s, C, S, LAST), a, y, n, c, s, C, S, LAST)


@triton.jit
def multiplied(v, a, y, n, c, s, C, S, LAST: tl.constexpr):
    """Write a tile of y."""
    inside = (c < C)[:, None] & (s < S)[None, :]
    to = y + at(n, c[:, None], s[None, :], C, S, LAST)
    tl.store(to, (v.to(REAL) * a[None, :]).to(y.dtype.element_ty), inside, eviction_policy="evict_first")


# ---- around them -----------------------------------------------------------------------------------------------------


def most(x: Tensor) -> int:
    """Channels of one kind that a program may take at once: more spill, where tensor cores take them from registers."""
    return 64 if x.is_cuda and capability(x.device)[0] not in ROOMY else 128


def together(x: Tensor, channels: int) -> int:
    """Channels, of so many, that a program takes at once, if it has room."""
    return max(16, min(next_power_of_2(channels), most(x)))


def precision(x: Tensor) -> str:
    """Of products: those of float32 as torch's convolutions have them."""
    cudnn = torch.backends.cudnn
    newer = getattr(cudnn, "conv", None)   # where its settings have been used, the older raises
    allowed = cudnn.allow_tf32 if newer is None else newer.fp32_precision == "tf32"
    return "tf32x3" if x.dtype == torch.float32 and not allowed else "tf32"


def project(g: Tensor, u: Tensor, folded: Tensor, p: Tensor, last: bool) -> None:
    """U g on its own grid, scaled, into p (N, Q, F)."""
    (N, G, Q), F = sizes(g), len(u)
    BF, BC, BS, num_warps = tile(g, F, G)
    options: dict[str, Any] = {"LAST": last, "PRECISION": precision(g), "BF": BF, "BC": BC, "BS": BS}
    args = g, u, folded, p, F, G, Q
    programs = N * cdiv(Q, BS) * cdiv(F, BF)
    launch(project_kernel, programs, *args, **options, num_warps=num_warps, num_stages=2)


def gate(
    x: Tensor,
    g: Tensor,
    w: Tensor,
    u: Tensor | None,
    folded: Tensor,
    grids: Grids,
    to: Sequence[Tensor | None],
    psi: channel_norm.Norm | None,
) -> None:
    """(N, C, *S) and (N, G, *S) or, where u is None, U g (N, Q, F) -> y, alpha and bits.

    to: room for y, alpha and bits, None for what is not wanted. psi: its norm, if it goes by the batch: then the norm's
    input and statistics are written in place of y and alpha.
    """
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C)
    BS = min(BS, 64) if u is None else BS   # with 128 positions, resampling spills
    G = 0 if u is None else u.shape[1]
    BG = min(BC, max(16, next_power_of_2(G)))
    options: dict[str, Any] = {"LAST": is_channels_last(x), "PRECISION": precision(x), "WHOLE": C <= BC}
    options |= {"WORDS": cdiv(F, WORD), "BLOCKS": cdiv(F, BF)}
    sizes_of_tile = {"BF": BF, "BC": BC, "BG": BG, "BS": BS, "num_warps": num_warps, "num_stages": 2}
    programs = N * cdiv(S, BS)
    of_psi: Sequence[Any] = (None,) * 5
    if psi is not None:
        of_psi = psi.q, psi.statistics, empty_float32(x, 3, programs), counters(x, 1), psi.eps
    args = x, g, w, u, folded, *to, *of_psi, N, F, C, G, S, *grids.sizes
    launch(gate_kernel, programs, *args, **grids.options, **options, **sizes_of_tile)


def tile(x: Tensor, F: int, C: int) -> Tile:
    """For a forward pass: as large as spills nowhere, and no larger than a GPU needs to have several at once."""
    BF = together(x, F)
    if precision(x) != "tf32":   # which keeps two parts of each factor in registers
        return exact_tile(FORWARD, BF, C)
    BC = min(together(x, C), 64 if BF > 64 else 128)
    if BF > 32 or BC > 64:
        return Tile(BF, BC, 32, 8)
    wide = x.element_size() < 4 and not is_channels_last(x)   # by the sweep that tiles.py speaks of
    return Tile(BF, BC, 128 if wide else 64, 4)
