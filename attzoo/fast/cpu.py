"""Compute channel attention, spatial attention and CBAM on a CPU in eager mode: y = x * s * t in few passes over x.

s is one coefficient per channel, computed from averages and maxima over space. t is one coefficient per position,
computed from averages and maxima over channels of x * s. The blocks compute both in `coefficients`, which autograd
differentiates. This module has only the operations that read all of x. They work on one part of the batch at a time,
which stays in the cache between reads. x * s is not saved, and the gradient of x is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..ops import guard
from ..ops.torch import avg_pool, expand, max_pool
from .choice import CpuForm

Coefficients = Callable[..., Tensor]
PART = 1 << 20    # bytes of x per part, about; half or four times as many make no clear difference
# Elements of x below which the overhead exceeds the savings: 0.1 to 0.2 ms in training, 0.05 ms in inference
SMALL = 1 << 17
SMALL_TO_INFER = 1 << 20


# ---- which blocks are computed here, and from which size of x on -----------------------------------------------------


def _is_worth_it(block: Any, x: Tensor) -> bool:
    """Whether x is large enough for the form for CPUs, and the block's parts are unmodified and have no hooks."""
    return (
        x.numel() >= (SMALL if torch.is_grad_enabled() else SMALL_TO_INFER)
        and (torch.is_grad_enabled() or block.has_parts)   # else the plain form makes the same passes
        and all(guard.is_ordinary(getattr(block, name), kind) for name, kind in block.parts.items())
    )


CHANNEL = CpuForm(_is_worth_it, lambda block, x: scale(x, block.coefficients, None))
SPATIAL = CpuForm(_is_worth_it, lambda block, x: scale(x, None, block.coefficients))
BOTH = CpuForm(_is_worth_it, lambda block, x: scale(x, block.channel.coefficients, block.spatial.coefficients))


# ---- what is computed ------------------------------------------------------------------------------------------------


def scale(x: Tensor, compute_s: Coefficients | None, compute_t: Coefficients | None) -> Tensor:
    """Return x * s * t, (N, C, *S).

    Args:
        x: (N, C, *S).
        compute_s: computes s, (N, C), from the average and the maximum over space, (N, C) each; None for s = 1.
        compute_t: computes t, (N, 1, *S), from the average and the maximum over channels of x * s, (N, 2, *S); None for
            t = 1.

    """
    if compute_s and compute_t and not torch.is_grad_enabled():
        return _infer(x, compute_s, compute_t)
    context = BackwardContext()
    s = t = None
    outputs, maps, *pools = PoolSpace.apply(x, context, compute_s is not None)
    if compute_s:
        s = compute_s(*pools)
        context.s = s.detach()
    if compute_t:
        t = compute_t(PoolChannels.apply(x, maps, s, context))
        context.t = t.detach()
    return Multiply.apply(x, outputs, s, t)


def _infer(x: Tensor, compute_s: Coefficients, compute_t: Coefficients) -> Tensor:
    """Compute `scale` with both coefficients without gradients; x * s is stored in the memory of y."""
    s = compute_s(*_pools(x))
    y, maps = torch.empty_like(x), _empty_maps(x)
    for samples in _parts(x):
        z = torch.mul(x[samples], expand(s[samples], x), out=y[samples])
        _write_maps(_flatten_space(z), maps[samples].flatten(2))
    return y.mul_(compute_t(maps))


