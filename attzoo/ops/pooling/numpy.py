"""Pooling, and coefficients that broadcast to an input, in NumPy. Arrays are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...contract import Array


def avg_pool(x: Array) -> Array:
    """Return the mean over the spatial axes: (N, C, *S) -> (N, C)."""
    return np.asanyarray(x.mean(axis=tuple(range(2, x.ndim))))


def axis_mean(x: Array, axis: int) -> Array:
    """Return the mean over all spatial axes except one: (N, C, *S) -> (N, C, S[axis]). In 1-D, it is x itself.

    axis: index of the spatial axis that remains, 0 for the first.
    """
    axes = tuple(a for a in range(2, x.ndim) if a != 2 + axis)
    return np.asanyarray(x.mean(axis=axes)) if axes else x


def expand_axis(s: Array, x: Array, axis: int) -> Array:
    """Return the result of `axis_mean`, or an array of its shape, reshaped to broadcast with x.

    (N, C, S[axis]) -> (N, C, 1.., S[axis], 1..). axis: as in `axis_mean`.
    """
    return s.reshape(*s.shape[:2], *(1,) * axis, s.shape[2], *(1,) * (x.ndim - 3 - axis))


def axis_means(x: Array) -> Array:
    """Return `axis_mean` of every spatial axis, concatenated: (N, C, *S) -> (N, C, sum of S)."""
    return np.concatenate([axis_mean(x, axis) for axis in range(x.ndim - 2)], axis=2)


def split_axes(z: Array, x: Array) -> list[Array]:
    """Return the part of z of each spatial axis of x: (N, K, sum of S), (N, C, *S) -> (N, K, 1.., S[axis], 1..) each.

    It reverses the concatenation of `axis_means`. The parts broadcast with x if K is C or 1.
    """
    parts = np.split(z, np.cumsum(x.shape[2:-1]), axis=2)
    return [expand_axis(part, x, axis) for axis, part in enumerate(parts)]


def max_pool(x: Array) -> Array:
    """Return the maximum over the spatial axes: (N, C, *S) -> (N, C)."""
    return np.asanyarray(x.max(axis=tuple(range(2, x.ndim))))


def mean_and_max(x: Array, axis: int) -> Array:
    """Return the mean and the maximum of x over an axis of C or *S: (N, C, *S) -> (N, 2, *map).

    For axis 1 *map is *S. For another axis it is *S with C in the place of the axis, so that (N, C, H, W) gives
    (N, 2, C, W) for axis 2 and (N, 2, H, C) for axis 3.
    """
    x = x.swapaxes(1, axis)
    return np.concatenate([x.mean(1, keepdims=True), x.max(1, keepdims=True)], axis=1)


def weighted_pool(x: Array, p: Array) -> Array:
    """Return the sum over the spatial axes of x * p: (N, C, *S), (N, 1, *S) or (N, C, *S) -> (N, C).

    The result is the mean of x weighted by p if p sums to 1 over the spatial axes, as `position_softmax` does.
    """
    return np.asanyarray((x * p).sum(axis=tuple(range(2, x.ndim))))


def weighted_sum(x: Array, p: Array) -> Array:
    """Return the sum over the channels of x * p: (N, C, *S), (N, C) -> (N, 1, *S)."""
    return np.asanyarray((x * expand(p, x)).sum(axis=1, keepdims=True))


def expand(s: Array, x: Array) -> Array:
    """Return one coefficient per channel reshaped to broadcast with x: (N, C) -> (N, C, 1..)."""
    return s.reshape(s.shape + (1,) * (x.ndim - 2))


def pool(x: Array, window: Sequence[int]) -> Array:
    """Max-pool with a stride equal to `window`, in pixels per spatial axis: (N, C, *S) -> (N, C, *ceil(S / window)).

    The last window of an axis may be smaller.
    """
    missing = [(0, -n % w) for n, w in zip(x.shape[2:], window, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *missing], constant_values=-np.inf)
    split = [size for n, w in zip(x.shape[2:], window, strict=True) for size in (n // w, w)]
    return np.asanyarray(x.reshape(*x.shape[:2], *split).max(axis=tuple(range(3, 3 + 2 * len(window), 2))))


def adaptive_avg_pool(x: Array, size: int | Sequence[int]) -> Array:
    """Return means over windows: (N, C, *S) -> (N, C, *size). size: windows per spatial axis, or of every one.

    Window i of n, along an axis of m pixels, begins at pixel floor(i * m / n) and ends before ceil((i + 1) * m / n), as
    in torch.nn.AdaptiveAvgPool2d. Windows overlap if n does not divide m; n may be larger than m.
    """
    for axis, new in enumerate([size] * (x.ndim - 2) if isinstance(size, int) else size, start=2):
        old = x.shape[axis]
        windows = [range(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
        x = np.stack([x.take(window, axis).mean(axis) for window in windows], axis)
    return x


def strided_avg_pool(x: Array, stride: int) -> Array:
    """Return means over windows around every stride-th pixel: (N, C, *S) -> (N, C, *ceil(S / stride)).

    Window i, along an axis of m pixels, has the pixels of 0 to m - 1 that are less than `stride` from pixel i * stride.
    """
    for axis, old in enumerate(x.shape[2:], start=2):
        windows = [range(max(0, i - stride + 1), min(old, i + stride)) for i in range(0, old, stride)]
        x = np.stack([x.take(window, axis).mean(axis) for window in windows], axis)
    return x
