"""Channel attention, spatial attention and CBAM on a CPU, eagerly: y = x * s * t in few passes over x, by hand.

s is one coefficient per channel, of averages and maxima over space; t is one per place, of averages and maxima over
channels of x * s. What computes them stays in the blocks, as `coefficients`, and torch differentiates it as ever. Only
what reads all of x is here, in parts of the batch, each of which is still in the cache when it is read again. x * s is
not kept, and the gradient of x is written once.
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
PART = 1 << 20    # bytes of x, about, that are worked on at a time; a half or four times of it make no clear difference
# Numbers in x, under which starting the passes costs more than they save: 0.1 to 0.2 ms of training, 0.05 of inference
SMALL = 1 << 17
SMALL_TO_INFER = 1 << 20


# ---- the forms of blocks ---------------------------------------------------------------------------------------------


def _is_worth_it(block: Any, x: Tensor) -> bool:
    """Whether x is large enough, and no hook is to see what a part of the block is given."""
    return (
        x.numel() >= (SMALL if torch.is_grad_enabled() else SMALL_TO_INFER)
        and (torch.is_grad_enabled() or block.has_parts)   # else the readable form makes the same passes
        and all(guard.is_ordinary(getattr(block, name), kind) for name, kind in block.parts.items())
    )


CHANNEL = CpuForm(_is_worth_it, lambda block, x: scale(x, block.coefficients, None))
SPATIAL = CpuForm(_is_worth_it, lambda block, x: scale(x, None, block.coefficients))
BOTH = CpuForm(_is_worth_it, lambda block, x: scale(x, block.channel.coefficients, block.spatial.coefficients))


# ---- what they compute -----------------------------------------------------------------------------------------------


def scale(x: Tensor, channel: Coefficients | None, spatial: Coefficients | None) -> Tensor:
    """(N, C, *S) -> x * s * t, (N, C, *S).

    channel: s from average and maximum over space, (N, C) each -> (N, C); None for s = 1.
    spatial: t from average and maximum over channels of x * s, (N, 2, *S) -> (N, 1, *S); None for t = 1.
    """
    if channel and spatial and not torch.is_grad_enabled():
        return _infer(x, channel, spatial)
    way = BackwardContext()
    s = t = None
    outputs, maps, *pools = PoolSpace.apply(x, way, channel is not None)
    if channel:
        s = channel(*pools)
        way.s = s.detach()
    if spatial:
        t = spatial(PoolChannels.apply(x, maps, s, way))
        way.t = t.detach()
    return Multiply.apply(x, outputs, s, t)


def _infer(x: Tensor, channel: Coefficients, spatial: Coefficients) -> Tensor:
    """`scale` by both where no gradient is wanted: x * s stands where y will."""
    s = channel(*_pools(x))
    y, maps = torch.empty_like(x), _empty_maps(x)
    for at in _parts(x):
        _map(_flat(torch.mul(x[at], expand(s[at], x), out=y[at])), maps[at].flatten(2))
    return y.mul_(spatial(maps))


# ---- with gradients --------------------------------------------------------------------------------------------------
#
# PoolSpace returns the pools over space, PoolChannels averages and maxima over channels, Multiply the product. Multiply
# and PoolChannels do not compute their parts of the gradient of x: they pass what that takes on to PoolSpace, whose
# backward runs last and computes the whole gradient at once, so that nothing else of that size is written. For that,
# PoolSpace returns two tensors without content, which the others take as inputs. As the gradient of the first, Multiply
# returns that of y; as the gradient of the second, PoolChannels returns what each position gives its channels. Where
# the backward pass is to be differentiated in turn, or is under vmap, torch differentiates the plain form of each.


@dataclass
class BackwardContext:
    """What one forward pass leaves for `PoolSpace.backward`: what it multiplied x by, and where its maxima were."""

    s: Tensor | None = None     # (N, C)
    t: Tensor | None = None     # (N, 1, *S)
    top: Tensor | None = None   # (N, S), maxima of x * s over channels


class PoolSpace(Function):
    """x (N, C, *S) -> what stands for outputs and maps, (N, C, *S) and (N, 2, *S); both pools, (N, C), if `pooled`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, way: BackwardContext, pooled: bool) -> Any:
        pools = _pools(x) if pooled else []
        ctx.way = way
        ctx.save_for_backward(x, *pools[1:])
        ctx.set_materialize_grads(False)
        nothing = x.new_zeros(())
        return nothing.expand_as(x), nothing.expand(len(x), 2, *x.shape[2:]), *pools

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, shares: Tensor | None, *dpools: Tensor | None) -> Any:
        x, *tops = ctx.saved_tensors
        if needs_differentiable_backward(dy, shares, *dpools):
            (dx,) = differentiate(_plain_pools, (x,), dpools) if dpools else (None,)
            return dx, None, None
        dy = x.new_zeros(()).expand_as(x) if dy is None else dy
        dx = torch.empty_like(x)
        for at in _parts(x):
            dz = _grad_of_scaled(ctx.way, at, x, dy, shares, dx)
            if tops:
                _grad_of_input(ctx.way, at, x, dz, tops[0], dpools, dx)
        return dx, None, None


