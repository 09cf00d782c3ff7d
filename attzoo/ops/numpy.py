"""The meaning of every operation, in NumPy; float64 in, the oracle out. Channels first: (N, C, *S)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..contract import Array

EPSILON = 1e-5   # of batch norm, added to the variance
MOMENTUM = 0.1   # weight of the newest batch in the running statistics


def avg_pool(x: Array) -> Array:
    """Mean over space: (N, C, *S) -> (N, C)."""
    return np.asanyarray(x.mean(axis=tuple(range(2, x.ndim))))


def max_pool(x: Array) -> Array:
    """Maximum over space: (N, C, *S) -> (N, C)."""
    return np.asanyarray(x.max(axis=tuple(range(2, x.ndim))))


def expand(s: Array, x: Array) -> Array:
    """One coefficient per channel, shaped to multiply x: (N, C) -> (N, C, 1..)."""
    return s.reshape(s.shape + (1,) * (x.ndim - 2))


def relu(z: Array) -> Array:
    """max(z, 0); NaN stays."""
    return np.maximum(z, 0)


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), written so that no z overflows and small values keep their digits."""
    return np.exp(-np.logaddexp(0, -z))


def hard_sigmoid(z: Array) -> Array:
    """relu6(z + 3) / 6, the piecewise linear sigmoid of MobileNetV3."""
    return np.clip(z + 3, 0, 6) / 6


