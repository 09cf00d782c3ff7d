"""Kernel of the gradients of the additive attention gate's parameters, from sums over x and over g.

e, `scaled_psi` and dz are those of backward.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton.common import REAL, counters, empty_float32, is_last, launch, next_power_of_2
from .projections import Projections, load_vector, norm_scale, norm_shift

PARTS_AT_ONCE = 64   # number of parts that are added up at a time


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


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def weight_row_gradient(parts, w, dw, scaled_psi, f, F, C, PARTS, BP: tl.constexpr, BC: tl.constexpr):
    """Write row f of dw = scaled_psi * (sum of parts), and return the dot product of row f of that sum with row f of w.

    parts: (PARTS, F, C). w, dw: (F, C). scaled_psi: a number.
    """
    products = tl.zeros([BC], REAL)
    for start in range(0, C, BC):
        c = start + tl.arange(0, BC)
        sums = tl.zeros([BP, BC], REAL)
        for first_part in range(0, PARTS, BP):
            part = first_part + tl.arange(0, BP)
            offset = (part[:, None] * F + f) * C + c[None, :]
            sums += tl.load(parts + offset, (part < PARTS)[:, None] & (c < C)[None, :], 0.0)
        row = tl.sum(sums, 0)
        tl.store(dw + f * C + c, (scaled_psi * row).to(dw.dtype.element_ty), c < C)
        products += row * tl.load(w + f * C + c, c < C, 0.0).to(REAL)
    return tl.sum(products)


@triton.jit
def sum_of_parts(parts, f, F, PARTS, BP: tl.constexpr):
    """Return the sum over the first axis of `parts`, (PARTS, F + 1), in column f: of e or, in column F, of dz."""
    sums = tl.zeros([BP], REAL)
    for first_part in range(0, PARTS, BP):
        part = first_part + tl.arange(0, BP)
        sums += tl.load(parts + part * (F + 1) + f, part < PARTS, 0.0)
    return tl.sum(sums)


@triton.jit
def weights_kernel(
    skip_ex, skip_e, gating_ex, gating_e, w, u, skip_batch, gating_batch, dw, dbias, du, dgating_bias, dpsi, dpsi_bias,
    bias, scale, shift, mean, var, eps, dscale, dshift,
    gating_bias, gating_scale, gating_shift, gating_mean, gating_var, gating_eps, dgating_scale, dgating_shift,
    psi, psi_bias, psi_scale, psi_shift, psi_mean, psi_var, psi_eps, dpsi_scale, dpsi_shift,
    totals, counter, F, C, G, SKIP_PARTS, GATING_PARTS,
    PSI_BY_BATCH: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr,
):   # fmt: skip
    """Write the gradients of all parameters from sums over x and g; see `weight_gradients`.

    One program: one inner channel. The last program computes the gradients of psi's norm. `skip_batch` and
    `gating_batch` already hold the sums that a norm by statistics of the batch needs. The bias before such a norm has
    no effect, so its gradient is 0.
    """
    f = tl.program_id(0)
    factor = norm_scale(scale, mean, var, f, F, eps)
    gating_factor = norm_scale(gating_scale, gating_mean, gating_var, f, F, gating_eps)
    psi_factor = tl.sum(norm_scale(psi_scale, psi_mean, psi_var, tl.arange(0, 1), 1, psi_eps))
    scaled_psi = load_vector(psi, f, F) * psi_factor
    skip_sum = weight_row_gradient(skip_ex, w, dw, factor * scaled_psi, f, F, C, SKIP_PARTS, BP, BC)
    gating_sum = weight_row_gradient(gating_ex, u, du, gating_factor * scaled_psi, f, F, G, GATING_PARTS, BP, BC)
    if skip_batch is not None:
        skip_sum = tl.load(skip_batch + 3 * F + f)
        e_sum = tl.load(skip_batch + 4 * F + f)
        d_bias = e_sum * 0
    else:
        e_sum = sum_of_parts(skip_e, f, F, SKIP_PARTS, BP)
        d_bias = factor * scaled_psi * e_sum
    if dbias is not None:
        tl.store(dbias + f, d_bias.to(dbias.dtype.element_ty))
    if gating_batch is not None:
        gating_sum = tl.load(gating_batch + 3 * F + f)
        d_bias = gating_sum * 0
    else:
        d_bias = gating_factor * scaled_psi * sum_of_parts(gating_e, f, F, GATING_PARTS, BP)
    if dgating_bias is not None:
        tl.store(dgating_bias + f, d_bias.to(dgating_bias.dtype.element_ty))
    if dscale is not None:
        store_norm_gradients(dscale, dshift, mean, var, bias, eps, scaled_psi * skip_sum, scaled_psi * e_sum, f, F)
    if dgating_scale is not None:
        store_norm_gradients(
            dgating_scale, dgating_shift, gating_mean, gating_var, gating_bias, gating_eps,
            scaled_psi * gating_sum, scaled_psi * e_sum, f, F,
        )   # fmt: skip
    summand = norm_shift(factor, bias, shift, mean, f, F)
    summand += norm_shift(gating_factor, gating_bias, gating_shift, gating_mean, f, F)
    d_psi = factor * skip_sum + gating_factor * gating_sum + summand * e_sum
    tl.store(dpsi + f, (psi_factor * d_psi).to(dpsi.dtype.element_ty))
    tl.store(totals + f, d_psi)
    if f == 0:
        dz_sum = sum_of_parts(skip_e, F, F, SKIP_PARTS, BP)
        tl.store(totals + F, dz_sum)
        if PSI_BY_BATCH:
            dz_sum = dz_sum * 0
        tl.store(dpsi_bias, (psi_factor * dz_sum).to(dpsi_bias.dtype.element_ty))
    if dpsi_scale is not None and not PSI_BY_BATCH:
        is_last_program = is_last(counter, F)
        if is_last_program:
            inner = tl.arange(0, BF)
            products = load_vector(psi, inner, F) * tl.load(totals + inner, inner < F, 0.0, cache_modifier=".cg")
            dz_sum = tl.load(totals + F, cache_modifier=".cg")
            store_norm_gradients(
                dpsi_scale, dpsi_shift, psi_mean, psi_var, psi_bias, psi_eps, tl.sum(products), dz_sum, 0, 1
            )


@triton.jit
def store_norm_gradients(dscale, dshift, mean, var, bias, eps, product_sum, gradient_sum, f, F):
    """Write the gradients of a norm's scale and shift at channel f, into elements f of `dscale` and `dshift`.

    `gradient_sum` is the sum of the gradient of the norm's output, and `product_sum` the sum of this gradient times the
    convolution without its bias. If var is None, the variance follows the mean, and the mean is without the bias.
    """
    offset = 0 - tl.load(mean + f).to(REAL)
    if var is None:
        variance = tl.load(mean + F + f)
    else:
        variance = tl.load(var + f).to(REAL)
        if bias is not None:
            offset += tl.load(bias + f).to(REAL)
    scale_gradient = (product_sum + offset * gradient_sum) / tl.sqrt(variance + eps)
    tl.store(dscale + f, scale_gradient.to(dscale.dtype.element_ty))
    tl.store(dshift + f, gradient_sum.to(dshift.dtype.element_ty))


# ---- launching -------------------------------------------------------------------------------------------------------


def weight_gradients(
    projections: Projections, skip: Sums, gating: Sums, gradients: Gradients
) -> None:
    """Write the gradients of the parameters, from the sums over x (`skip`) and over g (`gating`).

    The gradients of a psi norm that uses statistics of the batch are not written here, but by `sigmoid_gradient`.

    Args:
        projections: the projections, as `Call.with_batch_statistics` returns them.
        skip: sums over x, from `input_gradient`.
        gating: sums over g, from `input_gradient`.
        gradients: tensors to write.

    """
    w, u, psi = projections.skip.weight, projections.gating.weight, projections.psi
    F, C = w.shape[:2]
    pairs = list(zip(projections, gradients, strict=True))
    weights = [gradient for _, grads in pairs for gradient in (grads.weight, grads.bias)]
    norms = [
        (*projection.norm_arguments(), grads.scale, grads.shift)
        for projection, grads in pairs
    ]
    args: list[Any] = [skip.ex, skip.e, gating.ex, gating.e, w, u, skip.batch, gating.batch, *weights]
    args += [*norms[0], *norms[1], psi.weight, *norms[2], empty_float32(w, F + 1), counters(w, 1)]
    args += [F, C, u.shape[1], len(skip.e), len(gating.e)]
    options = {"PSI_BY_BATCH": psi.by_batch, "BP": PARTS_AT_ONCE, "BC": 64, "BF": next_power_of_2(F), "num_warps": 4}
    launch(weights_kernel, F, *args, **options)
