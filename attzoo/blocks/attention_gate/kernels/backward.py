"""Kernels of the backward pass of the additive attention gate: each input is read once, each gradient written once.

dz (N, S) is the gradient of the sigmoid's input. The kernels use e = dz where the relu's input was positive, else 0,
(N, F, S), which is never stored. With scaled_psi = scale * psi, the gradient of x is dy * alpha + W' (scaled_psi e),
that of W is scaled_psi (e x'), and that of psi is e . (W x + U g + shift), which follows from sums of e x' too, so that
W x and U g are not computed again. Each program sums e x' over a part of the positions; the parts are added up in a
fixed order.

Batch norm in training subtracts from e its projection: e becomes e - mean(e) - slope * (W x - mean(W x)), see
`norms.batch_terms`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton import channel_norm
from ....fast.triton.channel_norm import add_gradient_sums
from ....fast.triton.common import PROGRAMS, REAL, at, cdiv, empty_float32, launch, sample_and_positions, sizes
from .forward import add_product, add_projection, channels_at_once, load_tile, load_weight, precision, relu_mask
from .projections import Projection, load_vector, norm_scale
from .resize import Grids, first_target, source_weight, target_counts
from .tiles import BACKWARD, CENTRED, Tile, exact_tile
from .weights import ProjectionGradients, Sums

RESIDENT = PROGRAMS // 2   # number of programs that fill a GPU, if each uses many registers


class ReluGradient(NamedTuple):
    """The tensors from which e is computed on the grid of an input.

    Attributes:
        dz: gradient of the sigmoid's input, (N, S).
        bits: signs of the relu's input, as `forward.gate` writes them.
        grids: the grids of the input and of x.

    """

    dz: Tensor
    bits: Tensor
    grids: Grids

    def arguments(self) -> tuple[tuple[int | None, ...], dict[str, Any]]:
        """Return the positional arguments of a kernel, sizes of the grids, and its keyword arguments, the constants."""
        coarse = not self.grids.are_equal
        counts = target_counts(self.grids) if coarse else (None,) * 3
        return (*self.grids.sizes, *counts), {**self.grids.options, "COARSE": coarse, "WORDS": self.bits.shape[1]}


class PsiNormGradient(NamedTuple):
    """The tensors from which the gradient of the input of psi's norm is computed, if it uses batch statistics.

    Attributes:
        doutput: gradient of the norm's output, (N, S).
        input: the norm's input, (N, S).
        statistics: its statistics, see `channel_norm.Norm`.
        sums: the totals of `channel_norm.add_gradient_sums`.
        scale: the norm's scale, (1,).

    """

    doutput: Tensor
    input: Tensor
    statistics: Tensor
    sums: Tensor | None
    scale: Tensor


class OutputGradient(NamedTuple):
    """The gradient of the output y, for `input_gradient`.

    Attributes:
        dy: the gradient, (N, C, *S).
        alpha: the coefficients, (N, S).
        compute_dz: whether `input_gradient` computes dz from x, dy and alpha; else dz has been computed before.

    """

    dy: Tensor
    alpha: Tensor
    compute_dz: bool


# ---- gradient of the relu's input ------------------------------------------------------------------------------------


@triton.jit
def masked_gradient(dz, bits, n, f, s, inside, S, WORDS: tl.constexpr):
    """Return e at inner channels f and positions s of x: dz where the relu's input was positive, else 0, (BF, BS).

    `bits` holds the signs of the relu's input, see `forward.relu_mask`. n: sample. inside: whether each position
    exists.
    """
    dz_tile = tl.load(dz + n.to(tl.int64) * S + s, inside, 0.0)
    return tl.where(relu_mask(bits, n, f, s, inside, S, WORDS), dz_tile[None, :], 0.0)


@triton.jit
def gathered_gradient(
    dz, bits, n, f, q, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    WORDS: tl.constexpr, BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Return e at inner channels f and positions q of the coarser grid of g, by the adjoint of resampling: (BF, BS).

    See `masked_gradient` for dz, bits and n, and __init__.py for sizes and constants.
    """
    qd, qh, qw = q // (OH * OW), q // OW % OH, q % OW
    first_d = first_target(qd, OD, D, TD, CORNERS, WIDE)
    first_h = first_target(qh, OH, H, TH, CORNERS, WIDE)
    first_w = first_target(qw, OW, W, TW, CORNERS, WIDE)
    sums = tl.zeros([BF, BS], REAL)
    for target in range(RD * RH * RW):
        d = first_d + target // (RH * RW)
        h = first_h + target // RW % RH
        w = first_w + target % RW
        weight = source_weight(d, qd, OD, D, TD, CORNERS, WIDE) * source_weight(h, qh, OH, H, TH, CORNERS, WIDE)
        weight *= source_weight(w, qw, OW, W, TW, CORNERS, WIDE)
        inside = (q < OD * OH * OW) & (weight > 0)
        e = masked_gradient(dz, bits, n, f, (d * H + h) * W + w, inside, D * H * W, WORDS)
        sums += e * weight[None, :]
    return sums


