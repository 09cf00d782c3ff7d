"""The additive attention gate on CPUs with fewer passes over memory. See torch.py for the definition."""

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

FEW = 1 << 19    # number of elements of a tensor below which checks and folding take longer than they save
TILE = 1 << 13   # number of pixels that a thread processes at a time: they fit into its cache, and products are fast
CONVS = tuple(ops.CONV.values())
NORMS = (*ops.BATCH_NORM.values(), nn.Identity)


# ---- conditions ------------------------------------------------------------------------------------------------------


def folds(gate: Any, x: Tensor, g: Tensor) -> bool:
    """Whether `gated` should compute x * gate.attention(x, g), instead of the gate's layers.

    x must be large, no gradient may be needed, and the layers must be 1x1 convolutions and foldable norms without
    hooks.
    """
    return (
        x.numel() >= FEW
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, g, *gate.parameters())))
        and all(type(parameter) in guard.PLAIN for parameter in gate.parameters())
        and all(_is_pointwise(conv) and _is_foldable(norm) for conv, norm in _layers(gate))
    )   # fmt: skip


def overwrites(gate: Any, skip: Tensor, gating: Tensor) -> bool:
    """Whether relu(skip + gating) may overwrite skip, the output of gate.skip_norm.

    It may if skip is large, and no hook can have stored it. gating: the resampled output of gate.gating_norm.
    """
    return (
        guard.is_eager_on_cpu(skip, gating)
        and skip.numel() >= FEW
        and skip.dtype == gating.dtype
        and guard.is_ordinary(gate.skip, *CONVS)
        and guard.is_ordinary(gate.skip_norm, *NORMS)
    )


def multiplies(conv: Any, x: Tensor) -> bool:
    """Whether conv(x) should be computed as a matrix product, for x (N, C, *S) in training."""
    return (
        guard.is_eager_on_cpu(x)        # checked before the properties of x, which a trace would record
        and torch.is_grad_enabled()     # without gradients, `gated` computes the whole gate
        and x.numel() >= FEW
        and x.is_contiguous()           # for channels last, the convolution is as fast
        and _is_pointwise(conv)
        and guard.is_eager_on_cpu(conv.weight)
        and x.dtype == conv.weight.dtype
        and prod(x.shape[2:]) >= max(conv.weight.shape[:2])   # backward: one weight gradient per sample
    )


def _is_pointwise(conv: Any) -> bool:
    """Whether the module is an ordinary 1x1 convolution with stride 1."""
    is_ordinary = guard.is_ordinary(conv, *CONVS)
    return is_ordinary and {*conv.kernel_size, *conv.stride, conv.groups} == {1} and not any(conv.padding)


def _is_foldable(norm: Any) -> bool:
    """Whether the module is `nn.Identity`, or a batch norm that uses running statistics."""
    return guard.is_ordinary(norm, *NORMS) and (
        isinstance(norm, nn.Identity) or (not norm.training and norm.running_mean is not None)
    )


# ---- computation -----------------------------------------------------------------------------------------------------


def gated(gate: Any, x: Tensor, g: Tensor) -> Tensor:
    """Return x * gate.attention(x, g) for x (N, C, *S) and g (N, G, *G): (N, C, *S); the gate must have stride 1.

    Batch norms are folded into the convolutions before them. Then tiles of pixels are processed one after the other,
    so that the intermediate tensors stay in the cache.
    """
    gate.check_inputs(x, g)
    (skip_weight, skip_bias), (gating_weight, gating_bias), (psi, psi_bias) = (
        _folded(conv, norm) for conv, norm in _layers(gate)
    )
    bias = gating_bias + skip_bias
    if g.shape[2:] == x.shape[2:]:
        projected_tiles: Iterator[Tensor] = (_linear(tile, gating_weight, bias) for tile in _tiles(g))
    else:
        projection = _projected(g, gating_weight, bias)
        projected_tiles = _tiles(
            ops.resize(projection, x.shape[2:], gate.spec.interpolation, gate.spec.align_corners)
        )
    y = torch.empty_like(x)
    for x_tile, projected, y_tile in zip(_tiles(x), projected_tiles, _tiles(y), strict=True):
        h = projected.baddbmm_(skip_weight.expand(len(projected), -1, -1), x_tile).relu_()
        alpha = torch.baddbmm(psi_bias, psi.expand(len(h), -1, -1), h).sigmoid_()
        torch.mul(x_tile, alpha, out=y_tile)
    return y


def project(conv: Any, x: Tensor) -> Tensor:
    """Return conv(x) for x (N, C, *S): (N, F, *S).

    A matrix product has the faster backward pass: that of PyTorch's convolution first fills its results with zeros.
    """
    if not multiplies(conv, x):
        return conv(x)
    w, flat = conv.weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)
    y = torch.bmm(w, flat) if conv.bias is None else torch.baddbmm(conv.bias[:, None], w, flat)
    return y.unflatten(2, x.shape[2:])


def _layers(gate: Any) -> tuple[tuple[Any, Any], ...]:
    """Return the gate's three convolutions, each with the norm after it."""
    return (gate.skip, gate.skip_norm), (gate.gating, gate.gating_norm), (gate.psi, gate.psi_norm)


def _folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return weight (F, C) and bias (F,) of a 1x1 convolution with the norm after it folded in."""
    weight, bias = conv.weight, conv.bias
    if not isinstance(norm, nn.Identity):
        weight, bias = fuse_conv_bn_weights(
            weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    return weight.flatten(1), weight.new_zeros(len(weight)) if bias is None else bias


def _projected(g: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight g + bias for g (N, G, *S), weight (F, G) and bias (F,): (N, F, *S).

    The strides are those that a convolution would give, also for N = 1.
    """
    return _linear(g.flatten(2), weight, bias).mT.unflatten(1, g.shape[2:]).movedim(-1, 1)


def _tiles(x: Tensor) -> Iterator[Tensor]:
    """Split x (N, C, *S) into views (n, C, p) that fit into the cache: several samples, or part of one sample."""
    flat, tile = x.flatten(2), TILE * torch.get_num_threads()
    for samples in flat.split(max(1, tile // flat.shape[2])):
        yield from samples.split(tile, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight x + bias for x (n, C, p), weight (F, C) and bias (F,): (n, F, p), in the layout of x."""
    if x.is_contiguous() or x.stride(1) != 1:
        return torch.baddbmm(bias[:, None], weight.expand(len(x), -1, -1), x)
    return torch.baddbmm(bias, x.mT, weight.mT.expand(len(x), -1, -1)).mT


FORM = CpuForm(folds, lambda *call: gated(*call))   # looks `gated` up at each call, because tests replace it
