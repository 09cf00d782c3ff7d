"""Kernels of the backward pass of the additive attention gate: each input is read once, each gradient written once.

dz (N, S) is the gradient of the sigmoid's input. The kernels use e = dz where the relu's input was positive, else 0,
(N, F, S), which is never stored. With v = scale * psi, the gradient of x is dy * alpha + W' (v e), that of W is
v (e x'), and that of psi is e . (W x + U g + shift), which follows from sums of e x' too, so that W x and U g are not
computed again. Each program sums e x' over a part of the positions; the parts are added up in a fixed order.

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
from .forward import (
    Projections,
    add_product,
    add_projection,
    channels_at_once,
    load_tile,
    load_vector,
    load_weight,
    precision,
    relu_mask,
)
from .resize import Grids, first_target, source_weight, target_counts
from .tiles import BACKWARD, CENTRED, Tile, exact_tile

PARTS_AT_ONCE = 64          # parts that are added up at a time
RESIDENT = PROGRAMS // 2    # programs with many registers that fill a GPU


class ReluGradient(NamedTuple):
    """The tensors that e is computed from on the grid of an input: dz (N, S), the relu's bits, and both grids."""

    dz: Tensor
    bits: Tensor
    grids: Grids

    def arguments(self) -> tuple[tuple[int | None, ...], dict[str, Any]]:
        """Return the sizes and the constants for a kernel."""
        coarse = not self.grids.are_equal
        counts = target_counts(self.grids) if coarse else (None,) * 3
        return (*self.grids.sizes, *counts), {**self.grids.options, "COARSE": coarse, "WORDS": self.bits.shape[1]}


class Sums(NamedTuple):
    """Sums over an input for the gradients of weights, by parts of all positions.

    `ex` (parts, F, C): sums of e x'. `e` (parts, F + 1): sums of e, and of dz. `batch` (5, F): see
    `norms.batch_terms`; None unless the projection's norm uses statistics of the batch.
    """

    ex: Tensor
    e: Tensor
    batch: Tensor | None


