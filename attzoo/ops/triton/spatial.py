"""From maps over channels to t, one coefficient per place, and back: convolution, batch norm if there is one, sigmoid.

Batch norm of one channel is torch's own, forward and back: it reads 1 / C of the size of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..numpy import one_value
from . import common
from . import maps as conv
from .common import small

NORM = "Tensor? scale, Tensor? shift, Tensor? mean, Tensor? var, float eps, bool training"


class Filter(NamedTuple):
    """The convolution's weight (1, 2, *k) and, of the batch norm after it, its arrays of 1 number, or None.

    mean, var: of what has run, None in training.
    """

    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    training: bool


class Kept(NamedTuple):
    """What the way back needs: maps (N, 2, S) and t (N, S).

    Where there is batch norm, also the convolution q (N, S) and the batch's mean and 1 / deviation; else these are
    empty.
    """

    maps: Tensor
    t: Tensor
    q: Tensor
    mean: Tensor
    rate: Tensor


def filter_of(block: Any) -> Filter:
    """That of a spatial attention."""
    norm = block.norm
    if isinstance(norm, nn.Identity):
        return Filter(block.conv.weight, None, None, None, None, 0.0, False)
    training = norm.training or norm.running_mean is None
    settled = (None, None) if training else (norm.running_mean, norm.running_var)
    return Filter._make([block.conv.weight, norm.weight, norm.bias, *settled, norm.eps, training])


def kept(x: Tensor, it: Filter) -> Kept:
    """Room for what is kept of x (N, C, *S)."""
    N, S = x.shape[0], prod(x.shape[2:])   # len(x) would tie a graph to it
    samples, channels = (0, 0) if it.scale is None else (N, 1)   # torch 2.11 multiplies no size of a graph by a bool
    return Kept(small(x, N, 2, S), small(x, N, S), small(x, samples, S), small(x, channels), small(x, channels))


def forward(size: Sequence[int], it: Filter, to: Kept) -> None:
    """Maps that are there -> everything else that is kept."""
    if it.scale is None or not to.q.numel():
        conv.conv(to.maps, it.weight, size, to.t, gate=True)
        return
    if it.training and to.q.numel() == 1:
        raise one_value(to.q.shape)
    conv.conv(to.maps, it.weight, size, to.q, gate=False)
    arrays: list[Any] = [None if a is None else a.to(to.q.dtype) for a in it[1:5]]
    normal, mean, rate = torch.ops.aten.native_batch_norm(to.q[:, None], *arrays, it.training, 0.0, it.eps)
    torch.sigmoid(normal[:, 0], out=to.t)
    if it.training:
        to.mean.copy_(mean)
        to.rate.copy_(rate)


def backward(
    da: Tensor, ties: Tensor, size: Sequence[int], channels: int, it: Filter, kept: Kept, gradients: Sequence[Any]
) -> Tensor:
    """The gradient of the maps from that of the sigmoid's input, (N, S): of each channel by the mean, and of each tie.

    Those of weight, scale and shift are written into `gradients`.
    """
    dweight, dscale, dshift = gradients
    if it.scale is not None and not da.numel():   # torch would divide by 0
        dscale.zero_()
        dshift.zero_()
    elif it.scale is not None:
        arrays: list[Any] = [None if a is None else a.to(da.dtype) for a in (it.scale, it.mean, it.var)]
        norm = torch.ops.aten.native_batch_norm_backward
        da, *both = norm(da[:, None], kept.q[:, None], *arrays, kept.mean, kept.rate, it.training, it.eps, [True] * 3)
        da = da[:, 0].contiguous()
        dscale.copy_(both[0])
        dshift.copy_(both[1])
    return conv.backward(da, ties, kept.maps, it.weight, size, channels, dweight)


def follow(block: Any, it: Filter, kept: Kept) -> None:
    """What batch norm does in training besides."""
    if it.scale is not None and it.training:
        common.follow(block.norm, kept.mean, kept.rate**-2 - it.eps, kept.q.numel())
