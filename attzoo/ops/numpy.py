"""Reference implementations of the operations, in NumPy. Arrays are channels first, (N, C, *S)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..contract import Array

EPSILON = 1e-5   # added to the variance in batch, layer, group and instance norm
MOMENTUM = 0.1   # weight of the current batch in the running statistics


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


def spatial_norm(x: Array, order: int, epsilon: float) -> Array:
    """Return the norm over the spatial axes: (N, C, *S) -> (N, C).

    order: 1 for the sum of magnitudes, 2 for the root of the sum of squares plus `epsilon`.
    """
    axes = tuple(range(2, x.ndim))
    return np.asanyarray(np.abs(x).sum(axis=axes) if order == 1 else np.sqrt(np.square(x).sum(axis=axes) + epsilon))


def over_channel_norm(e: Array, order: int, epsilon: float) -> Array:
    """Return e divided by its norm over channels, per channel: (N, C) -> (N, C).

    order: 1 for the mean of magnitudes plus `epsilon`, 2 for the root of the mean of squares plus `epsilon`.
    """
    if order == 1:
        return np.asanyarray(e / (np.abs(e).mean(axis=1, keepdims=True) + epsilon))
    return np.asanyarray(e / np.sqrt(np.square(e).mean(axis=1, keepdims=True) + epsilon))


def position_softmax(z: Array) -> Array:
    """Return the softmax over the spatial axes: (N, K, *S) -> (N, K, *S). Each of the K channels sums to 1."""
    axes = tuple(range(2, z.ndim))
    exponentials = np.exp(z - z.max(axis=axes, keepdims=True))
    return np.asanyarray(exponentials / exponentials.sum(axis=axes, keepdims=True))


def weighted_pool(x: Array, p: Array) -> Array:
    """Return the sum over the spatial axes of x * p: (N, C, *S), (N, 1, *S) or (N, C, *S) -> (N, C).

    The result is the mean of x weighted by p if p sums to 1 over the spatial axes, as `position_softmax` does.
    """
    return np.asanyarray((x * p).sum(axis=tuple(range(2, x.ndim))))


def relative_deviation(x: Array, epsilon: float, unbiased: bool) -> Array:
    """Return (x - mean)^2 / (variance + epsilon), with mean and variance over the spatial axes: (N, C, *S) -> the same.

    unbiased: whether the variance is the sum of squares divided by n - 1 instead of n, the number of positions. For
    n = 1 it is 0.
    """
    axes = tuple(range(2, x.ndim))
    d = np.square(x - x.mean(axis=axes, keepdims=True))
    n = max(prod(x.shape[2:]) - unbiased, 1)
    return np.asanyarray(d / (d.sum(axis=axes, keepdims=True) / n + epsilon))


def expand(s: Array, x: Array) -> Array:
    """Return one coefficient per channel reshaped to broadcast with x: (N, C) -> (N, C, 1..)."""
    return s.reshape(s.shape + (1,) * (x.ndim - 2))


def relu(z: Array) -> Array:
    """Return max(z, 0), and NaN where z is NaN."""
    return np.maximum(z, 0)


def maximum(a: Array, b: Array) -> Array:
    """Return the larger of a and b at each position, or NaN if either is NaN. a and b broadcast."""
    return np.maximum(a, b)


def sigmoid(z: Array) -> Array:
    """Return 1 / (1 + exp(-z)), without overflow and with full relative precision for small results."""
    return np.exp(-np.logaddexp(0, -z))


def tanh(z: Array) -> Array:
    """Return the hyperbolic tangent."""
    return np.tanh(z)


def hard_sigmoid(z: Array) -> Array:
    """Return relu6(z + 3) / 6, the piecewise linear sigmoid of MobileNetV3."""
    return np.clip(z + 3, 0, 6) / 6


def silu(z: Array) -> Array:
    """Return z * sigmoid(z)."""
    return z * sigmoid(z)


def hard_swish(z: Array) -> Array:
    """Return z * relu6(z + 3) / 6, the piecewise quadratic approximation of silu in MobileNetV3."""
    return z * hard_sigmoid(z)


GATES = {"sigmoid": sigmoid, "hard_sigmoid": hard_sigmoid}


def activate(z: Array, act: str) -> Array:
    """Return the activation `act`, one of contract.ACTIVATIONS, of the hidden units z."""
    return {"relu": relu, "silu": silu, "hard_swish": hard_swish}[act](z)


def linear(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """Apply the linear map `name` to the channels: (N, I, *S) -> (N, O, *S), also (N, I) -> (N, O).

    weights: has the matrix "<name>.weight", (O, I), and may have "<name>.bias", (O,).
    """
    y = np.moveaxis(np.tensordot(x, weights[f"{name}.weight"], axes=(1, 1)), -1, 1)
    return _add_bias(y, weights, name)


def strided(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    """Convolve with a stride equal to the kernel size, without padding: (N, I, *S) -> (N, O, *S // k).

    weights: has the kernel "<name>.weight", (O, I, *k) or (O, I) for k = 1, and may have "<name>.bias", (O,).
    """
    kernel = weights[f"{name}.weight"]
    if kernel.ndim == 2:
        return linear(x, weights, name)
    for axis, k in enumerate(kernel.shape[2:], start=2):   # each spatial axis splits into (position, offset)
        split = axis + (axis - 2)
        x = np.take(x, range(x.shape[split] // k * k), axis=split)
        x = x.reshape(*x.shape[:split], x.shape[split] // k, k, *x.shape[split + 1 :])
    offsets = tuple(range(3, x.ndim, 2))
    y = np.moveaxis(np.tensordot(x, kernel, axes=((1, *offsets), tuple(range(1, kernel.ndim)))), -1, 1)
    return _add_bias(y, weights, name)


def conv(
    x: Array, weights: Mapping[str, Array], name: str, stride: Sequence[int] = (), *, dilation: int = 1
) -> Array:
    """Convolve with zero padding of dilation * (k // 2) pixels: (N, I, *S) -> (N, O, *ceil(S / stride)).

    weights: has the kernel "<name>.weight", (O, I / groups, *k) or (O, I) for k = 1, and may have "<name>.bias", (O,).
    stride: in pixels per spatial axis; 1 if empty. dilation: distance between neighbouring taps of the kernel, in
    pixels. The number of groups follows from the kernel: channels of x and outputs are divided into groups in order.
    """
    kernel = weights[f"{name}.weight"]
    kernel = kernel.reshape(kernel.shape + (1,) * (x.ndim - kernel.ndim))
    return _add_bias(conv_same(x, kernel, dilation=dilation)[_every(stride)], weights, name)


def transposed(x: Array, weights: Mapping[str, Array], name: str, stride: Sequence[int]) -> Array:
    """Compute a transposed convolution with a stride per axis: (N, I, *S) -> (N, O, *S * stride).

    weights: has the kernel "<name>.weight", (I, O, *k), and "<name>.bias", (O,).

    Each input pixel contributes to k output pixels from its own position on; the output is then cropped by
    (k - 1) // 2 pixels at the start of each axis.
    """
    kernel = weights[f"{name}.weight"]
    with_zeros = np.zeros((*x.shape[:2], *(n * step for n, step in zip(x.shape[2:], stride, strict=True))), x.dtype)
    with_zeros[_every(stride)] = x
    cropped_at_start = [(k - 1) // 2 for k in kernel.shape[2:]]
    padding = [(k - 1 - cut, cut) for k, cut in zip(kernel.shape[2:], cropped_at_start, strict=True)]
    flipped = np.flip(kernel, axis=tuple(range(2, kernel.ndim))).swapaxes(0, 1)
    return _add_bias(_correlate(np.pad(with_zeros, [(0, 0), (0, 0), *padding]), flipped), weights, name)


def _every(stride: Sequence[int]) -> tuple[slice, ...]:
    """Return the index that selects every stride-th pixel along each spatial axis of (N, C, *S)."""
    return (slice(None), slice(None), *(slice(None, None, step) for step in stride))


def _add_bias(y: Array, weights: Mapping[str, Array], name: str) -> Array:
    """Return y (N, O, *S) plus the bias "<name>.bias", (O,), if `weights` has it."""
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias.reshape(-1, *(1,) * (y.ndim - 2))


def conv_same(x: Array, kernel: Array, mode: str = "constant", dilation: int = 1) -> Array:
    """Cross-correlate x with a kernel of odd sizes, padded to keep the size: (N, I, *S), (O, I, *k) -> (N, O, *S).

    mode: padding mode of `numpy.pad`, "constant" for zeros or "wrap" for circular. dilation and groups: as in `conv`.
    """
    padding = [(dilation * (k // 2),) * 2 for k in kernel.shape[2:]]
    padded = np.pad(x, [(0, 0), (0, 0), *padding], mode=mode)   # type: ignore[call-overload]
    return _correlate(padded, kernel, dilation)


def _correlate(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """Cross-correlate without padding: (N, I, *S), (O, I / groups, *k) -> (N, O, *S - dilation * (k - 1))."""
    sizes = [dilation * (k - 1) + 1 for k in kernel.shape[2:]]
    windows = np.lib.stride_tricks.sliding_window_view(x, sizes, axis=tuple(range(2, x.ndim)))
    every_tap = (slice(None),) * x.ndim + (slice(None, None, dilation),) * len(sizes)
    windows = windows[every_tap]   # (N, I, *S, *k)
    outputs, inputs, *taps = kernel.shape
    groups, (batch, _, *space) = x.shape[1] // inputs, windows.shape[: x.ndim]
    grouped = windows.reshape(batch, groups, inputs, prod(space), prod(taps)).transpose(1, 0, 3, 2, 4)
    columns = grouped.reshape(groups, batch * prod(space), inputs * prod(taps))
    matrices = kernel.reshape(groups, outputs // groups, inputs * prod(taps)).swapaxes(1, 2)
    y = (columns @ matrices).reshape(groups, batch, prod(space), outputs // groups)
    return y.transpose(1, 0, 3, 2).reshape(batch, outputs, *space)


def batch_norm(x: Array, weights: Mapping[str, Array], name: str, training: bool) -> Array:
    """Normalise each channel of x: (N, C, *S) -> (N, C, *S). Return x itself if `weights` has no norm of this name.

    weights: has "<name>.weight", "<name>.bias", "<name>.mean" and "<name>.var", (C,) each.

    In training the statistics are those of the batch, and the running statistics in `weights` are updated in place.
    The running variance is unbiased: n / (n - 1) times the variance of the batch.

    Raises:
        ValueError: in training, if x has one value per channel.

    """
    if f"{name}.weight" not in weights:
        return x
    weight, bias, mean, var = (weights[f"{name}.{part}"] for part in ("weight", "bias", "mean", "var"))
    shape, axes = (-1, *(1,) * (x.ndim - 2)), (0, *range(2, x.ndim))
    if training:
        n = x.size // x.shape[1]
        if n == 1:
            raise one_value(x.shape)
        batch_mean, batch_var = x.mean(axis=axes), x.var(axis=axes)
        mean += MOMENTUM * (batch_mean - mean)
        var += MOMENTUM * (batch_var * n / (n - 1) - var)
        mean, var = batch_mean, batch_var
    scale = weight / np.sqrt(var + EPSILON)
    return np.asanyarray((x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape))


def one_value(shape: Sequence[int | None]) -> ValueError:
    """Return the error for batch norm in training on an input of this shape, with one value per channel."""
    got = f"got input of shape {tuple(shape)}, which has no variance"
    fix = "give a larger batch or larger inputs, or another norm: norm=False for a block, norm='instance' for a U-Net"
    return ValueError(f"expected more than 1 value per channel in training for batch norm, {got}: {fix}")


def layer_norm(x: Array, weights: Mapping[str, Array], name: str, epsilon: float = EPSILON) -> Array:
    """Normalise the channels of x at each position: (N, C, *S) -> (N, C, *S), also (N, C) -> (N, C).

    weights: has "<name>.weight" and "<name>.bias", (C,) each. epsilon: added to the variance.
    """
    shape = (-1, *(1,) * (x.ndim - 2))
    weight, bias = (weights[f"{name}.{part}"].reshape(shape) for part in ("weight", "bias"))
    center, var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)
    return np.asanyarray((x - center) / np.sqrt(var + epsilon) * weight + bias)


def group_norm(x: Array, weights: Mapping[str, Array], name: str, groups: int) -> Array:
    """Normalise each group of consecutive channels of each sample: (N, C, *S) -> (N, C, *S).

    weights: has "<name>.weight" and "<name>.bias", (C,) each. groups: number of groups, a divisor of C.
    """
    shape = (-1, *(1,) * (x.ndim - 2))
    weight, bias = (weights[f"{name}.{part}"].reshape(shape) for part in ("weight", "bias"))
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    axes = tuple(range(2, grouped.ndim))
    center, var = grouped.mean(axis=axes, keepdims=True), grouped.var(axis=axes, keepdims=True)
    return np.asanyarray(((grouped - center) / np.sqrt(var + EPSILON)).reshape(x.shape) * weight + bias)


def channel_shuffle(x: Array, groups: int) -> Array:
    """Take the first channel of each group of consecutive channels, then the second of each: (N, C, *S) -> (N, C, *S).

    groups: number of groups, a divisor of C.

    >>> channel_shuffle(np.arange(6).reshape(1, 6, 1), 2).ravel()
    array([0, 3, 1, 4, 2, 5])
    """
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    return grouped.swapaxes(1, 2).reshape(x.shape)


def fold_groups(x: Array, groups: int) -> Array:
    """Move groups of consecutive channels into the batch: (N, C, *S) -> (N * groups, C / groups, *S)."""
    return x.reshape(x.shape[0] * groups, x.shape[1] // groups, *x.shape[2:])


def unfold_groups(z: Array, groups: int) -> Array:
    """Move the groups of `fold_groups` back: (N * groups, K, *S) -> (N, groups * K, *S)."""
    return z.reshape(z.shape[0] // groups, groups * z.shape[1], *z.shape[2:])


def repeat_channels(x: Array, times: int) -> Array:
    """Repeat each channel `times` times in a row: (N, C, *S) -> (N, C * times, *S)."""
    return np.repeat(x, times, axis=1)


def channel_softmax(s: Array) -> Array:
    """Return the softmax over the channels: (N, C) -> (N, C)."""
    return position_softmax(s[:, None])[:, 0]


def weighted_sum(x: Array, p: Array) -> Array:
    """Return the sum over the channels of x * p: (N, C, *S), (N, C) -> (N, 1, *S)."""
    return np.asanyarray((x * expand(p, x)).sum(axis=1, keepdims=True))


def instance_norm(x: Array) -> Array:
    """Normalise each channel of each sample, without weights and running statistics: (N, C, *S) -> (N, C, *S)."""
    axes = tuple(range(2, x.ndim))
    center, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    return np.asanyarray((x - center) / np.sqrt(var + EPSILON))


def prelu(z: Array, slope: Array) -> Array:
    """Return z where z is positive, and slope * z elsewhere; slope: (1,)."""
    return np.where(z > 0, z, slope * z)


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


def crop(x: Array, size: Sequence[int]) -> Array:
    """Return the first `size` pixels along each spatial axis: (N, C, *S) -> (N, C, *size)."""
    return x[(slice(None), slice(None), *map(slice, size))]


def widen(x: Array, min_size: Sequence[int]) -> Array:
    """Pad each spatial axis to `min_size` by repeating the last pixel: (N, C, *S) -> (N, C, *max(S, min_size))."""
    missing = [(0, max(0, low - n)) for n, low in zip(x.shape[2:], min_size, strict=True)]
    return np.pad(x, [(0, 0), (0, 0), *missing], mode="edge") if any(map(max, missing)) else x


def resize(x: Array, size: Sequence[int], interpolation: str, align_corners: bool) -> Array:
    """Resample the spatial axes to `size`, one axis after the other: (N, C, *S) -> (N, C, *size).

    interpolation: "linear", the mode linear, bilinear or trilinear of torch.nn.functional.interpolate, or "nearest",
    its mode "nearest-exact". align_corners: as there, for "linear". If the size does not change, x itself is returned.
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
    """Return, for each of `new` positions along an axis, the index of the nearest of `old` positions.

    >>> nearest(2, 5)
    array([0, 0, 1, 1, 1])
    """
    return (2 * np.arange(new) + 1) * old // (2 * new)


def taps(old: int, new: int, align_corners: bool) -> tuple[NDArray[np.integer], NDArray[np.integer], Array]:
    """Return the weights of linear interpolation along an axis from `old` to `new` positions, (new,) each.

    They are the indices of the old position before and after each new position, and the distance from the first.
    align_corners: as in `resize`.

    >>> taps(2, 4, align_corners=False)
    (array([0, 0, 0, 1]), array([1, 1, 1, 1]), array([0.  , 0.25, 0.75, 0.  ]))
    """
    i = np.arange(new)
    source = i * ((old - 1) / max(new - 1, 1)) if align_corners else (i + 0.5) * (old / new) - 0.5
    source = np.clip(source, 0, old - 1)
    low = np.floor(source).astype(int)
    return low, np.minimum(low + 1, old - 1), source - low