GATES = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def linear(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """A matrix over the channel axis, plus bias where there is one: (N, I, *S) -> (N, O, *S)."""
    y = np.moveaxis(np.tensordot(x, weights[f"{name}.weight"], axes=(1, 1)), -1, 1)
    return _biased(y, weights, name)


def strided(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """A convolution whose stride is its kernel, leftover edges dropped: (N, I, *S), (O, I, *k) -> (N, O, *S // k)."""
    kernel = weights[f"{name}.weight"]
    if kernel.ndim == 2:
        return linear(x, weights, name)
    for axis, k in enumerate(kernel.shape[2:], start=2):   # each spatial axis splits into (position, offset)
        at = axis + (axis - 2)
        x = np.take(x, range(x.shape[at] // k * k), axis=at)
        x = x.reshape(*x.shape[:at], x.shape[at] // k, k, *x.shape[at + 1 :])
    offsets = tuple(range(3, x.ndim, 2))
    y = np.moveaxis(np.tensordot(x, kernel, axes=((1, *offsets), tuple(range(1, kernel.ndim)))), -1, 1)
    return _biased(y, weights, name)


def conv(x: Array, weights: Mapping[str, Array], name: str, stride: Sequence[int]) -> Array:
    """`conv_same` at every stride-th place, plus bias: (N, I, *S), (O, I, *k) -> (N, O, *ceil(S / stride))."""
    kernel = weights[f"{name}.weight"]
    kernel = kernel.reshape(kernel.shape + (1,) * (x.ndim - kernel.ndim))
    return _biased(conv_same(x, kernel)[_every(stride)], weights, name)


def transposed(x: Array, weights: Mapping[str, Array], name: str, stride: Sequence[int]) -> Array:
    """A transposed convolution to sizes times the stride: (N, I, *S), (I, O, *k) -> (N, O, *S * stride).

    Of what every input pixel spreads over k pixels from its own place on, (k - 1) // 2 are cut off at the front.
    """
    kernel = weights[f"{name}.weight"]
    apart = np.zeros((*x.shape[:2], *(n * step for n, step in zip(x.shape[2:], stride, strict=True))), x.dtype)
    apart[_every(stride)] = x
    front = [(k - 1) // 2 for k in kernel.shape[2:]]
    sides = [(k - 1 - cut, cut) for k, cut in zip(kernel.shape[2:], front, strict=True)]
    turned = np.flip(kernel, axis=tuple(range(2, kernel.ndim))).swapaxes(0, 1)
    return _biased(_correlate(np.pad(apart, [(0, 0), (0, 0), *sides]), turned), weights, name)


def _every(stride: Sequence[int]) -> tuple[slice, ...]:
    """The index of every stride-th pixel."""
    return (slice(None), slice(None), *(slice(None, None, step) for step in stride))


def _biased(y: Array, weights: Mapping[str, Array], name: str) -> Array:
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))


def conv_same(x: Array, kernel: Array, mode: str = "constant") -> Array:
    """Slide an odd kernel, unflipped, over x padded to keep its size: (N, I, *S), (O, I, *k) -> (N, O, *S).

    mode is numpy.pad's: "constant" is zero padding, "wrap" circular.
    """
    half = [(k // 2, k // 2) for k in kernel.shape[2:]]
    return _correlate(np.pad(x, [(0, 0), (0, 0), *half], mode=mode), kernel)   # type: ignore[call-overload]


def _correlate(x: Array, kernel: Array) -> Array:
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], axis=axes)   # (N, I, *S, *k)
    taps = tuple(range(x.ndim, windows.ndim))
    return np.moveaxis(np.tensordot(windows, kernel, axes=((1, *taps), tuple(range(1, kernel.ndim)))), -1, 1)


def batch_norm(x: Array, weights: Mapping[str, Array], name: str, training: bool) -> Array:
    """Normalise each channel; in training by the batch, moving the running statistics in `weights` in place.

    The running variance is the unbiased one, n / (n - 1) times the batch's. Where the block has no norm of that
    name, x itself. Raises ValueError in training on one value per channel, which has no variance.
    """
    if f"{name}.weight" not in weights:
        return x
    weight, bias, mean, var = (weights[f"{name}.{part}"] for part in ("weight", "bias", "mean", "var"))
    shape, axes = (-1, *(1,) * (x.ndim - 2)), (0, *range(2, x.ndim))
    if training:
        n = x.size // x.shape[1]
        if n == 1:
            raise one_value(x.shape)
        now, spread = x.mean(axis=axes), x.var(axis=axes)
        mean += MOMENTUM * (now - mean)
        var += MOMENTUM * (spread * n / (n - 1) - var)
        mean, var = now, spread
    scale = weight / np.sqrt(var + EPSILON)
    return np.asanyarray((x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape))


def one_value(shape: Sequence[int | None]) -> ValueError:
    """The error for a batch norm in training whose input, of this shape, has one value per channel."""
    norm = "another norm (norm=False of a block, norm='instance' of a U-Net)"
    got = f"got input of shape {tuple(shape)}, which has no variance"
    fix = f"give a larger batch or larger inputs, or take {norm}"
    return ValueError(f"expected more than 1 value per channel in training for batch norm, {got}: {fix}")


def instance_norm(x: Array) -> Array:
    """Normalise each channel of each sample; nothing is trained, nothing remembered."""
    axes = tuple(range(2, x.ndim))
    center, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return np.asanyarray((x - center) / np.sqrt(var + EPSILON))


def prelu(z: Array, slope: Array) -> Array:
    """The input where it is positive, slope times it where it is not."""
    return np.where(z > 0, z, slope * z)


def pool(x: Array, window: Sequence[int]) -> Array:
    """Maximum over windows side by side, the last one cut off by the edge: (N, C, *S) -> (N, C, *ceil(S / window))."""
    missing = [(0, -n % w) for n, w in zip(x.shape[2:], window, strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *missing], constant_values=-np.inf)
    split = [size for n, w in zip(x.shape[2:], window, strict=True) for size in (n // w, w)]
    return np.asanyarray(x.reshape(*x.shape[:2], *split).max(axis=tuple(range(3, 3 + 2 * len(window), 2))))


def crop(x: Array, size: Sequence[int]) -> Array:
    """The first `size` pixels along each spatial axis: (N, C, *S) -> (N, C, *size)."""
    return x[(slice(None), slice(None), *map(slice, size))]


def widen(x: Array, least: Sequence[int]) -> Array:
    """Repeat the last pixel until every spatial axis has `least` or more: (N, C, *S) -> (N, C, *max(S, least))."""
    missing = [(0, max(0, low - n)) for n, low in zip(x.shape[2:], least, strict=True)]
    return np.pad(x, [(0, 0), (0, 0), *missing], mode="edge") if any(map(max, missing)) else x


def resize(x: Array, size: Sequence[int], interpolation: str, align_corners: bool) -> Array:
    """Resample the spatial axes to `size`, one axis after the other: (N, C, *S) -> (N, C, *size).

    "linear" is torch's (bi-, tri-)linear `interpolate`, "nearest" its "nearest-exact". The same size is x itself.
    """
    if x.shape[2:] == tuple(size):
        return x
    for axis, new in enumerate(size, start=2):
        old = x.shape[axis]
        if interpolation == "nearest":
            x = x.take(nearest(old, new), axis)
        else:
            low, high, fraction = taps(old, new, align_corners)
            fraction = fraction.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
            x = x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
    return x


def nearest(old: int, new: int) -> NDArray[np.integer]:
    """For each of `new` positions the old one nearest to its centre, in exact integers.

    >>> nearest(2, 5)
    array([0, 0, 1, 1, 1])
    """
    return (2 * np.arange(new) + 1) * old // (2 * new)


def taps(old: int, new: int, align_corners: bool) -> tuple[NDArray[np.integer], NDArray[np.integer], Array]:
    """For each of `new` positions the two old ones that it lies between, and how far towards the second.

    >>> taps(2, 4, align_corners=False)
    (array([0, 0, 0, 1]), array([1, 1, 1, 1]), array([0.  , 0.25, 0.75, 0.  ]))
    """
    i = np.arange(new)
    source = i * ((old - 1) / max(new - 1, 1)) if align_corners else (i + 0.5) * (old / new) - 0.5
    source = np.clip(source, 0, old - 1)
    low = np.floor(source).astype(int)
    return low, np.minimum(low + 1, old - 1), source - low
