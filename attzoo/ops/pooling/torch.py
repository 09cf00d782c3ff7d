"""Pooling, and coefficients that broadcast to an input, in PyTorch. Tensors are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import guard
from ..common.torch import in_dtype_of, move_last, upcast
from ..guard import EXACT, is_plain

MAX_POOL: dict[int, Callable[..., Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE_AVG_POOL: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def avg_pool(x: Tensor) -> Tensor:
    """Return the mean over the spatial axes: (N, C, *S) -> (N, C).

    Float32 and float64 use `sum`, whose gradient is an expanded view of one value per channel; the gradient of `mean`
    is a tensor as large as x. Half precision uses `mean`, which accumulates in float32, because a sum in float16 may
    overflow. Graphs use `mean` too, because they may be converted to half precision later.
    """
    return _mean(x, tuple(range(2, x.ndim)))


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the mean over axes, of which there is at least one, as `avg_pool` describes."""
    return x.sum(axes) / prod(x.shape[axis] for axis in axes) if is_plain(x) and x.dtype in EXACT else x.mean(axes)


def axis_mean(x: Tensor, axis: int) -> Tensor:
    """Return the mean over all spatial axes except one: (N, C, *S) -> (N, C, S[axis]). In 1-D, it is x itself.

    axis: index of the spatial axis that remains, 0 for the first.
    """
    axes = tuple(a for a in range(2, x.ndim) if a != 2 + axis)
    return _mean(x, axes) if axes else x


