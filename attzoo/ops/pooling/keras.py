"""Pooling, and coefficients that broadcast to an input, in Keras. Tensors are (N, *S, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..common.keras import amax, from_last, indices, mean, ops, sizes, space, stack, to_last, wide


def avg_pool(x: Any, channels_last: bool) -> Any:
    """Return the mean over the spatial axes: (N, *S, C) or (N, C, *S) -> (N, C)."""
    return mean(x, space(x, channels_last))


def axis_mean(x: Any, axis: int, channels_last: bool) -> Any:
    """Return the mean over all spatial axes except one. In 1-D, x itself is returned.

    (N, *S, C) -> (N, S[axis], C), or (N, C, *S) -> (N, C, S[axis]).
    axis: index of the spatial axis that remains, 0 for the first.
    """
    remaining = space(x, channels_last)[axis]
    axes = tuple(a for a in space(x, channels_last) if a != remaining)
    return mean(x, axes) if axes else x


def expand_axis(s: Any, x: Any, axis: int, channels_last: bool) -> Any:
    """Return the result of `axis_mean`, or a tensor of its shape, reshaped to broadcast with x.

    (N, S[axis], C) -> (N, 1.., S[axis], 1.., C), or (N, C, S[axis]) -> (N, C, 1.., S[axis], 1..).
    axis: as in `axis_mean`.
    """
    shape = ops.shape(s)
    length = shape[1] if channels_last else shape[2]
    ones = (1,) * axis, (1,) * (x.ndim - 3 - axis)
    sizes = (*ones[0], length, *ones[1])
    return ops.reshape(s, (shape[0], *sizes, shape[2]) if channels_last else (shape[0], shape[1], *sizes))


def axis_means(x: Any, channels_last: bool) -> Any:
    """Return `axis_mean` of every spatial axis, concatenated: (N, *S, C) or (N, C, *S) -> (N, sum of S, C)."""
    means = [axis_mean(x, axis, channels_last) for axis in range(x.ndim - 2)]
    return ops.concatenate([to_last(s, channels_last) for s in means], axis=1)


def split_axes(z: Any, x: Any, channels_last: bool) -> list[Any]:
    """Return the part of z of each spatial axis of x, as channels last.

    (N, sum of S, K) and x of either layout -> (N, 1.., S[axis], 1.., K) each. It reverses the concatenation of
    `axis_means`.
    """
    parts, start, shape = [], 0, ops.shape(x)
    for axis, i in enumerate(space(x, channels_last)):
        parts.append(expand_axis(z[:, start : start + shape[i]], x, axis, channels_last=True))
        start = start + shape[i]
    return parts


def max_pool(x: Any, channels_last: bool) -> Any:
    """Return the maximum over the spatial axes: (N, *S, C) or (N, C, *S) -> (N, C).

    The gradient is split evenly among equal maxima.
    """
    return amax(x, space(x, channels_last))


def mean_and_max(x: Any, axis: int, channels_last: bool) -> Any:
    """Return the mean and the maximum of x over an axis of C or *S: (N, *S, C) or (N, C, *S) -> (N, *map, 2).

    axis: index of the axis in (N, C, *S). For axis 1 *map is *S. For another axis it is *S with C in the place of the
    axis, so that (N, H, W, C) gives (N, C, W, 2) for axis 2 and (N, H, C, 2) for axis 3. The gradient is split evenly
    among equal maxima.
    """
    channels = -1 if channels_last else 1
    pooled = channels if axis == 1 else axis - channels_last
    maps = [mean(x, pooled), amax(x, pooled)]
    if axis > 1:
        maps = [ops.moveaxis(m, channels, axis - 1) for m in maps]
    return stack(maps, -1)


def from_map(a: Any, axis: int, channels_last: bool) -> Any:
    """Return coefficients of a map of `mean_and_max` over an axis, (N, *map, 1), in a shape that broadcasts to x."""
    return from_last(a if axis == 1 else ops.swapaxes(a, -1, axis - 1), channels_last)


def weighted_pool(x: Any, p: Any, channels_last: bool) -> Any:
    """Return the sum over the spatial axes of x * p, in x's dtype: (N, *S, C), (N, *S, 1) or (N, *S, C) -> (N, C).

    The result is the mean of x weighted by p if p sums to 1 over the spatial axes, as `position_softmax` does. Without
    `channels_last`, x and p are channels first.
    """
    kind = wide(x.dtype)
    products = ops.cast(x, kind) * ops.cast(p, kind)
    return ops.cast(ops.sum(products, axis=space(x, channels_last)), x.dtype)


def weighted_sum(x: Any, p: Any) -> Any:
    """Return the sum over the channels of x * p: (N, *S, C), (N, C) -> (N, *S, 1), as a product of matrices.

    The cast is for torch, on which keras.ops.matmul returns float32 for float64.
    """
    return ops.cast(ops.matmul(x, ops.reshape(p, (-1, *(1,) * (x.ndim - 3), p.shape[-1], 1))), x.dtype)


def expand(s: Any, x: Any, channels_last: bool) -> Any:
    """Return one coefficient per channel reshaped to broadcast with x: (N, C) -> (N, 1.., C) or (N, C, 1..)."""
    ones = (1,) * (x.ndim - 2)
    shape = (*ones, s.shape[-1]) if channels_last else (s.shape[-1], *ones)
    return ops.reshape(s, (-1, *shape))


def adaptive_avg_pool(x: Any, size: int | Sequence[Any]) -> Any:
    """Return means over windows: (N, *S, C) -> (N, *size, C). size: windows per spatial axis, or of every one.

    Windows are those of torch.nn.AdaptiveAvgPool2d; keras.layers.AdaptiveAveragePooling2D accepts no unknown sizes.
    Half precision is computed in float32.
    """
    y = ops.cast(x, wide(x.dtype))
    for axis, new in enumerate([size] * (x.ndim - 2) if isinstance(size, int) else size, start=1):
        old = ops.shape(x)[axis]
        low = indices(lambda i, old, new: i * old // new, old, new)
        high = indices(lambda i, old, new: -(-(i + 1) * old // new), old, new)
        y = _window_means(y, axis, low[:, None], high[:, None], (old + new - 1) // new + 1)
    return ops.cast(y, x.dtype)


def strided_avg_pool(x: Any, stride: int) -> Any:
    """Return means over windows around every stride-th pixel: (N, *S, C) -> (N, *ceil(S / stride), C).

    Window i, along an axis of m pixels, has the pixels of 0 to m - 1 that are less than `stride` from pixel i * stride.
    Half precision is computed in float32.
    """
    y = ops.cast(x, wide(x.dtype))
    for axis, old in enumerate(sizes(x), start=1):
        center = stride * ops.arange((old + stride - 1) // stride, dtype="int32")[:, None]
        low, high = ops.maximum(center - stride + 1, 0), ops.minimum(center + stride, old)
        y = _window_means(y, axis, low, high, 2 * stride - 1)
    return ops.cast(y, x.dtype)


def _window_means(x: Any, axis: int, low: Any, high: Any, width: Any) -> Any:
    """Return means over windows along an axis of x, whose size becomes the number of windows.

    low, high: first pixel of each window, and the one after its last, (windows, 1) each. width: the most pixels of one.
    """
    j = low + ops.arange(width, dtype="int32")    # (windows, width)
    last = ops.shape(x)[axis] - 1
    pixels = ops.moveaxis(ops.take(x, ops.reshape(ops.minimum(j, last), (-1,)), axis), axis, -1)
    windows = ops.where(j < high, ops.reshape(pixels, (*ops.shape(pixels)[:-1], *ops.shape(j))), 0)
    share = ops.cast(width, x.dtype) / ops.cast(high - low, x.dtype)[:, 0]
    return ops.moveaxis(mean(windows, -1) * share, -1, axis)   # no sum, which a graph in float16 could not represent