# ---- with gradients --------------------------------------------------------------------------------------------------
#
# Three autograd functions compute y: PoolSpace the averages and maxima over space, PoolChannels those over channels,
# and Multiply the product. PoolSpace.backward runs last and computes the whole gradient of x, so that no other tensor
# of that size is written. It receives what it needs from the other two as the gradients of two placeholder tensors,
# which PoolSpace returns and the others take as inputs: Multiply returns the gradient of y for the first placeholder,
# and PoolChannels the contribution of each position to its channels for the second. If the backward pass is itself
# differentiated, or runs under vmap, autograd differentiates the plain form of each function.


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
        pools = _pools(x) if pooled else []
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
            (dx,) = differentiate(_plain_pools, (x,), dpools) if dpools else (None,)
            return dx, None, None
        dy = x.new_zeros(()).expand_as(x) if dy is None else dy
        dx = torch.empty_like(x)
        for samples in _parts(x):
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
    part = _flatten_space(dy[samples])
    if context.t is None:
        return part
    t, dx_part = context.t[samples].flatten(2), _flatten_space(dx[samples])
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
    part, dx_part = _flatten_space(x[samples]), _flatten_space(dx[samples])
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
        maps = _empty_maps(x)
        products = None if s is None else _scratch(x)
        for samples in _parts(x):
            z = _flatten_space(x[samples])
            if s is not None and products is not None:
                z = torch.mul(z, s[samples, :, None], out=products[: len(z)])
            _write_maps(z, maps[samples].flatten(2))
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
            dx, ds = differentiate(lambda x, s: [_plain_maps(x, s)], (x, s), [dmaps])
            return dx, None, ds, None
        contributions = _empty_maps(x)
        ds = None if s is None else torch.empty_like(s)
        scratch = _scratch(x)
        mean, per_maximum = contributions.flatten(2).split(1, dim=1)
        dmean, dmaximum = dmaps.flatten(2).split(1, dim=1)
        torch.div(dmean, x.shape[1], out=mean)
        for samples in _parts(x):
            z = _flatten_space(x[samples])
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
            return _plain(x, s, t)
        y = torch.empty_like(x)
        for samples in _parts(x):
            torch.mul(x[samples], expand(s[samples], x), out=y[samples]).mul_(t[samples])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return dy as the gradient of the placeholder, and the gradients of s and t."""
        x, s, t = ctx.saved_tensors
        if needs_differentiable_backward(dy):
            dx, ds, dt = differentiate(lambda x, s, t: [_plain(x, s, t)], (x, s, t), [dy])
            return dx, None, ds, dt
        ds = torch.empty_like(s) if ctx.needs_input_grad[2] else None
        dt = torch.empty_like(t) if ctx.needs_input_grad[3] else None
        products = _scratch(x)
        for samples in _parts(x):
            flat_dy, flat_x = _flatten_space(dy[samples]), _flatten_space(x[samples])
            dy_times_x = torch.mul(flat_dy, flat_x, out=products[: len(flat_x)])
            if ds is not None:
                flat_t = None if t is None else t[samples].flatten(2).mT
                ds[samples] = dy_times_x.sum(2) if flat_t is None else torch.bmm(dy_times_x, flat_t)[:, :, 0]
            if dt is not None:
                total = dy_times_x.sum(1, keepdim=True) if s is None else torch.bmm(s[samples, None], dy_times_x)
                dt[samples] = total.view_as(dt[samples])
        return None, dy, ds, dt


# ---- shared ----------------------------------------------------------------------------------------------------------


def needs_differentiable_backward(*gradients: Tensor | None) -> bool:
    """Whether a backward pass with these gradients must be made of differentiable operations, without `out=`.

    It must if it is itself differentiated, or runs under vmap.
    """
    is_differentiable = torch.is_grad_enabled() or guard.in_transform()
    return is_differentiable or any(
        gradient is not None and guard.is_batched_gradient(gradient) for gradient in gradients
    )


def differentiate(
    call: Callable[..., list[Tensor]], inputs: tuple[Tensor | None, ...], gradients: Any
) -> list[Tensor | None]:
    """Return the gradient of each input of `call` by autograd; None for an input that requires none.

    call: function of the inputs that returns a list of tensors. gradients: gradients of these tensors, or None each.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():   # views: one input may be computed from another, and no gradient may flow between them
        views = [x if x is None else x.view_as(x) for x in inputs]
        outputs = call(*views)
    pairs = [(y, dy) for y, dy in zip(outputs, gradients, strict=True) if dy is not None and y.requires_grad]
    targets = [view for view in views if view is not None and view.requires_grad]
    if not pairs:
        return [None] * len(views)
    ys, dys = zip(*pairs, strict=True)
    computed = iter(torch.autograd.grad(ys, targets, dys, create_graph=create_graph, allow_unused=True))
    return [None if view is None or not view.requires_grad else next(computed) for view in views]


def _plain(x: Tensor, s: Tensor | None, t: Tensor | None) -> Tensor:
    """Return x * s * t in plain operations: (N, C, *S), (N, C) or None for 1, (N, 1, *S) or None for 1."""
    z = x if s is None else x * expand(s, x)
    return z if t is None else z * t


def _plain_maps(x: Tensor, s: Tensor | None) -> Tensor:
    """Return average and maximum over channels of x * s in plain operations, (N, 2, *S)."""
    z = _plain(x, s, None)
    return torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], dim=1)


def _plain_pools(x: Tensor) -> list[Tensor]:
    """Return average and maximum over space, (N, C) each."""
    return [avg_pool(x), max_pool(x)]


def _pools(x: Tensor) -> list[Tensor]:
    """Return average and maximum over space, (N, C) each, part by part, so that the maximum reads x from the cache."""
    return [torch.cat(pooled) for pooled in zip(*(_plain_pools(x[samples]) for samples in _parts(x)), strict=True)]


def _write_maps(z: Tensor, maps: Tensor) -> None:
    """Write average and maximum over channels of z (N, C, S) into maps (N, 2, S)."""
    maps[:, 0] = z.mean(1)
    group = gcd(z.shape[1], 16)   # groups of channels make long rows, over which amax is faster
    if z.is_contiguous() and group > 1:
        z = z.unflatten(1, (-1, group)).flatten(2).amax(1).unflatten(1, (group, -1))
    maps[:, 1] = z.amax(1)


def _maxima(context: BackwardContext, samples: slice, x: Tensor, out: Tensor) -> Tensor:
    """Write 1 into `out` where x * s is the maximum over channels, else 0, for a slice of the batch. Return `out`.

    context: the values that the forward pass saved. samples: the slice. out: (N, C, S) of the slice. x * s is rounded
    as in the forward pass.
    """
    assert context.maxima is not None   # set by PoolChannels; for the type checker
    z = _flatten_space(x[samples])
    if context.s is not None:
        z = torch.mul(z, context.s[samples, :, None], out=out)
    return torch.eq(z, context.maxima[samples, None], out=out)


def _parts(x: Tensor) -> Iterator[slice]:
    """Yield slices of the batch that divide x into parts of about PART bytes."""
    count = max(1, PART // max(1, x[0].nbytes))
    return (slice(i, i + count) for i in range(0, len(x), count))


def _flatten_space(x: Tensor) -> Tensor:
    """Return x (N, C, *S) as (N, C, S), without a copy if x is dense."""
    return x.flatten(2) if x.is_contiguous() else x.movedim(1, -1).flatten(1, -2).mT


def _scratch(x: Tensor) -> Tensor:
    """Allocate a tensor (n, C, S) as large as the first part of x, in the memory layout of x."""
    return torch.empty_like(_flatten_space(x[next(_parts(x))]))


def _empty_maps(x: Tensor) -> Tensor:
    """Allocate maps (N, 2, *S)."""
    return x.new_empty(len(x), 2, *x.shape[2:])