class ProjectionGradients(NamedTuple):
    """Tensors for the gradients of a projection's parameters; None for those that it does not have."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


class Gradients(NamedTuple):
    """Tensors for the gradients of the parameters of the three projections."""

    skip: ProjectionGradients
    gating: ProjectionGradients
    psi: ProjectionGradients


# ---- e ---------------------------------------------------------------------------------------------------------------


@triton.jit
def masked_gradient(dz, bits, n, f, s, inside, S, WORDS: tl.constexpr):
    """Return e at positions s of the grid of x, where `inside`: (BF, BS)."""
    d = tl.load(dz + n.to(tl.int64) * S + s, inside, 0.0)
    return tl.where(relu_mask(bits, n, f, s, inside, S, WORDS), d[None, :], 0.0)


@triton.jit
def gathered_gradient(
    dz, bits, n, f, q, D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    WORDS: tl.constexpr, BF: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """Return e at positions q of the source grid, by the adjoint of resampling: (BF, BS)."""
    qd, qh, qw = q // (OH * OW), q // OW % OH, q % OW
    d0 = first_target(qd, OD, D, TD, CORNERS, WIDE)
    h0 = first_target(qh, OH, H, TH, CORNERS, WIDE)
    w0 = first_target(qw, OW, W, TW, CORNERS, WIDE)
    sums = tl.zeros([BF, BS], REAL)
    for j in range(RD * RH * RW):
        d = d0 + j // (RH * RW)
        h = h0 + j // RW % RH
        w = w0 + j % RW
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
    """Return e at positions s of an input, whose grid is coarser than that of x if COARSE: (BF, BS)."""
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
    x, dy, alpha, dz, q, statistics, parts, counter, norm_sums, dscale, dshift, C, S,
    LAST: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: dz at BS positions of a sample, over all channels."""
    n, s = places(tl.program_id(0), S, BS)
    sums = tl.zeros([BC, BS], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        sums += load_tile(x, n, c, s, C, S, LAST).to(REAL) * load_tile(dy, n, c, s, C, S, LAST).to(REAL)
    offset = n.to(tl.int64) * S + s
    a = tl.load(alpha + offset, s < S, 0.0)
    d = tl.sum(sums, 0) * a * (1 - a)
    tl.store(dz + offset, d, s < S)
    if q is not None:
        i, programs, norm_input = tl.program_id(0), tl.num_programs(0), tl.load(q + offset, s < S, 0.0)
        add_gradient_sums(d, norm_input, s < S, i, programs, parts, counter, statistics, norm_sums, dscale, dshift)


@triton.jit
def input_kernel(
    x, dy, w, folded, alpha, dz, bits, batch, dx, sums_of_ex, sums_of_e, N, F, C, S, PARTS,
    D, H, W, OD, OH, OW, RD, RH, RW,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, CORNERS: tl.constexpr, WIDE: tl.constexpr,
    COARSE: tl.constexpr, SCALE_ROW: tl.constexpr, COMPUTE_DZ: tl.constexpr, FIRST_F: tl.constexpr, LAST: tl.constexpr,
    PRECISION: tl.constexpr, WORDS: tl.constexpr, BF: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):   # fmt: skip
    """One program: BC channels over a part of the positions of all samples; of x if dy is given, else of g.

    SCALE_ROW: row of `folded` with the scale of w. COMPUTE_DZ: whether to compute and store dz; then BC is all
    channels. FIRST_F: first inner channel of this launch; dx holds the sum over the inner channels before it.
    """
    i = tl.program_id(0)
    part = i % PARTS
    c = i // PARTS * BC + tl.arange(0, BC)
    f = FIRST_F + tl.arange(0, BF)
    v = load_vector(folded + SCALE_ROW * F, f, F) * load_vector(folded + 3 * F, f, F)
    transposed = tl.trans(load_weight(w, f, c, F, C) * v[:, None]).to(x.dtype.element_ty)
    ex_sum = tl.zeros([BF, BC], REAL)
    e_sum = tl.zeros([BF], REAL)
    dz_sum = tl.zeros([BS], REAL)
    blocks = tl.cdiv(S, BS)
    for step in range(part, N * blocks, PARTS):
        n = step // blocks
        s = step % blocks * BS + tl.arange(0, BS)
        inside = (c < C)[:, None] & (s < S)[None, :]
        tile = at(n, c[:, None], s[None, :], C, S, LAST)
        v_x = tl.load(x + tile, inside, 0.0)
        if dy is None:
            e = relu_gradient(
                dz, bits, n, f, s, S, D, H, W, OD, OH, OW, RD, RH, RW,
                TD, TH, TW, CORNERS, WIDE, COARSE, WORDS, BF, BS,
            )   # fmt: skip
        else:
            offset = n.to(tl.int64) * S + s
            d = tl.load(dy + tile, inside, 0.0).to(REAL)
            a = tl.load(alpha + offset, s < S, 0.0)
            if COMPUTE_DZ:
                d_z = tl.sum(d * v_x.to(REAL), 0) * a * (1 - a)
                tl.store(dz + offset, d_z, s < S)
            else:
                d_z = tl.load(dz + offset, s < S, 0.0)
            e = tl.where(relu_mask(bits, n, f, s, s < S, S, WORDS), d_z[None, :], 0.0)
            dz_sum += d_z
        if batch is not None:
            t = tl.zeros([BF, BS], REAL) - load_vector(batch, f, F)[:, None]
            t = add_projection(x, w, tl.full([BF], 1.0, REAL), n, f, s, F, C, S, t, LAST, PRECISION, BC)
            e = e - load_vector(batch + F, f, F)[:, None] - load_vector(batch + 2 * F, f, F)[:, None] * t
            e = tl.where((s < S)[None, :], e, 0.0)
        e_sum += tl.sum(e, 1)
        e = e.to(v_x.dtype)
        d_x = add_product(transposed, e, tl.zeros([BC, BS], REAL), PRECISION)
        if FIRST_F:
            d_x += tl.load(dx + tile, inside, 0.0).to(REAL)
        elif dy is not None:
            d_x += d * a[None, :]
        tl.store(dx + tile, d_x.to(dx.dtype.element_ty), inside, eviction_policy="evict_first")
        ex_sum = add_product(e, tl.trans(v_x), ex_sum, PRECISION)
    offset = (part * F + f)[:, None] * C + c[None, :]
    tl.store(sums_of_ex + offset, ex_sum, (f < F)[:, None] & (c < C)[None, :])
    if i < PARTS:
        tl.store(sums_of_e + part * (F + 1) + f, e_sum, f < F)
        tl.store(sums_of_e + part * (F + 1) + F, tl.sum(dz_sum))


@triton.jit
def weight_row_gradient(parts, w, dw, v, f, F, C, PARTS, BP: tl.constexpr, BC: tl.constexpr):
    """Write row f of dw = v * sum of parts, and return the dot product of that row of the sum and of w."""
    products = tl.zeros([BC], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        sums = tl.zeros([BP, BC], REAL)
        for first_part in range(0, PARTS, BP):
            part = first_part + tl.arange(0, BP)
            offset = (part[:, None] * F + f) * C + c[None, :]
            sums += tl.load(parts + offset, (part < PARTS)[:, None] & (c < C)[None, :], 0.0)
        row = tl.sum(sums, 0)
        tl.store(dw + f * C + c, (v * row).to(dw.dtype.element_ty), c < C)
        products += row * tl.load(w + f * C + c, c < C, 0.0).to(REAL)
    return tl.sum(products)


@triton.jit
def sum_of_parts(parts, f, F, PARTS, BP: tl.constexpr):
    """Return the sum over parts of e of inner channel f; of dz if f is F."""
    sums = tl.zeros([BP], REAL)
    for first_part in range(0, PARTS, BP):
        part = first_part + tl.arange(0, BP)
        sums += tl.load(parts + part * (F + 1) + f, part < PARTS, 0.0)
    return tl.sum(sums)


@triton.jit
def weights_kernel(
    skip_ex, skip_e, gating_ex, gating_e, w, u, folded, skip_batch, gating_batch, dw, dbias, du, dgating_bias,
    dpsi, dpsi_bias, bias, mean, var, dscale, dshift, eps,
    gating_bias, gating_mean, gating_var, dgating_scale, dgating_shift, gating_eps,
    psi, psi_bias, psi_mean, psi_var, dpsi_scale, dpsi_shift, psi_eps,
    totals, counter, F, C, G, SKIP_PARTS, GATING_PARTS,
    PSI_BY_BATCH: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):   # fmt: skip
    """One program: inner channel f. The last program computes the gradients of psi's norm.

    `skip_batch` and `gating_batch` already hold the sums that a norm by statistics of the batch needs. The bias before
    such a norm has no effect, so its gradient is 0.
    """
    f = tl.program_id(0)
    skip_scale = tl.load(folded + f)
    gating_scale = tl.load(folded + F + f)
    v = tl.load(folded + 3 * F + f)
    psi_scale = tl.load(folded + 4 * F + 1)
    skip_sum = weight_row_gradient(skip_ex, w, dw, skip_scale * v, f, F, C, SKIP_PARTS, BP, BC)
    gating_sum = weight_row_gradient(gating_ex, u, du, gating_scale * v, f, F, G, GATING_PARTS, BP, BC)
    if skip_batch is not None:
        skip_sum = tl.load(skip_batch + 3 * F + f)
        e_sum = tl.load(skip_batch + 4 * F + f)
        d_bias = e_sum * 0
    else:
        e_sum = sum_of_parts(skip_e, f, F, SKIP_PARTS, BP)
        d_bias = skip_scale * v * e_sum
    if dbias is not None:
        tl.store(dbias + f, d_bias.to(dbias.dtype.element_ty))
    if gating_batch is not None:
        gating_sum = tl.load(gating_batch + 3 * F + f)
        d_bias = gating_sum * 0
    else:
        d_bias = gating_scale * v * sum_of_parts(gating_e, f, F, GATING_PARTS, BP)
    if dgating_bias is not None:
        tl.store(dgating_bias + f, d_bias.to(dgating_bias.dtype.element_ty))
    if dscale is not None:
        store_norm_gradients(dscale, dshift, mean, var, bias, eps, v * skip_sum, v * e_sum, f, F)
    if dgating_scale is not None:
        store_norm_gradients(
            dgating_scale, dgating_shift, gating_mean, gating_var, gating_bias, gating_eps,
            v * gating_sum, v * e_sum, f, F,
        )   # fmt: skip
    d_psi = skip_scale * skip_sum + gating_scale * gating_sum + tl.load(folded + 2 * F + f) * e_sum
    tl.store(dpsi + f, (psi_scale * d_psi).to(dpsi.dtype.element_ty))
    tl.store(totals + f, d_psi)
    if f == 0:
        dz_sum = sum_of_parts(skip_e, F, F, SKIP_PARTS, BP)
        tl.store(totals + F, dz_sum)
        if PSI_BY_BATCH:
            dz_sum = dz_sum * 0
        tl.store(dpsi_bias, (psi_scale * dz_sum).to(dpsi_bias.dtype.element_ty))
    if dpsi_scale is not None and not PSI_BY_BATCH:
        done = is_last(counter, F)
        if done:
            k = tl.arange(0, BF)
            products = load_vector(psi, k, F) * tl.load(totals + k, k < F, 0.0, cache_modifier=".cg")
            dz_sum = tl.load(totals + F, cache_modifier=".cg")
            store_norm_gradients(
                dpsi_scale, dpsi_shift, psi_mean, psi_var, psi_bias, psi_eps, tl.sum(products), dz_sum, 0, 1
            )


@triton.jit
def store_norm_gradients(dscale, dshift, mean, var, bias, eps, product_sum, gradient_sum, f, F):
    """Write the gradients of a norm's scale and shift.

    From sums of d, the gradient of the norm's output: `product_sum` of d times the convolution without its bias, and
    `gradient_sum` of d. If var is None, the variance follows the mean, and the mean is without the bias.
    """
    offset = 0 - tl.load(mean + f).to(REAL)
    if var is None:
        variance = tl.load(mean + F + f)
    else:
        variance = tl.load(var + f).to(REAL)
        if bias is not None:
            offset += tl.load(bias + f).to(REAL)
    d = (product_sum + offset * gradient_sum) / tl.sqrt(variance + eps)
    tl.store(dscale + f, d.to(dscale.dtype.element_ty))
    tl.store(dshift + f, gradient_sum.to(dshift.dtype.element_ty))


# ---- launching -------------------------------------------------------------------------------------------------------


def sigmoid_gradient(
    x: Tensor,
    dy: Tensor,
    alpha: Tensor,
    last: bool,
    psi_norm: channel_norm.Norm | None,
    psi_gradients: ProjectionGradients,
) -> Tensor:
    """Return the gradient of the sigmoid's input, or of psi's norm's input if `psi_norm` is given: (N, S).

    `psi_norm` is psi's norm if it uses statistics of the batch; the gradients of its scale and shift are written into
    `psi_gradients`.
    """
    N, C, S = sizes(x)
    BC, BS = (64, 64) if last else (16, 256)
    dz = empty_float32(x, N, S)
    programs = N * cdiv(S, BS)
    sums = channel_norm.GradientSums.allocate(psi_norm, programs, psi_gradients.scale, psi_gradients.shift)
    launch(product_kernel, programs, x, dy, alpha, dz, *sums, C, S, LAST=last, BC=BC, BS=BS, num_warps=8)
    channel_norm.backward(dz, psi_norm, sums)
    return dz


def tile(x: Tensor, F: int, C: int, centred: bool) -> Tile:
    """Return the tile of the backward pass, which also holds sums (BF, BC): as large as does not spill.

    `centred`: whether W x is computed again, which takes about as many registers more.
    """
    BF = channels_at_once(x, F)
    if precision(x) != "tf32":
        return exact_tile(CENTRED if centred else BACKWARD, BF, C)
    area = 4096 if centred and x.dtype == torch.float32 else 8192
    BC = max(16, min(channels_at_once(x, C), 64 if centred else 128, area // BF))
    return Tile(BF, BC, 64, 4) if BF <= 32 and BC <= 64 else Tile(BF, BC, 32, 8)


def fits_one_tile(x: Tensor, F: int) -> bool:
    """Whether a tile holds all channels of x, so that `input_gradient` can compute dz."""
    return x.shape[1] <= tile(x, F, x.shape[1], False).BC


def input_gradient(
    x: Tensor,
    dy: Tensor | None,
    alpha: Tensor | None,
    w: Tensor,
    folded: Tensor,
    scale_row: int,
    gradient: ReluGradient,
    compute_dz: bool,
    batch: Tensor | None,
    dx: Tensor,
    last: bool,
) -> Sums:
    """Write the gradient of x, or of g if `dy` is None, into dx; return the sums for the gradient of its weight.

    Inner channels that do not fit into one tile are processed by several launches, each of which reads x and the sum of
    the launches before it, in float32.

    Args:
        x: the input, x or g.
        dy: gradient of y, or None.
        alpha: (N, S), or None.
        w: weight of this input, (F, C, 1, ...).
        folded: see `forward.fold`.
        scale_row: row of `folded` with the scale of w.
        gradient: e.
        compute_dz: whether dz is computed and stored first.
        batch: see `norms.batch_terms`; None unless the norm uses statistics of the batch.
        dx: gradient to write.
        last: whether x is channels last.
    """
    (N, C, S), F = sizes(x), len(w)
    BF, BC, BS, num_warps = tile(x, F, C, batch is not None)
    coarse = dy is None and not gradient.grids.are_equal
    if coarse and BS == 64 and x.element_size() < 4:   # fastest in the sweep of fast/triton/tiles.py
        BS = 128
    blocks = cdiv(C, BC)
    steps = N * cdiv(S, BS)
    max_parts = N * S // (8 * max(BF, F))   # writing more would take as long as reading x
    parts = max(1, min(steps, RESIDENT // blocks, max_parts))
    sums = Sums(empty_float32(x, parts, F, C), empty_float32(x, parts, F + 1), batch)
    grid_sizes, constants = gradient.arguments()
    tile_options = {"BF": BF, "BC": BC, "BS": BS, "num_warps": num_warps}
    tile_options["num_stages"] = 3 if BS == 64 and not coarse else 2   # by the same sweep
    result = dx if F <= BF or dx.element_size() > 2 else torch.empty_like(dx, dtype=torch.float32)
    tensors = x, dy, w, folded, alpha, gradient.dz, gradient.bits, batch, result, sums.ex, sums.e
    args = *tensors, N, F, C, S, parts, *grid_sizes
    options = {"SCALE_ROW": scale_row, "LAST": last, "PRECISION": precision(x), **constants, **tile_options}
    for first in range(0, F, BF):
        launch(input_kernel, blocks * parts, *args, COMPUTE_DZ=compute_dz and not first, FIRST_F=first, **options)
    if result is not dx:
        dx.copy_(result)
    return sums


def weight_gradients(
    projections: Projections, skip: Sums, gating: Sums, folded: Tensor, gradients: Gradients
) -> None:
    """Write the gradients of the parameters, from the sums over x (`skip`) and over g (`gating`).

    The skip and gating projections are `with_batch_statistics`. The gradients of a psi norm by statistics of the batch
    are written by `sigmoid_gradient`.
    """
    w, u, psi = projections.skip.weight, projections.gating.weight, projections.psi
    F, C = w.shape[:2]
    pairs = list(zip(projections, gradients, strict=True))
    weights = [gradient for _, grads in pairs for gradient in (grads.weight, grads.bias)]
    norms = [(p.bias, p.mean, p.var, grads.scale, grads.shift, p.eps) for p, grads in pairs]
    args: list[Any] = [skip.ex, skip.e, gating.ex, gating.e, w, u, folded, skip.batch, gating.batch, *weights]
    args += [*norms[0], *norms[1], psi.weight, *norms[2], empty_float32(w, F + 1), counters(w, 1)]
    args += [F, C, u.shape[1], len(skip.e), len(gating.e)]
    options = {"PSI_BY_BATCH": psi.by_batch, "BP": PARTS_AT_ONCE, "BC": 64, "BF": next_power_of_2(F), "num_warps": 4}
    launch(weights_kernel, F, *args, **options)
