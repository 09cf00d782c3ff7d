"""The additive attention gate on a CPU in fewer passes over memory: when that may be, and how. torch.py says what."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ...fast.choice import CpuForm
from ...ops import guard
from ...ops import torch as ops

FEW = 1 << 19    # numbers in a tensor, under which deciding and folding cost more than is saved
TILE = 1 << 13   # pixels that a thread works on at a time: few enough for its cache, enough for a product of matrices
CONVS = tuple(ops.CONV.values())
NORMS = (*ops.BATCH_NORM.values(), nn.Identity)


# ---- when ------------------------------------------------------------------------------------------------------------


def folds(gate: Any, x: Tensor, g: Tensor) -> bool:
    """Whether `gated` may stand for x * gate.attention(x, g): nothing learns by it or listens to what is within."""
    return (
        x.numel() >= FEW
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, g, *gate.parameters())))
        and all(type(p) in guard.PLAIN for p in gate.parameters())
        and all(_pointwise(conv) and _settled(norm) for conv, norm in _maps(gate))
    )   # fmt: skip


def overwrites(gate: Any, t: Tensor, p: Tensor) -> bool:
    """Whether relu(t + p) may be written over t, what gate.skip_norm returned: nobody else needs it."""
    return (
        guard.is_eager_on_cpu(t, p)
        and t.numel() >= FEW
        and t.dtype == p.dtype
        and guard.is_ordinary(gate.skip, *CONVS)
        and guard.is_ordinary(gate.skip_norm, *NORMS)
    )


def multiplies(conv: Any, x: Tensor) -> bool:
    """Whether a convolution that is to learn may be a product of matrices."""
    return (
        guard.is_eager_on_cpu(x)                    # asked first, lest a trace note what is asked of x
        and torch.is_grad_enabled()     # without gradients there is `gated`
        and x.numel() >= FEW
        and x.is_contiguous()           # channels last has kernels that are as quick
        and _pointwise(conv)
        and guard.is_eager_on_cpu(conv.weight)
        and x.dtype == conv.weight.dtype
        and prod(x.shape[2:]) >= max(conv.weight.shape[:2])   # every sample has a gradient of the weights to itself
    )


def _pointwise(conv: Any) -> bool:
    """Whether this is an ordinary 1x1 convolution."""
    ordinary = guard.is_ordinary(conv, *CONVS)
    return ordinary and {*conv.kernel_size, *conv.stride, conv.groups} == {1} and not any(conv.padding)


def _settled(norm: Any) -> bool:
    """Whether this is no norm, or a batch norm by running statistics."""
    return guard.is_ordinary(norm, *NORMS) and (
        isinstance(norm, nn.Identity) or (not norm.training and norm.running_mean is not None)
    )


# ---- how -------------------------------------------------------------------------------------------------------------


def gated(gate: Any, x: Tensor, g: Tensor) -> Tensor:
    """(N, C, *S), (N, G, *G) -> (N, C, *S): x * gate.attention(x, g), for a gate without stride.

    Batch norms are folded into the convolutions before them. Then everything is done for some pixels at a time, so
    that what lies between x, g and y stays in the cache.
    """
    gate.check_inputs(x, g)
    (v, c), (w, b), (u, d) = (_folded(conv, norm) for conv, norm in _maps(gate))
    p, b, same = g, b + c, g.shape[2:] == x.shape[2:]
    if not same:
        p = ops.resize(_projected(g, w, b), x.shape[2:], gate.spec.interpolation, gate.spec.align_corners)
    y = torch.empty_like(x)
    for xs, ps, ys in zip(_tiles(x), _tiles(p), _tiles(y), strict=True):
        h = _linear(ps, w, b) if same else ps
        h = h.baddbmm_(v.expand(len(h), -1, -1), xs).relu_()
        torch.mul(xs, torch.baddbmm(d, u.expand(len(h), -1, -1), h).sigmoid_(), out=ys)
    return y


def project(conv: Any, x: Tensor) -> Tensor:
    """(N, C, *S) -> (N, F, *S): conv(x). Going back, torch's own kernel fills with zeros first what it then writes."""
    if not multiplies(conv, x):
        return conv(x)
    w, flat = conv.weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)
    y = torch.bmm(w, flat) if conv.bias is None else torch.baddbmm(conv.bias[:, None], w, flat)
    return y.unflatten(2, x.shape[2:])


def _maps(gate: Any) -> tuple[tuple[Any, Any], ...]:
    """The gate's three convolutions, and what follows each."""
    return (gate.skip, gate.skip_norm), (gate.gating, gate.gating_norm), (gate.psi, gate.psi_norm)


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """(F, C), (F,): weight and bias of a 1x1 convolution and the batch norm after it."""
    w, b = conv.weight, conv.bias
    if not isinstance(norm, nn.Identity):
        w, b = fuse_conv_bn_weights(w, b, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return w.flatten(1), w.new_zeros(len(w)) if b is None else b


def _projected(g: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """(N, G, *S) -> (N, F, *S): w g + b, laid out as g is, also where a batch of one leaves that open."""
    return _linear(g.flatten(2), w, b).mT.unflatten(1, g.shape[2:]).movedim(-1, 1)


def _tiles(x: Tensor) -> Iterator[Tensor]:
    """(N, C, *S) -> views (n, C, p) of a few samples, or of some pixels of one."""
    flat, tile = x.flatten(2), TILE * torch.get_num_threads()
    for samples in flat.split(max(1, tile // flat.shape[2])):
        yield from samples.split(tile, 2)


def _linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """(n, C, p) -> (n, F, p): w x + b, laid out as x is."""
    if x.is_contiguous() or x.stride(1) != 1:
        return torch.baddbmm(b[:, None], w.expand(len(x), -1, -1), x)
    return torch.baddbmm(b, x.mT, w.mT.expand(len(x), -1, -1)).mT


FORM = CpuForm(folds, lambda *call: gated(*call))   # looked up at each call, as tests replace it
