"""Autograd functions of the form for CPUs, which write the gradient of x once.

Three autograd functions compute y: PoolSpace the averages and maxima over space, PoolChannels those over channels,
and Multiply the product. PoolSpace.backward runs last and computes the whole gradient of x, so that no other tensor
of that size is written. It receives what it needs from the other two as the gradients of two placeholder tensors,
which PoolSpace returns and the others take as inputs: Multiply returns the gradient of y for the first placeholder,
and PoolChannels the contribution of each position to its channels for the second. If the backward pass is itself
differentiated, or runs under vmap, autograd differentiates the plain form of each function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..ops.torch import expand
from .cpu_parts import (
    empty_maps,
    flatten_space,
    parts,
    plain,
    plain_maps,
    plain_pools,
    pools_of,
    scratch_of,
    write_maps,
)
from .double_backward import differentiate, needs_differentiable_backward


@dataclass
class BackwardContext:
    """Values that one forward pass saves for `PoolSpace.backward`.

    s and t are the coefficients, None for 1. maxima: maxima of x * s over channels.
    """

    s: Tensor | None = None     # (N, C)
    t: Tensor | None = None     # (N, 1, *S)
    maxima: Tensor | None = None   # (N, S), maxima of x * s over channels


class PoolSpace(Function):
    """Return two placeholders, (N, C, *S) and (N, 2, *S), and if `pooled` average and maximum over space, (N, C) each.

    Placeholders have no meaning in the forward pass. Their gradients carry values from the backward passes of
    `Multiply` and `PoolChannels` to that of `PoolSpace`; see the comment above.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, context: BackwardContext, pooled: bool) -> Any:
        """Return the placeholders and, if `pooled`, the average and the maximum over space.

        context: receives the values that the other functions of this forward pass save.
        """
        pools = pools_of(x) if pooled else []
        ctx.context = context
        ctx.save_for_backward(x, *pools[1:])
        ctx.set_materialize_grads(False)
        zero = x.new_zeros(())
        return zero.expand_as(x), zero.expand(len(x), 2, *x.shape[2:]), *pools

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, contributions: Tensor | None, *dpools: Tensor | None) -> Any:
        """Return the gradient of x, from the gradients of the placeholders (dy, contributions) and of the pools."""
        x, *maxima = ctx.saved_tensors
        if needs_differentiable_backward(dy, contributions, *dpools):
            (dx,) = differentiate(plain_pools, (x,), dpools) if dpools else (None,)
            return dx, None, None
        dy = x.new_zeros(()).expand_as(x) if dy is None else dy
        dx = torch.empty_like(x)
        for samples in parts(x):
            dz = _grad_of_scaled(ctx.context, samples, x, dy, contributions, dx)
            if maxima:
                _grad_of_input(ctx.context, samples, x, dz, maxima[0], dpools, dx)
        return dx, None, None


def _grad_of_scaled(
    context: BackwardContext, samples: slice, x: Tensor, dy: Tensor, contributions: Tensor | None, dx: Tensor
) -> Tensor:
    """Return the gradient of x * s for a slice of the batch, (N, C, S), in the memory of dx unless it is a part of dy.

    Args:
        context: the values that the forward pass saved.
        samples: the slice.
        x: the whole input, (N, C, *S).
        dy: gradient of y = x * s * t.
        contributions: those of `PoolChannels.backward`; None without t.
        dx: tensor for the gradient of x, whose memory is used.
    """
    part = flatten_space(dy[samples])
    if context.t is None:
        return part
    t, dx_part = context.t[samples].flatten(2), flatten_space(dx[samples])
    if contributions is None:
        return torch.mul(part, t, out=dx_part)
    mean, per_maximum = contributions[samples].flatten(2).split(1, dim=1)
    mask = _maxima(context, samples, x, dx_part)
    return torch.addcmul(mean, mask, per_maximum, out=dx_part).addcmul_(part, t)


def _grad_of_input(
    context: BackwardContext, samples: slice, x: Tensor, dz: Tensor, maxima: Tensor, dpools: Any, dx: Tensor
) -> None:
    """Write the gradient of x for a slice of the batch into dx.

    Args:
        context: the values that the forward pass saved.
        samples: the slice.
        x: the whole input, (N, C, *S).
        dz: gradient of x * s for the slice, (N, C, S).
        maxima: maxima of x over space, (N, C).
        dpools: gradients of average and maximum over space, (N, C) or None each.
        dx: tensor to write, (N, C, *S).
    """
    assert context.s is not None   # for the type checker
    part, dx_part = flatten_space(x[samples]), flatten_space(dx[samples])
    davg, dmaximum = (maxima.new_zeros(()).expand_as(maxima) if gradient is None else gradient for gradient in dpools)
    mask = torch.eq(part, maxima[samples, :, None], out=torch.empty_like(part))
    per_maximum = dmaximum[samples, :, None] / mask.sum(2, keepdim=True)
    base = torch.addcmul(davg[samples, :, None] / part.shape[2], mask, per_maximum, out=mask)
    torch.addcmul(base, dz, context.s[samples, :, None], out=dx_part)