def _grad_of_scaled(
    way: BackwardContext, at: slice, x: Tensor, dy: Tensor, shares: Tensor | None, dx: Tensor
) -> Tensor:
    """A part of the gradient of x * s, written to dx unless it is that of y: (N, C, S)."""
    part = _flat(dy[at])
    if way.t is None:
        return part
    t, into = way.t[at].flatten(2), _flat(dx[at])
    if shares is None:
        return torch.mul(part, t, out=into)
    mean, each = shares[at].flatten(2).split(1, dim=1)
    mask = _maxima(way, at, x, into)
    return torch.addcmul(mean, mask, each, out=into).addcmul_(part, t)


def _grad_of_input(
    way: BackwardContext, at: slice, x: Tensor, dz: Tensor, top: Tensor, dpools: Any, dx: Tensor
) -> None:
    """A part of the gradient of x from that of x * s, (N, C, S), and those of the pools, (N, C), written to dx."""
    assert way.s is not None   # there are pools; for the type checker
    part, into = _flat(x[at]), _flat(dx[at])
    davg, dtop = (top.new_zeros(()).expand_as(top) if d is None else d for d in dpools)
    mask = torch.eq(part, top[at, :, None], out=torch.empty_like(part))
    each = dtop[at, :, None] / mask.sum(2, keepdim=True)
    base = torch.addcmul(davg[at, :, None] / part.shape[2], mask, each, out=mask)
    torch.addcmul(base, dz, way.s[at, :, None], out=into)


class PoolChannels(Function):
    """x (N, C, *S), s (N, C) or None for 1 -> average and maximum over channels of x * s, (N, 2, *S)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient_carrier: Tensor, s: Tensor | None, way: BackwardContext) -> Any:
        maps = _empty_maps(x)
        products = None if s is None else _scratch(x)
        for at in _parts(x):
            z = _flat(x[at])
            if s is not None and products is not None:
                z = torch.mul(z, s[at, :, None], out=products[: len(z)])
            _map(z, maps[at].flatten(2))
        way.top = maps[:, 1].flatten(1).clone()   # a view would know maps, and by them what keeps `way`: a circle
        ctx.way = way
        ctx.save_for_backward(x, s)
        return maps

    @staticmethod
    def backward(ctx: Any, dmaps: Tensor) -> Any:
        x, s = ctx.saved_tensors
        if needs_differentiable_backward(dmaps):
            dx, ds = differentiate(lambda x, s: [_plain_maps(x, s)], (x, s), [dmaps])
            return dx, None, ds, None
        shares = _empty_maps(x)
        ds = None if s is None else torch.empty_like(s)
        scratch = _scratch(x)
        mean, each = shares.flatten(2).split(1, dim=1)
        dmean, dtop = dmaps.flatten(2).split(1, dim=1)
        torch.div(dmean, x.shape[1], out=mean)
        for at in _parts(x):
            z = _flat(x[at])
            mask = _maxima(ctx.way, at, x, scratch[: len(z)])
            torch.div(dtop[at], mask.sum(1, keepdim=True), out=each[at])
            if ds is not None:
                ds[at] = torch.addcmul(mean[at], mask, each[at], out=mask).mul_(z).sum(2)
        return None, shares, ds, None


class Multiply(Function):
    """x (N, C, *S), s (N, C) or None for 1, t (N, 1, *S) or None for 1 -> x * s * t, (N, C, *S)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient_carrier: Tensor, s: Tensor | None, t: Tensor | None) -> Any:
        ctx.save_for_backward(x, s, t)
        if s is None or t is None:
            return _plain(x, s, t)
        y = torch.empty_like(x)
        for at in _parts(x):
            torch.mul(x[at], expand(s[at], x), out=y[at]).mul_(t[at])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, s, t = ctx.saved_tensors
        if needs_differentiable_backward(dy):
            dx, ds, dt = differentiate(lambda x, s, t: [_plain(x, s, t)], (x, s, t), [dy])
            return dx, None, ds, dt
        ds = torch.empty_like(s) if ctx.needs_input_grad[2] else None
        dt = torch.empty_like(t) if ctx.needs_input_grad[3] else None
        products = _scratch(x)
        for at in _parts(x):
            both = torch.mul(_flat(dy[at]), _flat(x[at]), out=products[: len(x[at])])
            if ds is not None:
                ds[at] = both.sum(2) if t is None else torch.bmm(both, t[at].flatten(2).mT)[:, :, 0]
            if dt is not None:
                total = both.sum(1, keepdim=True) if s is None else torch.bmm(s[at, None], both)
                dt[at] = total.view_as(dt[at])
        return None, dy, ds, dt