@triton.jit
def relu_gradient(
    dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, WORDS: tl.constexpr, BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Return e at inner channels f and positions s of the grid of an input, coarser than x's if COARSE: (BF, BS).

    See `masked_gradient` for dz, bits and n, and __init__.py for sizes and constants.
    """
    if COARSE:
        e = gathered_gradient(
            dz, bits, n, f, s, D, H, W, OD, OH, OW, RD, RH, RW, TD, TH, TW, CORNERS, WIDE, WORDS, BF, BS
        )
    else:
        e = masked_gradient(dz, bits, n, f, s, s < S, S, WORDS)
    return e


# ---- passes ----------------------------------------------------------------------------------------------------------


@triton.jit
def product_kernel(
    x, dy, alpha, dz, norm_input, statistics, parts, counter, norm_sums, dscale, dshift, C, S,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write dz (N, S), the gradient of the sigmoid's input, from x, dy and alpha.

    If `norm_input` is given, the input of psi's batch norm, sums for its backward pass are written too; see
    `add_gradient_sums`. One program: BS positions of a sample, over all channels.
    """
    n, s = sample_and_positions(tl.program_id(0), S, BS)
    sums = tl.zeros([BC, BS], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        sums += load_tile(x, n, c, s, C, S, LAST).to(REAL) * load_tile(dy, n, c, s, C, S, LAST).to(REAL)
    offset = n.to(tl.int64) * S + s
    alpha_tile = tl.load(alpha + offset, s < S, 0.0)
    dz_tile = tl.sum(sums, 0) * alpha_tile * (1 - alpha_tile)
    tl.store(dz + offset, dz_tile, s < S)
    if norm_input is not None:
        program, programs = tl.program_id(0), tl.num_programs(0)
        norm_input_tile = tl.load(norm_input + offset, s < S, 0.0)
        add_gradient_sums(
            dz_tile, norm_input_tile, s < S, program, programs, parts, counter, statistics, norm_sums, dscale, dshift
        )


@triton.jit
def input_kernel(
    x, dy, w, scale, mean, var, eps, psi, psi_scale, psi_mean, psi_var, psi_eps,
    alpha, dz, bits, batch, dx, sums_of_ex, sums_of_e, N, F, C, S, PARTS, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, COMPUTE_DZ: tl.constexpr, FIRST_F: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, WORDS: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Write the gradient of x or g into dx, and sums of e x' and of e; see `input_gradient`. dy is None for g.

    One program: BC channels over a part of the positions of all samples. COMPUTE_DZ: whether to compute and store dz;
    then BC is all channels. FIRST_F: first inner channel of this launch; dx holds the sum over the inner channels
    before it.
    """
    program = tl.program_id(0)
    part = program % PARTS
    c = program // PARTS * BC + tl.arange(0, BC)
    f = FIRST_F + tl.arange(0, BF)
    psi_factor = norm_scale(psi_scale, psi_mean, psi_var, tl.arange(0, 1), 1, psi_eps)
    scaled_psi = norm_scale(scale, mean, var, f, F, eps) * (load_vector(psi, f, F) * psi_factor)
    transposed = tl.trans(load_weight(w, f, c, F, C) * scaled_psi[:, None]).to(x.dtype.element_ty)
    ex_sum = tl.zeros([BF, BC], REAL)
    e_sum = tl.zeros([BF], REAL)
    dz_sum = tl.zeros([BS], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (s < S)[None, :]
        tile_offset = at(n, c[:, None], s[None, :], C, S, LAST)
        x_tile = tl.load(x + tile_offset, inside, 0.0)
        if dy is None:
            e = relu_gradient(
                dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
                TD, TH, TW, CORNERS, WIDE, COARSE, WORDS, BF, BS,
            )   # fmt: skip
        else:
            position_offset = n.to(tl.int64) * S + s
            dy_tile = tl.load(dy + tile_offset, inside, 0.0).to(REAL)
            alpha_tile = tl.load(alpha + position_offset, s < S, 0.0)
            if COMPUTE_DZ:
                dz_tile = tl.sum(dy_tile * x_tile.to(REAL), 0) * alpha_tile * (1 - alpha_tile)
                tl.store(dz + position_offset, dz_tile, s < S)
            else:
                dz_tile = tl.load(dz + position_offset, s < S, 0.0)
            e = tl.where(relu_mask(bits, n, f, s, s < S, S, WORDS), dz_tile[None, :], 0.0)
            dz_sum += dz_tile
        if batch is not None:
            centred = tl.zeros([BF, BS], REAL) - load_vector(batch, f, F)[:, None]
            centred = add_projection(x, w, tl.full([BF], 1.0, REAL), n, f, s, F, C, S, centred, LAST, PRECISION, BC)
            e = e - load_vector(batch + F, f, F)[:, None] - load_vector(batch + 2 * F, f, F)[:, None] * centred
            e = tl.where((s < S)[None, :], e, 0.0)
        e_sum += tl.sum(e, 1)
        e = e.to(x_tile.dtype)
        dx_tile = add_product(transposed, e, tl.zeros([BC, BS], REAL), PRECISION)
        if FIRST_F:
            dx_tile += tl.load(dx + tile_offset, inside, 0.0).to(REAL)
        elif dy is not None:
            dx_tile += dy_tile * alpha_tile[None, :]
        tl.store(dx + tile_offset, dx_tile.to(dx.dtype.element_ty), inside, eviction_policy="evict_first")
        ex_sum = add_product(e, tl.trans(x_tile), ex_sum, PRECISION)
    sums_offset = (part * F + f)[:, None] * C + c[None, :]
    tl.store(sums_of_ex + sums_offset, ex_sum, (f < F)[:, None] & (c < C)[None, :])
    if program < PARTS:
        tl.store(sums_of_e + part * (F + 1) + f, e_sum, f < F)
        tl.store(sums_of_e + part * (F + 1) + F, tl.sum(dz_sum))


# ---- launching -------------------------------------------------------------------------------------------------------


def sigmoid_gradient(
    x: Tensor,
    dy: Tensor,
    alpha: Tensor,
    channels_last: bool,
    psi_norm: channel_norm.Norm | None,
    psi_gradients: ProjectionGradients,
    defer_norm: bool,
) -> tuple[Tensor, PsiNormGradient | None]:
    """Return the gradient of the sigmoid's input, or of psi's norm's input if `psi_norm` is given: (N, S).

    With `psi_norm` and `defer_norm`, that gradient is not yet computed; the second result, else None, computes it.

    Args:
        x: (N, C, *S).
        dy: gradient of y = x * alpha, (N, C, *S).
        alpha: (N, S).
        channels_last: whether x and dy are channels last.
        psi_norm: psi's norm if it uses statistics of the batch, else None.
        psi_gradients: tensors to write, the gradients of the scale and the shift of `psi_norm`.
        defer_norm: whether `norms.batch_terms` computes the gradient of the norm's input.

    """
    N, C, S = sizes(x)
    BC, BS = (64, 64) if channels_last else (16, 256)
    dz = empty_float32(x, N, S)
    programs = N * cdiv(S, BS)
    sums = channel_norm.GradientSums.allocate(psi_norm, programs, psi_gradients.scale, psi_gradients.shift)
    launch(product_kernel, programs, x, dy, alpha, dz, *sums, C, S, LAST=channels_last, BC=BC, BS=BS, num_warps=8)
    if psi_norm is not None and defer_norm:
        norm_gradient = PsiNormGradient(dz, psi_norm.input, psi_norm.statistics, sums.sums, psi_norm.scale)
        return empty_float32(x, N, S), norm_gradient
    channel_norm.backward(dz, psi_norm, sums)
    return dz, None


def tile(x: Tensor, F: int, C: int, centred: bool) -> Tile:
    """Return the tile for the backward pass of an input x with C channels, with F inner channels.

    It is the largest that does not spill registers, which also hold sums (BF, BC). `centred`: whether W x is computed
    again, which takes about as many more registers.
    """
    BF = channels_at_once(x, F)
    if precision(x) != "tf32":
        return exact_tile(CENTRED if centred else BACKWARD, BF, C)
    area = 4096 if centred and x.dtype == torch.float32 else 8192
    BC = max(16, min(channels_at_once(x, C), 64 if centred else 128, area // BF))
    return Tile(BF, BC, 64, 4) if BF <= 32 and BC <= 64 else Tile(BF, BC, 32, 8)


def fits_one_tile(x: Tensor, F: int) -> bool:
    """Whether a tile holds all channels of x, with F inner channels, so that `input_gradient` can compute dz."""
    return x.shape[1] <= tile(x, F, x.shape[1], False).BC


def input_gradient(
    x: Tensor,
    dx: Tensor,
    projection: Projection,
    psi: Projection,
    gradient: ReluGradient,
    output: OutputGradient | None,
    batch: Tensor | None,
    channels_last: bool,
) -> Sums:
    """Write the gradient of x or g into dx, and return the sums for the gradients of its projection.

    Inner channels that do not fit into one tile are processed by several launches, each of which reads x and the sum of
    the launches before it, in float32.

    Args:
        x: the input, x or g.
        dx: gradient to write.
        projection: the projection of this input, as `Projection.with_batch_statistics` returns it.
        psi: psi, as `Projection.without_batch_norm` returns it.
        gradient: the tensors from which e is computed.
        output: the gradient of y if the input is x; None if it is g.
        batch: see `norms.batch_terms`; None unless the norm uses statistics of the batch.
        channels_last: whether the input is channels last.

    """
    w = projection.weight
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C, batch is not None)
    coarse = output is None and not gradient.grids.are_equal
    if coarse and BS == 64 and x.element_size() < 4:   # fastest in the sweep of fast/triton/tiles.py
        BS = 128
    blocks = cdiv(C, BC)
    max_parts = N * S // (8 * max(BF, F))   # writing more would take as long as reading x
    parts = max(1, min(N * cdiv(S, BS), RESIDENT // blocks, max_parts))
    sums = Sums(empty_float32(x, parts, F, C), empty_float32(x, parts, F + 1), batch)
    dy, alpha, compute_dz = output or (None, None, False)
    grid_sizes, constants = gradient.arguments()
    num_stages = 3 if BS == 64 and not coarse else 2   # by the same sweep
    options = {"LAST": channels_last, "PRECISION": precision(x), **constants}
    options |= {"BF": BF, "BC": BC, "BS": BS, "num_warps": num_warps, "num_stages": num_stages}
    result = dx if F <= BF or dx.element_size() > 2 else torch.empty_like(dx, dtype=torch.float32)
    factors = *projection.scale_arguments(), psi.weight, *psi.scale_arguments()
    tensors = alpha, gradient.dz, gradient.bits, batch, result, sums.ex, sums.e
    args = x, dy, w, *factors, *tensors, N, F, C, S, parts, *grid_sizes
    for first in range(0, F, BF):
        launch(input_kernel, blocks * parts, *args, COMPUTE_DZ=compute_dz and not first, FIRST_F=first, **options)
    if result is not dx:
        dx.copy_(result)
    return sums
