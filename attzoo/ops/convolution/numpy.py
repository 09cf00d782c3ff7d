"""Linear maps and convolutions, in NumPy. Arrays are (N, C, *S)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from ...contract import Array


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