class PoolChannels(Function):
    """Return the average and the maximum over channels of x * s, (N, 2, *S); s is (N, C), or None for 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, placeholder: Tensor, s: Tensor | None, context: BackwardContext) -> Any:
        """Return the average and the maximum over channels of x * s, and save the maxima in `context`.

        The value of `placeholder` is not used; its gradient carries the contributions of `backward` to `PoolSpace`.
        """
        maps = empty_maps(x)
        products = None if s is None else scratch_of(x)
        for samples in parts(x):
            z = flatten_space(x[samples])
            if s is not None and products is not None:
                z = torch.mul(z, s[samples, :, None], out=products[: len(z)])
            write_maps(z, maps[samples].flatten(2))
        context.maxima = maps[:, 1].flatten(1).clone()   # a view would create a reference cycle
        ctx.context = context
        ctx.save_for_backward(x, s)
        return maps

    @staticmethod
    def backward(ctx: Any, dmaps: Tensor) -> Any:
        """Return the gradient of s and, as the gradient of the placeholder, the contributions to the gradient of x * s.

        dmaps: gradient of the result, (N, 2, *S). Contributions are (N, 2, *S): at each position, the first is the part
        that the mean adds to the gradient of every channel, and the second the part that the maximum adds to the
        gradient of each channel that equals the maximum.
        """
        x, s = ctx.saved_tensors
        if needs_differentiable_backward(dmaps):
            dx, ds = differentiate(lambda x, s: [plain_maps(x, s)], (x, s), [dmaps])
            return dx, None, ds, None
        contributions = empty_maps(x)
        ds = None if s is None else torch.empty_like(s)
        scratch = scratch_of(x)
        mean, per_maximum = contributions.flatten(2).split(1, dim=1)
        dmean, dmaximum = dmaps.flatten(2).split(1, dim=1)
        torch.div(dmean, x.shape[1], out=mean)
        for samples in parts(x):
            z = flatten_space(x[samples])
            mask = _maxima(ctx.context, samples, x, scratch[: len(z)])
            torch.div(dmaximum[samples], mask.sum(1, keepdim=True), out=per_maximum[samples])
            if ds is not None:
                ds[samples] = torch.addcmul(mean[samples], mask, per_maximum[samples], out=mask).mul_(z).sum(2)
        return None, contributions, ds, None


class Multiply(Function):
    """Return x * s * t, (N, C, *S); s is (N, C), or None for 1, and t is (N, 1, *S), or None for 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, placeholder: Tensor, s: Tensor | None, t: Tensor | None) -> Any:
        """Return x * s * t. The gradient of `placeholder` carries dy to `PoolSpace.backward`."""
        ctx.save_for_backward(x, s, t)
        if s is None or t is None:
            return plain(x, s, t)
        y = torch.empty_like(x)
        for samples in parts(x):
            torch.mul(x[samples], expand(s[samples], x), out=y[samples]).mul_(t[samples])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return dy as the gradient of the placeholder, and the gradients of s and t."""
        x, s, t = ctx.saved_tensors
        if needs_differentiable_backward(dy):
            dx, ds, dt = differentiate(lambda x, s, t: [plain(x, s, t)], (x, s, t), [dy])
            return dx, None, ds, dt
        ds = torch.empty_like(s) if ctx.needs_input_grad[2] else None
        dt = torch.empty_like(t) if ctx.needs_input_grad[3] else None
        products = scratch_of(x)
        for samples in parts(x):
            flat_dy, flat_x = flatten_space(dy[samples]), flatten_space(x[samples])
            dy_times_x = torch.mul(flat_dy, flat_x, out=products[: len(flat_x)])
            if ds is not None:
                flat_t = None if t is None else t[samples].flatten(2).mT
                ds[samples] = dy_times_x.sum(2) if flat_t is None else torch.bmm(dy_times_x, flat_t)[:, :, 0]
            if dt is not None:
                total = dy_times_x.sum(1, keepdim=True) if s is None else torch.bmm(s[samples, None], dy_times_x)
                dt[samples] = total.view_as(dt[samples])
        return None, dy, ds, dt


def _maxima(context: BackwardContext, samples: slice, x: Tensor, out: Tensor) -> Tensor:
    """Write 1 into `out` where x * s is the maximum over channels, else 0, for a slice of the batch. Return `out`.

    context: the values that the forward pass saved. samples: the slice. out: (N, C, S) of the slice. x * s is rounded
    as in the forward pass.
    """
    assert context.maxima is not None   # set by PoolChannels; for the type checker
    z = flatten_space(x[samples])
    if context.s is not None:
        z = torch.mul(z, context.s[samples, :, None], out=out)
    return torch.eq(z, context.maxima[samples, None], out=out)
