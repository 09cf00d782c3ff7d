"""From maps over channels to t, one coefficient per place, and back: convolution, batch norm if there is one, sigmoid.

Batch norm is that of channel_norm.py: its one channel has 1 / C of the size of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...ops.numpy import one_value
from . import channel_norm, common, passes
from . import maps as conv
from .common import empty_float32

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
    """What the backward pass needs: maps (N, 2, S) and t (N, S).

    Where there is batch norm, also the convolution q (N, S) and its statistics, see channel_norm.Norm; else these are
    empty.
    """

    maps: Tensor
    t: Tensor
    q: Tensor
    statistics: Tensor


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
    samples = 0 if it.scale is None else N   # torch 2.11 multiplies no size of a graph by a bool
    shapes = (N, 2, S), (N, S), (samples, S), (0 if it.scale is None else 3,)
    return Kept._make([empty_float32(x, *shape) for shape in shapes])


def norm_of(it: Filter, kept: Kept) -> channel_norm.Norm | None:
    """The norm, if there is one."""
    if it.scale is None or it.shift is None:
        return None
    return channel_norm.Norm(it.scale, it.shift, it.mean, it.var, it.eps, kept.q, kept.statistics)


def forward(size: Sequence[int], it: Filter, to: Kept) -> channel_norm.Norm | None:
    """Maps that are there -> everything else that is kept; but t where a norm is returned, which is to be applied."""
    if it.scale is not None and it.training and to.q.numel() == 1:
        raise one_value(to.q.shape)
    norm = norm_of(it, to)
    conv.conv(to.maps, it.weight, size, to.t, norm)
    return norm if norm is not None and norm.by_batch else None


def backward(
    x: Tensor, dy: Tensor, s: Tensor | None, it: Filter, kept: Kept, gradients: Sequence[Any]
) -> Tensor:
    """The gradient of the maps: of each channel by the mean, and of each tie; (N, 2, S).

    Those of weight, scale and shift are written into `gradients`.
    """
    dweight, *of_norm = gradients
    dq, ties = passes.to_places(x, dy, s, kept.t, kept.maps, norm_of(it, kept), of_norm)
    if it.scale is not None and not dq.numel():   # no program has added anything up
        for gradient in of_norm:
            gradient.zero_()
    return conv.backward(dq, ties, kept.maps, it.weight, x.shape[2:], x.shape[1], dweight)


def update_running_stats(block: Any, it: Filter, kept: Kept) -> None:
    """What batch norm does in training besides."""
    if it.scale is not None and it.training:
        common.update_running_stats(block.norm, kept.statistics[:1], kept.statistics[2:], kept.q.numel())
