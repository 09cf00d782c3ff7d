"""Spatial attention from maps over channels to t, one coefficient per position, and its backward pass.

t is the sigmoid of a convolution, with an optional batch norm between them, see channel_norm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...ops.numpy import one_value
from . import channel_norm, passes_backward, running_stats
from . import maps as map_kernels
from .common import empty_float32
from .running_stats import RunningStats

NORM = "Tensor? scale, Tensor? shift, Tensor? mean, Tensor? var, float eps, bool training"


class Filter(NamedTuple):
    """The convolution's weight (1, 2, *k), and the tensors of the batch norm after it, (1,) or None.

    mean, var: running statistics; None if the norm uses statistics of the batch (`training`).
    """

    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    eps: float
    training: bool


class Saved(NamedTuple):
    """Tensors saved for the backward pass: maps (N, 2, S) and t (N, S).

    With a batch norm, also the convolution's output (N, S) and its statistics, see channel_norm.Norm; else these have
    no elements.
    """

    maps: Tensor
    t: Tensor
    conv_output: Tensor
    statistics: Tensor


def filter_of(block: Any) -> Filter:
    """Return the weight and the norm of a spatial attention block."""
    norm = block.norm
    if isinstance(norm, nn.Identity):
        return Filter(block.conv.weight, None, None, None, None, 0.0, False)
    training = norm.training or norm.running_mean is None
    mean, var = (None, None) if training else (norm.running_mean, norm.running_var)
    return Filter(block.conv.weight, norm.weight, norm.bias, mean, var, norm.eps, training)


def allocate_saved(x: Tensor, conv: Filter) -> Saved:
    """Allocate the tensors to save for x (N, C, *S)."""
    N, S = x.shape[0], prod(x.shape[2:])   # len(x) would make N a constant of a graph
    samples = 0 if conv.scale is None else N   # torch 2.11 cannot multiply a symbolic size by a bool
    statistics = empty_float32(x, 0 if conv.scale is None else 3)
    return Saved(empty_float32(x, N, 2, S), empty_float32(x, N, S), empty_float32(x, samples, S), statistics)


def norm_of(conv: Filter, saved: Saved, updated: RunningStats = running_stats.NONE) -> channel_norm.Norm | None:
    """Return the batch norm after the convolution, with its saved tensors; None if there is no norm.

    updated: running statistics that the kernels update.
    """
    if conv.scale is None or conv.shift is None:
        return None
    running = updated if conv.training else RunningStats(conv.mean, conv.var, None, None)
    return channel_norm.Norm(
        conv.scale, conv.shift, running, conv.eps, conv.training, saved.conv_output, saved.statistics
    )


def forward(
    size: Sequence[int], conv: Filter, saved: Saved, updated: RunningStats
) -> channel_norm.Norm | None:   # fmt: skip
    """Write t and the other saved tensors from `saved.maps`.

    Return the norm if it uses statistics of the batch, else None. With such a norm t is not written, because
    `passes.scale` applies the norm.

    Args:
        size: the spatial size of x.
        conv: the convolution and its norm.
        saved: tensors to write, except for `maps`.
        updated: running statistics to update.

    Raises:
        ValueError: the statistics are those of a single value.

    """
    if conv.scale is not None and conv.training and saved.conv_output.numel() == 1:
        raise one_value(saved.conv_output.shape)
    norm = norm_of(conv, saved, updated)
    map_kernels.conv(saved.maps, conv.weight, size, saved.t, norm)
    return norm if norm is not None and norm.by_batch else None


def backward(
    x: Tensor, dy: Tensor, s: Tensor | None, conv: Filter, saved: Saved, gradients: Sequence[Any]
) -> Tensor:
    """Return the gradients of averages, divided by C, and of maxima, divided by the number of ties: (N, 2, S).

    Args:
        x: (N, C, *S).
        dy: gradient of x * s * t.
        s: coefficients per channel, (N, C), or None for 1.
        conv: the convolution and its norm.
        saved: the tensors that `forward` wrote.
        gradients: tensors to write: the gradients of weight, scale and shift.

    """
    dweight, *norm_gradients = gradients
    norm = norm_of(conv, saved)
    dconv, ties = passes_backward.position_gradients(x, dy, s, saved.t, saved.maps, norm, norm_gradients)
    if conv.scale is not None and not dconv.numel():   # no program has written the sums
        for gradient in norm_gradients:
            gradient.zero_()
    return map_kernels.backward(dconv, ties, saved.maps, conv.weight, x.shape[2:], x.shape[1], dweight)


def update_running_stats(norm: Any, saved: Saved) -> None:
    """Update the running statistics of a batch norm in place, if it is in training and has any.

    saved: tensors that the forward pass saved, with the statistics of the batch.
    """
    if running_stats.has_tracked(norm):
        running_stats.update(norm, saved.statistics[:1], saved.statistics[2:], saved.conv_output.numel())