def expand_axis(s: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return the result of `axis_mean`, or a tensor of its shape, reshaped to broadcast with x.

    (N, C, S[axis]) -> (N, C, 1.., S[axis], 1..). axis: as in `axis_mean`.
    """
    return s[(slice(None), slice(None), *(None,) * axis, slice(None), *(None,) * (x.ndim - 3 - axis))]


def axis_means(x: Tensor) -> Tensor:
    """Return `axis_mean` of every spatial axis, concatenated: (N, C, *S) -> (N, C, sum of S)."""
    return torch.cat([axis_mean(x, axis) for axis in range(x.ndim - 2)], 2)


def split_axes(z: Tensor, x: Tensor) -> list[Tensor]:
    """Return the part of z of each spatial axis of x: (N, K, sum of S), (N, C, *S) -> (N, K, 1.., S[axis], 1..) each.

    It reverses the concatenation of `axis_means`. The parts broadcast with x if K is C or 1.
    """
    return [expand_axis(part, x, axis) for axis, part in enumerate(z.split(list(x.shape[2:]), 2))]


def max_pool(x: Tensor) -> Tensor:
    """Return the maximum over the spatial axes: (N, C, *S) -> (N, C). The gradient is split among equal maxima."""
    return x.amax(tuple(range(2, x.ndim)))


def mean_and_max(x: Tensor, axis: int) -> Tensor:
    """Return the mean and the maximum of x over an axis of C or *S: (N, C, *S) -> (N, 2, *map).

    For axis 1 *map is *S. For another axis it is *S with C in the place of the axis, so that (N, C, H, W) gives
    (N, 2, C, W) for axis 2 and (N, 2, H, C) for axis 3. The gradient is split among equal maxima.
    """
    x = x.transpose(1, axis)
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)


def weighted_pool(x: Tensor, p: Tensor) -> Tensor:
    """Return the sum over the spatial axes of x * p: (N, C, *S), (N, 1, *S) or (N, C, *S) -> (N, C), in x's dtype.

    The result is the mean of x weighted by p if p sums to 1 over the spatial axes, as `position_softmax` does.
    """
    return in_dtype_of(x, (x * p).sum(tuple(range(2, x.ndim))))


def weighted_sum(x: Tensor, p: Tensor) -> Tensor:
    """Return the sum over the channels of x * p: (N, C, *S), (N, C) -> (N, 1, *S), as a product of matrices."""
    return (p[:, None] @ x.flatten(2)).reshape(-1, 1, *x.shape[2:])


def expand(s: Tensor, x: Tensor) -> Tensor:
    """Return one coefficient per channel reshaped to broadcast with x: (N, C) -> (N, C, 1..)."""
    return s[(..., *(None,) * (x.ndim - 2))]


def pool(x: Tensor, window: Sequence[int]) -> Tensor:
    """Max-pool with a stride equal to `window`, in pixels per spatial axis: (N, C, *S) -> (N, C, *ceil(S / window)).

    The last window of an axis may be smaller.
    """
    if guard.pool_ties_exports and guard.is_exporting():
        for axis, w in enumerate(window, start=2):
            window_starts, end = torch.arange(-(-x.shape[axis] // w), device=x.device) * w, x.shape[axis] - 1
            x = torch.stack([x.index_select(axis, (window_starts + i).clamp(max=end)) for i in range(w)]).amax(0)
        return x
    if len(window) == 1:   # an export of max_pool1d is valid for one length only
        return pool(x[:, :, None], (1, *window))[:, :, 0]
    # On CUDA, max_pool3d has no deterministic gradient.
    pads_explicitly = len(window) == 3 and torch.are_deterministic_algorithms_enabled()
    uses_whole_windows = pads_explicitly or not is_plain(x)   # AOTInductor compiles ceil_mode wrongly for some sizes
    if uses_whole_windows:
        padding = [extra for n, w in zip(x.shape[:1:-1], window[::-1], strict=True) for extra in (0, (w - n % w) % w)]
        x = F.pad(x, padding, value=-torch.inf)
    if pads_explicitly:
        for axis in (4, 3, 2):
            x = x.unflatten(axis, (-1, window[axis - 2]))
        return x.amax((3, 5, 7))
    y = MAX_POOL[len(window)](x, tuple(window), ceil_mode=not uses_whole_windows)
    return in_dtype_of(x, y)   # under autocast, 3-D pooling returns float32


def adaptive_avg_pool(x: Tensor, size: int | Sequence[int]) -> Tensor:
    """Return means over windows: (N, C, *S) -> (N, C, *size). size: windows per spatial axis, or of every one.

    Windows are those of torch.nn.AdaptiveAvgPool2d. Its operator is used in eager mode. Graphs, which must be valid for
    other sizes, half precision, which needs sums in float32, and deterministic mode, in which its gradient raises an
    error on CUDA, gather the pixels of each window instead.
    """
    sizes = (size,) * (x.ndim - 2) if isinstance(size, int) else tuple(size)
    if not guard.is_traced() and x.dtype in EXACT and not torch.are_deterministic_algorithms_enabled():
        return ADAPTIVE_AVG_POOL[len(sizes)](x, sizes)
    y = upcast(x)
    for axis, new in enumerate(sizes, start=2):
        old, i = y.shape[axis], torch.arange(new, device=x.device)[:, None]
        low, high = i * old // new, ((i + 1) * old + new - 1) // new
        width = (old + new - 1) // new + 1   # at least the size of the largest window
        j = low + torch.arange(width, device=x.device)   # (new, width)
        pixels = y.index_select(axis, j.clamp(max=old - 1).flatten()).movedim(axis, -1)
        windows = pixels.reshape(*pixels.shape[:-1], *j.shape)
        means = windows.where(j < high, 0).mean(-1)   # a sum might overflow in a graph converted to half precision
        y = move_last(means / (high - low)[:, 0] * width, axis)   # an integer tensor does not fix the graph's dtype
    return in_dtype_of(x, y)


def strided_avg_pool(x: Tensor, stride: int) -> Tensor:
    """Return means over windows around every stride-th pixel: (N, C, *S) -> (N, C, *ceil(S / stride)).

    Window i, along an axis of m pixels, has the pixels of 0 to m - 1 that are less than `stride` from pixel i * stride.

    It is computed for one axis after the other: avg_pool3d has no deterministic gradient on CUDA, and a window of 2-D
    pooling has stride times as many pixels as both windows of 1-D pooling.
    """
    for axis in range(x.ndim - 1, 1, -1):   # the last first, which needs no copy of x
        rows = x.movedim(axis, -1)
        means = F.avg_pool1d(rows.flatten(1, -2), 2 * stride - 1, stride, stride - 1, count_include_pad=False)
        x = move_last(means.reshape(*rows.shape[:-1], -(-rows.shape[-1] // stride)), axis)
    return x