# ---- what they share -------------------------------------------------------------------------------------------------


def needs_differentiable_backward(*gradients: Tensor | None) -> bool:
    """Whether a backward pass is to be differentiated, or runs under vmap, which cannot write into what there is."""
    active = torch.is_grad_enabled() or guard.in_transform()
    return active or any(d is not None and guard.is_batched_gradient(d) for d in gradients)


def differentiate(
    call: Callable[..., list[Tensor]], inputs: tuple[Tensor | None, ...], gradients: Any
) -> list[Tensor | None]:
    """What torch makes of the gradients of call(*inputs): those of the inputs, None where none is wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():   # by views, lest what one input was made of be taken for a way to another
        views = [x if x is None else x.view_as(x) for x in inputs]
        outputs = call(*views)
    given = [(y, dy) for y, dy in zip(outputs, gradients, strict=True) if dy is not None and y.requires_grad]
    wanted = [view for view in views if view is not None and view.requires_grad]
    if not given:
        return [None] * len(views)
    ys, dys = zip(*given, strict=True)
    found = iter(torch.autograd.grad(ys, wanted, dys, create_graph=again, allow_unused=True))
    return [None if view is None or not view.requires_grad else next(found) for view in views]


def _plain(x: Tensor, s: Tensor | None, t: Tensor | None) -> Tensor:
    """(N, C, *S), (N, C) or None for 1, (N, 1, *S) or None for 1 -> their product, as one would write it."""
    z = x if s is None else x * expand(s, x)
    return z if t is None else z * t


def _plain_maps(x: Tensor, s: Tensor | None) -> Tensor:
    """Average and maximum over channels of x * s as one would write them: (N, C, *S) -> (N, 2, *S)."""
    z = _plain(x, s, None)
    return torch.cat([z.mean(1, keepdim=True), z.amax(1, keepdim=True)], dim=1)


def _plain_pools(x: Tensor) -> list[Tensor]:
    """Average and maximum over space: (N, C, *S) -> (N, C) each."""
    return [avg_pool(x), max_pool(x)]


def _pools(x: Tensor) -> list[Tensor]:
    """The same part by part, for the maximum to find in the cache what the average has read."""
    return [torch.cat(each) for each in zip(*(_plain_pools(x[at]) for at in _parts(x)), strict=True)]


def _map(z: Tensor, maps: Tensor) -> None:
    """Average and maximum over channels, into `maps`: (N, C, S), (N, 2, S)."""
    maps[:, 0] = z.mean(1)
    several = gcd(z.shape[1], 16)   # channels side by side make long rows, which torch's maximum is quick with
    if z.is_contiguous() and several > 1:
        z = z.unflatten(1, (-1, several)).flatten(2).amax(1).unflatten(1, (several, -1))
    maps[:, 1] = z.amax(1)


def _maxima(way: BackwardContext, at: slice, x: Tensor, into: Tensor) -> Tensor:
    """1 where a part of x * s, rounded as it was when they were found, is the maximum over channels, else 0."""
    assert way.top is not None   # PoolChannels has found them; for the type checker
    z = _flat(x[at]) if way.s is None else torch.mul(_flat(x[at]), way.s[at, :, None], out=into)
    return torch.eq(z, way.top[at, None], out=into)


def _parts(x: Tensor) -> Iterator[slice]:
    """Samples that are worked on at a time."""
    many = max(1, PART // max(1, x[0].nbytes))
    return (slice(i, i + many) for i in range(0, len(x), many))


def _flat(x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, C, S), without a copy if x is dense."""
    return x.flatten(2) if x.is_contiguous() else x.movedim(1, -1).flatten(1, -2).mT


def _scratch(x: Tensor) -> Tensor:
    """Room for a part of x, laid out as x is: (N, C, S)."""
    return torch.empty_like(_flat(x[next(_parts(x))]))


def _empty_maps(x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, 2, *S)."""
    return x.new_empty(len(x), 2, *x.shape[2:])
