"""Kernels of the forward pass of the additive attention gate: alpha = sigmoid(psi . relu(W x + U g)), y = x * alpha.

x (N, C, S) and g (N, G, S) are read once. The sum W x + U g, (N, F, S), is never stored. If g is on a coarser grid, U g
is computed on that grid, (N, Q, F), and resampled when it is read. The backward pass needs only the signs of the relu's
input, stored as one bit each in words of 32: (N, F / 32, S).

Biases and norms are applied as factors of weights and as summands, see projections.py.
"""

from __future__ import annotations

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
    relu,
    sample_and_positions,
    sizes,
)
from .projections import Projection, Projections, load_vector, norm_scale, norm_shift
from .resize import Grids, resized
from .tiles import FORWARD, Tile, exact_tile

UPCAST = tl.constexpr(INTERPRETED)   # the interpreter stores bfloat16 as integers, which its dot would multiply
WORD = 32   # sign bits per word
SHARED_MEMORY_OPERANDS = (9, 10)   # major compute capabilities whose tensor cores read operands from shared memory


class Outputs(NamedTuple):
    """The tensors that `gate` writes: y, alpha (N, S) and the relu's bits; None for those that are not needed."""

    y: Tensor | None
    alpha: Tensor | None
    bits: Tensor | None


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def add_product(a, b, sums, PRECISION: tl.constexpr):
    """Return sums + a @ b, where a is rounded to the dtype of b. PRECISION: see `precision`."""
    a = a.to(b.dtype)
    if UPCAST:
        a = a.to(REAL)
        b = b.to(REAL)
    return multiply_add(a, b, sums, PRECISION)


@triton.jit
def load_weight(w, f, c, F, C):
    """Load the elements at rows f and columns c of a weight (F, C), as float32 (BF, BC); 0 beyond its end."""
    return tl.load(w + f[:, None] * C + c[None, :], (f < F)[:, None] & (c < C)[None, :], 0.0).to(REAL)


@triton.jit
def load_tile(x, n, c, s, C, S, LAST: tl.constexpr):
    """Load the elements of x (N, C, S) at sample n, channels c and positions s: (BC, BS); 0 beyond its end."""
    inside = (c < C)[:, None] & (s < S)[None, :]
    return tl.load(x + at(n, c[:, None], s[None, :], C, S, LAST), inside, 0.0)


@triton.jit
def add_projection(
    x, w, scale, n, f, s, F, C, S, sums, LAST: tl.constexpr, PRECISION: tl.constexpr, BC: tl.constexpr
):   # fmt: skip
    """Return sums + scale * W x at sample n, inner channels f and positions s: (BF, BS).

    w: (F, C). scale: (BF,). All C channels are added, BC at a time.
    """
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        x_tile = load_tile(x, n, c, s, C, S, LAST)
        sums = add_product(load_weight(w, f, c, F, C) * scale[:, None], x_tile, sums, PRECISION)
    return sums


