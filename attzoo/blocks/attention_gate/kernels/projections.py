"""The projections of the additive attention gate, and a kernel that folds their biases and norms.

W x becomes skip_scale * W x, and so on. `folded`, (4 F + 2,), holds the scales of W x and of U g, the sum of their
shifts, and psi, F numbers each, then psi's bias and the scale of psi's norm.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton.common import REAL, launch, next_power_of_2


class Projection(NamedTuple):
    """A 1x1 convolution to F channels, and the batch norm after it.

    `scale` and `shift`, (F,), are None without a norm. The norm uses `mean` and `var`, (F,); a norm by statistics of
    the batch (`by_batch`) has None there, see `with_batch_statistics`.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    by_batch: bool

    def with_batch_statistics(self, batch: Tensor) -> Projection:
        """Return the projection for the kernels: if its norm is `by_batch`, `mean` is `batch`, and the bias is None.

        `batch`, (3, F), holds mean, variance and unbiased variance of the convolution without its bias, which such a
        norm cancels.
        """
        return self._replace(bias=None, mean=batch, var=None) if self.by_batch else self


class Projections(NamedTuple):
    """The three projections of a gate: of x, of g, and of their sum after the relu."""

    skip: Projection
    gating: Projection
    psi: Projection


# ---- in kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def load_vector(start, f, F):
    """Load elements f of a vector (F,) at address `start`, as float32; 0 beyond its end."""
    return tl.load(start + f, f < F, 0.0).to(REAL)


@triton.jit
def scale_and_shift(scale, shift, mean, var, bias, f, F, eps):
    """Return factor and summand such that norm(z + bias) = factor * z + summand, at channels f of F, in f's shape.

    Any of bias and norm (scale, shift, mean, var, eps) may be None. If only var is None, the variance follows the mean
    in memory.
    """
    offset = tl.zeros(f.shape, REAL)
    factor = offset + 1
    if bias is not None:
        offset = load_vector(bias, f, F)
    if scale is not None:
        if var is None:
            variance = load_vector(mean + F, f, F)
        else:
            variance = load_vector(var, f, F)
        factor = load_vector(scale, f, F) / tl.sqrt(variance + eps)
        offset = (offset - load_vector(mean, f, F)) * factor + load_vector(shift, f, F)
    return factor, offset


@triton.jit
def fold_kernel(
    psi, bias, gating_bias, psi_bias, scale, shift, mean, var, gating_scale, gating_shift, gating_mean, gating_var,
    psi_scale, psi_shift, psi_mean, psi_var, folded, F, eps, gating_eps, psi_eps, BF: tl.constexpr,
):   # fmt: skip
    """Write all of `folded`; see `fold`. There is one program.

    Arguments without prefix belong to the skip projection.
    """
    f = tl.arange(0, BF)
    skip_factor, skip_offset = scale_and_shift(scale, shift, mean, var, bias, f, F, eps)
    gating_factor, gating_offset = scale_and_shift(
        gating_scale, gating_shift, gating_mean, gating_var, gating_bias, f, F, gating_eps
    )
    psi_factor, psi_offset = scale_and_shift(
        psi_scale, psi_shift, psi_mean, psi_var, psi_bias, tl.arange(0, 1), 1, psi_eps
    )
    tl.store(folded + f, skip_factor, f < F)
    tl.store(folded + F + f, gating_factor, f < F)
    tl.store(folded + 2 * F + f, skip_offset + gating_offset, f < F)
    tl.store(folded + 3 * F + f, load_vector(psi, f, F) * tl.sum(psi_factor), f < F)
    tl.store(folded + 4 * F + tl.arange(0, 1), psi_offset)
    tl.store(folded + 4 * F + 1 + tl.arange(0, 1), psi_factor)


# ---- launching -------------------------------------------------------------------------------------------------------


def fold(projections: Projections, folded: Tensor) -> None:
    """Write `folded`, (4 F + 2,), from psi, the biases and the norms; see the module's docstring.

    The skip and gating projections are those that `Projection.with_batch_statistics` returns. A psi norm that is
    `by_batch` is not folded.
    """
    skip, gating, psi = projections
    if psi.by_batch:
        psi = psi._replace(scale=None, shift=None, mean=None, var=None)
    biases = [projection.bias for projection in (skip, gating, psi)]
    norms = [
        tensor
        for projection in (skip, gating, psi)
        for tensor in (projection.scale, projection.shift, projection.mean, projection.var)
    ]
    F = psi.weight.numel()
    args = psi.weight, *biases, *norms, folded, F, skip.eps, gating.eps, psi.eps
    launch(fold_kernel, 1, *args, BF=next_power_of_2(F), num_warps=4)
