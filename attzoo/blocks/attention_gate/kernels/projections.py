"""The projections of the additive attention gate, and the factors and summands that their biases and norms amount to.

A norm of W x + bias is factor * W x + summand, with F numbers each. Every program computes those of the channels that
it needs, because a kernel that computes them before would take longer than reading them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ....fast.triton.common import REAL


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

    def without_batch_norm(self) -> Projection:
        """Return the projection without its norm if that is `by_batch`, for kernels that do not apply it."""
        return self._replace(scale=None, shift=None) if self.by_batch else self

    def norm_arguments(self) -> tuple[Any, ...]:
        """Return the bias and the norm as arguments of a kernel."""
        return self.bias, self.scale, self.shift, self.mean, self.var, self.eps

    def scale_arguments(self) -> tuple[Any, ...]:
        """Return the arguments of a kernel that needs only the factor of the norm."""
        return self.scale, self.mean, self.var, self.eps


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
def norm_scale(scale, mean, var, f, F, eps):
    """Return the factor of a norm at channels f of F, in f's shape: scale / standard deviation, or 1 without a norm.

    scale, mean, var, eps: those of `Projection`; scale is None without a norm. If var is None, the variance follows the
    mean in memory.
    """
    if scale is None:
        factor = tl.full(f.shape, 1.0, REAL)
    else:
        if var is None:
            variance = tl.load(mean + F + f, f < F, 1.0)
        else:
            variance = tl.load(var + f, f < F, 1.0).to(REAL)
        factor = load_vector(scale, f, F) / tl.sqrt(variance + eps)
    return factor


@triton.jit
def norm_shift(factor, bias, shift, mean, f, F):
    """Return the summand of a norm at channels f of F, in f's shape, so that norm(z + bias) = factor * z + summand.

    factor: see `norm_scale`. bias, shift, mean: those of `Projection`; shift is None without a norm.
    """
    offset = tl.full(f.shape, 0.0, REAL)
    if bias is not None:
        offset += load_vector(bias, f, F)
    if shift is not None:
        offset = (offset - load_vector(mean, f, F)) * factor + load_vector(shift, f, F)
    return offset