@triton.jit
def relu_mask(bits, n, f, s, inside, S, WORDS: tl.constexpr):
    """Return whether the relu's input was positive at inner channels f and positions s, (BF, BS); False unless inside.

    bits: (N, WORDS, S), one bit for each inner channel. n: sample. inside: (BS,), whether each position exists.
    """
    start = bits + n.to(tl.int64) * WORDS * S
    if WORDS == 1:
        word = tl.load(start + s, inside, 0)[None, :]
    else:
        word = tl.load(start + (f // 32)[:, None] * S + s[None, :], inside[None, :] & (f // 32 < WORDS)[:, None], 0)
    return (word >> (f % 32)[:, None]) & 1 == 1


# ---- passes ----------------------------------------------------------------------------------------------------------


@triton.jit
def project_kernel(
    g, u, scale, mean, var, eps, projected, F, G, Q, LAST: tl.constexpr, PRECISION: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write `projected`, (N, Q, F), U g times the factor of its norm; see `project`.

    One program: BF inner channels at BS positions of a sample.
    """
    blocks = tl.cdiv(F, BF)
    n, s = sample_and_positions(tl.program_id(0) // blocks, Q, BS)
    f = tl.program_id(0) % blocks * BF + tl.arange(0, BF)
    sums = tl.zeros([BF, BS], REAL)
    sums = add_projection(g, u, norm_scale(scale, mean, var, f, F, eps), n, f, s, F, G, Q, sums, LAST, PRECISION, BC)
    tl.store(projected + at(n, f[:, None], s[None, :], F, Q, True), sums, (f < F)[:, None] & (s < Q)[None, :])


@triton.jit
def gate_kernel(
    x, g, w, u, bias, scale, shift, mean, var, eps,
    gating_bias, gating_scale, gating_shift, gating_mean, gating_var, gating_eps,
    psi, psi_bias, psi_scale, psi_shift, psi_mean, psi_var, psi_eps,
    y, alpha, bits, logits, statistics, parts, counter, batches, momentum, N, F, C, G, S, D, H, W, OD, OH, OW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    LAST: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr, WORDS: tl.constexpr, BLOCKS: tl.constexpr,
    BF: tl.constexpr, BC: tl.constexpr, BG: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write y, alpha and bits; see `gate`.

    If `logits` is given, write psi's output before its norm, and that norm's statistics, instead of y and alpha; then
    psi_mean and psi_var are running statistics to update, with `batches` and `momentum`, see `RunningStats`. Arguments
    without prefix belong to the projection of x. One program: BS positions of a sample. WHOLE: whether a tile holds all
    channels of x, so that x is loaded once. BLOCKS: number of tiles with BF inner channels. If u is None, g is U g on
    the coarse grid, times the factor of its norm.
    """
    n, s = sample_and_positions(tl.program_id(0), S, BS)
    offset = n.to(tl.int64) * S + s
    if WHOLE:
        c = tl.arange(0, BC)
        x_tile = load_tile(x, n, c, s, C, S, LAST)
    channel = tl.arange(0, 1)
    psi_factor = norm_scale(psi_scale, psi_mean, psi_var, channel, 1, psi_eps)
    psi_output = tl.zeros([BS], REAL) + norm_shift(psi_factor, psi_bias, psi_shift, psi_mean, channel, 1)
    for block in tl.static_range(BLOCKS):
        f = block * BF + tl.arange(0, BF)
        gating_factor = norm_scale(gating_scale, gating_mean, gating_var, f, F, gating_eps)
        if u is None:
            sums = resized(g, n, f, s, F, D, H, W, OD, OH, OW, TD, TH, TW, CORNERS, WIDE, BF, BS)
        else:
            sums = tl.zeros([BF, BS], REAL)
            sums = add_projection(g, u, gating_factor, n, f, s, F, G, S, sums, LAST, PRECISION, BG)
        factor = norm_scale(scale, mean, var, f, F, eps)
        if WHOLE:
            sums = add_product(load_weight(w, f, c, F, C) * factor[:, None], x_tile, sums, PRECISION)
        else:
            sums = add_projection(x, w, factor, n, f, s, F, C, S, sums, LAST, PRECISION, BC)
        summand = norm_shift(factor, bias, shift, mean, f, F)
        summand += norm_shift(gating_factor, gating_bias, gating_shift, gating_mean, f, F)
        sums += summand[:, None]
        psi_output += tl.sum(relu(sums) * (load_vector(psi, f, F) * psi_factor)[:, None], 0)
        if bits is not None:
            sign_bits = tl.where((sums <= 0) | (f >= F)[:, None], 0, (tl.full([BF], 1, tl.int32) << (f % 32))[:, None])
            for word in tl.static_range(WORDS):
                if word * 32 // BF == block:   # BF < 32 only if there is a single block
                    words = tl.sum(tl.where((f // 32 == word)[:, None], sign_bits, 0), 0)
                    tl.store(bits + n.to(tl.int64) * (WORDS - 1) * S + word * S + offset, words, s < S)
    if logits is not None:
        tl.store(logits + offset, psi_output, s < S)
        count = tl.full([], N, tl.int64) * S
        program, programs = tl.program_id(0), tl.num_programs(0)
        add_moments(
            psi_output, s < S, program, programs, count, parts, counter, statistics, psi_eps,
            psi_mean, psi_var, batches, momentum,
        )   # fmt: skip
    else:
        coefficients = tl.sigmoid(psi_output)
        if alpha is not None:
            tl.store(alpha + offset, coefficients, s < S)
        if WHOLE:
            store_product(x_tile, coefficients, y, n, c, s, C, S, LAST)
        else:
            for start in range(0, C, BC):
                c = start + tl.arange(0, BC)
                store_product(load_tile(x, n, c, s, C, S, LAST), coefficients, y, n, c, s, C, S, LAST)


@triton.jit
def store_product(x_tile, coefficients, y, n, c, s, C, S, LAST: tl.constexpr):
    """Write x_tile * coefficients, (BC, BS) and (BS,), into y (N, C, S) at sample n, channels c and positions s."""
    inside = (c < C)[:, None] & (s < S)[None, :]
    address = y + at(n, c[:, None], s[None, :], C, S, LAST)
    product = x_tile.to(REAL) * coefficients[None, :]
    tl.store(address, product.to(y.dtype.element_ty), inside, eviction_policy="evict_first")


# ---- launching -------------------------------------------------------------------------------------------------------


def max_channels(x: Tensor) -> int:
    """Return the largest number of channels (of x, g or inside the gate) that a Triton program processes at a time.

    Larger tiles spill registers on GPUs whose tensor cores read operands from registers.
    """
    return 64 if x.is_cuda and capability(x.device)[0] not in SHARED_MEMORY_OPERANDS else 128


def channels_at_once(x: Tensor, channels: int) -> int:
    """Return the block size for this number of channels: a power of 2 from 16 to `max_channels(x)`."""
    return max(16, min(next_power_of_2(channels), max_channels(x)))


def precision(x: Tensor) -> str:
    """Return `input_precision` for Triton's products.

    It is "tf32x3" for float32 if PyTorch's setting forbids TF32 in convolutions, else "tf32". For half precision the
    value has no effect.
    """
    cudnn = torch.backends.cudnn
    conv = getattr(cudnn, "conv", None)   # newer setting; reading allow_tf32 raises once it has been used
    allowed = cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"
    return "tf32x3" if x.dtype == torch.float32 and not allowed else "tf32"


def project(g: Tensor, gating: Projection, projected: Tensor, channels_last: bool) -> None:
    """Write U g times the factor of its norm into `projected`, (N, Q, F), on the grid of g, which has Q positions.

    g: (N, G, *G). gating: the projection of g. channels_last: whether g is channels last.
    """
    (N, G, Q), F = sizes(g), len(gating.weight)
    BF, BC, BS, num_warps = tile(g, F, G)
    options: dict[str, Any] = {"LAST": channels_last, "PRECISION": precision(g), "BF": BF, "BC": BC, "BS": BS}
    args = g, gating.weight, *gating.scale_arguments(), projected, F, G, Q
    programs = N * cdiv(Q, BS) * cdiv(F, BF)
    launch(project_kernel, programs, *args, **options, num_warps=num_warps, num_stages=2)


def gate(
    x: Tensor,
    g: Tensor,
    projections: Projections,
    grids: Grids,
    outputs: Outputs,
    psi_norm: channel_norm.Norm | None,
) -> None:
    """Write y, alpha and the relu's bits.

    Args:
        x: (N, C, *S).
        g: (N, G, *S), or, if the grids differ, the result of `project` on the coarser grid, (N, Q, F).
        projections: the projections, as `Call.with_batch_statistics` returns them.
        grids: the grids of g and of x.
        outputs: tensors to write.
        psi_norm: psi's norm if it uses statistics of the batch, else None. With it, the norm's input and statistics are
            written instead of y and alpha.

    """
    skip, gating, psi = projections
    (N, C, S), F = sizes(x), len(skip.weight)
    BF, BC, BS, num_warps = tile(x, F, C)
    u = gating.weight if grids.are_equal else None
    BS = min(BS, 64) if u is None else BS   # resampling 128 positions would spill registers
    G = 0 if u is None else u.shape[1]
    BG = min(BC, max(16, next_power_of_2(G)))
    options: dict[str, Any] = {"LAST": is_channels_last(x), "PRECISION": precision(x), "WHOLE": C <= BC}
    options |= {"WORDS": cdiv(F, WORD), "BLOCKS": cdiv(F, BF)}
    tile_options = {"BF": BF, "BC": BC, "BG": BG, "BS": BS, "num_warps": num_warps, "num_stages": 2}
    programs = N * cdiv(S, BS)
    norm_args: tuple[Any, ...] = (None,) * 6
    if psi_norm is not None:
        running, parts = psi_norm.running, empty_float32(x, 3, programs)
        psi = psi._replace(mean=running.mean, var=running.var)
        norm_args = psi_norm.input, psi_norm.statistics, parts, counters(x, 1), running.batches, running.momentum
    projection_args = *skip.norm_arguments(), *gating.norm_arguments(), psi.weight, *psi.norm_arguments()
    args = x, g, skip.weight, u, *projection_args, *outputs, *norm_args, N, F, C, G, S, *grids.sizes
    launch(gate_kernel, programs, *args, **grids.options, **options, **tile_options)


def tile(x: Tensor, F: int, C: int) -> Tile:
    """Return the tile of a forward pass over C channels, with F inner channels.

    It is as large as fits into registers, and small enough for several programs per multiprocessor.
    """
    BF = channels_at_once(x, F)
    if precision(x) != "tf32":   # "tf32x3" holds two parts of each factor in registers
        return exact_tile(FORWARD, BF, C)
    BC = min(channels_at_once(x, C), 64 if BF > 64 else 128)
    if BF > 32 or BC > 64:
        return Tile(BF, BC, 32, 8)
    use_wide_tile = x.element_size() < 4 and not is_channels_last(x)   # fastest in the sweep of fast/triton/tiles.py
    return Tile(BF, BC, 128 if use_wide_tile else 64, 4)
